# SPDX-License-Identifier: Apache-2.0
"""FID of two folders of images: our CPU time and memory beside torch-fidelity's, in one run.

    python -m benchmarks.fid                          # 256 images on each side, random weights
    TORCH_FIDELITY=venv/bin/python python -m benchmarks.fid 1000

TORCH_FIDELITY names the Python of an environment with torch-fidelity, which this project does not depend on;
without it, only our numbers are printed. Both use the same random Inception weights: the FIDs agree and mean
nothing else. Each measurement is a process of its own, imports included.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image

OURS = """
import sys
from metrics import detectors, evaluate
from torch_utils import memory
memory.keep_freed_memory()  # as calc_metrics.py does
detector = detectors.load("inception-2015-12-05", inception_path="random")
sets = [evaluate.ImageFiles(path) for path in sys.argv[1:3]]
evaluator = evaluate.Evaluator(sets[1], "fid50k_full", batch=32, covariance="unbiased", cache_dir=sys.argv[4],
                               loaded={"inception-2015-12-05": detector})
print("value", evaluator.compare(sets[0])[0].value)
"""
THEIRS = """
import sys, torch_fidelity
found = torch_fidelity.calculate_metrics(
    input1=sys.argv[1], input2=sys.argv[2], cuda=False, fid=True, batch_size=32,
    feature_extractor_weights_path=sys.argv[3], cache=False, verbose=False, save_cpu_ram=True)
print("value", found["frechet_inception_distance"])
"""


def write_images(folder: Path, count: int, seed: int) -> None:
    """Smooth noise, 32x32 PNG."""
    folder.mkdir()
    random = np.random.RandomState(seed)
    for i in range(count):
        coarse = PIL.Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((32, 32), PIL.Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")


def measure(python: str, code: str, *args: str) -> tuple[float, float, float]:
    """Value, CPU seconds and peak MiB of a process."""
    wrapped = (
        f"{code}\nimport resource\nprint('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([python, "-c", wrapped, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("value", "peak")))
    return float(said["value"]), cpu, float(said["peak"])


def main() -> None:
    """The command line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    other = os.environ.get("TORCH_FIDELITY")
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder) / name for name in ("a", "b")]
        for seed, side in enumerate(sides):
            write_images(side, count, seed)
        weights, cache = str(Path(folder) / "weights.pth"), str(Path(folder) / "cache")
        save = (
            "import sys, torch; from metrics import detectors; "
            "torch.save(detectors.load_inception('random').network.state_dict(), sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", save, weights], check=True)
        args = (*map(str, sides), weights, cache)
        runs = {"ours": measure(sys.executable, OURS, *args)}
        if other:
            runs["torch-fidelity"] = measure(other, THEIRS, *args)
    print(f"{count} images on each side    FID (n - 1)    CPU seconds    peak MiB")
    for name, (value, cpu, peak) in runs.items():
        print(f"{name:22s} {value:15.6e} {cpu:14.1f} {peak:11,.0f}")
    if not other:
        print("torch-fidelity: set TORCH_FIDELITY to the Python of an environment that has it")


if __name__ == "__main__":
    main()
