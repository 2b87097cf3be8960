# SPDX-License-Identifier: Apache-2.0
"""FID of two folders of images: our CPU time and memory beside torch-fidelity's, in one run.

    python -m benchmarks.fid                          # 256 images on each side, random weights
    TORCH_FIDELITY=venv/bin/python python -m benchmarks.fid 1000 3

The arguments are the number of images and of repetitions. Runs of both programs alternate, and the run with
the least CPU time of each counts. TORCH_FIDELITY names the Python of an environment with torch-fidelity,
which this project does not depend on; without it, only our numbers are printed. Both use the same random
Inception weights, those of rfid50k_full: the distances agree and mean nothing else. Each measurement is a
process of its own on one thread, imports included.
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
from metrics import evaluate
from torch_utils import memory
memory.keep_freed_memory()  # as calc_metrics.py does
sets = [evaluate.ImageFiles(path) for path in sys.argv[1:3]]
evaluator = evaluate.Evaluator(
    sets[1], "rfid50k_full", batch=32, covariance="unbiased", cache_dir=sys.argv[4])
print("value", evaluator.compare(sets[0])[0].value)
"""
THEIRS = """
import sys, torch_fidelity
found = torch_fidelity.calculate_metrics(
    input1=sys.argv[1], input2=sys.argv[2], cuda=False, fid=True, batch_size=32,
    feature_extractor_weights_path=sys.argv[3], cache=False, verbose=False, save_cpu_ram=True)
print("value", found["frechet_inception_distance"])
"""
SAVE = """
import sys, torch
from metrics import inception
torch.manual_seed(0)
network = inception.InceptionV3()
inception.randomize_(network, 0)
torch.save(network.state_dict(), sys.argv[1])
"""

Found = tuple[float, float, float]  # value, CPU seconds, peak MiB


def write_images(folder: Path, count: int, seed: int) -> None:
    """Smooth noise, 32x32 PNG."""
    folder.mkdir()
    random = np.random.RandomState(seed)
    for i in range(count):
        coarse = PIL.Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((32, 32), PIL.Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")


def measure(python: str, code: str, *args: str) -> Found:
    """Value, CPU seconds and peak MiB of a process with one thread."""
    wrapped = (
        f"{code}\nimport resource\nprint('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [python, "-c", wrapped, *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **threads},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("value", "peak")))
    return float(said["value"]), cpu, float(said["peak"])


def main() -> None:
    """The command line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    other = os.environ.get("TORCH_FIDELITY")
    programs = {"ours": (sys.executable, OURS), **({"torch-fidelity": (other, THEIRS)} if other else {})}
    runs: dict[str, list[Found]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder) / name for name in ("a", "b")]
        for seed, side in enumerate(sides):
            write_images(side, count, seed)
        weights = str(Path(folder) / "weights.pth")
        subprocess.run([sys.executable, "-c", SAVE, weights], check=True)
        for repeat in range(repeats):
            cache = str(Path(folder) / f"cache{repeat}")
            for name, (python, code) in programs.items():
                runs[name].append(measure(python, code, *map(str, sides), weights, cache))
    print(f"{count} images on each side    FID (n - 1)    CPU seconds    peak MiB")
    for name, found in runs.items():
        value, cpu, peak = min(found, key=lambda one: one[1])
        print(f"{name:22s} {value:15.6e} {cpu:14.1f} {peak:11,.0f}")
    if not other:
        print("torch-fidelity: set TORCH_FIDELITY to the Python of an environment that has it")


if __name__ == "__main__":
    main()
