# SPDX-License-Identifier: Apache-2.0
"""Tests mirror the tree, or docs/testing.md names the files that test a module. No test imports another."""

import functools
import re
from pathlib import Path

from tests.sources import ROOT, imported_modules

PACKAGES = ("training", "metrics", "torch_utils", "image_data", "generation")
MODULES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
CLOCKS = re.compile(r"\btime\.(time|monotonic|perf_counter|process_time|thread_time|sleep)(_ns)?\(")


def mirror(module: Path) -> Path:
    """The test file of a module by name."""
    return Path("tests", *module.parent.parts, f"test_{module.name}")


def listed() -> list[tuple[Path, list[Path]]]:
    """The table of docs/testing.md: modules and the files that test them."""
    rows = re.findall(
        r"^\| `((?!tests/)[\w/]+\.py)` \| (.*) \|$", (ROOT / "docs" / "testing.md").read_text(), re.M
    )
    return [
        (Path(module), [Path(name) for name in re.findall(r"`([^`]+)`", tests)]) for module, tests in rows
    ]


@functools.cache
def used(name: str) -> frozenset[str]:
    """Dotted names of what a module of ours imports, packages included."""
    imports: frozenset[str] = frozenset()
    for path in (ROOT / f"{name.replace('.', '/')}.py", ROOT / name.replace(".", "/") / "__init__.py"):
        if name and path.is_file():
            imports |= imported_modules(path)
    return imports | {found.rpartition(".")[0] for found in imports}


def reached(test: Path) -> set[str]:
    """Dotted names of what a test imports, of what that imports, and of what that imports."""
    found = set(used(".".join(test.with_suffix("").parts)))
    for _ in range(2):
        found |= {name for module in found for name in used(module)}
    return found


def test_every_module_has_its_test_file_or_stands_once_in_the_list():
    names = [module for module, _ in listed()]
    assert len(names) == len(set(names)), "a module is listed twice"
    mirrored = {module for module in MODULES if (ROOT / mirror(module)).is_file()}
    missing = sorted(map(str, set(MODULES) - mirrored - set(names)))
    assert not missing, f"neither tests/.../test_NAME.py nor a line in docs/testing.md: {missing}"
    gone = sorted(map(str, set(names) - set(MODULES)))
    assert not gone, f"docs/testing.md lists modules that do not exist: {gone}"


def test_the_listed_files_import_the_module():
    for module, tests in listed():
        assert tests, module
        for test in tests:
            assert test in TESTS, f"{test} of docs/testing.md is not a test file"
            name = ".".join(module.with_suffix("").parts)
            assert name in reached(test), f"docs/testing.md: {test} does not import {module}"


def test_no_test_file_is_imported():
    """What tests share stands in modules that are no tests (tests/support.py and its neighbours)."""
    tests = {".".join(test.with_suffix("").parts) for test in TESTS}
    for path in (ROOT / "tests").rglob("*.py"):
        found = imported_modules(path) & tests
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


# Whose subject is time, or that measure for people and assert nothing of it.
WITH_CLOCKS = {"test_waiting.py", "test_full_size.py", "test_gpu_benchmark.py"}


def test_no_test_reads_the_clock():
    """A busy machine is slow: wait for progress instead (tests/waiting.py)."""
    for path in TESTS:
        assert path.name in WITH_CLOCKS or not CLOCKS.findall((ROOT / path).read_text()), path
