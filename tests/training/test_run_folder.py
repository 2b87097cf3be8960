# SPDX-License-Identifier: Apache-2.0
"""Run folders: their numbers, the names in them, what is found where something is missing or damaged."""

import ast
import json
import multiprocessing
import re
from pathlib import Path

import pytest

from torch_utils import checkpoint
from training import run_folder
from training.config import TrainConfig, to_json
from training.run.snapshots import Snapshots
from training.state import Progress

ROOT = Path(run_folder.__file__).resolve().parent.parent

# Pieces by which a name of a run folder's file is known, in literals of the code.
NAMES = [
    *(
        r"training_options\.json",
        r"status\.json",
        r"log\.txt",
        r"stats\.jsonl",
        r"alarms\.jsonl",
        r"about\.json",
        r"lineage\.json",
    ),
    *(
        r"init_from\.json",
        r"final\.json",
        r"recipe\.json",
        r"curves\.png",
        r"report\.html",
        r"contact-sheet\.png",
        r"reals\.png",
    ),
    *(
        r"fakes_init\.png",
        r"^fakes$",
        r"network-snapshot\.pkl",
        r"^network-snapshot-",
        r"best_model\.pkl",
        r"best_nimg\.txt",
    ),
    *(r"^checkpoints/?$", r"checkpointed\.txt", r"^metric-", r"^stage-", r"^contact$", r"\.lock-writer"),
]


