# SPDX-License-Identifier: Apache-2.0
"""train.py as a user runs it: run folders, resume, interruption, processes, kinds of data, published command
lines.
"""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from click.testing import CliRunner
from PIL import Image

import dataset_tool
import train
from dnnlib.util import sha256_file
from generation import train_command
from tests import waiting
from tests.quick_processes import Script, quick_environment
from tests.support import ROOT, enter_torchrun
from tests.toy_data import make_zip, write_images
from tests.toy_runs import (
    FLAGS,
    Killed,
    assert_equal_states,
    command_line,
    config,
    final_state,
    start_training,
    train_here,
)
from torch_utils import checkpoint, persistence
from training import build, guard, launch, loop, run_folder, steps
from training.config import TrainConfig, to_json
from training.generator import build_stem
from training.networks.reader import load as load_generator
from training.run import auto_batch, restore
from training.run.periodic import Score
from training.run_folder import OPTIONS_FILE

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def data(toy_zip) -> str:
    return toy_zip


def test_a_run_leaves_its_files(data, tmp_path, request):
    arguments = [flag for flag in command_line(tmp_path, data) if not flag.startswith("--backbone")]
    result = CliRunner().invoke(train.main, [*arguments, "--backbones=tf_efficientnet_lite0"])
    assert result.exit_code == 0, result.output
    (run_dir,) = tmp_path.iterdir()
    assert run_dir.name == "00000-stylegan3-t-three16-gpus1-batch8"
    names = {p.name for p in run_dir.iterdir()}
    wanted = {
        "training_options.json",
        "log.txt",
        "stats.jsonl",
        "reals.png",
        "fakes_init.png",
        "network-snapshot.pkl",
        "checkpoints",
        "curves.png",
    }
    wanted |= {"report.html", "contact-sheet.png", "about.json"}
    assert wanted <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    assert json.loads((run_dir / "status.json").read_text()) == {"outcome": "finished", "nimg": 32}
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032]
    assert np.isfinite(lines[-1]["Loss/D/loss"]["mean"])
    assert lines[-1]["Variety/within"]["mean"] > 0 and lines[-1]["Variety/between"]["num"] == 1
    assert "variety" in (run_dir / "log.txt").read_text()
    assert "Finished" in (run_dir / "log.txt").read_text()
    pickled = persistence.read_network_pickle(run_dir / "network-snapshot.pkl")
    assert list(pickled) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs", "provenance"]
    assert pickled["training_set_kwargs"] == {
        **{
            "class_name": "training.dataset.ImageFolderDataset",
            "path": data,
            "use_labels": True,
            "max_size": 24,
            "xflip": False,
        },
        **{"resolution": 16, "random_seed": 0},
    }
    assert pickled["provenance"]["class_names"] == ["class0000", "class0001", "class0002"]
    assert json.loads(json.dumps(pickled["provenance"])) == pickled["provenance"]  # plain values
    assert not [name for name in pickled.globals_used if "ersion" in name]
    G = load_generator(str(run_dir / "network-snapshot.pkl"))
    ema = final_state(run_dir)["G_ema"]
    assert all(torch.equal(v, ema[k]) for k, v in G.state_dict().items())
    empty = (run_dir / "curves.png").stat().st_size
    request.getfixturevalue("real_plots")
    again = CliRunner().invoke(train.main, [f"--resume={run_dir}", "--kimg=0.048"])
    assert again.exit_code == 0, again.output
    assert (run_dir / "curves.png").stat().st_size > 100 * empty
    assert "Resuming from" in again.output
    assert final_state(run_dir)["progress"]["nimg"] == 48


def test_resume_is_exact_at_any_step(data, tmp_path, monkeypatch):
    cfg = config(data, run__kimg=0.048, loss__pl_start_kimg=0.0, loss__pl_interval=2, data__mirror=True)
    assert train_here(cfg, tmp_path / "whole") == run_folder.FINISHED
    real_step, calls = loop.one_step, []

    def dying_step(*args):
        if len(calls) == 5:
            raise Killed
        calls.append(1)
        real_step(*args)

    monkeypatch.setattr(loop, "one_step", dying_step)
    with pytest.raises(Killed):
        train_here(cfg, tmp_path / "killed")
    assert (
        final_state(tmp_path / "killed")["progress"]["nimg"] == 32
    )  # the last checkpoint, one step before the kill
    monkeypatch.setattr(loop, "one_step", real_step)
    assert train_here(cfg, tmp_path / "killed") == run_folder.FINISHED
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "killed"))
    lines = {
        d: [json.loads(x) for x in (tmp_path / d / "stats.jsonl").read_text().splitlines()]
        for d in ("whole", "killed")
    }
    assert [x["kimg"] for x in lines["whole"]] == [x["kimg"] for x in lines["killed"]]
    for name in ("Loss/D/loss", "Variety/within", "Variety/between", "Variety/recall"):
        assert lines["whole"][-1][name] == lines["killed"][-1][name]
    columns = [
        sorted((p.name, p.read_bytes()) for p in (tmp_path / d / "contact").iterdir())
        for d in ("whole", "killed")
    ]
    assert columns[0] == columns[1] and len(columns[0]) == 5  # at the start, three snapshots, the data


