# SPDX-License-Identifier: Apache-2.0
"""Measures which share of a network's images a classifier recognises as the class that was asked for.

    python -m lab.recognition --data=fashion32.zip --test=fashion32-test.zip NETWORK [NETWORK ...]
    python -m lab.recognition --data=fashion32.zip --features --generate=1000 NETWORK

The classifier (lab/judge.py) is trained on the images of --data. Prints its accuracy on the images of
--test, or without --test on a tenth of --data that it has not seen, then for every network and class the
share of generated images that it assigns to that class, and the class that it sees most often in the others.
NETWORK is a network file that draws images of the resolution of --data.

With --features it also compares as many images of the network and of --test with as many random ones of
--data: the Frechet distance between lite0 features, recall, and coverage (Naeem et al. 2020, 5 neighbours).
They depend on the number of images: compare those of a network with those of --test beside them.
"""

from __future__ import annotations

import click
import numpy as np
import torch
from torch import Tensor

from lab.judge import Judge
from lab.projected import generate
from metrics import detectors
from metrics.fid import frechet_distance
from metrics.precision_recall import prdc
from metrics.statistics import Moments
from training.data.dataset import ImageDataset
from training.networks.reader import load as load_generator


def read(path: str, channels: int | None) -> tuple[Tensor, Tensor, list[str]]:
    """Return uint8 images [N, C, R, R], labels int64 [N], and a name for each class.

    Args:
        path: A data set with labels.
        channels: C; None = those of the data set.

    Raises:
        ValueError: The data set cannot be read, or has no labels.
    """
    dataset = ImageDataset(path, use_labels=True, channels=channels)
    assert dataset.labels is not None
    pixels = torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))]))
    names = dataset.class_names or [str(i) for i in range(dataset.label_dim)]
    return pixels, torch.from_numpy(dataset.labels).long(), list(names)


def confusion(seen: Tensor, asked: Tensor, classes: int) -> Tensor:
    """Return the shares [classes asked for, classes seen] of int64 [N] each. Rows without images are 0."""
    counts = torch.bincount(asked * classes + seen, minlength=classes * classes)
    table = counts.reshape(classes, classes).double()
    return table / table.sum(1, keepdim=True).clamp(min=1)


def lines(table: Tensor, names: list[str]) -> list[str]:
    """Return a line for each class of a confusion table, as `confusion` returns it."""
    width = max(map(len, names))
    found = []
    for i, name in enumerate(names):
        others = table[i].clone()
        others[i] = 0
        most = int(others.argmax())
        rest = f", {others[most]:.1%} seen as {names[most]}" if others[most] > 0 else ""
        found.append(f"  {name:{width}}  {table[i, i]:6.1%}{rest}")
    return found


class Comparison:
    """Compares lite0 features of images with those of random images of a data set.

    Args:
        pixels: The data set, uint8 [N, C, R, R].
        count: Images on each side.
    """

    def __init__(self, pixels: Tensor, count: int) -> None:
        self.count, self.detector = count, detectors.load_lite0()
        self.real = self._features(pixels)

    def _features(self, pixels: Tensor) -> np.ndarray:
        picked = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[: self.count]
        parts = [self.detector(part)["features"].numpy() for part in torch.split(pixels[picked], 100)]
        return np.concatenate(parts)

    def line(self, pixels: Tensor) -> str:
        """Return the values of `count` random images of uint8 [N, C, R, R] in one line."""
        found = self._features(pixels)
        mine, theirs = _moments(found), _moments(self.real)
        distance = frechet_distance(mine.mean, mine.covariance, theirs.mean, theirs.covariance)
        _, recall, _, coverage = prdc(self.real, found)
        return f"  {len(found)} images: fd_lite0 {distance:.1f}, recall {recall:.3f}, coverage {coverage:.3f}"


def _moments(features: np.ndarray) -> Moments:
    found = Moments(features.shape[1])
    found.append(features)
    return found


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--data", required=True, help="Data set with labels that the classifier is trained on.")
@click.option("--test", help="Data set with labels on which the classifier is tested.")
@click.option("--generate", "count", default=2000, show_default=True, help="Images per network.")
@click.option("--features", is_flag=True, help="Also compare lite0 features.")
@click.option("--epochs", default=4, show_default=True, help="Passes of the classifier over the images.")
@click.argument("networks", nargs=-1, required=True)
def main(
    data: str, test: str | None, count: int, features: bool, epochs: int, networks: tuple[str, ...]
) -> None:
    """Train the classifier, test it, and print a table for each network."""
    try:
        generators = {path: load_generator(path) for path in networks}
        channels = {G.img_channels for G in generators.values()}
        if len(channels) > 1:
            raise ValueError("the networks draw images of different channels: give them one by one")
        pixels, labels, names = read(data, channels.pop())
        for path, G in generators.items():
            if (G.c_dim, G.img_resolution) != (len(names), pixels.shape[2]):
                raise ValueError(
                    f"{path} draws {G.c_dim} classes at {G.img_resolution} pixels, and --data={data} has "
                    f"{len(names)} at {pixels.shape[2]}"
                )
        held_out = None if test is None else read(test, pixels.shape[1])
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    judge = Judge(pixels, labels, len(names), epochs)
    comparison = Comparison(pixels, count) if features else None
    if held_out is None:
        click.echo(f"The classifier is right for {judge.held_out_accuracy:.1%} of held-out images of {data}.")
    else:
        seen = judge.classes_of(held_out[0])
        table = confusion(seen, held_out[1], len(names))
        right = (seen == held_out[1]).double().mean()
        click.echo("\n".join([f"{test}: {right:.1%} of {len(held_out[0])} recognised", *lines(table, names)]))
        if comparison is not None:
            click.echo(comparison.line(held_out[0]))
    for path, G in generators.items():
        drawn, asked = generate(G, count)
        assert asked is not None
        seen = judge.classes_of(drawn)
        table = confusion(seen, asked, len(names))
        right = (seen == asked).double().mean()
        head = f"{path}: {right:.1%} of {count} recognised, {table.diagonal().min():.1%} in the worst class"
        click.echo("\n".join([head, *lines(table, names)]))
        if comparison is not None:
            click.echo(comparison.line(drawn))


if __name__ == "__main__":
    main()
