# SPDX-License-Identifier: Apache-2.0
"""pyproject.toml, environment.yml and the lock file of the demo agree; the version has one source."""

import ast
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = ("app", "demo", "tensorboard", "video")  # the extras that the scripts of a clone use
TOOLS = {"pip", "cxx-compiler", "make"}  # of environment.yml, not Python packages


def requirements(extras: tuple[str, ...]) -> dict[str, Requirement]:
    """Of the project with some of its extras, by name."""
    texts = PROJECT["dependencies"] + [r for e in extras for r in PROJECT["optional-dependencies"][e]]
    return {r.name.lower(): r for r in map(Requirement, texts)}


def test_environment_and_pyproject_agree():
    wanted = {name: str(r.specifier) for name, r in requirements(SCRIPTS).items()}
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    plain = [r for r in conda if isinstance(r, str)] + next(r["pip"] for r in conda if isinstance(r, dict))
    found = {r.name.lower(): str(r.specifier) for r in map(Requirement, plain)}
    assert found.keys() >= TOOLS
    python = found.pop("python")
    assert {name: found[name] for name in found.keys() - TOOLS} == wanted
    assert PROJECT["requires-python"] in python.split(",")


def test_the_lock_file_has_exact_versions_with_hashes_of_all_that_the_demo_needs():
    text = (ROOT / "requirements" / "demo.txt").read_text()
    assert "://" not in text and "--index" not in text
    entries = re.findall(r"^([a-z0-9.-]+)==(\S+).*?((?:\\\n    --hash=sha256:[0-9a-f]{64} ?)+)", text, re.M)
    pinned: dict[str, list[str]] = {}
    for name, version, _hashes in entries:
        pinned.setdefault(name, []).append(version)
    assert len(entries) == len(re.findall("==[0-9]", re.sub(r";.*", "", text)))  # none without a hash
    for name, requirement in requirements(("app", "demo")).items():
        assert pinned.get(name), f"{name} is not in the lock file"
        assert all(requirement.specifier.contains(version) for version in pinned[name]), requirement


def test_known_packages_are_in_the_environment():
    conda = (ROOT / "environment.yml").read_text()
    for name in ("torch", "timm", "ninja", "click", "pillow", "scipy"):
        assert re.search(rf"- {name}[>=<]", conda)


def test_the_version_is_that_of_san_and_of_the_citation_and_has_an_entry_in_the_changelog():
    tree = ast.parse((ROOT / "san" / "__init__.py").read_text())
    (version,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    )
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_issue_templates_ask_for_the_doctor():
    for name in ("bug_report", "measurement"):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
        labels = [part["attributes"]["label"] for part in form["body"]]
        assert any("python -m torch_utils.ops doctor" in label for label in labels)


def test_the_workflow_runs_the_readmes_test_command():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"run": "make test"} in workflow["jobs"]["test"]["steps"]