def literals(path: Path) -> list[str]:
    """The texts in a file's code: no comments, no docstrings; of an f-string its parts."""
    tree = ast.parse(path.read_text())
    described = [
        node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    docstrings = {
        id(node.body[0].value) for node in described if node.body and isinstance(node.body[0], ast.Expr)
    }
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [node.value for node in found if id(node) not in docstrings]


def test_every_name_in_a_run_folder_is_spelt_once():
    owners = {"training/run_folder.py": [], "dnnlib/records.py": []}
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ("tests", "tools", ".venv", "build", "demo"):
            continue
        for text in literals(path):
            spelt = [name for name in NAMES if re.search(name, text)]
            assert not spelt or str(relative) in owners, (
                f"{relative} spells {text!r}: take it from training/run_folder.py"
            )
            owners.get(str(relative), []).extend(spelt)
    counts = {name: sum(spelt.count(name) for spelt in owners.values()) for name in NAMES}
    assert counts == dict.fromkeys(NAMES, 1)


def make(outdir: str, desc: str, start, results) -> None:
    start.wait()
    results.put(str(run_folder.new_run_folder(outdir, desc)))


def test_twenty_runs_that_start_at_once_get_twenty_numbers(tmp_path):
    """Whatever their descriptions: processes that wait for one event."""
    context = multiprocessing.get_context("fork")
    (tmp_path / "00002-there").mkdir()
    (tmp_path / ".00005.claim").mkdir()  # of a run that was killed at that moment
    start, results = context.Event(), context.Queue()
    runs = [
        context.Process(target=make, args=(str(tmp_path), f"kind{i % 7}", start, results)) for i in range(20)
    ]
    for run in runs:
        run.start()
    start.set()
    made = [results.get() for _ in runs]
    for run in runs:
        run.join()
    numbers = sorted(int(Path(path).name.split("-")[0]) for path in made)
    assert numbers == [3, 4, *range(6, 24)] and len(run_folder.run_folders(str(tmp_path))) == 21
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == {".00005.claim"}


def test_a_number_is_taken_by_files_and_other_descriptions_too(tmp_path, monkeypatch):
    """Another run makes its folder between the look and the claim."""
    real = run_folder.run_folders
    looks = []

    def late(outdir):
        found = real(outdir)
        if not looks:
            (tmp_path / "00000-other").mkdir()
        looks.append(found)
        return found

    monkeypatch.setattr(run_folder, "run_folders", late)
    assert run_folder.new_run_folder(str(tmp_path), "mine").name == "00001-mine"
    (tmp_path / "00002-mine").touch()
    assert run_folder.new_run_folder(str(tmp_path), "mine").name == "00003-mine"


def test_the_newest_checkpoint_or_none_at_all(tmp_path):
    assert run_folder.newest_checkpoint(tmp_path) is None and not run_folder.has_checkpoint(tmp_path)
    run_folder.append_jsonl(
        tmp_path / run_folder.STATS_FILE, {"kimg": 1}
    )  # killed before the first checkpoint
    run_folder.snapshot_file(tmp_path, "000001").touch()
    assert run_folder.newest_checkpoint(tmp_path) is None
    path = checkpoint.save(run_folder.checkpoint_folder(tmp_path), 8, {"x": 1})
    assert run_folder.newest_checkpoint(tmp_path) == path and run_folder.newest_checkpoint_nimg(tmp_path) == 8


@pytest.mark.parametrize("trace", ["damaged", "set aside", "noted", "status", "best", "snapshots"])
def test_a_folder_that_has_lost_its_checkpoints_says_so(trace, tmp_path):
    path = checkpoint.save(run_folder.checkpoint_folder(tmp_path), 8, {"x": 1})
    if trace in ("damaged", "set aside"):
        path.write_bytes(b"")
    if trace == "set aside":
        path.rename(f"{path}.damaged")
    if trace not in ("damaged", "set aside"):
        path.unlink()
        path.parent.rmdir()
    if trace == "noted":
        run_folder.record_first_checkpoint(tmp_path, 8)
    if trace == "status":  # the others: version 0.1 noted nothing
        run_folder.write_status(tmp_path, run_folder.FINISHED, 8)
    if trace == "best":
        run_folder.write_best_nimg(tmp_path, 8)
    if trace == "snapshots":
        for number in ("000000", "000001"):
            run_folder.snapshot_file(tmp_path, number).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"no usable checkpoint.*--from-scratch"):
        run_folder.newest_checkpoint(tmp_path, set_aside=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", ["{", "[]", "null", "5", "{}", '{"outcome": null}', "\x00\x80"])
def test_a_damaged_status_is_that_of_an_unfinished_run(content, tmp_path):
    config = TrainConfig()
    run_dir = run_folder.new_run_folder(str(tmp_path), "x")
    run_folder.write_json(run_dir / run_folder.OPTIONS_FILE, {"config": to_json(config)})
    (run_dir / run_folder.STATUS_FILE).write_text(content)
    assert run_folder.recorded_outcome(run_dir) is None and run_folder.recorded_nimg(run_dir) is None
    assert run_folder.unfinished_run(str(tmp_path), "x", config) == run_dir
    run_folder.write_status(run_dir, run_folder.FINISHED, 8)
    assert run_folder.unfinished_run(str(tmp_path), "x", config) is None


def test_a_requeued_job_may_have_another_local_disk(tmp_path):
    run_dir = run_folder.new_run_folder(str(tmp_path), "x")
    config = TrainConfig().override({"run.local_checkpoint": "/scratch/job-1"})
    run_folder.write_json(run_dir / run_folder.OPTIONS_FILE, {"config": to_json(config)})
    moved = config.override({"run.local_checkpoint": "/scratch/job-2"})
    assert run_folder.unfinished_run(str(tmp_path), "x", moved) == run_dir
    other = moved.override({"run.batch": 2 * moved.run.batch})
    assert run_folder.unfinished_run(str(tmp_path), "x", other) is None


def test_the_identity_of_a_run_stays(tmp_path):
    identity = run_folder.identity(tmp_path)
    assert run_folder.identity(tmp_path) == identity and len(identity) == 32
    (tmp_path / run_folder.IDENTITY_FILE).write_text("damaged")
    assert run_folder.identity(tmp_path) != identity


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null", b"5", b"[" * 100_000, b'{"config": 3}', b"{}"])
def test_damaged_options_are_named_in_one_line(content, tmp_path):
    (tmp_path / run_folder.OPTIONS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=run_folder.OPTIONS_FILE) as caught:
        run_folder.load_run(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_best_network_and_its_number(tmp_path):
    assert run_folder.best_network(tmp_path) is None and run_folder.best_nimg(tmp_path) is None
    for name in (run_folder.NEWEST_NETWORK, run_folder.BEST_NETWORK):
        (tmp_path / name).touch()
        assert run_folder.best_network(tmp_path).name == name
    run_folder.write_best_nimg(tmp_path, 12345)
    assert run_folder.best_nimg(tmp_path) == 12345
    for damage in (b"", b"x", b"\xff"):
        (tmp_path / run_folder.BEST_NIMG_FILE).write_bytes(damage)
        assert run_folder.best_nimg(tmp_path) is None


def test_the_first_metric_at_a_number_of_images(tmp_path):
    run_folder.write_json(
        tmp_path / run_folder.OPTIONS_FILE,
        {"config": to_json(TrainConfig().override({"run.metrics": ["fid50k_full"]}))},
    )
    path = run_folder.metric_file(tmp_path, "fid50k_full")
    path.write_text(json.dumps({"kimg": 1.5, "results": {"fid50k_full": 4.0}}) + "\n5\n")
    assert run_folder.metric_at(tmp_path, 1500) == {"name": "fid50k_full", "value": 4.0}
    assert (
        run_folder.metric_at(tmp_path, 1000) is None and run_folder.metric_at(tmp_path / "none", 1500) is None
    )


def make_snapshots() -> Snapshots:
    return Snapshots(None, Path(), None)  # type: ignore[arg-type] (neither is needed for a name)


def numbers(shown: list[int]) -> list[str]:
    """The number of a snapshot at each of these images shown, one after the other."""
    snapshots = make_snapshots()
    found = [(snapshots.number(nimg), snapshots.number(nimg)) for nimg in shown]
    assert all(first == again for first, again in found)
    return [first for first, _ in found]


def test_whole_kimg_have_the_published_names():
    """Also where ticks drift away from whole kimg, as batches make them."""
    shown = [4096, 8192, 12288, 16384, 25_000_064, 1_234_567_890]
    assert numbers(shown) == ["000004", "000008", "000012", "000016", "025000", "1234567"]


def test_ticks_within_one_kimg_have_names_of_their_own():
    shown = [8, 16, 512, 999, 1000, 1008, 2048, 10_000, 10_496]
    found = numbers(shown)
    assert found[:6] == ["000000", "000000_016", "000000_512", "000000_999", "000001", "000001_008"]
    assert found[6:] == ["000002", "000010", "000010_496"]
    assert len(set(found)) == len(found)
    names = [f"network-snapshot-{number}.pkl" for number in found]
    assert sorted(names) == names


def test_a_run_that_goes_on_names_its_snapshots_alike():
    shown = [256 * i for i in range(1, 30)]
    whole = numbers(shown)
    snapshots = make_snapshots()
    for i, nimg in enumerate(shown):
        assert snapshots.number(nimg) == whole[i]
        kept = json.loads(json.dumps(snapshots.newest))
        snapshots = make_snapshots()
        snapshots.begin(Progress(nimg=nimg), {"snapshot": kept})
        assert snapshots.number(nimg) == whole[i]  # its score is made up for
    assert make_snapshots().newest is None


def test_a_checkpoint_before_the_first_snapshot_takes_no_name():
    snapshots = make_snapshots()
    snapshots.begin(Progress(nimg=4500), {"snapshot": None})
    assert [snapshots.number(nimg) for nimg in (4900, 4950)] == ["000004", "000004_950"]


def test_a_checkpoint_of_version_0_1_knows_no_snapshot():
    snapshots = make_snapshots()
    snapshots.begin(Progress(nimg=4500, unscored=True), None)
    assert snapshots.path(4500).name == "network-snapshot-000004.pkl"  # as that version named it
    assert snapshots.path(4900).name == "network-snapshot-000004_900.pkl"
    snapshots = make_snapshots()
    snapshots.begin(Progress(nimg=4500), {"statistics": None, "tick_seconds": 0.0})
    assert snapshots.number(4900) == "000004_900"
    snapshots = make_snapshots()
    snapshots.begin(Progress(), None)
    assert snapshots.number(16) == "000000"


def test_files_in_the_order_of_training(tmp_path):
    ours = ["000000", "000000_512", "000001", "000010", "000010_008", "000010_496", "999999", "1000000"]
    other = ["best", "000001_5", "000001-500", "", "x000001"]
    for number in [*ours, *other]:
        (tmp_path / f"network-snapshot-{number}.pkl").touch()
        (tmp_path / f"fakes{number}.png").touch()
    (tmp_path / "fakes_init.png").touch()
    assert run_folder.snapshot_files(tmp_path) == [
        run_folder.snapshot_file(tmp_path, number) for number in ours
    ]
    assert run_folder.fakes_files(tmp_path) == [run_folder.fakes_file(tmp_path, number) for number in ours]
    assert [run_folder.kimg_of_file(p) for p in run_folder.fakes_files(tmp_path)][:3] == [0, 0.512, 1]


@pytest.mark.parametrize(
    ("kimg", "text"),
    [(0, "0"), (0.5, "0.5"), (4.096, "4.096"), (20.0, "20"), (25000.064, "25000.064"), (float("nan"), "?")],
)
def test_kimg_as_text(kimg, text):
    assert run_folder.kimg_text(kimg) == text
