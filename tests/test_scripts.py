# SPDX-License-Identifier: Apache-2.0
"""What every script has: --help with commands to copy and a text for each option, one line when memory runs
out.
"""

import importlib
import re
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
POINTERS = ("legacy", "visualizer")  # published names that only point to another script
COMMANDS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for folder in (".", "lab", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if re.search(r"@click\.(command|group)", path.read_text()) and path.stem not in POINTERS
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_script_is_for_and_shows_its_commands(name):
    module = importlib.import_module(name)
    command = module.main
    assert isinstance(command, click.Command)
    commands = [
        line.strip()
        for line in (module.__doc__ or "").splitlines()
        if line.strip().startswith(("python ", "make "))
    ]
    output = CliRunner().invoke(command, ["--help"], terminal_width=200, max_content_width=200).output
    assert commands and all(line in output for line in commands)  # as they were written, not run together
    if "." not in name:
        assert [o.opts[0] for o in command.params if isinstance(o, click.Option) and not o.help] == []


@pytest.mark.parametrize(
    ("name", "arguments", "remedy"),
    [
        (
            "gen_images",
            ["--seeds=0", "--outdir=o", "--batch=7"],
            "lower --batch (now 7), or use --device=cpu",
        ),
        ("gen_video", ["--seeds=0", "--output=o.gif"], "lower --batch (now 16), or use --device=cpu"),
        (
            "gen_class_samplesheet",
            ["--classes=0", "--outdir=o", "--batch-gpu=5"],
            "lower --batch-gpu (now 5), or use --device=cpu",
        ),
        ("calc_metrics", ["--batch=3"], "lower --batch (now 3), or use --device=cpu"),
    ],
)
def test_out_of_memory_names_the_flag_to_lower(name, arguments, remedy, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")

    monkeypatch.setattr("generation.render.load_network", exhausted)
    result = CliRunner().invoke(
        importlib.import_module(name).main, ["--network=x.pkl", "--device=cpu", *arguments]
    )
    assert (result.exit_code, result.output) == (
        1, f"Error: out of memory on cpu: {remedy} (CUDA out of memory. Tried to allocate 2.00 GiB. More of "
           "it.)\n"
    )  # fmt: skip


def test_the_scripts_are_found():
    assert {
        "train",
        "gen_images",
        "gen_video",
        "gen_class_samplesheet",
        "calc_metrics",
        "convert",
        "dataset_tool",
        "demo",
    } < set(COMMANDS)
