# SPDX-License-Identifier: Apache-2.0
"""calc_metrics.py with EfficientNet-Lite0's real weights on small data and networks."""

import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result

import calc_metrics
import dnnlib.util
from generation.measured import MeasuredGenerator
from metrics import detectors, vgg16
from tests.support import TinyDetector
from tests.toy_data import write_dataset
from tests.toy_networks import write_network
from torch_utils import devices
from training.data.dataset import ImageDataset

NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DNNLIB_OFFLINE", "1")
    monkeypatch.delenv(detectors.INCEPTION_ENV, raising=False)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_dataset(tmp_path / "data.zip", class_names=NAMES, filter="lanczos")


@pytest.fixture
def network(tmp_path, data) -> Path:
    return write_network(tmp_path / "n.pkl", data)


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(calc_metrics.main, [*(str(arg) for arg in args), "--device=cpu"])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def lines(result: Result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_network_against_its_training_data(network, data, tmp_path):
    result = run("--network", network, "--metrics=fd_lite0_16", "--outdir", tmp_path / "records", "--batch=5")
    (record,) = lines(result)
    assert record["results"] == {"fd_lite0_16": record["value"]} and record["value"] > 1
    assert (record["num_gen"], record["num_real"], record["labels"], record["truncation"]) == (
        16,
        12,
        "dataset",
        1.0,
    )
    assert (
        record["reference"]["content_hash"] == ImageDataset(str(data)).content_hash()
        and record["reference"]["filter"] == "lanczos"
    )
    assert record["detector"]["sha256"].startswith("57934424") and record["snapshot_pkl"] == str(network)
    assert "fd_lite0_16" in result.stderr
    assert json.loads((tmp_path / "records" / "metric-fd_lite0_16.jsonl").read_text()) == record
    (again,) = lines(
        run(
            "--network",
            network,
            "--metrics=fd_lite0",
            "--num-gen=16",
            "--data",
            data,
            "--batch=16",
            "--verbose=False",
        )
    )
    assert again["value"] == pytest.approx(record["value"], rel=1e-4)
    (other,) = lines(
        run("--network", network, "--metrics=fd_lite0_16", "--truncation=0.5", "--labels=uniform", "--seed=1")
    )
    assert other["value"] != pytest.approx(record["value"], rel=1e-3)
    assert (other["truncation"], other["labels"], other["seed"]) == (0.5, "uniform", 1)


def test_unconditional_network(tmp_path, data):
    network = write_network(tmp_path / "u.pkl", data, c_dim=0)
    (record,) = lines(run("--network", network, "--metrics=fd_lite0_4", "--verbose=False"))
    assert record["labels"] is None and record["value"] > 0


def test_records_go_to_the_run_folder(tmp_path, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_options.json").write_text("{}")
    network = write_network(tmp_path / "run" / "n.pkl", data)
    run("--network", network, "--metrics=fd_lite0_4")
    assert (tmp_path / "run" / "metric-fd_lite0_4.jsonl").is_file()
    other = write_dataset(tmp_path / "other.zip", class_names=NAMES, seed=1)
    result = run("--network", network, "--metrics=fd_lite0_4", "--data", other, code=1)
    assert "cannot be compared with the recorded one: content_hash" in result.output
    run("--network", network, "--metrics=fd_lite0_4", "--data", other, "--force")
    assert len((tmp_path / "run" / "metric-fd_lite0_4.jsonl").read_text().splitlines()) == 2


def test_image_set_against_image_set(tmp_path, data):
    same, other = (write_dataset(tmp_path / f"{seed}.zip", seed=seed, filter="lanczos") for seed in (0, 1))
    result = run("--images", same, "--data", data, "--metrics=fd_lite0")
    (near,) = lines(result)
    assert (
        f"--images={same}: 12 images; no classes (dataset.json has no labels); left out: nothing\n"
        in result.stderr
    )
    assert (
        f"--data={data}: 12 images; no classes (not used; there are 3, from dataset.json); left out: "
        "nothing\n" in result.stderr
    )
    (far,) = lines(run("--images", other, "--data", data, "--metrics=fd_lite0"))
    assert near["metric"] == "fd_lite0_12" and near["value"] == pytest.approx(0, abs=1e-3)
    assert far["value"] > 10 and far["images"]["name"] != near["images"]["name"]
    boxed = write_dataset(tmp_path / "boxed.zip", filter="box")
    result = run("--images", boxed, "--data", data, "--metrics=fd_lite0", code=1)
    assert "filter box against lanczos" in result.output and len(result.output.strip().splitlines()) == 1
    assert lines(run("--images", boxed, "--data", data, "--metrics=fd_lite0", "--force"))[0]["forced"]


@pytest.fixture
def tiny(monkeypatch):
    """Detectors that cost nothing; what they saw is kept by name."""
    loaded = {}

    def load(name, device="cpu", *, inception_path=None, **options):
        sha256 = "random:0" if inception_path == "random" else "tiny"
        return loaded.setdefault(name, TinyDetector(name, sha256))

    monkeypatch.setattr(detectors, "load", load)
    monkeypatch.setattr(detectors, "check", lambda name, **options: None)
    return loaded


def write_images(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB", ending: str = "png") -> Path:
    folder.mkdir()
    for i, (width, height) in enumerate(sizes):
        noise = np.random.RandomState(i).randint(0, 256, (height, width, 4), dtype=np.uint8)
        PIL.Image.fromarray(noise).convert(mode).save(folder / f"{i}.{ending}")
    return folder


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_images_of_any_size_and_kind_are_measured(tmp_path, data, tiny, mode):
    images = write_images(tmp_path / "out", [(20, 17), (16, 16), (9, 30), (64, 64)], mode)
    result = run("--images", images, "--data", data, "--metrics=fd_lite0,pr_inception_4")
    (fd, pr) = lines(result)
    assert fd["metric"] == "fd_lite0_4" and pr["results"].keys() == {
        "pr_inception_4_precision",
        "pr_inception_4_recall",
    }
    assert fd["images"]["resolution"] == 16 and "largest centred square" in fd["images"]["transform"]
    assert fd["images"]["adapted"] == {"cropped": 2, "reduced": 2, "enlarged": 1}
    assert "another size than 16 pixels: 2 cropped" in result.stderr


def test_the_reference_may_be_any_images_too(tmp_path, tiny):
    a, b = (write_images(tmp_path / name, [(20, 17), (12, 16), (9, 30), (12, 12)]) for name in "ab")
    (same,) = lines(run("--images", a, "--data", b, "--metrics=fd_lite0", "--resolution=8"))
    assert same["value"] == pytest.approx(0, abs=1e-6) and same["reference"]["resolution"] == 8
    assert lines(run("--images", a, "--data", b, "--metrics=fd_lite0"))[0]["reference"]["resolution"] == 17
    broken = write_images(tmp_path / "c", [(8, 8)] * 3)
    (broken / "x.png").write_bytes(b"\x89PNG")
    message = run("--images", broken, "--data", b, "--metrics=fd_lite0", code=1).output
    assert "c: x.png: " in message and len([line for line in message.splitlines() if "Error" in line]) == 1


def test_jpeg_against_png_is_a_warning(tmp_path, data, tiny):
    jpeg, png = (write_images(tmp_path / kind, [(16, 16)] * 4, ending=kind) for kind in ("jpg", "png"))
    result = run("--images", jpeg, "--data", data, "--metrics=fd_lite0")
    assert "Warning: jpg holds JPEG files, data does not" in result.stderr
    assert lines(result)[0]["images"]["encodings"] == ["JPEG"] and lines(result)[0]["reference"][
        "encodings"
    ] == ["PNG"]
    assert "Warning" not in run("--images", png, "--data", data, "--metrics=fd_lite0").stderr


def test_conventions_stand_in_the_table_and_the_record(network, tiny):
    result = run(
        "--network", network, "--metrics=fid20_full,is20", "--inception=random", "--covariance=unbiased"
    )
    table = [line for line in result.stderr.splitlines() if line.startswith("  ")]
    assert len(table) == 3 and all("random weights" in line for line in table)
    assert "covariance over n - 1" in table[0] and "n - 1" not in table[1]
    fid, score = lines(result)
    assert (fid["covariance"], fid["lower_is_better"]) == ("unbiased", True)
    assert "covariance" not in score and score["lower_is_better"] is False
    assert fid["detector"]["weights"] == score["detector"]["weights"] == "random"
    tiny.clear()
    plain = run("--network", network, "--metrics=fid20_full")
    assert not [line for line in plain.stderr.splitlines() if line.startswith("  ") and "(" in line]
    assert (
        "has no effect on is20"
        in run("--network", network, "--metrics=is20", "--covariance=unbiased", code=1).output
    )


def test_what_is_too_small_for_a_metric_is_said_before_any_work(network, tmp_path, tiny):
    few = write_dataset(tmp_path / "few.zip", n=3, class_names=NAMES)
    for args in (["--network", network, "--data", few], ["--images", tmp_path / "data.zip", "--data", few]):
        message = run(*args, "--metrics=pr_inception_10", code=1).output
        assert "metric pr_inception_10 needs at least 4 real images" in message and "few.zip has 3" in message
    assert "needs at least 10 images, few has 3" in run("--images", few, "--metrics=is", code=1).output
    assert not tiny and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["/proc/none/cache", "file"])
def test_a_cache_that_cannot_be_written_is_a_warning(network, tmp_path, tiny, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / place))
    with pytest.warns(UserWarning, match="metrics cache .* DNNLIB_CACHE_DIR"):
        assert lines(run("--network", network, "--metrics=fd_lite0_8"))[0]["num_gen"] == 8


def test_a_run_folder_that_cannot_be_written_keeps_no_record(tmp_path, data, tiny, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_options.json").write_text("{}")
    network = write_network(tmp_path / "run" / "n.pkl", data)
    read_only = [str(network.parent), str(tmp_path / "records")]
    monkeypatch.setattr(
        dnnlib.util,
        "why_not_writable",
        lambda folder: "Read-only file system" if str(folder) in read_only else None,
    )
    result = run("--network", network, "--metrics=fd_lite0_4")
    assert "run cannot be written (Read-only file system): no record is kept there" in result.stderr
    assert lines(result)[0]["num_gen"] == 4 and not list((tmp_path / "run").glob("metric-*"))
    message = run(
        "--network", network, "--metrics=fd_lite0_4", "--outdir", tmp_path / "records", code=1
    ).output
    assert "records cannot be written (Read-only file system): name another folder" in message


def test_training_images_of_another_preparation_are_noticed(tmp_path, data):
    network = write_network(tmp_path / "n.pkl", data, data={"metadata": {"filter": "box"}})
    assert "filter box against lanczos" in run("--network", network, "--metrics=fd_lite0_4", code=1).output


def test_missing_inception_is_said_before_any_work(network, tmp_path):
    result = run("--network", network, "--metrics=fid50k_full,fd_lite0", code=1)
    assert detectors.INCEPTION_SHA256 in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "cache" / "metrics").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--network={}/n.pkl", "--metrics=fd_lite"],
            "unknown metric 'fd_lite'; the nearest known one is 'fd_lite0'",
        ),
        (["--network={}/n.pkl", "--metrics=none"], "--metrics names no metric"),
        (["--metrics=fd_lite0"], "give either --network or --images"),
        (
            ["--network={}/n.pkl", "--metrics=fd_lite0", "--resolution=8"],
            "--resolution=8: the network makes images of 16 pixels; use --force",
        ),
        (["--network={}/n.pkl", "--images={}/data.zip"], "give either --network or --images"),
        (["--images={}/data.zip", "--metrics=fd_lite0"], "--data is missing"),
        (["--images={}/data.zip", "--data={}/data.zip", "--truncation=0.5"], "are for networks"),
        (["--network={}/n.pkl", "--data={}/nowhere.zip", "--metrics=fd_lite0"], "nowhere.zip"),
        (["--network={}/nowhere.pkl", "--metrics=fd_lite0"], "no such file"),
        (
            ["--network={}/n.pkl", "--inception={}/data.zip"],
            "not pt_inception-2015-12-05-6726825d.pth, or it is damaged",
        ),
    ],
)
def test_mistakes_are_one_line(network, tmp_path, args, message):
    result = run(*(arg.format(tmp_path) for arg in args), code=1)
    assert message in result.output and len(result.output.strip().splitlines()) == 1