def test_every_tick_below_one_kimg_has_a_step_and_files_of_its_own(data, tmp_path, capsys):
    """And says exactly which: TensorBoard, snapshots, grids, metric records, status lines, the page."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cfg = config(data, run__kimg=0.056, run__keep_snapshots=3, run__metrics=["fd_lite0_10"])
    values = iter([3.0, 2.0, 4.0, 5.0])

    def evaluate(G):
        return [Score("fd_lite0_10", next(values))]

    (tmp_path / "network-snapshot-mine.pkl").touch()
    loop.train(cfg, str(tmp_path), torch.device("cpu"), evaluate)
    shown = [0.016, 0.032, 0.048, 0.056]  # the last tick is short
    printed = capsys.readouterr().out
    assert [float(x) for x in re.findall(r"^tick .* kimg ([\d.]+) ", printed, flags=re.MULTILINE)] == shown
    found = events.EventAccumulator(str(tmp_path))
    found.Reload()
    for name in ("Progress/kimg", "Loss/D/loss", "Metrics/fd_lite0_10"):
        assert [point.step for point in found.Scalars(name)] == [16, 32, 48, 56], name
    snapshots = run_folder.snapshot_files(tmp_path)
    kept = [f"network-snapshot-000000_0{i}.pkl" for i in (32, 48, 56)]
    assert [p.name for p in snapshots] == kept
    assert (tmp_path / "network-snapshot-mine.pkl").exists()
    contents = [persistence.read_network_pickle(p, strict=False) for p in snapshots]
    assert [content["provenance"]["nimg"] for content in contents] == [32, 48, 56]
    lines = [json.loads(x) for x in (tmp_path / "metric-fd_lite0_10.jsonl").read_text().splitlines()]
    names = ["network-snapshot-000000.pkl", *(p.name for p in snapshots)]
    assert [(x["kimg"], x["snapshot_pkl"]) for x in lines] == list(zip(shown, names, strict=True))
    assert (tmp_path / "best_nimg.txt").read_text() == "32\n"
    assert (tmp_path / "best_model.pkl").read_bytes() == snapshots[0].read_bytes()
    grids = run_folder.fakes_files(tmp_path)
    assert [p.name for p in grids] == ["fakes000000.png", *(f"fakes000000_0{i}.png" for i in (32, 48, 56))]
    for grid, nimg, name in zip(grids, (16, 32, 48, 56), names, strict=True):
        text = Image.open(grid).text
        assert (text["nimg"], text["network"], text["run_seed"]) == (str(nimg), name, str(cfg.run.seed))
        if (tmp_path / name).exists():
            assert text["network_sha256"] == sha256_file(tmp_path / name)
    assert Image.open(tmp_path / "reals.png").text["data_hash"]
    sheet = Image.open(tmp_path / "contact-sheet.png").text
    assert sheet["kimg"] == "0,0.016,0.032,0.048,0.056" and sheet["data"]
    page = (tmp_path / "report.html").read_text()
    assert "generated, 0.056 kimg" in page and "network-snapshot-000000_032.pkl" in page


def test_a_tick_that_restarts_cut_is_reported_whole(data, tmp_path):
    options = {"run__kimg": 0.048, "run__tick": 0.024}
    assert train_here(config(data, **options), tmp_path / "whole") == run_folder.FINISHED
    cut = config(data, **options, run__restart_every=0.0)
    while train_here(cut, tmp_path / "cut") == run_folder.RESTART:
        pass
    lines = {
        d: [json.loads(x) for x in (tmp_path / d / "stats.jsonl").read_text().splitlines()]
        for d in ("whole", "cut")
    }
    assert [x["kimg"] for x in lines["cut"]] == [0.024, 0.048]
    for whole, cut_line in zip(lines["whole"], lines["cut"], strict=True):
        names = [name for name in whole if name.startswith(("Loss/", "Diagnostics/"))]
        assert len(names) > 10 and {name: whole[name] for name in names} == {
            name: cut_line[name] for name in names
        }


def test_a_kill_during_the_evaluation_loses_neither_score_nor_statistics(data, tmp_path):
    cfg = config(data, run__kimg=0.032, run__metrics=["fd_lite0_10"])
    values = iter([3.0, Killed(), 2.0])

    def evaluate(generator):
        value = next(values)
        if isinstance(value, Killed):
            raise value
        return [Score("fd_lite0_10", value)]

    (tmp_path / "run").mkdir()
    with pytest.raises(Killed):
        loop.train(cfg, str(tmp_path / "run"), torch.device("cpu"), evaluate)
    assert loop.train(cfg, str(tmp_path / "run"), torch.device("cpu"), evaluate) == run_folder.FINISHED
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metric-fd_lite0_10.jsonl").read_text().splitlines()
    ]
    assert [(line["kimg"], line["results"]["fd_lite0_10"]) for line in lines] == [(0.016, 3.0), (0.032, 2.0)]
    assert [
        json.loads(line)["kimg"] for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    ] == [0.016, 0.032]
    progress = final_state(tmp_path / "run")["progress"]
    assert (progress["best_metric"], progress["best_nimg"], progress["unscored"]) == (2.0, 32, False)
    assert (tmp_path / "run" / "best_nimg.txt").read_text() == "32\n"


def test_a_resumed_run_may_change_its_learning_rate_but_not_its_networks(data, tmp_path):
    cfg = config(data, run__kimg=0.008)
    train_here(cfg, tmp_path / "run")
    state = restore.fresh_state(
        config(data, optim__glr=0.01), build.make_dataset(cfg.data, 0), torch.device("cpu")
    )
    state.load_state_dict(final_state(tmp_path / "run"))
    assert state.g_opt.param_groups[0]["lr"] == pytest.approx(0.01 * 4 / 5)
    assert state.d_opt.param_groups[0]["lr"] == pytest.approx(0.002 * 16 / 17)
    with pytest.raises(ValueError, match="is of networks with other options"):
        train_here(config(data, run__kimg=0.016, generator__cmax=8), tmp_path / "run")


def test_balanced_training_resumes_bit_for_bit(tmp_path):
    data = make_zip(tmp_path, "uneven", classes=3, count=13)
    cfg = config(data, data__balanced=True, data__mirror=True)
    train_here(cfg, tmp_path / "whole")
    train_here(cfg.override({"run.kimg": 0.016}), tmp_path / "parts")
    train_here(cfg, tmp_path / "parts")
    assert_equal_states(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    provenance = persistence.read_network_pickle(tmp_path / "whole" / "network-snapshot.pkl", strict=False)[
        "provenance"
    ]
    assert provenance["config"]["data"]["balanced"] is True


def test_sigterm_saves_and_sigkill_loses_only_what_came_after(data, tmp_path):
    """A run of many steps is stopped by SIGTERM, killed by SIGKILL, finished by --resume: the same weights as
    without all that.
    """
    common = [
        f"--data={data}",
        "--cfg=stylegan3-t",
        "--gpus=1",
        "--cond=True",
        *FLAGS,
        "--kimg=0.32",
        "--tick=0.024",
    ]
    broken = tmp_path / "broken"
    process = start_training([f"--outdir={broken}", *common])
    run_dir = broken / "00000-stylegan3-t-three16-gpus1-batch8"
    waiting.until((run_dir / "stats.jsonl").exists, process)
    process.send_signal(signal.SIGSTOP)  # so that it cannot finish during the next line
    locked = CliRunner().invoke(train.main, [f"--resume={run_dir}"])
    assert locked.exit_code == 1 and "in use by another training process" in locked.output
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    ((output, _),) = waiting.finish(process)
    assert process.returncode == 130 and "Saved. Resume with --resume" in output
    stopped_at = final_state(run_dir)["progress"]["nimg"]
    assert 0 < stopped_at < 320

    process = start_training([f"--resume={run_dir}"])
    checkpoints = run_dir / "checkpoints"
    waiting.until(lambda: (checkpoint.newest_nimg(checkpoints) or 0) > stopped_at, process)
    process.send_signal(signal.SIGKILL)
    waiting.finish(process)
    assert CliRunner().invoke(train.main, [f"--resume={run_dir}"]).exit_code == 0

    assert CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'whole'}", *common]).exit_code == 0
    assert_equal_states(final_state(run_dir), final_state(tmp_path / "whole" / run_dir.name))


def test_an_interruption_before_the_first_step_says_how_to_go_on(data, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_process", interrupted)
    result = CliRunner().invoke(
        train.main,
        command_line(tmp_path, data),
    )
    (run_dir,) = tmp_path.iterdir()
    assert result.exit_code == 130 and result.output.endswith(f"Stopped. Resume with --resume={run_dir}\n")


def test_an_interruption_before_the_options_are_recorded_says_to_start_again(data, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run_in_folder", interrupted)
    result = CliRunner().invoke(train.main, command_line(tmp_path, data))
    assert result.exit_code == 130
    assert result.output.endswith("Stopped. Start again: nothing is recorded yet\n")


def test_restart_every_leaves_with_3_and_goes_on_with_the_same_command(data, tmp_path):
    command = command_line(tmp_path, data, "--restart-every=0")
    for expected in (8, 16, 24):
        result = CliRunner().invoke(train.main, command)
        assert result.exit_code == train_command.RESTART_EXIT_CODE, result.output
        (run_dir,) = tmp_path.iterdir()
        assert final_state(run_dir)["progress"]["nimg"] == expected
    assert CliRunner().invoke(train.main, command).exit_code == 0
    result = CliRunner().invoke(train.main, command)  # finished: a new folder
    assert result.exit_code == train_command.RESTART_EXIT_CODE and len(list(tmp_path.iterdir())) == 2


def test_one_and_two_processes_agree(data, tmp_path):
    """One step of 16 images by 1 x 16 and 2 x 8: the same gradients (with beta1 = 0, Adam's first moment is
    the last gradient) and images shown.

    Weights are not compared: Adam turns the rounding of a gradient that is almost zero into a step of full
    length.
    """
    common = [
        f"--data={data}",
        "--cfg=stylegan3-t",
        "--cond=True",
        *FLAGS,
        "--batch=16",
        "--kimg=0.016",
        "--pl-start-kimg=0",
        "--precision=fp32",
    ]
    for processes in (1, 2):
        result = CliRunner().invoke(
            train.main, [f"--outdir={tmp_path / str(processes)}", f"--gpus={processes}", *common]
        )
        assert result.exit_code == 0, result.output
    one, two = (final_state(next((tmp_path / str(n)).iterdir())) for n in (1, 2))
    assert one["progress"]["nimg"] == two["progress"]["nimg"] == 16
    for part, tolerance in (("g_opt", 2e-2), ("d_opt", 2e-2)):
        gradients = [
            torch.cat([s["exp_avg"].flatten() for s in state[part]["state"].values()]) for state in (one, two)
        ]
        assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < tolerance
    assert torch.allclose(one["G"]["mapping.w_avg"], two["G"]["mapping.w_avg"], rtol=1e-3, atol=1e-5)
    within = [
        json.loads(next(tmp_path.glob(f"{n}/*/stats.jsonl")).read_text().splitlines()[-1])["Variety/within"][
            "mean"
        ]
        for n in (1, 2)
    ]
    assert within[0] == pytest.approx(within[1], rel=0.05)  # shared among the processes
    assert torch.allclose(one["pl_mean"], two["pl_mean"], rtol=1e-3)


def test_two_machines_of_torchrun_train_together(data, tmp_path):
    # A port that nobody else can take: it is open from here on.
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-id=1",
        "--rdzv-backend=c10d",
    ]
    command += [
        "--rdzv-conf=is_host=false",
        f"--rdzv-endpoint=127.0.0.1:{meeting.port}",
        str(ROOT / "train.py"),
        f"--outdir={tmp_path}",
        f"--data={data}",
        "--cfg=stylegan3-t",
    ]
    command += ["--cond=True", *FLAGS, "--kimg=0.008", "--gpus=2"]
    machines = [Script(torch.distributed.run.__file__, command, env=quick_environment()) for _ in range(2)]
    outputs = [out for out, _ in waiting.finish(*machines)]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    (run_dir,) = tmp_path.iterdir()
    assert final_state(run_dir)["progress"]["nimg"] == 8


def test_torchrun_and_gpus_must_agree(data, tmp_path, monkeypatch):
    enter_torchrun(monkeypatch)
    arguments = [f"--outdir={tmp_path}", f"--data={data}", "--cfg=stylegan3-t", "--cond=True", *FLAGS]
    result = CliRunner().invoke(train.main, [*arguments, "--gpus=2"])
    assert (
        result.exit_code == 1
        and "--gpus=2, but torchrun started 4 processes" in result.output
        and not list(tmp_path.iterdir())
    )


def recorded_rounds(run_dir: Path) -> int:
    return json.loads((run_dir / OPTIONS_FILE).read_text())["config"]["run"]["batch_gpu"]


def test_a_search_for_the_rounds_leaves_the_run_as_it_is_without_one(data, tmp_path, monkeypatch):
    """--batch-gpu=auto, by a trial in which more than 4 images run out of memory, against --batch-gpu=4: bit
    for bit, statistics included.
    """
    step, sizes = steps.d_step, []

    def limited(state, some_rounds, *args, **kwargs):
        step(state, some_rounds, *args, **kwargs)
        sizes.append(len(some_rounds[0].z))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(steps, "d_step", limited)
    monkeypatch.setattr(auto_batch, "choose", auto_batch.by_trial)
    common = [
        f"--data={data}",
        "--cfg=stylegan3-t",
        "--gpus=1",
        "--cond=True",
        *FLAGS,
        "--pl-start-kimg=0",
        "--kimg=0.016",
    ]
    for word in ("auto", "4"):
        result = CliRunner().invoke(
            train.main, [f"--outdir={tmp_path / word}", *common, f"--batch-gpu={word}"]
        )
        assert result.exit_code == 0, result.output
        assert (
            "--batch-gpu=auto: 4 of a process's 8 images per micro-batch (tried on 1 x cpu; 8 ran out"
            in result.output
        ) == (word == "auto")
    found, given = (next((tmp_path / word).iterdir()) for word in ("auto", "4"))
    assert recorded_rounds(found) == recorded_rounds(given) == 4
    assert_equal_states(final_state(given), final_state(found))
    lines = [
        [json.loads(line) for line in (d / "stats.jsonl").read_text().splitlines()] for d in (found, given)
    ]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == b[k] for k in a if k.startswith(("Loss", "Diagnostics", "Variety")))
    # Going on asks no more; asked again, a new search.
    monkeypatch.setattr(auto_batch, "choose", lambda *args: pytest.fail("another search"))
    result = CliRunner().invoke(train.main, [f"--resume={found}", "--kimg=0.024"])
    assert result.exit_code == 0 and recorded_rounds(found) == 4, result.output
    monkeypatch.setattr(auto_batch, "choose", lambda *args: auto_batch.Choice(2, "less"))
    result = CliRunner().invoke(train.main, [f"--resume={found}", "--kimg=0.032", "--batch-gpu=auto"])
    assert result.exit_code == 0 and recorded_rounds(found) == 2, result.output


def test_a_requeued_command_keeps_its_rounds(data, tmp_path, monkeypatch):
    command = command_line(tmp_path, data)
    command += ["--batch-gpu=auto", "--restart_every=0"]
    monkeypatch.setattr(auto_batch, "choose", lambda *args: auto_batch.Choice(4, "one search"))
    assert CliRunner().invoke(train.main, command).exit_code == train_command.RESTART_EXIT_CODE
    monkeypatch.setattr(auto_batch, "choose", lambda *args: pytest.fail("another search"))
    assert CliRunner().invoke(train.main, command).exit_code == train_command.RESTART_EXIT_CODE
    (run_dir,) = tmp_path.iterdir()
    assert recorded_rounds(run_dir) == 4 and final_state(run_dir)["progress"]["nimg"] == 16


def test_out_of_memory_names_the_flags_and_no_folder_is_left_by_a_failed_search(data, tmp_path, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    command = command_line(tmp_path, data)
    monkeypatch.setattr(steps, "g_step", exhausted)
    monkeypatch.setattr(auto_batch, "choose", auto_batch.by_trial)
    result = CliRunner().invoke(train.main, [*command, "--batch-gpu=auto"])
    assert (
        result.exit_code == 1
        and "Error: --batch-gpu=auto: not even one image" in result.output
        and not list(tmp_path.iterdir())
    )
    result = CliRunner().invoke(train.main, command)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1 and line.startswith(
        "Error: out of memory on cpu: lower --batch-gpu (now 8) or let --batch-gpu=auto find it"
    )
    assert "--cbase" in line and f"--resume={next(tmp_path.iterdir())}" in line


@pytest.mark.parametrize(
    ("word", "rounds_line"),
    [("auto", "--batch-gpu=auto: 8 of a process's 8 images per micro-batch (estimated"), ("none", None)],
)
def test_the_plan_says_how_many_images_a_round_has(word, rounds_line, data, tmp_path):
    command = command_line(tmp_path, data, f"--batch-gpu={word}", "--dry-run")
    result = CliRunner().invoke(train.main, command)
    assert result.exit_code == 0 and "at 8 images per micro-batch (estimate)" in result.output, result.output
    assert rounds_line is None or rounds_line in result.output
    assert re.search(
        rf"^Labels: {re.escape(str(data))}: \d+ classes, from dataset\.json; left out: nothing$",
        result.output,
        re.MULTILINE,
    )


@pytest.mark.parametrize(("classes", "cond"), [(1, False), (3, False), (1, True), (2000, True)])
def test_any_number_of_classes(classes, cond, tmp_path):
    data = make_zip(tmp_path, "data", classes, count=max(16, classes))
    if classes == 1 and cond:  # one class, labelled
        folder = tmp_path / "one" / "only"
        write_images(folder, 1, 16)
        data = str(tmp_path / "one.zip")
        assert (
            CliRunner()
            .invoke(dataset_tool.main, [f"--source={folder.parent}", f"--dest={data}", "--workers=1"])
            .exit_code
            == 0
        )
    cfg = config(data, data__cond=cond, run__kimg=0.016)
    assert train_here(cfg, tmp_path / "run") == run_folder.FINISHED
    G = load_generator(str(tmp_path / "run" / "network-snapshot.pkl"))
    assert G.c_dim == (classes if cond else 0)
    labels = torch.tensor([0, classes - 1]) if cond else None
    assert G(torch.zeros(2, G.z_dim), labels).shape == (2, 3, 16, 16)


def test_generated_images_obey_their_class(tmp_path):
    """Dark images and bright ones, as classes: after some steps, generated images are dark or bright as their
    class asks.
    """
    for label in (0, 1):
        folder = tmp_path / "shades" / f"{label}"
        folder.mkdir(parents=True)
        for i in range(16):
            shade = np.random.RandomState(i).randint(0, 48, (16, 16, 3)) + label * 200
            Image.fromarray(shade.astype(np.uint8)).save(folder / f"{i}.png")
    data = str(tmp_path / "shades.zip")
    assert (
        CliRunner()
        .invoke(dataset_tool.main, [f"--source={tmp_path / 'shades'}", f"--dest={data}", "--workers=1"])
        .exit_code
        == 0
    )
    cfg = config(
        data,
        run__kimg=0.72,
        run__tick=0.72,
        optim__glr=0.02,
        optim__dlr=0.008,
        loss__blur_init_sigma=0.0,
        discriminator__augment=False,
    )
    train_here(cfg, tmp_path / "run")
    G = load_generator(str(tmp_path / "run" / "network-snapshot.pkl"))
    with torch.no_grad():
        z = torch.randn(64, G.z_dim, generator=torch.Generator().manual_seed(0))
        dark, bright = (G(z, torch.full((64,), label)).mean(dim=(1, 2, 3)) for label in (0, 1))
    # From the same latents. How far a run comes differs from processor to processor; without labels all would
    # be equal.
    assert float((bright > dark).float().mean()) > 0.95 and float(bright.mean() - dark.mean()) > 0.25


def test_a_pickle_starts_another_run(data, tmp_path):
    cfg = config(data, run__kimg=0.016)
    train_here(cfg, tmp_path / "first")
    pickled = str(tmp_path / "first" / "network-snapshot.pkl")
    state = restore.fresh_state(
        config(data, run__init_from=pickled), build.make_dataset(cfg.data, 0), torch.device("cpu")
    )
    before = final_state(tmp_path / "first")
    assert all(torch.equal(v, before["G"][k]) for k, v in state.G.state_dict().items())
    assert all(torch.allclose(v, before["D"][k], rtol=1e-6) for k, v in state.D.saved_state_dict().items())
    wider = restore.fresh_state(
        config(data, run__init_from=pickled, generator__cmax=8),
        build.make_dataset(cfg.data, 0),
        torch.device("cpu"),
    )
    assert (
        0 < wider.started_from["generator"]["share"] < 1 and wider.started_from["discriminator"]["share"] == 1
    )


def test_a_superresolution_stage_freezes_its_stem(data, tmp_path):
    train_here(config(data, run__kimg=0.016), tmp_path / "stem")
    data32 = make_zip(tmp_path, "three32", classes=3, count=24, resolution=32)
    cfg = config(
        data32,
        generator__superres=True,
        generator__path_stem=str(tmp_path / "stem"),
        generator__head_layers=4,
        run__kimg=0.016,
    )
    assert train_here(cfg, tmp_path / "head") == run_folder.FINISHED
    stem, head = (
        load_generator(str(tmp_path / "stem" / "network-snapshot.pkl")),
        load_generator(str(tmp_path / "head" / "network-snapshot.pkl")),
    )
    assert head.img_resolution == 32
    kept = [
        name
        for name in head.state_dict()
        if name in stem.state_dict() and name.split(".")[1] not in head.head_layer_names
    ]
    assert len(kept) > 10
    assert all(torch.equal(head.state_dict()[name], stem.state_dict()[name]) for name in kept)
    wider = build.make_generator(
        cfg.override({"generator.cmax": 6, "generator.cbase": 4096}).generator,
        build.make_dataset(cfg.data, 0),
        8,
        0,
    )
    assert (
        {wider.synthesis.specs()[i].out_channels for i in (-2, -3)}
        == {12}
        != {head.synthesis.specs()[i].out_channels for i in (-2, -3)}
    )


def test_a_gradient_that_is_not_finite_stops_before_the_update(data, tmp_path):
    cfg = config(data)
    state = restore.fresh_state(cfg, build.make_dataset(cfg.data, 0), torch.device("cpu"))
    before = {k: p.detach().clone() for k, p in state.g_params.items()}
    name = next(iter(state.g_params))
    state.g_params[name].grad = torch.full_like(state.g_params[name], float("nan"))
    with pytest.raises(guard.NonFiniteError, match=rf"here: the gradient of '{name}'"):
        steps.apply_gradients(state.g_params, state.g_opt, "here")
    assert all(torch.equal(p, before[k]) for k, p in state.g_params.items())


def test_changed_data_is_refused_at_a_resume(data, tmp_path):
    train_here(config(data, run__kimg=0.008), tmp_path / "run")
    other = make_zip(tmp_path, "other", classes=3, count=30)
    with pytest.raises(ValueError, match="has changed since"):
        train_here(config(other, run__kimg=0.016), tmp_path / "run")


PUBLISHED = {
    "stem": "--outdir={tmp} --cfg=stylegan3-t --data={d16} --gpus=8 --batch=64 --mirror=1 --snap 10 "
    "--batch-gpu 8 --kimg 10000 --syn_layers 10",
    "superres": "--outdir={tmp} --cfg=stylegan3-t --data={d32} --gpus=8 --batch=64 --mirror=1 --snap 10 "
    "--batch-gpu 8 --kimg 10000 --syn_layers 10 "
    "--superres --up_factor 2 --head_layers 7 --path_stem {uncond}",
    "imagenet": "--outdir={tmp} --cfg=stylegan3-t --data={d32} --gpus=8 --batch=256 --mirror=1 --snap 10 "
    "--batch-gpu 8 --kimg 11000 --syn_layers 11 "
    "--superres --cls_weight 8.0 --up_factor 2 --head_layers 7 --path_stem {cond} --cond True",
    "cifar10": "--outdir={tmp} --cfg=stylegan3-r --data={d16} --gpus=8 --batch=2048 --mirror=1 --snap 10 "
    "--batch-gpu 8 --kimg 300000 --syn_layers 6 "
    "--cond True",
}


@pytest.fixture(scope="module")
def published_files(data, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("published")
    files = {"d16": data, "d32": make_zip(folder, "three32", classes=3, count=24, resolution=32)}
    for name, classes in (("cond", 3), ("uncond", 0)):
        files[name] = str(folder / f"{name}.pkl")
        G = build_stem("stylegan3-t", 16, classes, syn_layers=6, cbase=256, cmax=8)
        persistence.save_network_pickle(
            files[name], {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
        )
    return files


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_commands_dry_run(name, published_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        "huggingface_hub.get_hf_file_metadata",
        lambda *args, **kwargs: pytest.fail("a dry run asked the network"),
    )
    arguments = PUBLISHED[name].format(tmp=tmp_path, **published_files).split()
    result = CliRunner().invoke(train.main, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "L5_" in result.output and "Memory: about" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg=stylegan2"], "--cfg=stylegan2 is not supported"),
        (["--batch=10", "--gpus=4"], "--batch=10 is not a multiple of --gpus=4"),
        (["--batch=8", "--batch-gpu=3"], "--batch-gpu=3"),
        (["--freezed=2"], "--freezed=2 has no effect"),
        (["--gamma=8.2"], "--gamma is not supported: a projected discriminator has no R1 penalty"),
        (["--mbstd_group=4"], "--mbstd_group is not supported"),
        (["--superres"], "--superres needs --path_stem"),
        (["--metrics=fid50kfull"], "fid50k_full"),
        (["--data=/nowhere.zip"], "/nowhere.zip"),
        (["--cls_weight=8"], "--cls_weight needs --cond True"),
        (["--energy-weight=4", "--batch-gpu=1"], "--energy-weight=4 compares the images of a micro-batch"),
        (["--mbstd=1", "--batch-gpu=1"], "--mbstd compares images within groups of --bn-group=8"),
        (["--class-run=4"], "--class-run needs --cond True"),
        (["--cond=1", "--class-run=3"], "--class-run=3: a micro-batch must consist of whole runs, and"),
        (["--backbones=efficientnet_nonsense", "--dry-run"], "efficientnet_nonsense"),
        (
            ["--resume=nowhere.pkl"],
            "--resume=nowhere.pkl: no such file; give a run folder to resume, or the path or URL of a "
            "network file",
        ),
        (["--map-depth=8"], "--map-depth=8"),
        (["--workers=-1"], "--workers=-1"),
        (["--kimg=nan"], "--kimg=nan"),
        (["--batch-gpu=3"], "--batch-gpu=3: change --batch-gpu (auto finds a value)"),
        (["--seed=99999999999"], "--seed=99999999999"),
        (["--desc=a/b"], "--desc=a/b"),
        (["--grid=axb"], "--grid=axb"),
        (["--batch=1000000000"], "--batch=1000000000: must be at most 1048576"),
        (["--resolution=65536"], "--resolution=65536: must be at most 8192"),
        (["--cbase=1000000000000"], "--cbase=1000000000000: must be at most"),
        (["--workers=100000"], "--workers=100000: must be at most 256"),
        (["--gpus=10000", "--batch=10000"], "--gpus=10000: 10000 processes on this machine"),
        (["--kimg=1e300"], "--kimg=1e+300: must be at most"),
        (["--kimg=inf"], "--kimg=inf: must be at most"),
        (["--grid=100000x100000", "--backbones=tf_efficientnet_lite0"], "are too many for one picture"),
        (["--metrics=fid99999999999k"], "at most 10,000,000"),
        (["--cond=1", "--class-embedding=nowhere.npy", "--backbones=tf_efficientnet_lite0"], "nowhere.npy"),
        (["--feature-size=8", "--backbones=tf_efficientnet_lite0", "--init-from=README.md"], "README.md"),
    ],
)
def test_mistakes_get_one_line(arguments, message, data, tmp_path):
    base = {
        "--outdir": tmp_path,
        "--data": data,
        "--cfg": "stylegan3-t",
        "--gpus": 1,
        "--batch": 8,
        "--device": "cpu",
    }
    given = {a.split("=")[0] for a in arguments}
    result = CliRunner().invoke(
        train.main, [f"{k}={v}" for k, v in base.items() if k not in given] + arguments
    )
    assert result.exit_code == 1, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and message in errors[0], result.output
    assert list(tmp_path.iterdir()) == []  # found before a run folder is made


def test_an_edited_batch_of_a_run_folder_is_refused(tmp_path):
    tree = to_json(TrainConfig().override({"run.batch": 10**9}))
    (tmp_path / OPTIONS_FILE).write_text(json.dumps({"config": tree}))
    result = CliRunner().invoke(train.main, [f"--resume={tmp_path}"])
    assert result.exit_code == 1 and "--batch=1000000000: must be at most 1048576" in result.output


@pytest.mark.parametrize(
    "content",
    ["no JSON", "[]", '{"config": 3}', '{"config": {"run": 3}}', '{"config": {"run": {"batchs": 3}}}'],
)
def test_a_damaged_run_folder_is_named(content, tmp_path):
    (tmp_path / OPTIONS_FILE).write_text(content)
    result = CliRunner().invoke(train.main, [f"--resume={tmp_path}"])
    assert result.exit_code == 1 and str(tmp_path) in result.output and OPTIONS_FILE in result.output


def test_a_file_of_a_run_in_place_of_its_folder_is_named(tmp_path):
    checkpoint, options = tmp_path / "checkpoints" / "checkpoint-000000000008-0.pt", tmp_path / OPTIONS_FILE
    checkpoint.parent.mkdir()
    for file in (checkpoint, options):
        file.write_bytes(b"{}")
    for file in (checkpoint, options):
        result = CliRunner().invoke(train.main, [f"--resume={file}"])
        assert result.exit_code == 1
        assert result.output == (
            f"Error: --resume={file} is no network: to resume its run, use --resume={tmp_path}\n"
        )


def test_a_missing_required_flag_is_named(data):
    result = CliRunner().invoke(train.main, [f"--data={data}", "--cfg=stylegan3-t"])
    assert result.exit_code == 1 and "missing --outdir, --gpus, --batch" in result.output
