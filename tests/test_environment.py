# SPDX-License-Identifier: Apache-2.0
"""pyproject.toml and environment.yml ask for the same packages."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def split(requirement: str) -> tuple[str, str]:
    match = re.match(r"([A-Za-z0-9_.-]+)(.*)", requirement)
    assert match
    return match.group(1).lower(), match.group(2)


def test_environment_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(split(r) for r in project["dependencies"] + project["optional-dependencies"]["app"])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    plain = [r for r in conda if isinstance(r, str)] + next(r["pip"] for r in conda if isinstance(r, dict))
    found = dict(split(r) for r in plain)
    python = found.pop("python")
    found.pop("pip")
    assert found == wanted
    assert python.startswith(project["requires-python"])


def test_the_packages_the_project_is_known_for_are_asked_for():
    conda = (ROOT / "environment.yml").read_text()
    for name in ("torch", "timm", "ninja", "click", "pillow", "scipy"):
        assert re.search(rf"- {name}[>=<]", conda)
