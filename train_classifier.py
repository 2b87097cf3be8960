# SPDX-License-Identifier: Apache-2.0
"""Train a classifier of a data set's own classes, for train.py's classifier guidance.

    python train_classifier.py --data=flowers64.zip --dest=flowers.safetensors
    python train.py ... --cls_weight=8 --cls_model=tf_efficientnet_lite0 --cls_weights=flowers.safetensors

The classifier is a pretrained timm network whose last layer is replaced: a logistic regression on its
features, which takes about as long as running the network over the images once. One image in five is held out
to measure the accuracy and to choose the penalty. DEST.classes.json has the class names, and train.py finds
it there.

The guidance sees generated images at --size pixels. For small images, 64 and not the network's own 224 is
eight times as fast and nearly as accurate.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from dnnlib import outputs
from dnnlib.one_path import OnePath
from generation import commands

MODEL = "tf_efficientnet_lite0"
SIZES = (32, 1024)
GUIDED_RESOLUTION = 64  # StyleGAN-XL trains smaller stages without guidance


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--data", cls=OnePath, required=True, metavar="ZIP|DIR", help="Data set with labels, of any resolution."
)
@click.option("--dest", required=True, metavar="FILE", help="Weights file to write: FILE.safetensors.")
@click.option(
    "--model", default=MODEL, show_default=True, help="timm network with one linear layer at its end."
)
@click.option("--weights", metavar="FILE", help="Its pretrained weights; if not set, found as train.py does.")
@click.option(
    "--size", type=click.IntRange(*SIZES),
    help="Pixels at which the network sees the images. If not set: its own size, such as 224.",
)  # fmt: skip
@click.option(
    "--max-per-class", type=click.IntRange(min=2), default=500, show_default=True,
    help="Images of every class to use, chosen at random.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time.")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Decoding threads.")
@click.option(
    "--seed", type=click.IntRange(0, commands.MAX_SEED), default=0, show_default=True, help="Random seed."
)
@commands.device_option
@commands.one_line_errors
def main(
    data: str, dest: str, model: str, weights: str | None, size: int | None, max_per_class: int, batch: int,
    workers: int, seed: int, device: str,
) -> None:  # fmt: skip
    """Parse and check the command line, compute features, fit the layer and write it."""
    import torch

    from torch_utils import features, timm_weights
    from torch_utils.devices import use_device
    from training.data.dataset import ImageDataset, Unlabelled
    from training.networks import classifier

    outputs.check_output("--dest", dest, inputs={"--data": data, "--weights": weights})
    if Path(dest).suffix != ".safetensors":
        raise ValueError(f"--dest={dest}: end the name with .safetensors")
    if Path(dest).exists() and not Path(f"{dest}.classes.json").exists():
        raise ValueError(
            f"--dest={dest} is no classifier of this command, such as a network, and would be replaced: "
            "choose another name"
        )
    try:
        dataset = ImageDataset(data, use_labels=True)
    except Unlabelled as error:
        raise ValueError(f"{error.problem}: prepare the data with one sub-folder per class") from None
    labels, classes = dataset.labels, dataset.label_dim
    if labels is None or classes < 2:
        raise ValueError(f"--data={data} has {classes or 'no'} classes: a classifier needs at least two")
    fitted, held_out = classifier.chosen(labels, classes, max_per_class, seed)
    network = features.classifier(model, weights, size=size).to(use_device(device))
    classifier.layer_name(network)
    Path(dest).parent.mkdir(parents=True, exist_ok=True)  # a mistake in --dest ends here, not after the work
    with commands.progress_bar(len(fitted) + len(held_out), "Features") as done:
        x, held_x = (
            classifier.compute_features(network, dataset, part, batch, workers, done)
            for part in (fitted, held_out)
        )
    head = classifier.fit_head(
        x, torch.from_numpy(labels[fitted]), held_x, torch.from_numpy(labels[held_out]), classes
    )
    names = dataset.class_names or [str(c) for c in range(classes)]
    about = {
        "model": model,
        timm_weights.SIZE_ENTRY: network.input_size,
        "weights_sha256": network.sha256,
        "data": dataset.name,
        "images": len(fitted) + len(held_out),
        "held_out": len(held_out),
        "accuracy": head.accuracy,
        "penalty": head.penalty,
        "seed": seed,
    }
    classifier.write(Path(dest), network, head, names, about)
    worst = min(range(classes), key=head.per_class.__getitem__)
    click.echo(
        f"{head.accuracy:.1%} of {len(held_out):,} held-out images recognised; the worst class is "
        f"{json.dumps(names[worst])} with {head.per_class[worst]:.0%}\n"
        f"Use it with: train.py --cls_weight=8 --cls_model={model} --cls_weights={Path(dest)}"
    )
    if not dataset.class_names:
        click.echo("The data set has no class names: train.py assumes the same order of classes")
    if dataset.resolution < GUIDED_RESOLUTION:
        click.echo(
            f"The images have {dataset.resolution} pixels. StyleGAN-XL uses guidance from {GUIDED_RESOLUTION}"
            " on; measured at 16 pixels, it did not help (docs/training.md, Classifier guidance)"
        )


if __name__ == "__main__":
    main()
