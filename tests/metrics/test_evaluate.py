# SPDX-License-Identifier: Apache-2.0
"""The evaluator on a detector cheap enough to count by: seeds, labels, caching, records, refusals, several
processes.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from generation import render
from generation.measured import MeasuredGenerator
from metrics import evaluate, partial, registry, statistics
from metrics.evaluate import Evaluator, check_comparable, numbers, write_record
from metrics.names import COVARIANCES, INCEPTION, LITE0
from tests.support import Generated, Images, TinyDetector
from torch_utils import distributed, launcher

PICKLES = Path(__file__).parents[1] / "parity" / "goldens" / "pickles"


@pytest.fixture
def make(tmp_path):
    def build(dataset=None, metrics="fd_lite0_100", **options):
        loaded = options.pop("loaded", None) or {LITE0: TinyDetector(), INCEPTION: TinyDetector(INCEPTION)}
        return Evaluator(
            dataset or Images(), metrics, loaded=loaded, cache_dir=str(tmp_path / "cache"), **options
        )

    return build


def test_numbers_do_not_depend_on_the_batch_size(make):
    names = "fd_lite0_100,fid50_full,is90,kid60_full"
    results = [numbers(make(metrics=names, batch=batch)(Generated())) for batch in (1, 7, 100, 1000)]
    assert list(results[0]) == [
        "fd_lite0_100", "fid50_full", "is90_mean", "is90_std", "kid60_full", "kid60_full_std",
    ]  # fmt: skip
    assert all(result == pytest.approx(results[0], rel=1e-9) for result in results)
    assert len({round(value, 6) for value in results[0].values()}) == 6


def test_one_pass_serves_all_metrics(make):
    lite0, inception = TinyDetector(), TinyDetector(INCEPTION)
    generator = Generated()
    make(metrics="fd_lite0_10,fd_lite0_20,is30", loaded={LITE0: lite0, INCEPTION: inception}, batch=8)(
        generator
    )
    assert len(generator.labels) == 30 and inception.seen == 30
    assert lite0.seen == 64 + 20


def test_the_distance_is_that_of_the_images_generated(make):
    record = make(metrics="fd_lite0_100")(Generated())[0]
    source = evaluate.GeneratedImages(Generated(), 0, torch.device("cpu"), np.array([1, 2, 5]), 8)
    detector = TinyDetector()
    real, fake = (
        detector(x)["features"].double().numpy()
        for x in (torch.from_numpy(Images().images), source(range(100)))
    )
    expected = registry.fid.frechet_distance(
        real.mean(0), np.cov(real.T, ddof=0), fake.mean(0), np.cov(fake.T, ddof=0)
    )
    assert record.value == pytest.approx(expected, rel=1e-9)


def test_seed_changes_the_number_and_repeats_it(make):
    a, b, again = (make(seed=seed)(Generated())[0].value for seed in (0, 1, 0))
    assert a == again != b


@pytest.mark.parametrize(("rule", "shares"), [("dataset", [1 / 8, 2 / 8, 5 / 8]), ("uniform", [1 / 3] * 3)])
def test_label_rules(make, rule, shares):
    generator = Generated()
    record = make(metrics="fd_lite0_4k", labels=rule, batch=500)(generator)[0]
    assert np.bincount(generator.labels, minlength=3) / 4000 == pytest.approx(shares, abs=0.03)
    assert record.conditions["labels"] == rule


def test_a_class_without_images_is_never_drawn(make):
    class OneClass(Images):
        def label_distribution(self):
            return np.array([0, 3, 0])

    generator = Generated()
    make(OneClass())(generator)
    assert set(generator.labels) == {1}


def test_record_says_what_was_measured(make):
    record = make(Images(filter="lanczos", transform="center-crop"), seed=3)(
        Generated(), truncation=0.7, snapshot="n.pkl"
    )[0]
    line = json.loads(json.dumps(record.as_dict()))
    assert line["results"] == {"fd_lite0_100": record.value} and line["metric"] == "fd_lite0_100"
    assert (line["num_gen"], line["num_real"], line["seed"], line["truncation"], line["snapshot_pkl"]) == (
        100,
        64,
        3,
        0.7,
        "n.pkl",
    )
    assert line["reference"]["content_hash"] == Images().content_hash()
    assert (line["reference"]["filter"], line["reference"]["crop"], line["reference"]["resolution"]) == (
        "lanczos",
        "center-crop",
        8,
    )
    assert line["detector"]["sha256"] == "tiny" and line["versions"]["torch"] == torch.__version__
    assert line["device"] == "cpu" and line["generator_dtype"] == "float32" and line["total_time"] >= 0
    assert line["lower_is_better"] is True and line["covariance"] == "population"


def test_every_record_says_its_good_end(make):
    records = make(metrics="fid20,is20,kid20_full,pr_inception_20,fd_lite0_20")(Generated())
    lines = {record.metric: record.as_dict() for record in records}
    assert {name: line["lower_is_better"] for name, line in lines.items()} == {
        "fid20": True, "is20": False, "kid20_full": True, "pr_inception_20": False, "fd_lite0_20": True,
    }  # fmt: skip
    assert [name for name, line in lines.items() if "covariance" in line] == ["fid20", "fd_lite0_20"]


def test_unbiased_covariance_is_larger_said_and_not_mixed(make, tmp_path):
    published, unbiased = (
        make(metrics="fd_lite0_40", covariance=rule)(Generated())[0] for rule in COVARIANCES
    )
    assert published.value != unbiased.value and unbiased.conditions["covariance"] == "unbiased"
    assert "n - 1" in " ".join(unbiased.notes) and not published.notes
    write_record(tmp_path, published)
    with pytest.raises(ValueError, match="covariance population against unbiased"):
        make(metrics="fd_lite0_40", covariance="unbiased").check_records(tmp_path)
    with pytest.raises(ValueError, match="covariance population against unbiased"):
        write_record(tmp_path, unbiased)
    old = {
        key: value
        for key, value in published.as_dict().items()
        if key not in ("covariance", "lower_is_better")
    }
    check_comparable(published.as_dict(), old)  # a line of version 0.1
    with pytest.raises(ValueError, match="covariance"):
        check_comparable(unbiased.as_dict(), old)
    with pytest.raises(ValueError, match="--covariance=unbiased has no effect on is50"):
        make(metrics="is50", covariance="unbiased")
    with pytest.raises(ValueError, match="'population' or 'unbiased'"):
        make(covariance="n-1")


def test_a_record_stands_on_a_line_of_its_own_after_a_killed_writer(make, tmp_path):
    record = make()(Generated())[0]
    path = write_record(tmp_path, record)
    path.write_text(path.read_text().rstrip("\n"))
    write_record(tmp_path, record)
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [record.value] * 2


@pytest.mark.parametrize("last", [b"null", b"5", b'{"results": {"fd', b"\xff\xfe\x00", b"[]"])
def test_a_damaged_last_line_is_named(make, tmp_path, last):
    evaluator = make()
    (tmp_path / "metric-fd_lite0_100.jsonl").write_bytes(last + b"\n")
    with pytest.raises(
        ValueError, match=r"metric-fd_lite0_100\.jsonl: the last line is not a JSON object"
    ) as error:
        evaluator.check_records(tmp_path)
    assert "\n" not in str(error.value) and evaluator.changes_since(tmp_path) == []


def test_what_is_measured_otherwise_than_before_is_said(make, tmp_path):
    evaluator = make(Images(), "fd_lite0_20,kid20")
    assert evaluator.changes_since(tmp_path) == []
    for record in evaluator(Generated()):
        write_record(tmp_path, record)
    assert evaluator.changes_since(tmp_path) == []
    (fd, kid) = make(Images(seed=1), "fd_lite0_20,kid20").changes_since(tmp_path)
    assert fd.startswith("fd_lite0_20: content_hash ") and kid.startswith("kid20: content_hash ")


def test_random_weights_are_marked(make):
    record = make(loaded={LITE0: TinyDetector(sha256="random:0")})(Generated())[0]
    assert record.conditions["detector"]["weights"] == "random" and "random weights" in record.notes[0]
    assert "weights" not in make()(Generated())[0].conditions["detector"]


def test_a_large_reference_is_a_subset_and_says_so(make, monkeypatch):
    monkeypatch.setitem(
        registry.FAMILIES, "fd_lite0", dataclasses.replace(registry.FAMILIES["fd_lite0"], real_images=40)
    )
    dataset = Images(100)
    line = make(dataset, "fd_lite0_20")(Generated())[0]
    reference = line.conditions["reference"]
    assert dataset.reads == 40 and (
        reference["num_real"],
        reference["num_images"],
        line.conditions["num_real"],
    ) == (40, 100, 40)
    assert reference["subset"] == "random, seed 0" and line.notes == [
        "against a random 40 of 100 real images"
    ]
    full = make(dataset, "fd_lite0_20_full")(Generated())[0]
    assert (
        full.conditions["num_real"] == 100 and "subset" not in full.conditions["reference"] and not full.notes
    )
    assert make(Images(40), "fd_lite0_20")(Generated())[0].notes == []


def test_one_pass_over_the_data_serves_metrics_that_keep_different_things(make):
    dataset = Images()
    make(dataset, "fid20_full,kid20_full,pr_inception_20_full")(Generated())
    assert dataset.reads == 64


@pytest.mark.parametrize("place", ["/proc/none/cache", "file"])
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, place):
    (tmp_path / "file").write_text("")
    folder = place if place.startswith("/") else str(tmp_path / place)
    evaluator = Evaluator(Images(), "fd_lite0_20", loaded={LITE0: TinyDetector()}, cache_dir=folder)
    with pytest.warns(UserWarning, match=f"metrics cache {folder} cannot be written .* DNNLIB_CACHE_DIR"):
        evaluator.check()
    with pytest.warns(UserWarning, match="DNNLIB_CACHE_DIR"):
        value = evaluator(Generated())[0].value
    assert evaluator(Generated())[0].value == value and evaluator.dataset.reads == 64  # kept in memory


@pytest.mark.parametrize(
    ("metrics", "least"), [("fd_lite0_20,pr_inception_20_full", 4), ("pr_inception_20", 4)]
)
def test_data_too_small_for_a_metric_is_said_by_the_check(make, metrics, least):
    evaluator = make(Images(3), metrics)
    with pytest.raises(ValueError, match=f"pr_inception_20.* needs at least {least} real images, toy has 3"):
        evaluator.check()
    with pytest.raises(ValueError, match="needs at least 10 images, toy has 9"):
        make(Images(), "is50").fitted(Images(9))


def test_statistics_to_compute_are_announced_until_they_are_there(make):
    evaluator = make(Images(), "fd_lite0_20,fid20_full,kid20")
    lines = evaluator.announce()
    assert len(lines) == 3 and any(
        line.startswith("64 real images through lite0 for fd_lite0_20: about ") for line in lines
    )
    assert any("20 real images" in line and "kid20" in line for line in lines)
    evaluator(Generated())
    assert make(Images(), "fd_lite0_20,fid20_full,kid20").announce() == []


def test_a_pause_can_end_the_work_anywhere(make):
    class Stop(Exception):
        pass

    for last in range(8):
        calls = []

        def pause(alone, last=last, calls=calls):
            calls.append(alone)
            if len(calls) > last:
                raise Stop

        evaluator = make(Images(seed=last), "pr_inception_64_full", batch=32, pause=pause)
        try:
            evaluator(Generated())
        except Stop:
            assert len(calls) == last + 1
        else:
            assert calls == [False, False, False, False, True, True, True]


def test_real_statistics_are_cached_by_content_and_detector(make):
    first, same, other = Images(), Images(), Images(seed=1)
    value = make(first)(Generated())[0].value
    assert first.reads == 64
    assert make(same)(Generated())[0].value == pytest.approx(value, rel=1e-12)
    assert same.reads == 0
    make(other)(Generated())
    assert other.reads == 64
    make(same, loaded={LITE0: TinyDetector(sha256="other")})(Generated())
    assert same.reads == 64


def test_a_damaged_cache_is_made_again(make, tmp_path):
    value = make()(Generated())[0].value
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    dataset = Images()
    assert make(dataset)(Generated())[0].value == value
    assert dataset.reads == 64


def test_real_images_are_unflipped(make):
    class Flipped(Images):
        xflip = True

    dataset = Flipped()
    dataset.images = np.concatenate([dataset.images, dataset.images[..., ::-1]])
    record = make(dataset)(Generated())[0]
    assert dataset.reads == 64 and record.conditions["num_real"] == 64
    assert record.value == pytest.approx(make(Images())(Generated())[0].value)


def test_a_real_subset_is_random_and_fixed():
    picked = evaluate.RealImages(Images(1000), 100).indices
    assert len(set(picked.tolist())) == 100 and (np.diff(picked) > 0).all()
    assert 300 < picked.mean() < 700 and not (picked == np.arange(100)).any(where=np.arange(100) > 20)
    assert (picked == evaluate.RealImages(Images(1000, seed=5), 100).indices).all()


def test_an_image_set_against_itself_is_at_distance_zero(make):
    record = make(metrics="fd_lite0")(Generated()) and make(metrics="fd_lite0").compare(Images())[0]
    assert record.metric == "fd_lite0_64" and record.conditions["num_gen"] == 64
    assert record.value == pytest.approx(0, abs=1e-9)
    assert record.conditions["images"]["content_hash"] == Images().content_hash()
    assert make(metrics="fd_lite0").compare(Images(seed=9))[0].value > 0.01


def test_other_preparation_is_refused_unless_forced(make):
    evaluator = make(Images(filter="lanczos"))
    with pytest.raises(ValueError, match="filter box against lanczos"):
        evaluator.compare(Images(filter="box"))
    with pytest.raises(ValueError, match="filter box against lanczos"):
        evaluator(Generated(), trained_on={"filter": "box"})
    evaluator(Generated(), trained_on={"filter": "lanczos", "crop": "none"})
    record = make(Images(filter="lanczos"), force=True).compare(Images(filter="box"))[0]
    assert record.conditions["forced"] and record.conditions["images"]["filter"] == "box"


def test_other_resolution_is_refused_unless_forced(make):
    with pytest.raises(ValueError, match="images of 16 pixels, the data set holds 8"):
        make()(Generated(16))
    assert make(force=True)(Generated(16))[0].value > 0


def test_broken_generators_are_named(make):
    class Broken(Generated):
        def __call__(self, z, labels):
            x = super().__call__(z, labels)
            x[2, 0, 0, 0] = float("nan")
            return x

    with pytest.raises(ValueError, match="NaN or Inf for sample 2"):
        make()(Broken())

    class Classes(Generated):
        c_dim = 5

    with pytest.raises(ValueError, match="has 5 classes, the data set 3"):
        make()(Classes())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="fd_lite0 needs a data set"):
        Evaluator(None, "fd_lite0")
    with pytest.raises(ValueError, match="labels 'even'"):
        Evaluator(Images(), "fd_lite0", labels="even")
    with pytest.raises(ValueError, match="batch must be"):
        Evaluator(Images(), "fd_lite0", batch=0)
    with pytest.raises(ValueError, match="seed must lie"):
        Evaluator(Images(), "fd_lite0", seed=-1)
    with pytest.raises(ValueError, match="at least 2 images"):
        evaluate.RealImages(Images(1))
    with pytest.raises(ValueError, match="need a labelled data set"):
        Evaluator(None, "is50", loaded={INCEPTION: TinyDetector(INCEPTION)})(Generated())
    assert (
        Evaluator(None, "is50", labels="uniform", loaded={INCEPTION: TinyDetector(INCEPTION)})(Generated())[
            0
        ].value
        > 1
    )


def test_records_of_another_reference_are_not_mixed(make, tmp_path):
    first = make(Images(filter="box"))(Generated())[0]
    path = write_record(tmp_path, first)
    assert path.name == "metric-fd_lite0_100.jsonl"
    write_record(tmp_path, make(Images(filter="box"), seed=1)(Generated())[0])
    other = make(Images(seed=1, filter="box"))
    with pytest.raises(ValueError, match="content_hash"):
        other.check_records(tmp_path)
    with pytest.raises(ValueError, match="filter box against lanczos"):
        write_record(tmp_path, make(Images(filter="lanczos"))(Generated())[0])
    with pytest.raises(ValueError, match="detector sha256 tiny against other"):
        make(Images(filter="box"), loaded={LITE0: TinyDetector(sha256="other")}).check_records(tmp_path)
    assert len(path.read_text().splitlines()) == 2
    write_record(tmp_path, other(Generated())[0], force=True)
    assert len(path.read_text().splitlines()) == 3
    check_comparable({"metric": "is50k"}, {"metric": "is50k"})


def test_progress_reaches_the_end(make):
    calls: list[tuple[str, int, int]] = []
    make(progress=lambda *args: calls.append(args), batch=30)(Generated())
    assert calls == [("real", 0, 64), ("real", 30, 64), ("real", 60, 64), ("real", 64, 64)] + [
        ("generated", n, 100) for n in (0, 30, 60, 90, 100)
    ]


NETWORK_METRICS = "eqt8_int,eqt12_frac,eqr9"


def r_network():
    return MeasuredGenerator(render.load_network(str(PICKLES / "stem_r_uncond.pkl")).G)


def measured_by(records):
    """Numbers and intervals of network metrics."""
    return [[record.value, *record.conditions["interval"]["std"].values()] for record in records]


def _measure_in_processes(folder: str) -> None:
    distributed.init("cpu")
    loaded = {LITE0: TinyDetector(), INCEPTION: TinyDetector(INCEPTION)}

    def meet(alone):  # hangs unless all processes call it equally often
        if not alone:
            distributed.barrier()

    options = {"loaded": loaded, "cache_dir": f"{folder}/cache", "batch": 7, "pause": meet}
    evaluator = Evaluator(Images(), "fd_lite0_100,is90,kid60_full", **options)
    result = numbers(evaluator(Generated()))
    evaluator = Evaluator(
        None, NETWORK_METRICS, cache_dir=f"{folder}/cache", batch=7, pause=meet, bootstrap=4
    )
    of_network = measured_by(evaluator(r_network()))
    with open(f"{folder}/{distributed.rank()}.json", "w") as f:
        json.dump([result, loaded[LITE0].seen, of_network], f)
    distributed.shutdown()


def test_two_processes_share_the_work_and_agree_with_one(make, tmp_path):
    launcher.launch(_measure_in_processes, 2, str(tmp_path))
    (first, seen, of_network), (second, seen_by_second, of_network_by_second) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert first == second
    assert seen + seen_by_second == 164 and min(seen, seen_by_second) > 60
    os.rename(tmp_path / "cache", tmp_path / "cache-of-two")
    alone = numbers(make(metrics="fd_lite0_100,is90,kid60_full")(Generated()))
    assert first == pytest.approx(alone, rel=1e-9)
    assert of_network == of_network_by_second
    for batch in (1, 7):
        records = Evaluator(None, NETWORK_METRICS, batch=batch, bootstrap=4)(r_network())
        assert np.array(measured_by(records)) == pytest.approx(np.array(of_network), rel=1e-6)


class Killed(BaseException):
    pass


class Dying(Generated):
    """Killed after some batches."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def __call__(self, z, labels):
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().__call__(z, labels)


