# SPDX-License-Identifier: Apache-2.0
"""What the scripts import: torch and other large packages take seconds."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every script, and the commands of `python -m`.
SCRIPTS = (
    *sorted({path.stem for path in ROOT.glob("*.py")} - {"legacy", "visualizer"}),  # they only name others
    *("generation.centroids", "torch_utils.ops.__main__"),
)
# What --help may load, besides the standard library and this project.
ALLOWED = {"click", "filelock", "numpy", "PIL"}
PROGRAM = """
import importlib, json, runpy, sys
import click.testing
before = set(sys.modules)
for name in sys.argv[1:]:
    result = click.testing.CliRunner().invoke(importlib.import_module(name).main, ["--help"])
    assert result.exit_code == 0 and "--help" in result.output, (name, result.output)
sys.argv = ["persistence", "--help"]
try:
    runpy.run_module("torch_utils.persistence", run_name="__main__")
except SystemExit as end:
    assert not end.code
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_help_loads_neither_torch_nor_other_large_packages() -> None:
    command = [sys.executable, "-c", PROGRAM, *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    third_party = packages - ours - set(sys.stdlib_module_names)
    assert {name for name in third_party if not name.startswith("_")} <= ALLOWED, sorted(third_party)


# Packages that no picture needs, and that take longer to import than a small one to compute.
UNUSED = {
    *("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "sympy", "triton"),
    *("scipy", "timm", "torchvision", "matplotlib", "huggingface_hub", "torch.distributed.elastic"),
}
PICTURE = """
import json, sys
import torch
before = set(sys.modules)
import gen_images
gen_images.main(sys.argv[1:], standalone_mode=False)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_a_picture_needs_neither_torchs_compiler_nor_scipy(toy_networks: Path, tmp_path: Path) -> None:
    flags = [f"--network={toy_networks / 'cond.pkl'}", "--seeds=0", f"--outdir={tmp_path}", "--device=cpu"]
    done = subprocess.run(
        [sys.executable, "-c", PICTURE, *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "seed0000.png").is_file()
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "training.generator" in loaded
    assert not UNUSED & set(loaded), sorted(UNUSED & set(loaded))