def test_a_set_without_labels_names_a_flag_of_this_command(network, tmp_path):
    unlabelled = write_dataset(tmp_path / "unlabelled.zip")
    result = run("--network", network, "--data", unlabelled, "--metrics=fd_lite0_4", code=1)
    assert (
        "no labels in dataset.json: use --labels=uniform" in result.output and "--cond" not in result.output
    )
    for split in ("train", "val"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        PIL.Image.new("RGB", (16, 16)).save(tmp_path / "splits" / split / "0.png")
    result = run("--network", network, "--data", tmp_path / "splits", "--metrics=fd_lite0_4", code=1)
    assert "dataset_tool.py --labels=folders" in result.output and "or use --labels=uniform" in result.output


@pytest.mark.parametrize("flag", ["--images", "--data"])
def test_a_prepared_set_with_a_misnamed_index_is_refused(tmp_path, data, flag):
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(tmp_path / "misnamed.zip", "w") as target:
        for name in source.namelist():
            target.writestr(name.replace("dataset.json", "Dataset.json"), source.read(name))
    paths = {"--images": data, "--data": data, flag: tmp_path / "misnamed.zip"}
    result = run(*(f"{name}={path}" for name, path in paths.items()), "--metrics=fd_lite0", code=1)
    assert "Dataset.json is not read because of its letter case: rename it" in result.output


def test_the_pictures_of_a_run_are_no_images(tmp_path, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_options.json").write_text("{}")
    result = run("--images", tmp_path / "run", "--data", data, "--metrics=fd_lite0", code=1)
    assert "is the folder of a run, whose pictures are grids: use --network" in result.output


def test_a_pickle_whose_data_is_gone_asks_for_it(tmp_path):
    network = write_network(tmp_path / "n.pkl", tmp_path / "gone.zip")
    assert (
        "is not here: name the data set" in run("--network", network, "--metrics=fd_lite0_4", code=1).output
    )


@pytest.mark.e2e
def test_two_processes_give_the_same_number(network, tmp_path):
    (alone,) = lines(run("--network", network, "--metrics=fd_lite0_20", "--batch=4", "--verbose=False"))
    run("--network", network, "--metrics=fd_lite0_20", "--batch=4", "--gpus=2", "--outdir", tmp_path / "two")
    record = json.loads((tmp_path / "two" / "metric-fd_lite0_20.jsonl").read_text())
    assert record["num_gpus"] == 2 and record["value"] == pytest.approx(alone["value"], rel=1e-5)


def test_repeats_measure_several_seeds(network, tmp_path, tiny):
    args = ["--network", network, "--metrics=fd_lite0_8", "--seed=3"]
    result = run(*args, "--repeats=3", "--outdir", tmp_path / "a")
    found = lines(result)
    assert [record["seed"] for record in found] == [3, 4, 5]
    assert len({record["value"] for record in found}) == 3
    assert "(3 seeds: minimum " in result.stderr and ", standard deviation " in result.stderr
    assert lines(run(*args))[0]["value"] == found[0]["value"]
    compared = run_compare(tmp_path / "a", tmp_path / "a")
    assert "mean of 3 seeds" in compared.output and "a tie: equal" in compared.output
    message = run("--images", network.parent / "data.zip", "--repeats=2", code=1).output
    assert "--repeats draws other latents and needs --network" in message


def run_compare(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(calc_metrics.main, ["compare", *(str(arg) for arg in args)])
    assert result.exit_code == code, result.output
    assert code == 0 or len(result.output.strip().splitlines()) == 1
    return result


def test_compare_prints_differences_and_refuses_other_conditions(tmp_path, network, tiny):
    for name, options in {
        "a": [],
        "b": ["--seed=1"],
        "c": ["--covariance=unbiased"],
        "d": ["--seed=2"],
    }.items():
        run(
            "--network",
            network,
            "--metrics=fd_lite0_8",
            "--outdir",
            tmp_path / name,
            "--bootstrap=4",
            *options,
        )
    a, b, c, d = (tmp_path / name for name in "abcd")
    text = run_compare(a, b, d).output.splitlines()
    assert text[0] == "fd_lite0_8" and len(text) == 4 and " +- " in text[2]
    message = run_compare(a, c, code=1).output
    assert "measured differently: covariance population against unbiased" in message
    assert "note: measured differently" in run_compare(a, c, "--force").output
    (line,) = run_compare(a, b, "--json").output.splitlines()
    assert json.loads(line)["metric"] == "fd_lite0_8"
    assert "at least two" in run_compare(a, code=1).output
    assert "no metric records" in run_compare(a, tmp_path / "cache", code=1).output


def test_intervals_and_extrapolation_are_shown(network, tiny):
    result = run("--network", network, "--metrics=fd_lite0_40", "--bootstrap=3", "--extrapolate")
    assert "under other samples (3 random halves)" in result.stderr
    assert "extrapolated to infinitely many samples" in result.stderr
    message = run("--network", network, "--metrics=fd_lite0_39", "--extrapolate", code=1).output
    assert "4 features: its extrapolation needs at least 40 generated images, got 39" in message
    assert (
        "--bootstrap=1" in run("--network", network, "--metrics=fd_lite0_8", "--bootstrap=1", code=1).output
    )


def test_statistics_stand_for_images(network, data, tmp_path, tiny):
    dest = tmp_path / "new" / "s.npz"
    args = ["statistics", "--images", data, "--metrics=fd_lite0_8_full,kid8_full", "--dest"]
    assert run(*args, dest).output.strip() == str(dest)
    (expected,) = lines(run("--network", network, "--metrics=fd_lite0_8_full"))
    (found,) = lines(run("--network", network, "--metrics=fd_lite0_8_full", "--data", dest))
    assert found["value"] == expected["value"] and found["reference"] == expected["reference"]
    (zero,) = lines(run("--images", dest, "--data", dest, "--metrics=fd_lite0_8_full"))
    assert zero["value"] == pytest.approx(0, abs=1e-6) and zero["metric"] == "fd_lite0_12_full"
    message = run("--network", network, "--data", dest, "--metrics=fid8_full", code=1).output
    assert "s.npz holds inception-2015-12-05 features (array of 12 images), lite0" in message
    assert "ends in .npz" in run(*args, tmp_path / "s.zip", code=1).output
    assert (
        "holds statistics already"
        in run("statistics", "--images", dest, "--dest", tmp_path / "t.npz", code=1).output
    )


def test_statistics_of_a_network_stand_for_its_images(network, data, tmp_path, tiny):
    dest, metrics = tmp_path / "fakes.npz", "--metrics=fd_lite0_8_full"
    args = ["statistics", "--network", network, metrics, "--dest"]
    run(*args, dest, "--seed=2")
    (expected,) = lines(run("--network", network, metrics, "--seed=2"))
    (found,) = lines(run("--images", dest, "--data", data, metrics))
    assert found["value"] == pytest.approx(expected["value"], rel=1e-12) and found["num_gen"] == 8
    assert found["images"]["seed"] == 2 and found["images"]["dataset"] == "n.pkl"
    unconditional = write_network(tmp_path / "u.pkl", tmp_path / "gone.zip", c_dim=0)
    run("statistics", "--network", unconditional, metrics, "--dest", tmp_path / "u.npz")
    both = run(*args, dest, "--images", data, code=1).output
    assert "give either --network or --images" in both
    gone = write_network(tmp_path / "g.pkl", tmp_path / "gone.zip")
    message = run("statistics", "--network", gone, metrics, "--dest", tmp_path / "g.npz", code=1).output
    assert "is not here: name the data set" in message
    run("statistics", "--network", gone, metrics, "--labels=uniform", "--dest", tmp_path / "g.npz")


KILLED = """
import os, signal, sys
import calc_metrics
from metrics import detectors, partial
from tests.support import TinyDetector

saves, save = [], partial.Partial._save

def save_and_die(self, stores, position):
    save(self, stores, position)
    saves.append(position)
    if "network" in self.key["images"] and position >= 3:
        os.kill(os.getpid(), signal.SIGKILL)

partial.SAVE_SECONDS = -1.0
partial.Partial._save = save_and_die
detectors.load = lambda name, device="cpu", **options: TinyDetector(name, "tiny")
detectors.check = lambda name, **options: None
calc_metrics.main(sys.argv[1:])
"""


@pytest.mark.e2e
def test_a_killed_process_resumes_to_the_same_number(network, data, tmp_path, tiny, monkeypatch):
    args = ["--network", network, "--metrics=fd_lite0_40,vendi_lite0_40", "--batch=5"]
    command = [sys.executable, "-c", KILLED, *map(str, args), "--device=cpu"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == "" and list((tmp_path / "cache").rglob("partial/*/rank0.npz"))
    made, generate = [], MeasuredGenerator.__call__

    def counted(self, z, labels):
        made.append(len(z))
        return generate(self, z, labels)

    monkeypatch.setattr(MeasuredGenerator, "__call__", counted)
    resumed = lines(run(*args))
    assert sum(made) == 25, "15 of 40 images were saved"
    assert not list((tmp_path / "cache").rglob("partial"))
    whole = lines(run(*args, "--outdir", tmp_path / "whole"))
    assert sum(made) == 65
    for a, b in zip(resumed, whole, strict=True):
        assert a["results"] == pytest.approx(b["results"], rel=1e-9)


def test_samples_in_adms_layout(network, data, tmp_path, tiny):
    dataset = ImageDataset(str(data))
    pixels = np.stack([dataset[i][0].transpose(1, 2, 0) for i in range(len(dataset))])
    np.savez_compressed(tmp_path / "samples.npz", pixels, np.arange(12) % 3)
    for sides in (["--images", tmp_path / "samples.npz", "--data", data],
                  ["--images", data, "--data", tmp_path / "samples.npz"]):  # fmt: skip
        (same,) = lines(run(*sides, "--metrics=fd_lite0"))
        assert same["metric"] == "fd_lite0_12" and same["value"] == pytest.approx(0, abs=1e-6)
    (record,) = lines(run("--network", network, "--metrics=fd_lite0_8", "--data", tmp_path / "samples.npz"))
    assert record["labels"] == "dataset"
    np.savez(tmp_path / "float.npz", pixels / 255)
    message = run("--images", tmp_path / "float.npz", "--data", data, "--metrics=fd_lite0", code=1).output
    assert "must be arr_0, uint8 [N, H, W, 3], not float64" in message


def test_a_run_folder_is_a_network(tmp_path, data, tiny, monkeypatch):
    kept = []
    monkeypatch.setattr(devices.memory, "keep_freed_memory", lambda: kept.append(True))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_options.json").write_text("{}")
    write_network(tmp_path / "run" / "best_model.pkl", data)
    (record,) = lines(run("--network", tmp_path / "run", "--metrics=fd_lite0_4"))
    assert record["snapshot_pkl"].endswith("best_model.pkl") and record["num_gen"] == 4
    assert kept == [True], "detectors run twice as fast on CPUs with it"


def test_a_report_shows_numbers_neighbours_and_classes(network, data, tmp_path, tiny):
    result = run("--network", network, "--metrics=fd_lite0_30", "--report", tmp_path / "new" / "r.html")
    page = (tmp_path / "new" / "r.html").read_text()
    value = lines(result)[0]["value"]
    assert f"<td>{value:.4f}</td>" in page and "<h2>Nearest real images</h2>" in page
    assert "Best classes" in page and "class 2 (c)" in page and "<script" not in page
    assert page.count("data:image/png") == 12 * 6 + 2 * 3 * (8 + 4) + 1
    run("--images", data, "--data", data, "--metrics=fd_lite0", "--report", tmp_path / "i.html")
    page = (tmp_path / "i.html").read_text()
    assert "sample 11" in page and ">0<" in page, "each image is its own nearest neighbour"
    assert "would be replaced" in run("--network", network, "--report", network, code=1).output


@pytest.mark.parametrize(
    ("count", "metrics", "message"),
    [
        (0, "fd_lite0", "no images found"),
        (1, "fd_lite0", "metrics need at least 2 images, the data set has 1"),
        (3, "pr_inception", "needs at least 4"),
    ],
)
def test_too_few_images_are_one_line(tmp_path, data, tiny, count, metrics, message):
    few = write_images(tmp_path / "few", [(16, 16)] * count)
    for sides in (["--images", few, "--data", data], ["--images", data, "--data", few]):
        output = run(*sides, f"--metrics={metrics}", code=1).output
        assert message in output and len(output.strip().splitlines()) == 1


def test_fewer_images_than_features_are_measured(tmp_path, tiny):
    a, b = (write_images(tmp_path / name, [(8, 8)] * count) for name, count in (("a", 2), ("b", 3)))
    result = run("--images", a, "--data", b, "--metrics=fd_lite0")
    (record,) = lines(result)
    assert 0 <= record["value"] < float("inf") and record["singular"]
    assert "fewer images than features: the covariance is singular, use more images" in result.stderr


def test_a_prepared_data_set_of_mixed_sizes_is_one_line(tmp_path, data, tiny):
    mixed = write_images(tmp_path / "mixed", [(16, 16), (16, 16), (8, 8)])
    (mixed / "dataset.json").write_text('{"labels": null}')
    output = run("--images", mixed, "--data", data, "--metrics=fd_lite0", code=1).output
    assert "2.png" in output and len([line for line in output.splitlines() if "Error" in line]) == 1
    assert not list((tmp_path / "cache").rglob("*.npz")) or "mixed" not in str(
        list((tmp_path / "cache").rglob("*"))
    )


def test_metrics_of_the_network_and_weights_by_name(network, data, monkeypatch):
    monkeypatch.setattr(vgg16, "WIDTHS", tuple(tuple(width // 16 for width in b) for b in vgg16.WIDTHS))
    monkeypatch.setattr(vgg16, "HIDDEN", 64)
    result = run(
        "--network", network, "--metrics=eqr16,ppl2_wend_4", "--detector=vgg16-stylegan=random",
        "--repeats=2", "--bootstrap=6",
    )  # fmt: skip
    eqr, ppl, *_, again = lines(result)
    assert again["seed"] == 1 and again["value"] != ppl["value"] and "(2 seeds: minimum" in result.stderr
    assert eqr["interval"]["std"]["eqr16"] > 0 and ppl["interval"]["std"]["ppl2_wend_4"] > 0
    message = run("--network", network, "--metrics=eqr4", "--bootstrap=2", code=1).output
    assert "metric eqr needs at least 8 generated images for an interval, got 4" in message
    assert eqr["detector"] is None and ppl["detector"]["weights"] == "random" and ppl["value"] > 0
    message = run("--images", data, "--data", data, "--metrics=eqr4", code=1).output
    assert "metric eqr4 needs a StyleGAN network" in message and message.count("\n") == 1
    message = run("--network", network, "--metrics=ppl2_wend_3", "--detector=vgg=x", code=1).output
    assert "--detector=vgg=x: expected NAME=PATH" in message
    monkeypatch.delenv(vgg16.ENV, raising=False)
    message = run("--network", network, "--metrics=ppl2_wend_3", code=1).output
    assert "put metrics/vgg16.pt of StyleGAN2-ADA at" in message and message.count("\n") == 1