def test_a_killed_evaluation_resumes(make, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "SAVE_SECONDS", -1.0)
    names, identity = "fd_lite0_100,is100,kid100_full", {"network": "abc"}
    whole = numbers(make(metrics=names, batch=10)(Generated()))
    with pytest.raises(Killed):
        make(metrics=names, batch=10)(Dying(7), identity=identity)
    generator = Generated()
    found = make(metrics=names, batch=10)(generator, identity=identity)
    assert numbers(found) == pytest.approx(whole, rel=1e-12)
    assert 30 <= len(generator.labels) <= 40, "no more than the batches that were not saved"
    assert not (tmp_path / "cache" / "partial").exists()


def test_a_killed_measurement_of_a_network_resumes(make, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "SAVE_SECONDS", -1.0)

    class Mortal(MeasuredGenerator):
        def __init__(self, calls):
            super().__init__(render.load_network(str(PICKLES / "stem_r_uncond.pkl")).G)
            self.calls, self.left = 0, calls

        def synthesize(self, styles):
            if self.calls == self.left:
                raise Killed
            self.calls += 1
            return super().synthesize(styles)

    options = {"metrics": "eqt12_int,eqt12_frac", "bootstrap": 2, "force": True}
    identity = {"network": "abc"}
    whole = measured_by(make(**options)(Mortal(-1)))
    with pytest.raises(Killed):  # 3 groups of 2 images for each metric
        make(**options)(Mortal(9), identity=identity)
    found = make(**options)(resumed := Mortal(-1), identity=identity)
    assert measured_by(found) == whole
    assert resumed.calls == 4, "the first metric, and a group of the second, were saved"
    assert not (tmp_path / "cache" / "partial").exists()
    make(**options)(other := Mortal(-1), identity={"network": "other"})
    assert other.calls == 12


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 5}, {"labels": "uniform"}, {"metrics": "is100"}])
def test_an_evaluation_under_other_conditions_does_not_resume(make, monkeypatch, change):
    monkeypatch.setattr(partial, "SAVE_SECONDS", -1.0)
    options = {"metrics": "fd_lite0_100", "batch": 10}
    with pytest.raises(Killed):
        make(**options)(Dying(7), identity={"network": "abc"})
    generator = Generated()
    make(**{**options, **change})(generator, identity={"network": "abc"})
    assert len(generator.labels) == 100
    make(**options)(generator := Generated(), identity={"network": "other"})
    assert len(generator.labels) == 100


