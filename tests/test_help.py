# SPDX-License-Identifier: Apache-2.0
"""--help of every script: what it is for, with commands to copy, and a text for each option."""

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for folder in (".", "lab", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "@click.command" in path.read_text()
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_script_is_for_and_shows_its_commands(name):
    module = importlib.import_module(name)
    command = module.main
    assert isinstance(command, click.Command)
    commands = [line.strip() for line in (module.__doc__ or "").splitlines() if line.strip().startswith(("python ", "make "))]
    output = CliRunner().invoke(command, ["--help"], terminal_width=200, max_content_width=200).output
    assert commands and all(line in output for line in commands)  # as they were written, not run together
    if "." not in name:
        assert [o.opts[0] for o in command.params if isinstance(o, click.Option) and not o.help] == []


def test_the_scripts_are_found():
    assert {"train", "gen_images", "gen_video", "gen_class_samplesheet", "calc_metrics", "convert", "dataset_tool", "demo"} < set(COMMANDS)
