# SPDX-License-Identifier: Apache-2.0
"""Measures the noise of class directions: the gradient that they get with independent and with equal classes.

    python -m lab.noise --data=data/fashion16.zip

The direction of a class gets a gradient from the real and the generated images of that class in the batch.
Published training draws their classes independently, so that their numbers differ, and the mean feature does
not cancel. With train.py --match-classes they are equal. Generated images are other images of the data set
with noise, weights are those at the start of training. Prints, for every batch size, the signal (the squared
length of the mean gradient, without bias), the variance and their quotient.
"""

from __future__ import annotations

import click
import numpy as np
import torch
from torch import Tensor

from dnnlib import util
from torch_utils import features, images
from training import losses
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator

NOISE = 0.1  # standard deviation of what is added to generated images, in [-1, 1]


def signal_and_variance(gradients: Tensor) -> tuple[float, float]:
    """Return |E g|^2 (unbiased) and the total variance of gradients [T, ...] of T batches."""
    count = len(gradients)
    pairs = gradients.sum(0).square() - gradients.square().sum(0)  # of different batches: no bias
    return float(pairs.sum() / (count * (count - 1))), float(gradients.var(0).sum())


class Source:
    """Draws batches of a data set with labels.

    Args:
        dataset: its images and labels.
        seed: of all draws.
    """

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        assert dataset.labels is not None
        self.dataset, self.labels = dataset, dataset.labels
        self.random = np.random.RandomState(seed)

    def classes(self, count: int) -> np.ndarray:
        """Draw labels as often as the data set has them."""
        return self.labels[self.random.randint(len(self.labels), size=count)]

    def images(self, classes: np.ndarray, noise: float = 0.0) -> Tensor:
        """Draw an image of each class, [N, 3, R, R] in [-1, 1]."""
        chosen = [self.random.choice(np.flatnonzero(self.labels == c)) for c in classes]
        pixels = torch.stack([torch.from_numpy(self.dataset[i][0].copy()) for i in chosen])
        x = images.to_rgb(images.to_float(pixels))
        added = torch.from_numpy(self.random.standard_normal(x.shape)).float()
        return (x + noise * added).clamp(-1, 1)


def gradient(D: ProjectedDiscriminator, source: Source, batch: int, matched: bool) -> Tensor:
    """Return the gradient of the directions of all heads in one discriminator step, [classes, width]."""
    rows = [p for name, p in D.trainable_parameters().items() if name.endswith("embed.weight")]
    real_classes = source.classes(batch)
    fake_classes = real_classes if matched else source.classes(batch)
    terms = []
    for classes, real in ((real_classes, True), (fake_classes, False)):
        logits = D(source.images(classes, 0.0 if real else NOISE), torch.from_numpy(classes).long())
        terms.append(losses.discriminator(logits, real).dir)
    return torch.cat(torch.autograd.grad(terms[0] + terms[1], rows), dim=1)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--data", required=True, help="Data set with labels.")
@click.option("--batches", default=24, show_default=True, type=click.IntRange(2), help="Per measurement.")
@click.option("--sizes", default="16,64", show_default=True, help="Batch sizes.")
@click.option("--seed", default=0, show_default=True)
def main(data: str, batches: int, sizes: str, seed: int) -> None:
    """Print a line per batch size and way to draw the classes."""
    try:
        dataset, counts = ImageDataset(data, use_labels=True), util.parse_int_list(sizes)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    D = ProjectedDiscriminator(
        [features.load()], dataset.label_dim, dataset.resolution, feature_size=64, proj_channels=16,
        head_channels=16, seed=seed,
    )  # fmt: skip
    for size in counts:
        for matched in (False, True):
            source = Source(dataset, seed)
            found = torch.stack([gradient(D, source, size, matched) for _ in range(batches)])
            signal, variance = signal_and_variance(found)
            click.echo(
                f"batch {size}, {'equal' if matched else 'independent'} classes: signal {signal:.3g}, "
                f"variance {variance:.3g}, quotient {signal / variance:.3f}"
            )


if __name__ == "__main__":
    main()