def test_a_pass_over_real_images_resumes_and_caches_nothing_before_its_end(make, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "SAVE_SECONDS", -1.0)

    class Corrupt(Images):
        def __getitem__(self, index):
            if index == 50:
                raise ValueError("img00000050.png: cannot be decoded")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"img00000050\.png"):
        make(Corrupt(), batch=8)(Generated())
    assert not list((tmp_path / "cache").glob("*.npz"))
    dataset = Images()
    make(dataset, batch=8)(Generated())
    assert dataset.reads < 40 and len(list((tmp_path / "cache").glob("*.npz"))) == 1


def test_a_full_disk_costs_the_cache_alone(make, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics.np, "savez", full)
    evaluator = make()
    with pytest.warns(UserWarning, match="No space left on device"):
        value = evaluator(Generated())[0].value
    monkeypatch.undo()
    assert make()(Generated())[0].value == value and not list((tmp_path / "cache").glob("*.tmp"))


def test_intervals_are_in_the_record(make):
    (record,) = make(metrics="fd_lite0_100", bootstrap=4, extrapolate=True)(Generated())
    assert record.value == pytest.approx(make(metrics="fd_lite0_100")(Generated())[0].value, rel=1e-12)
    assert record.conditions["interval"]["std"]["fd_lite0_100"] > 0
    assert record.conditions["infinity"]["sizes"][-1] == 100
    json.dumps(record.as_dict())


