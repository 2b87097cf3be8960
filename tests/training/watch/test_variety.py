# SPDX-License-Identifier: Apache-2.0
"""Class variety: the spreads, what is chosen, and that measuring leaves no trace."""

import json

import numpy as np
import pytest
import torch

from tests.toy_data import write_dataset
from torch_utils import features, persistence, timm_weights
from training.config import TrainConfig, to_json
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import build_stem
from training.watch.variety import Spread, Variety, _choose, images_per_tick, main, recall, spread


@pytest.fixture(scope="module")
def backbone():
    return features.load(timm_weights.LITE0, "random")


def _variety(path, backbone, cond=True, count=16, **options):
    dataset = ImageDataset(str(path), use_labels=cond, **options)
    D = ProjectedDiscriminator(
        [backbone], dataset.label_dim, 16, feature_size=32, proj_channels=4, head_channels=4
    )
    G = build_stem(
        "stylegan3-t",
        16,
        dataset.label_dim,
        syn_layers=4,
        cbase=128,
        cmax=4,
        z_dim=8,
        w_dim=16,
        margin_size=2,
        embed_dim=8,
    )
    return dataset, D, G.eval(), Variety(dataset, D, count, 8, seed=0)


def test_spreads_of_gaussian_classes():
    """Means N(0, 3^2), samples N(mean, 2^2), 5 features: within 2 sqrt 5, between 3 sqrt 5."""
    g = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(400, 1, 5, generator=g)
    x = (means + 2 * torch.randn(400, 4, 5, generator=g)).reshape(-1, 5)
    found = spread(x, torch.arange(400).repeat_interleave(4))
    assert found.within == pytest.approx(2 * 5**0.5, rel=0.05) and found.between == pytest.approx(
        3 * 5**0.5, rel=0.1
    )
    alone = spread(x[:4], torch.zeros(4))
    assert alone.within == pytest.approx(float(x[:4].var(dim=0).sum()) ** 0.5) and alone.between is None


