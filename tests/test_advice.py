# SPDX-License-Identifier: Apache-2.0
"""What messages and pages advise can be done: packages that they tell to install are declared, and are not
this project by a name of no index.
"""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for ending in ("*.py", "*.md")
    for path in ROOT.rglob(ending)
    if not {".venv", "build", "demo", "tests", ".git"} & set(path.relative_to(ROOT).parts)
)
NOT_DECLARED = {"atheris", "."}  # of a developer's tool; the clone itself


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.split(r"[\[<>=!~ ]", name)[0].lower() for names in lists for name in names}


def advised(text: str) -> list[str]:
    """The packages of every 'pip install a b c' in a text."""
    found = []
    for words in re.findall(r"pip install ((?:[\w.\[\]'-]+ ?)+)", text):
        for word in words.split():
            if re.fullmatch(r"[a-z][\w-]*|\.", word) is None:
                break
            if word in ("installs", "brings", "and", "or", "to"):
                break
            found.append(word)
    return found


def test_advice_is_found() -> None:
    assert advised("needs it (pip install av); or") == ["av"] and advised(
        "pip install onnx onnxscript`, x"
    ) == ["onnx", "onnxscript"]
    assert sum(len(advised(path.read_text(encoding="utf-8"))) for path in SOURCES) > 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_that_are_advised_are_declared(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "stylesan-xl[" not in text, "no index has this project: name the package"
    for name in advised(text):
        assert name.lower() in declared() | NOT_DECLARED, f"pip install {name}"
