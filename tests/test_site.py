# SPDX-License-Identifier: Apache-2.0
"""mkdocs.yml: every page of docs/ is in the navigation, and the API pages name modules that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def pages(entry: str | list | dict) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages(part)


def test_navigation_has_every_page_once():
    found = sorted(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert found == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_api_pages_name_modules_and_every_package_has_one():
    for page in (DOCS / "api").glob("*.md"):
        names = re.findall(r"^::: (\S+)$", page.read_text(), re.M)
        assert names or page.name == "index.md"
        for name in names:
            path = ROOT.joinpath(*name.split("."))
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name
            assert name.split(".")[0] == page.stem
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "tests",
        "benchmarks",
        "lab",
        "tools",
    }
    assert packages == {page.stem for page in (DOCS / "api").glob("*.md")} - {"index"}