def test_awkward_spreads():
    assert spread(torch.ones(3, 2), torch.tensor([0, 1, 2])) == Spread(0.0, None)  # a sample each
    same = spread(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
    assert same == Spread(0.0, 0.0)
    noise = spread(
        torch.randn(200, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(100).repeat_interleave(2),
    )
    assert noise.between < 0.6 * noise.within  # nothing but chance between these classes
    alike = spread(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.tensor([0, 0, 1, 1]))
    assert alike.between == 0.0


def _classes(shapes, per_class, seed, classes=8, features=16):
    """Features of classes with `shapes` shapes each, around which samples vary; the same classes for all.

    The shapes of a class are the first ones of eight. Samples vary along four of the features, as brightness
    and pattern do, with the same spread as the shapes.
    """
    g = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(classes, 1, features, generator=g)
    offsets = 6 * torch.randn(classes, 8, features, generator=g)
    g = torch.Generator().manual_seed(seed)
    picked = torch.randint(shapes, (classes, per_class), generator=g)
    vary = torch.zeros(classes, per_class, features)
    vary[..., :4] = 6 * torch.randn(classes, per_class, 4, generator=g)
    x = centres + torch.gather(offsets, 1, picked[..., None].expand(-1, -1, features)) + vary
    return x.reshape(-1, features), torch.arange(classes).repeat_interleave(per_class)


def test_recall_sees_missing_shapes_that_the_spread_does_not():
    real = _classes(8, 24, seed=1)
    spreads, recalls = [], []
    for shapes in (8, 3, 1):
        fakes = [_classes(shapes, 12, seed) for seed in range(2, 7)]
        spreads.append(np.mean([spread(*fake).within for fake in fakes]) / spread(*real).within)
        recalls.append(np.mean([recall(*real, *fake) for fake in fakes]))
    assert spreads[0] == pytest.approx(1, abs=0.1) and spreads[1] > 0.85
    assert recalls[0] > 0.8 and recalls[1] < 0.6 * recalls[0] and recalls[2] < 0.2 * recalls[0]


def test_recall_by_hand():
    """One class on a line: radii reach the second neighbour, and edges count."""
    fakes = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii 3, 2, 3, 9
    reals = torch.tensor([[-3.0], [-3.5], [6.0], [19.0], [19.5]])
    zeros = torch.zeros
    assert recall(reals, zeros(5), fakes, zeros(4)) == 3 / 5
    both = recall(torch.cat([reals, reals]), torch.arange(10) // 5, fakes, zeros(4))
    assert both == 3 / 5  # class 1 has no generated rows
    other = recall(reals, torch.ones(5), fakes, torch.ones(4) - torch.eye(4)[0])
    assert other == recall(reals, zeros(5), fakes[1:], zeros(3))  # one row alone is no class
    assert recall(reals, zeros(5), fakes[:1], zeros(1)) is None
    assert recall(reals, zeros(5), fakes[2:], zeros(2)) == 3 / 5  # two rows: the radius is their distance, 7


class _Painter(torch.nn.Module):
    """In a generator's place: images that a function makes of latents and labels."""

    def __init__(self, paint, z_dim, c_dim):
        super().__init__()
        self.paint, self.z_dim, self.c_dim = paint, z_dim, c_dim
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, c=None):
        return self.paint(z, c)


def test_collapse_is_seen(tmp_path):
    dataset, _, _, variety = _variety(
        write_dataset(tmp_path / "d.zip", 48, class_names=["a", "b", "c"]), features.load(), count=24
    )
    pixels = torch.stack([torch.from_numpy(np.array(dataset[i][0])) for i in range(48)]).float() / 127.5 - 1
    by_class = pixels.reshape(16, 3, 3, 16, 16)  # image i has label i modulo 3
    turn = iter(range(10_000))
    healthy = variety.measure(
        _Painter(lambda z, c: torch.stack([by_class[next(turn) % 16, int(k)] for k in c]), 8, 3)
    )
    assert 0.8 < healthy.within < 1.2 and healthy.recall > 0.7
    variety.data = Spread(variety.data.within, variety.data.within)  # classes of noise differ by chance alone
    one_each = variety.measure(_Painter(lambda z, c: by_class[0, c], 8, 3))
    assert one_each.within == 0.0 and one_each.between > 0.5 and one_each.recall < 0.2
    one = variety.measure(_Painter(lambda z, c: by_class[0, 0].expand(len(z), 3, 16, 16), 8, 3))
    assert one[:2] == (0.0, 0.0) and one.recall < 0.1


def test_measuring_leaves_no_trace(tmp_path, backbone):
    _, D, G, variety = _variety(write_dataset(tmp_path / "d.zip", 24, class_names=["a", "b", "c"]), backbone)
    before = {
        **{f"G.{k}": v.clone() for k, v in G.state_dict().items()},
        **{f"D.{k}": v.clone() for k, v in D.saved_state_dict().items()},
    }
    torch.manual_seed(3)
    rng_state = torch.get_rng_state()
    first = variety.measure(G)
    assert (
        torch.equal(torch.get_rng_state(), rng_state)
        and variety.measure(G) == first
        and first.between is not None
    )
    after = {
        **{f"G.{k}": v for k, v in G.state_dict().items()},
        **{f"D.{k}": v for k, v in D.saved_state_dict().items()},
    }
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("names", [None, ["only"]])
def test_without_several_classes(tmp_path, backbone, names):
    *_, G, variety = _variety(
        write_dataset(tmp_path / "d.zip", 12, class_names=names), backbone, cond=names is not None
    )
    found = variety.measure(G)
    assert found.within > 0 and found.between is None and found.recall is not None


def test_what_is_chosen(tmp_path):
    names = [f"c{i}" for i in range(1000)]
    dataset = ImageDataset(
        str(write_dataset(tmp_path / "d.zip", 1500, size=4, class_names=names)), use_labels=True
    )  # the last 500 have one image
    classes, per_class, reals = _choose(dataset, 64, 0)
    assert (
        len(classes) == 16
        and per_class == 4
        and classes[0] == 0
        and classes[-1] == 499
        and len(set(classes)) == 16
    )
    assert sorted(dataset.labels[reals].tolist()) == sorted(classes * 2)
    mirrored = ImageDataset(dataset.path, use_labels=True, xflip=True)
    assert _choose(mirrored, 64, 0)[2].max() < 1500  # never an image and its mirrored copy
    assert [images_per_tick(64, t) for t in (0.016, 0.512, 4.0)] == [16, 32, 64] and images_per_tick(
        8, 4.0
    ) == 8


def test_command_line(tmp_path, backbone, monkeypatch, capsys):
    """Snapshots of a run folder, and a folder that is none."""
    *_, G, variety = _variety(write_dataset(tmp_path / "d.zip", 12, class_names=["a", "b"]), backbone)
    changes = {"data.path": str(tmp_path / "d.zip"), "data.cond": True, "run.variety": 16}
    changes |= {
        "discriminator.backbones": [timm_weights.LITE0],
        "discriminator.backbone_weights": {timm_weights.LITE0: "random"},
    }
    changes |= {
        "discriminator.feature_size": 32,
        "discriminator.proj_channels": 4,
        "discriminator.head_channels": 4,
        "run.batch": 8,
    }
    config = TrainConfig().override(changes)
    (tmp_path / "training_options.json").write_text(json.dumps({"config": to_json(config)}))
    record = {"G": None, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
    persistence.save_network_pickle(str(tmp_path / "network-snapshot-000001.pkl"), record)
    monkeypatch.setattr("sys.argv", ["variety", str(tmp_path)])
    assert main() == 0
    found = variety.measure(G)
    assert (
        capsys.readouterr().out
        == f"network-snapshot-000001.pkl  within {found.within:.3f}  between {found.between:.3f}  "
        f"recall {found.recall:.3f}\n"
    )
    monkeypatch.setattr("sys.argv", ["variety", str(tmp_path / "nowhere")])
    assert main() == 1 and "nowhere" in capsys.readouterr().err
