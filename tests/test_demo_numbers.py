# SPDX-License-Identifier: Apache-2.0
"""The demo's numbers are the same on every page, and its options suit the machine."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import demo

ROOT = Path(demo.__file__).resolve().parent


def test_pages_say_the_same_accuracy():
    said = {}
    for page in ("README.md", "docs/reproduce.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        said[page] = re.findall(rf"([\d.]+)% of {demo.GENERATED:,} (?:such |generated )?digits", text)
    assert said["README.md"] == said["docs/reproduce.md"] and len(said["README.md"]) == 1
    assert float(said["README.md"][0]) / 100 >= demo.EXPECTED["accuracy"]


@pytest.mark.parametrize(
    ("fast", "precision"), [(torch.bfloat16, "bf16"), (torch.float16, "bf16"), (None, "fp32")]
)
def test_bf16_is_for_machines_that_have_it(monkeypatch, fast, precision):
    """On a CPU without such units it takes many times as long as float32."""
    monkeypatch.setattr("torch_utils.devices.pick_precision", lambda name, device: fast)
    assert demo.train_options(3.0) == {**demo.TRAIN_OPTIONS, "d-precision": precision, "kimg": 3.0}


def test_files_of_others_are_not_removed(tmp_path):
    (tmp_path / "digits16.zip").write_bytes(b"")
    (tmp_path / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path}"])
    assert result.exit_code == 1 and "because of thesis.txt" in result.output
    assert (tmp_path / "thesis.txt").read_text() == "mine"