def test_network_metrics_beside_metrics_of_images(make, tmp_path):
    network = render.load_network(str(PICKLES / "stem_r_uncond.pkl"))
    generator = MeasuredGenerator(network.G)
    one = make(metrics="eqt8_int,vendi_lite0_6", batch=4, force=True)(generator)
    again = make(metrics="eqt8_int,vendi_lite0_6", batch=1, force=True)(generator)
    assert numbers(one) == pytest.approx(numbers(again), rel=1e-4)
    assert list(numbers(one)) == ["eqt8_int", "vendi_lite0_6", "vendi_lite0_6_min", "vendi_lite0_6_max"]
    record = one[0].as_dict()
    assert record["detector"] is None and record["reference"] is None and not record["lower_is_better"]
    write_record(tmp_path, one[0])
    write_record(tmp_path, again[0])


def test_network_metrics_of_images_are_refused_in_one_line(make):
    with pytest.raises(ValueError, match="metric eqr8 needs a StyleGAN network") as error:
        make(metrics="eqr8")(Generated())
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="metric eqr8 needs a StyleGAN network"):
        make(metrics="eqr8").compare(Images())


def test_vendi_scores_are_per_class(make):
    generated = make(metrics="vendi_lite0_60")(Generated())[0]
    assert 1 <= generated.results["vendi_lite0_60_min"] <= generated.value
