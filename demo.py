# SPDX-License-Identifier: Apache-2.0
"""Run the whole project in one command: learn handwritten digits, generate them by class, measure the result.

    make demo                # installs the requirements into .venv, then runs this script
    python demo.py           # in an environment that has them

The script builds a 16x16 data set from scikit-learn's digits (1,797 images of 8x8 pixels in 10 classes), and
trains a small class-conditional StyleSAN-XL on it.

The results are demo/grid.png (a row per digit), training curves, a network pickle, and demo/summary.json with
two measurements: the fraction of 1,000 generated digits that a classifier (logistic regression on the real
digits) assigns to the requested class, and the Frechet distance to the data in EfficientNet-Lite0 features at
the first and last snapshot. Every step is a command of the project, which is printed before it runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from dnnlib import outputs
from dnnlib.util import atomic_write, format_time, sha256_file

if TYPE_CHECKING:
    from training.data.dataset import ImageDataset
    from training.generator import Generator

ROOT = Path(__file__).resolve().parent
GENERATED = 1000
METRIC = "fd_lite0_500"
DATA = "digits16.zip"

EXPECTED = {"accuracy": 0.8, "fd_ratio": 3}  # the demo fails below these

# The method at a size for two CPU cores. The code is the same as for ImageNet.
TRAIN_OPTIONS = {
    "cfg": "stylegan3-t",
    "cond": "True",
    "syn_layers": 5,
    "cmax": 16,
    "w-dim": 128,
    "margin-size": 4,
    "backbones": "tf_efficientnet_lite0",
    "feature-size": 64,
    "proj-channels": 32,
    "head-channels": 32,
    "blur-init-sigma": 0,
    "glr": 0.005,
    "dlr": 0.004,
    "energy-weight": 15,
    "gpus": 1,
    "batch": 16,
    "kimg": 20,
    "tick": 0.5,
    "snap": 5,
    "metrics": METRIC,
    "grid": "10x10",
}


def train_options(kimg: float) -> dict[str, object]:
    """The options of train.py. Without bf16 units, bf16 is much slower than float32 on a CPU."""
    from torch_utils.devices import pick_device, pick_precision

    fast = pick_precision("auto", pick_device("auto")) is not None
    return {**TRAIN_OPTIONS, "d-precision": "bf16" if fast else "fp32", "kimg": kimg}


def is_of_demo(name: str) -> bool:
    """Whether a file or folder in --outdir is one of the demo's, with what is kept beside the data set."""
    from training import run_folder

    results = ("runs", "grid.png", "sheet-grid.png", run_folder.CURVES_FILE, "summary.json")
    return name in results or name.startswith("digits")


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as PNG files, in one folder per class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(target / f"{i:04d}.png")


def run(script: str, *arguments: str) -> None:
    """Run a script of the project as a user would. Stop the demo if it fails."""
    click.secho(f"\n$ python {script} {' '.join(arguments)}", bold=True)
    status = subprocess.run([sys.executable, str(ROOT / script), *arguments], check=False).returncode
    if status:
        raise click.ClickException(f"{script} ended with status {status}; see the messages above")


def class_accuracy(G: Generator, dataset: ImageDataset) -> float:
    """The fraction of generated images that a classifier of real pixels assigns to the requested class."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from torch_utils import images

    real = np.stack([np.asarray(dataset[i][0]) for i in range(len(dataset))])
    judge = LogisticRegression(max_iter=2000).fit(real.reshape(len(real), -1) / 255, dataset.labels)
    labels = torch.arange(GENERATED) % G.c_dim
    z = torch.from_numpy(np.random.RandomState(0).randn(GENERATED, G.z_dim).astype(np.float32))
    with torch.no_grad():
        parts = [images.to_uint8(G(z[i : i + 100], labels[i : i + 100])) for i in range(0, GENERATED, 100)]
    drawn = torch.cat(parts).numpy().reshape(GENERATED, -1) / 255
    return float((judge.predict(drawn) == labels.numpy()).mean())


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--outdir",
    default="demo",
    show_default=True,
    help="Folder for the results. An earlier demo in it is replaced.",
)
@click.option(
    "--kimg",
    type=float,
    default=TRAIN_OPTIONS["kimg"],
    show_default=True,
    help="Training length in thousands of images.",
)
def main(outdir: str, kimg: float) -> None:
    """Run the demo."""
    started = time.monotonic()
    outdir = os.path.expanduser(outdir)
    try:
        outputs.check_output("--outdir", outdir, folder=True)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    out = Path(outdir)
    data = out / DATA
    foreign = sorted(p.name for p in out.iterdir() if not is_of_demo(p.name)) if out.exists() else []
    if foreign:
        raise click.ClickException(
            f"--outdir={outdir} is not empty and not only an earlier demo, because of {foreign[0]}: choose "
            "another folder"
        )
    if out.exists() and any(out.iterdir()) and not data.exists():
        raise click.ClickException(
            f"--outdir={outdir} is not empty and not an earlier demo: choose another folder"
        )
    shutil.rmtree(out, ignore_errors=True)
    write_digits(out / "digits")
    run("dataset_tool.py", f"--source={out / 'digits'}", f"--dest={data}", "--resolution=16x16")
    options = [f"--{name}={value}" for name, value in train_options(kimg).items()]
    run("train.py", f"--outdir={out / 'runs'}", f"--data={data}", *options)
    from training import run_folder
    from training.data.dataset import ImageDataset
    from training.networks.reader import load as load_generator

    (run_dir,) = (out / "runs").iterdir()
    network = run_dir / run_folder.NEWEST_NETWORK
    sheet = [
        f"--network={network}",
        "--classes=0-9",
        "--samples-per-class=16",
        "--grid-width=16",
        f"--outdir={out}",
        "--desc=grid",
    ]
    run("gen_class_samplesheet.py", *sheet)
    (out / "sheet-grid.png").replace(out / "grid.png")
    shutil.copyfile(run_dir / run_folder.CURVES_FILE, out / run_folder.CURVES_FILE)
    scores = run_folder.read_jsonl(run_folder.metric_file(run_dir, METRIC))
    dataset = ImageDataset(str(data), use_labels=True)
    summary = {
        "accuracy": class_accuracy(load_generator(str(network)), dataset),
        "fd_first": scores[0]["value"],
        "fd_last": scores[-1]["value"],
        "seconds": round(time.monotonic() - started, 1),
        "images": run_folder.recorded_nimg(run_dir),
        "network": str(network),
        "network_sha256": sha256_file(network),
        "grid": str(out / "grid.png"),
        "curves": str(out / run_folder.CURVES_FILE),
    }
    with atomic_write(str(out / "summary.json"), "w") as f:
        json.dump(summary, f, indent=2)
    click.echo(
        f"\n{summary['accuracy']:.1%} of {GENERATED} generated digits are recognised as the requested class."
    )
    click.echo(f"{METRIC} fell from {summary['fd_first']:.1f} (first snapshot) to {summary['fd_last']:.1f}.")
    if (
        summary["accuracy"] < EXPECTED["accuracy"]
        or summary["fd_first"] < EXPECTED["fd_ratio"] * summary["fd_last"]
    ):
        raise click.ClickException(
            f"the demo should reach an accuracy of {EXPECTED['accuracy']:.0%} and reduce {METRIC} "
            f"{EXPECTED['fd_ratio']}-fold"
        )
    click.echo(f"It took {format_time(summary['seconds'])}. Look at:")
    for key in ("grid", "curves", "network"):
        click.echo(f"  {key:8s} {summary[key]}")


if __name__ == "__main__":
    main()
