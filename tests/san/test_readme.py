# SPDX-License-Identifier: Apache-2.0
"""The examples in san's docstrings and README, and the tests that its table names."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import san

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "san" / "README.md").read_text()
MODULES = sorted(path.stem for path in (ROOT / "san").glob("*.py") if path.stem != "__init__")
WITH_EXAMPLES = {"convert", "diagnostics", "layers", "objectives", "sona"}  # the public ones


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings(name):
    torch.manual_seed(0)
    module = importlib.import_module(f"san.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0, "the failures are printed above"
    assert (result.attempted > 0) == (name in WITH_EXAMPLES)


def test_the_example_of_sona_runs():
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "SONAHead" in text]
    names: dict = {}
    exec(code, names)
    assert names["fake"].grad.abs().sum() > 0
    weight = names["D"].head.omega.weight
    torch.testing.assert_close(weight.detach().norm(), torch.tensor(1.0))


def test_the_table_names_tests_that_exist():
    (table,) = re.findall(r"^\| Discriminator .*?(?=\n\n)", README, re.DOTALL | re.M)
    rows = table.splitlines()[2:]
    assert len(rows) >= 12
    for row in rows:
        kind, conversion, tests = (cell.strip() for cell in row.strip("|").split(" | "))
        assert kind and conversion
        named = re.findall(r"`(test_\w+\.py)` (`[^`]+`(?:, `[^`]+`)*)", tests)
        assert named, row
        for file, quoted in named:
            text = (ROOT / "tests" / "san" / file).read_text()
            for name in re.findall(r"`([^`]+)`", quoted):
                assert f'"{name}"' in text or f"def {name}(" in text, f"{file} has no {name}"


def test_everything_public_is_documented():
    assert all(getattr(san, name).__doc__ for name in san.__all__ if callable(getattr(san, name)))
    assert (ROOT / "san" / "py.typed").is_file()
