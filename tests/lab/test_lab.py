# SPDX-License-Identifier: Apache-2.0
"""The laboratory: its measures against cases with known answers, and every command end to end, small."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import multivariate_normal

from lab import claims, dcgan, direction, judge, mixture, monoflow, projected, recognition, shared, toy
from lab.judge import Judge
from tests.toy_data import write_dataset
from torch_utils.persistence import save_network_pickle
from training.generator import build_stem


def test_interval():
    summary = shared.interval([1.0, 2.0, 3.0, 4.0])
    assert summary["mean"] == 2.5 and summary["n"] == 4
    assert summary["half_width"] == pytest.approx(
        3.18245 * summary["std"] / 2, rel=1e-4
    )  # t quantile of 3 degrees of freedom
    assert shared.verdict({"mean": 1.0, "half_width": 0.5}) == "better"
    assert shared.verdict({"mean": -1.0, "half_width": 0.5}) == "worse"
    assert shared.verdict({"mean": -1.0, "half_width": 1.5}) == "no difference seen"


def test_a_row_compares_two_methods_by_seed():
    row = shared.compared([1.0, 2.0, 4.0], [0.5, 1.6, 3.4], True, ("plain", "new"))
    assert list(row) == ["plain", "new", "improvement", "new is"]
    assert row["plain"] == shared.interval([1.0, 2.0, 4.0]) and row["new"]["mean"] == pytest.approx(5.5 / 3)
    assert row["improvement"]["mean"] == pytest.approx(0.5) and row["new is"] == "better"
    assert shared.compared([1.0, 2.0, 4.0], [0.5, 1.6, 3.4])["SAN is"] == "worse"


def test_scores_know_the_mixture_and_a_collapse():
    generator = torch.Generator().manual_seed(0)
    good = toy.mixture((2, 4000), generator)
    collapsed = toy.centres()[:1].expand(1, 4000, 2) + 0.01 * torch.randn(1, 4000, 2, generator=generator)
    reference = toy.mixture((4000,), generator)
    found = toy.scores(torch.cat([good, collapsed]), reference)
    assert found["modes"] == [8, 8, 1]
    assert found["quality"][0] > 0.99
    assert found["sliced_wasserstein"][0] < 0.2 < 1 < found["sliced_wasserstein"][2]


def test_sliced_wasserstein_of_a_shift():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shifted = x + torch.tensor([3.0, 4.0])
    assert float(toy.sliced_wasserstein(x, shifted)) == pytest.approx(
        5 / math.sqrt(2), rel=1e-3
    )  # mean of |<shift, u>|^2 over directions u


@pytest.mark.parametrize("is_san", [False, True])
def test_seeds_share_nothing(is_san):
    """The gradient of a seed is that of its own loss: with other seeds beside it, it takes the same step."""
    arm = toy.Arm("x", "hinge", "logit", is_san)
    pair, alone = toy.Toy(arm, toy.Plan(seeds=2, batch=16)), toy.Toy(arm, toy.Plan(seeds=1, batch=16))
    real, noise = torch.randn(2, 16, 2), torch.randn(2, 16, toy.Z)
    gradients = []
    for toys, part in ((pair, slice(0, 2)), (alone, slice(0, 1))):
        loss = (
            toy.san.discriminator_objective(toys.D(real[part]), toys.D(toys.G(noise[part]).detach()), "hinge")
            * toys.plan.seeds
        )
        gradients.append(torch.autograd.grad(loss, list(toys.D.params.values()), allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-6)


def test_gan_and_san_start_from_the_same_function():
    x = torch.randn(2, 5, 2)
    gan, own = (
        toy.Toy(toy.Arm("x", "hinge", "logit", is_san), toy.Plan(seeds=2)) for is_san in (False, True)
    )
    torch.testing.assert_close(gan.D(x), own.D(x).fun)


def test_particles_follow_the_field():
    """Density and gradient against scipy and autograd."""
    generator = torch.Generator().manual_seed(0)
    x, points = (
        torch.randn(1, 5, 2, generator=generator, dtype=torch.float64),
        torch.randn(7, 2, generator=generator, dtype=torch.float64),
    )
    density, gradient = monoflow.kernel_density(x, points, 0.4)
    by_hand = sum(multivariate_normal(p, 0.4**2).pdf(x[0]) for p in points.numpy()) / 7
    np.testing.assert_allclose(density[0].exp(), by_hand)
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(monoflow.kernel_density(y, points, 0.4)[0].sum(), y)
    torch.testing.assert_close(gradient, expected)


def test_vanilla_stands_still_where_it_vanishes():
    still, _, _ = monoflow.flow("vanilla", 2, 20, 20)
    moving, _, _ = monoflow.flow("logit", 2, 20, 20)
    assert float((still[-1] - still[0]).norm(dim=-1).mean()) < 0.2 * float(
        (moving[-1] - moving[0]).norm(dim=-1).mean()
    )


def test_commands(tmp_path):
    """Each writes its numbers and its picture; mixture.json is taken up again."""
    small = [f"--out={tmp_path}", "--seeds=2", "--steps=10"]
    for command, name in ((mixture, "mixture"), (direction, "direction"), (monoflow, "monoflow")):
        result = CliRunner().invoke(command.main, small, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / "monoflow.gif").stat().st_size > 1000
    assert "s of CPU" not in CliRunner().invoke(mixture.main, small, catch_exceptions=False).output
    kept = (tmp_path / "mixture.json").read_bytes()
    result = CliRunner().invoke(mixture.main, [*small, "--steps=3"])
    assert result.exit_code == 1 and "mixture.json has runs of other options: give another" in result.output
    assert (tmp_path / "mixture.json").read_bytes() == kept
    result = CliRunner().invoke(mixture.main, ["--seeds=1"])
    assert result.exit_code != 0 and "--seeds=1" in result.output


def write_idx(folder, count: int) -> str:
    """Random images of two classes, one bright and one dark, as an IDX pair."""
    random = np.random.RandomState(0)
    labels = (np.arange(count) % 2).astype(np.uint8)
    pixels = (random.randint(0, 100, (count, 28, 28)) + 120 * labels[:, None, None]).astype(np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return str(folder / "train-images-idx3-ubyte")


def test_judge_knows_bright_from_dark(tmp_path):
    pixels, labels, classes = dcgan.load(write_idx(tmp_path, 400), None)
    judge = Judge(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels), classes)
    assert judge.held_out_accuracy == 1
    bright = torch.full((6, 1, 28, 28), 200, dtype=torch.uint8)
    assert judge.scores(bright, torch.tensor([1, 1, 1, 0, 0, 0])) == {"balance": 0.0, "accuracy": 0.5}
    assert judge.scores(torch.cat([bright, bright // 5]), None) == {"balance": 1.0}


class Brightness:
    """Instead of the distance of features, whose network takes its time."""

    def __init__(self, real: torch.Tensor) -> None:
        self.real = float(real.float().mean())

    def __call__(self, pixels: torch.Tensor) -> float:
        return abs(self.real - float(pixels.float().mean()))


def test_feature_distance_grows_with_the_difference(monkeypatch):
    class Detector:
        dims = {"features": 2}

        def __call__(self, pixels):
            return {"features": pixels.flatten(1)[:, :2].float()}

    monkeypatch.setattr(judge.detectors, "load_lite0", Detector)
    pixels = torch.randint(0, 50, (300, 1, 4, 4), dtype=torch.uint8)
    distance = judge.FeatureDistance(pixels)
    assert distance(pixels) == pytest.approx(0, abs=1e-3)
    assert distance(pixels + 100) == pytest.approx(
        2 * 100**2, rel=1e-3
    )  # means 100 apart in both features, the same covariance


def test_projected_measures_every_snapshot_once(tmp_path, monkeypatch):
    monkeypatch.setattr(projected, "FeatureDistance", Brightness)
    data = write_dataset(tmp_path / "data.zip", 24, 16, ["a", "b"])
    folder = tmp_path / "StyleSAN-XL-seed0" / "00000-x"
    folder.mkdir(parents=True)
    options = {"config": {"data": {"path": str(data), "cond": True}}}
    (folder / "training_options.json").write_text(json.dumps(options))
    (folder / "status.json").write_text(json.dumps({"outcome": "finished", "nimg": 2000}))
    torch.manual_seed(0)
    G = build_stem(
        "stylegan3-t",
        16,
        2,
        syn_layers=4,
        cbase=64,
        cmax=4,
        z_dim=8,
        w_dim=16,
        num_embeddings=2,
        embed_dim=8,
        margin_size=2,
    )
    for name in ("network-snapshot-000001.pkl", "network-snapshot-000002.pkl", "network-snapshot.pkl"):
        save_network_pickle(folder / name, {"G_ema": G, "training_set_kwargs": {"path": str(data)}})
    projected.measure(tmp_path, 1, 6)
    found = shared.read(folder, "lab")["snapshots"]
    assert [line["kimg"] for line in found.values()] == [1, 2]
    assert all({"balance", "accuracy"} < line.keys() for line in found.values())
    assert [name for name, line in found.items() if "fd_lite0" in line] == ["network-snapshot-000002.pkl"], (
        "of the last alone: it takes its time"
    )
    monkeypatch.setattr(projected, "generate", None)  # no snapshot is drawn again
    projected.measure(tmp_path, 1, 6)
    collected = projected.collect(tmp_path, 1)
    assert (
        collected["fd_lite0"]["runs"]["StyleSAN-XL"]["0"]["kimg"] == [2]
        and "last" not in collected["fd_lite0"]
    ), "no pair, no comparison"


def test_recognition_by_class(tmp_path):
    """Shares by hand, the command with and without a test set, and mistakes in one line."""
    seen = torch.tensor([0, 0, 1, 1, 1, 0])
    table = recognition.confusion(seen, torch.tensor([0, 0, 0, 1, 1, 1]), 3)
    assert table[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0]) and table[2].sum() == 0
    assert recognition.lines(table, ["hat", "shoe", "bag"]) == [
        "  hat    66.7%, 33.3% seen as shoe",
        "  shoe   66.7%, 33.3% seen as hat",
        "  bag     0.0%",
    ]
    data = write_dataset(tmp_path / "data.zip", 24, 16, ["dark", "light"])
    torch.manual_seed(0)
    G = build_stem("stylegan3-t", 16, 2, syn_layers=4, cbase=64, cmax=4, z_dim=8, w_dim=16, embed_dim=8)
    network = str(tmp_path / "network.pkl")
    save_network_pickle(network, {"G_ema": G, "training_set_kwargs": {}})
    options = [f"--data={data}", "--generate=8", "--epochs=1"]
    tested = CliRunner().invoke(
        recognition.main, [*options, f"--test={data}", network], catch_exceptions=False
    )
    assert tested.exit_code == 0 and "of 24 recognised" in tested.output
    assert "% of 8 recognised" in tested.output and tested.output.count("  dark ") == 2
    untested = CliRunner().invoke(recognition.main, [*options, network], catch_exceptions=False)
    assert "of held-out images" in untested.output
    compared = CliRunner().invoke(
        recognition.main, [*options, f"--test={data}", "--features", network], catch_exceptions=False
    )
    assert compared.output.count("  8 images: fd_lite0") == 2
    assert "fd_lite0 0.0, recall 1.000, coverage 1.000" in compared.output  # the test set is the data set
    larger = write_dataset(tmp_path / "larger.zip", 4, 32, ["dark", "light"])
    refused = CliRunner().invoke(recognition.main, [f"--data={larger}", network])
    assert refused.exit_code == 1 and "draws 2 classes at 16 pixels" in refused.output
    plain = write_dataset(tmp_path / "plain.zip", 4, 16)
    refused = CliRunner().invoke(recognition.main, [f"--data={plain}", network])
    assert refused.exit_code == 1 and "no labels" in refused.output
    refused = CliRunner().invoke(recognition.main, [f"--data={data}", str(tmp_path / "none.pkl")])
    assert refused.exit_code == 1 and refused.output.count("\n") == 1


def test_dcgan_keeps_what_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(dcgan, "FeatureDistance", Brightness)
    monkeypatch.setattr(dcgan, "CURVE_IMAGES", 8)
    data = write_idx(tmp_path, 64)
    options = [
        f"--data={data}",
        f"--out={tmp_path}",
        f"--runs={tmp_path / 'runs'}",
        "--seeds=1",
        "--steps=2",
        "--generate=4",
    ]
    first = CliRunner().invoke(dcgan.main, options, catch_exceptions=False)
    assert first.exit_code == 0 and "SAN conditional, seed 0" in first.output
    assert (tmp_path / "dcgan.png").stat().st_size > 1000
    (tmp_path / "dcgan.png").unlink()
    (tmp_path / "runs" / "SAN-conditional-seed0.pt").unlink()
    kept = (tmp_path / "dcgan.json").read_bytes()
    result = CliRunner().invoke(dcgan.main, [*options, "--steps=3"])
    assert result.exit_code == 1 and "dcgan.json has runs of other options: give another" in result.output
    assert (tmp_path / "dcgan.json").read_bytes() == kept
    second = CliRunner().invoke(dcgan.main, options, catch_exceptions=False)
    assert second.output.count("seed 0") == 1 and "SAN conditional, seed 0" in second.output
    assert (tmp_path / "dcgan.png").stat().st_size > 1000


def test_dcgan_trains_every_kind(tmp_path):
    pixels, labels, classes = dcgan.load(write_idx(tmp_path, 64), 48)
    assert pixels.shape == (48, 28, 28) and classes == 2
    x, y = dcgan.image_tools.to_float(torch.from_numpy(pixels).unsqueeze(1)), torch.from_numpy(labels)
    plan = dcgan.Plan(steps=2, batch=4)
    relativistic = dcgan.Method("gan", "relativistic", "ns")
    for conditioned in (0, 2):
        sona = [dcgan.Method("sona", "bce")] * bool(conditioned)
        for method in (*dcgan.KINDS.values(), relativistic, *sona):
            G = dcgan.train(x, y, conditioned, method, 0, plan)
            images, asked = dcgan.generate(G, 6, conditioned)
            assert images.shape == (6, 1, 28, 28) and images.dtype == torch.uint8
            assert (asked is None) == (conditioned == 0)


def test_dcgan_gan_and_san_start_alike():
    x, c = torch.randn(3, 1, 28, 28), torch.tensor([0, 1, 1])
    outputs = []
    for head in ("gan", "san"):
        torch.manual_seed(0)
        D = dcgan.discriminator(2, head, dcgan.Plan(bf16=False)).eval()
        outputs.append(D(x, c))
    torch.testing.assert_close(outputs[0], outputs[1].fun)


def test_dcgan_table_pairs_by_seed():
    runs = {
        "GAN unconditional": {
            "0": {"scores": {"fd_lite0": 5.0}},
            "1": {"scores": {"fd_lite0": 6.0}},
            "2": {"scores": {"fd_lite0": 1.0}},
        },
        "SAN unconditional": {"0": {"scores": {"fd_lite0": 4.0}}, "1": {"scores": {"fd_lite0": 5.0}}},
    }
    row = dcgan.table(runs)["unconditional"]["fd_lite0"]
    assert row["improvement"]["mean"] == 1 and row["improvement"]["n"] == 2 and row["SAN is"] == "better"


def test_projected_runs_one_flag_apart_and_collects(tmp_path):
    options = ["--data=x.zip", "--cfg=stylegan3-r"]
    gan, own = (projected.command(tmp_path, kind, 0, options) for kind in projected.KINDS)
    assert {a for a in gan if a not in own} == {f"--outdir={tmp_path / 'StyleGAN-XL-seed0'}", "--san=False"}
    assert "--cfg=stylegan3-r" in gan and "--cfg=stylegan3-t" not in gan and "--gpus=1" in gan
    for kind, offset in (("StyleGAN-XL", 1.0), ("StyleSAN-XL", 0.0)):
        for seed in range(2):
            folder = tmp_path / f"{kind}-seed{seed}" / "00000-x"
            folder.mkdir(parents=True)
            lines = [
                {"results": {"fd": v + offset + seed}, "kimg": k} for k, v in ((1, 5.0), (2, 3.0), (3, 4.0))
            ]
            snapshots = {
                f"network-snapshot-{k:06d}.pkl": {"kimg": k, "accuracy": 0.1 * k - 0.05 * offset}
                for k in (1, 2)
            }
            (folder / "lab.json").write_text(json.dumps({"images": 4, "snapshots": snapshots}))
            (folder / "metric-fd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "status.json").write_text(
                json.dumps({"outcome": "finished" if seed == 0 else "interrupted", "nimg": 3000})
            )
    found = projected.collect(tmp_path, 2)
    assert found["fd"]["runs"]["StyleSAN-XL"]["1"] == {
        "last": 5.0,
        "best": 4.0,
        "kimg": [1, 2, 3],
        "values": [6.0, 4.0, 5.0],
    }
    assert found["fd"]["best"]["improvement"]["mean"] == 1
    assert found["fd"]["best"]["power"]["detectable"] == 0, "both seeds improve by the same"
    assert projected.still_rises(found["fd"]) == pytest.approx(2**0.5), "1 in the last tick, std 1/sqrt(2)"
    assert found["accuracy"]["last"]["improvement"]["mean"] == pytest.approx(0.05), "more accuracy is better"
    (tmp_path / "StyleGAN-XL-seed1" / "00000-x" / "metric-fd.jsonl").write_text(
        json.dumps({"results": {"fd": 7.0}, "kimg": 1}) + "\n"
    )
    assert {
        run["kimg"][-1]
        for runs in projected.collect(tmp_path, 2)["fd"]["runs"].values()
        for run in runs.values()
    } == {1}, "the shortest"
    projected.picture(tmp_path, found, tmp_path / "projected.png")
    assert (tmp_path / "projected.png").stat().st_size > 1000
    assert projected.command(tmp_path, "StyleSAN-XL", 0, [*options, "--kimg=3"]) is None
    assert projected.command(tmp_path, "StyleSAN-XL", 0, [*options, "--kimg=4"])[-1] == "--kimg=4", "goes on"
    assert projected.command(tmp_path, "StyleSAN-XL", 1, options)[-1].startswith("--resume=")


def test_projected_compares_further_methods(tmp_path):
    kinds = projected.arms(["SONA=--heads=sona --d-loss=bce"])
    assert list(kinds) == [*projected.KINDS, "SONA"]
    line = projected.command(tmp_path, "SONA", 1, ["--data=x.zip"], kinds)
    assert line[-4:] == ["--data=x.zip", "--seed=1", "--heads=sona", "--d-loss=bce"]
    for number, kind in enumerate(kinds):
        for seed in range(2):
            folder = tmp_path / f"{kind}-seed{seed}" / "00000-x"
            folder.mkdir(parents=True)
            snapshots = {f"{k}.pkl": {"kimg": k, "accuracy": 0.1 * (k + seed + number)} for k in (1, 2)}
            (folder / "lab.json").write_text(json.dumps({"images": 4, "snapshots": snapshots}))
    found = projected.collect(tmp_path, 2, kinds)
    assert found["accuracy"]["last"]["others"]["SONA"]["improvement"]["mean"] == pytest.approx(0.2)
    assert found["accuracy"]["last"]["others"]["SONA"]["SONA is"] == "better"
    lines = list(projected.lines_of(found))
    assert lines[2].startswith(
        "accuracy (last): StyleGAN-XL 0.250 ± 0.635   SONA 0.450 ± 0.635   SONA is better"
    )
    assert any("the runs end during the rise" in line for line in lines)
    assert any(
        "SONA reaches the last value of StyleGAN-XL after 1 kimg (1 to 1), in 2 of 2" in line
        for line in lines
    )
    alone = projected.arms(["StyleSAN-XL=", "SONA=--heads=sona"], alone=True)
    assert alone == {"StyleSAN-XL": (), "SONA": ("--heads=sona",)}
    (line,) = (line for line in projected.lines_of(projected.collect(tmp_path, 2, alone)) if "(last)" in line)
    assert line.startswith("accuracy (last): StyleSAN-XL 0.350 ± 0.635   SONA 0.450")
    projected.picture(tmp_path, found, tmp_path / "projected.png")
    for text, says in (
        ("SONA", "write NAME=FLAGS"),
        ("a/b=--x", "write NAME"),
        ("StyleGAN-XL=--x", "already"),
    ):
        result = CliRunner().invoke(projected.main, [f"--arm={text}"])
        assert result.exit_code == 1 and says in result.output
    two = ["--only-arms", "--arm=A=", "--arm=B=--x"]
    for options, says in (
        (["--arm=SONA=", "--only-arms"], "at least two"),
        (two, "--name=projected is that of other results"),
        ([*two, "--name=screening"], "is that of other results"),
        ([*two, "--name=sub/x"], "--name=sub/x: use letters"),
        (["--arm=A=-"], "write NAME=FLAGS"),
        (["--arm=..="], "write NAME=FLAGS"),
    ):
        result = CliRunner().invoke(projected.main, options)
        assert result.exit_code == 1 and says in result.output


def test_projected_reads_variety_and_says_from_when_on_a_method_is_as_good(tmp_path):
    for kind, within, recall in (
        ("A", (2.0, 0.5, 0.8), (0, 0.2, 0.3)),
        ("B", (1.0, 1.25, 1.0), (0.4, 0.2, 0.3)),
    ):
        folder = tmp_path / f"{kind}-seed0" / "00000-x"
        folder.mkdir(parents=True)
        lines = [
            {"kimg": k, "Variety/within": {"mean": w}, "Variety/recall": {"mean": r}}
            for k, w, r in zip((1, 2, 3), within, recall, strict=True)
        ]
        (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = projected.collect(tmp_path, 1, {"A": (), "B": ()})
    assert found["Variety/within"]["runs"]["A"]["0"]["values"] == [0.5, 0.5, 0.8], "nearness to 1"
    assert found["Variety/within"]["last"]["reached"] == [1]
    assert found["Variety/recall"]["last"]["reached"] == [3], "and stays so"


def test_the_page_says_what_was_measured():
    """docs/method.md against docs/lab: no number typed by hand, none of an older run."""
    assert claims.page(claims.PAGE.read_text(), shared.RESULTS) == claims.PAGE.read_text()


def test_claims_report_both_ways(tmp_path):
    cells = {
        name: shared.interval(values)
        for name, values in {"GAN": [2.0, 3.0], "SAN": [1.0, 2.0], "improvement": [-1.0, -1.0]}.items()
    }
    shared.write(tmp_path, "dcgan", {"table": {"conditional": {"accuracy": {**cells, "SAN is": "worse"}}}})
    assert (
        claims.comparison(tmp_path)
        .splitlines()[-1]
        .endswith(
            "| `lab.dcgan`, conditional | 2 | 2.500 ± 6.353 | 1.500 ± 6.353 | -1.000 ± 0.000 | no: worse "
            "| 0.000 |"
        )
    )
    with pytest.raises(ValueError, match="begin comparison"):
        claims.page("no place", tmp_path)
