# SPDX-License-Identifier: Apache-2.0
"""Statistics in .npz files: ours and ADM's as either side of a measurement, and what is refused."""

import json

import numpy as np
import pytest

from metrics import evaluate, export, statistics_file
from metrics.evaluate import Evaluator
from metrics.names import INCEPTION, LITE0
from metrics.statistics_file import StatisticsFile, open_npz
from tests.support import Generated, Images, TinyDetector


@pytest.fixture
def make(tmp_path):
    def build(dataset, metrics="fid100_full", sha256="tiny", **options):
        loaded = {LITE0: TinyDetector(sha256=sha256), INCEPTION: TinyDetector(INCEPTION, sha256)}
        return Evaluator(dataset, metrics, loaded=loaded, cache_dir=str(tmp_path / "cache"), **options)

    return build


@pytest.fixture
def ours(make, tmp_path):
    """Statistics of Images(200) for four metrics."""
    path = tmp_path / "ours.npz"
    export.write_statistics(make(None, "is20"), str(tmp_path / "is.npz"), Images(200))
    metrics = "fid100_full,kid100_full,fd_lite0_30_full,fid30"
    export.write_statistics(make(Images(200), metrics), str(path), Images(200))
    return str(path)


def test_a_written_file_stands_for_the_images(make, ours):
    metrics = "fid100_full,kid100_full,fd_lite0_30_full,fid30"
    images, file = (make(data, metrics)(Generated()) for data in (Images(200), StatisticsFile(ours)))
    for a, b in zip(images, file, strict=True):
        assert a.results == pytest.approx(b.results, rel=1e-12)
        assert a.conditions["reference"] == b.conditions["reference"], "they are comparable"
    assert file[0].conditions["labels"] == "dataset", "labels are drawn as the data set's are"


def test_statistics_against_statistics(make, ours, tmp_path):
    other = tmp_path / "other.npz"
    export.write_statistics(make(Images(150, seed=3)), str(other), Images(150, seed=3))
    (expected,) = make(Images(200), "fid150_full").compare(Images(150, seed=3))
    (found,) = make(StatisticsFile(ours), "fid50k_full").compare(StatisticsFile(str(other)))
    assert found.metric == "fid150_full" and found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.conditions["images"]["num_real"] == 150
    with pytest.raises(ValueError, match="intervals need images or a network"):
        make(StatisticsFile(ours), "fid50k_full", bootstrap=5).compare(StatisticsFile(str(other)))


def test_statistics_of_a_generator(make, tmp_path):
    path = str(tmp_path / "fakes.npz")
    export.write_statistics(make(Images(), "fid80_full"), path, generator=Generated())
    (expected,) = make(Images(), "fid80_full")(Generated())
    (found,) = make(Images(), "fid80_full").compare(StatisticsFile(path))
    assert found.value == pytest.approx(expected.value, rel=1e-12) and found.metric == "fid80_full"


def test_other_programs_read_mu_and_sigma(make, ours):
    features = TinyDetector()(evaluate.RealImages(Images(200))(range(200)))["features"].double().numpy()
    with np.load(ours, allow_pickle=False) as file:
        assert file["mu"] == pytest.approx(features.mean(0)) and file["sigma"] == pytest.approx(
            np.cov(features.T)
        )


def test_their_mu_and_sigma_are_a_reference(make, tmp_path):
    features = TinyDetector()(evaluate.RealImages(Images(200))(range(200)))["features"].double().numpy()
    path = str(tmp_path / "adm.npz")
    np.savez(path, mu=features.mean(0), sigma=np.cov(features.T, ddof=0), mu_s=np.zeros(5), sigma_s=np.eye(5))
    (expected,) = make(Images(200), labels="uniform")(Generated())
    (found,) = make(open_npz(path), labels="uniform")(Generated())
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.conditions["reference"]["statistics"] == "mu, sigma" and found.conditions["num_real"] is None
    with pytest.raises(ValueError, match="labels 'dataset' need a labelled data set"):
        make(open_npz(path))(Generated())
    with pytest.raises(
        ValueError, match=r"adm.npz holds .*; the metric needs lite0 features .moments of all"
    ):
        make(open_npz(path), "fd_lite0_30_full").check()


def test_a_reference_batch_has_images_beside_its_statistics(make, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    path = str(tmp_path / "batch.npz")
    np.savez_compressed(path, arr_0=images, mu=np.ones(4), sigma=np.eye(4))
    data = open_npz(path)
    fid, kid = make(data, "fid50_full,kid50_full", labels="uniform")(Generated())
    assert fid.conditions["reference"]["statistics"] == "mu, sigma"
    assert kid.conditions["reference"]["num_real"] == 12
    assert make(data, "kid50_full", labels="uniform").compare(open_npz(path))[0].conditions["num_gen"] == 12


def test_other_weights_are_refused(make, ours):
    with pytest.raises(
        ValueError, match=r"its statistics are those of inception.* with sha256 tiny, this .* other"
    ):
        make(StatisticsFile(ours), sha256="other")(Generated())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(3)}, r"mu and sigma must be floats \[D\] and \[D, D\]"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "mu and sigma must be floats"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3, dtype=int)}, "must be floats"),
        (
            {"stylesan_xl": np.asarray(json.dumps({"format": 2}))},
            "statistics in format 2, and format 1 is read",
        ),
        ({"stylesan_xl": np.asarray("{")}, "not valid JSON"),
        ({"stylesan_xl": np.asarray(json.dumps({"format": 1, "entries": [{}]}))}, "damaged statistics"),
        ({"other": np.zeros(3)}, r"images must be arr_0, uint8 \[N, H, W, 3\]; the file contains other"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
    path = str(tmp_path / "a.npz")
    np.savez(path, **content)
    with pytest.raises(ValueError, match=message) as error:
        open_npz(path)
    assert "\n" not in str(error.value) and path in str(error.value)


def test_statistics_that_are_not_finite_are_refused(make, tmp_path):
    path = str(tmp_path / "nan.npz")
    np.savez(path, mu=np.full(4, np.nan), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"nan.npz: damaged statistics .they hold NaN or Inf"):
        make(StatisticsFile(path), labels="uniform")(Generated())


def test_a_failed_write_leaves_no_file(make, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics_file.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        export.write_statistics(make(Images()), str(tmp_path / "x.npz"), Images())
    assert not list(tmp_path.glob("*x.npz*"))
