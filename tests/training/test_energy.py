# SPDX-License-Identifier: Apache-2.0
"""The energy distance between the shapes of generated and real images of a class."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training.test_losses import batch, make_state
from training import energy, steps
from training.config import LossConfig


def reals(*classes: torch.Tensor) -> energy.Reals:
    """The real images of each class, [K, C, R, R] in [-1, 1]."""
    shapes = [energy._shapes(pixels) for pixels in classes]
    return energy.Reals(torch.stack(shapes), torch.stack([energy._distances(x, x).mean() for x in shapes]))


def test_it_is_zero_for_equal_distributions_only():
    generator = torch.Generator().manual_seed(0)

    def draw(spread, mean=0.0, count=2000):
        return mean + spread * torch.randn(count, 1, 4, 4, generator=generator)

    base = torch.randn(1, 1, 4, 4, generator=generator)
    real = reals(draw(0.5, base))
    same, alike, other = (
        energy.distance(x, None, real) for x in (draw(0.5, base), draw(0.1, base), draw(0.5, -base))
    )
    assert abs(same) < 0.01 and alike > 0.05 and other > 1
    brighter = energy.distance(3 * draw(0.5, base) + 1, None, real)
    assert abs(brighter) < 0.01, "shapes only"


def test_it_compares_images_of_a_class_and_group():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, 64, 64, generator=generator)
    y = (
        torch.randn(3, 5, 3, 64, 64, generator=generator)
        + 3 * torch.randn(1, 3, 64, 64, generator=generator)
        + 1
    )
    labels, real = torch.arange(16) % 3, reals(*y)
    whole = energy.distance(x, labels, real)
    halves = [energy.distance(x[i : i + 8], labels[i : i + 8], real) for i in (0, 8)]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    alone = energy.Reals(real.shapes[:1].expand(16, -1, -1), real.spread[:1].expand(16))
    assert energy.distance(x, torch.arange(16), alone) == 0, "no pairs"

    def shapes(v):
        w = v.double().unflatten(-1, (32, 2)).mean(dim=-1).unflatten(-2, (32, 2)).mean(dim=-2).flatten(-3)
        return torch.nn.functional.normalize(w - w.mean(dim=-1, keepdim=True), dim=-1)

    u, v = shapes(x), shapes(y)
    by_hand = []
    for first in (0, 8):
        terms = []
        for i in range(first, first + 8):
            for j in range(first, i):
                if labels[i] == labels[j]:
                    own = v[labels[i]]
                    to_reals = (u[i] - own).norm(dim=1).mean() + (u[j] - own).norm(dim=1).mean()
                    spread = (own[:, None] - own).norm(dim=2).mean()
                    terms.append(to_reals - (u[i] - u[j]).norm() - spread)
        by_hand.append(torch.stack(terms).mean())
    assert whole > 0.5
    torch.testing.assert_close(whole.double(), torch.stack(by_hand).mean(), rtol=0, atol=1e-5)


def test_blank_images_are_alike_and_transparent_pixels_have_no_colour():
    generator = torch.Generator().manual_seed(0)
    blank, real = torch.ones(8, 1, 8, 8, requires_grad=True), torch.randn(64, 1, 8, 8, generator=generator)
    alike = energy.distance(blank, None, reals(real))
    varied = energy.distance(torch.randn(8, 1, 8, 8, generator=generator), None, reals(real))
    assert alike > 0.3 > abs(varied)
    alike.backward()
    assert blank.grad.isfinite().all()
    visible = (torch.rand(1, 1, 8, 8, generator=generator) > 0.5).float().expand(8, 1, 8, 8)
    colours = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2)]
    shown = torch.randn(8, 3, 8, 8, generator=generator)
    a, b = (torch.cat([torch.where(visible > 0, shown, c), 2 * visible - 1], dim=1) for c in colours)
    torch.testing.assert_close(
        energy.distance(a, None, reals(b)), energy.distance(a, None, reals(a)), rtol=0, atol=1e-6
    )


def dataset(labels: list[int] | None, images: int, classes: int = 3) -> SimpleNamespace:
    """A data set whose images have their index as their first pixel."""

    class Images(SimpleNamespace):
        def __len__(self):
            return images

        def __getitem__(self, index):
            pixels = np.zeros((1, 4, 4), dtype=np.uint8)
            pixels[0, 0, 0], pixels[0, 1, 1] = index, 255 - index
            return pixels, -1 if labels is None else labels[index]

    return Images(
        labels=None if labels is None else np.array(labels),
        label_dim=0 if labels is None else classes,
        image_shape=[1, 4, 4],
    )


def test_real_images_are_chosen_within_classes_and_by_the_seed(monkeypatch):
    monkeypatch.setattr(energy, "MOST", 6)
    labels = [0] * 20 + [2] * 2  # class 1 has none
    chosen = energy.choose(dataset(labels, 22), seed=3)
    whole = [
        energy._shapes(torch.from_numpy(dataset(labels, 22)[i][0])[None] / 127.5 - 1)[0] for i in range(22)
    ]
    members = [
        [next(i for i, other in enumerate(whole) if torch.allclose(other, row, atol=1e-5)) for row in rows]
        for rows in chosen.shapes[[0, 2]]
    ]
    assert len(set(members[0])) == 6 and max(members[0]) < 20
    assert sorted(members[1]) == [20] * 3 + [21] * 3, "a small class shows its images repeatedly"
    assert chosen.spread[1] == 0 and chosen.spread[0] > 0
    torch.testing.assert_close(chosen.spread[2], (whole[20] - whole[21]).norm() / 2)
    again, other = (energy.choose(dataset(labels, 22), seed) for seed in (3, 4))
    assert torch.equal(again.shapes, chosen.shapes) and not torch.equal(other.shapes, chosen.shapes)
    assert energy.choose(dataset(None, 22), 0).shapes.shape == (1, 6, 16)


def test_the_choice_of_real_images_can_be_stopped_between_classes():
    pauses = []
    energy.choose(dataset([0, 1, 2] * 2, 6), 0, pause=lambda: pauses.append(None))
    assert len(pauses) == 3


@pytest.mark.parametrize(("classes", "each"), [(1, 128), (10, 128), (64, 64), (4096, 8)])
def test_many_classes_have_fewer_real_images_each(classes, each):
    labels = [i % classes for i in range(300)]
    assert energy.choose(dataset(labels, 200, classes), 0).shapes.shape == (classes, each, 16)


def test_generator_steps_add_the_energy_distance_to_real_images_of_the_same_classes(monkeypatch):
    fake, real = batch(0)
    chosen = reals(*torch.rand(2, 4, 3, 16, 16))
    seen = []

    def term(images, labels, found):
        seen.append((labels, found))
        return images.square().mean()

    monkeypatch.setattr(energy, "distance", term)
    gradients = {}

    def keep(params, *_):
        gradients[weight] = [p.grad.clone() for p in params.values()]

    monkeypatch.setattr(steps, "apply_gradients", keep)
    for weight, compared in ((0.0, None), (3.0, chosen)):
        state = make_state()
        steps.g_step(state, [fake], LossConfig(energy_weight=weight), 0.0, None, [real], compared)
        assert state.D.passes == 1, "the logits of real images are not needed"
    term(state.G(fake.z, fake.labels), real.labels, chosen).backward()
    added = [p.grad - g for p, g in zip(state.g_params.values(), gradients[3.0], strict=True)]
    for both, without, alone in zip(gradients[3.0], gradients[0.0], added, strict=True):
        torch.testing.assert_close(both, without + 3 * alone, rtol=1e-4, atol=1e-4)
    seen.clear()
    other = fake._replace(labels=1 - fake.labels)
    steps.g_step(make_state(), [other], LossConfig(energy_weight=weight), 0.0, None, [real], chosen)
    ((labels, found),) = seen
    assert found is chosen and torch.equal(labels, real.labels)
