# SPDX-License-Identifier: Apache-2.0
"""--help of the scripts does not import torch, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("convert", "dataset_tool", "gen_class_samplesheet", "gen_images", "gen_video")
# What --help may load, besides the standard library and this project.
ALLOWED = {"click", "filelock", "numpy", "PIL"}
PROGRAM = """
import importlib, json, sys
import click.testing
before = set(sys.modules)
for name in sys.argv[1:]:
    result = click.testing.CliRunner().invoke(importlib.import_module(name).main, ["--help"])
    assert result.exit_code == 0 and "--help" in result.output, (name, result.output)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_help_loads_neither_torch_nor_other_large_packages() -> None:
    command = [sys.executable, "-c", PROGRAM, *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in json.loads(done.stdout)}
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    third_party = packages - ours - set(sys.stdlib_module_names)
    assert {name for name in third_party if not name.startswith("_")} <= ALLOWED, sorted(third_party)
