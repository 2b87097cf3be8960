# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: its schedule from a command line, its folder, its stages. Metrics come from the caller."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import atomic_write, sha256_file
from torch_utils import devices, distributed, launcher, memory
from training import build, launch, run_folder
from training.config import AUTO, FLAGS, TrainConfig, changes_of, from_json, to_json
from training.networks import files, stems
from training.progressive import plan, recipe, stages
from training.run import plan as run_plan
from training.run import restart
from training.run.enter import check_free, ending_logged, locked
from training.run.stop import terminated_as_interrupted
from training.run_folder import new_run_folder, run_folders, write_json


@dataclass(frozen=True)
class Measures:
    """Functions that a script provides, because `training` does not import `metrics`.

    They must be importable, because they are pickled for other processes.
    """

    evaluate: launch.MakeEvaluate
    # (config of the last stage, metric, device) -> evaluator(generator, ...) -> its records
    final: Callable[[TrainConfig, str, torch.device], Any]


OF_FIRST = ("path_stem", "init_from")  # flags of the first selected stage alone


def given_flags(values: dict[str, Any]) -> dict[str, Any]:
    """The flags of a command line that are options of the stages."""
    return {
        flag: values[flag] for flag in FLAGS if values[flag] is not None and flag not in ("data", *OF_FIRST)
    }


def note_of_done(values: dict[str, Any], schedule: stages.Schedule, folder: Path) -> str:
    """A line about stages that are done and keep their options; '' if that goes without saying.

    Args:
        values: the flags of the command line by name.
        schedule: see `schedule_of`.
        folder: the recipe's folder that is resumed.
    """
    given = given_flags(values)
    done = [s for s in schedule.stages if stages.is_stage_done(schedule, s, folder)]
    changes = changes_of(given)
    unlike = [s for s in done if (own := schedule.config(s)).override(changes) != own]
    if values["stages"] or not unlike:
        return ""
    names = ", ".join(str(s.resolution) for s in unlike)
    return (
        f"note: done, and not changed by {stages.describe_override(stages.Override(given))}: {names}; to "
        f"train one of these stages with it, add --stages={unlike[-1].resolution}"
    )


def schedule_of(values: dict[str, Any], folder: Path | None) -> stages.Schedule:
    """The schedule of a command line: that of a new recipe, or that of `folder` with changes.

    Args:
        values: the flags of the command line by name; None = not given.
        folder: the recipe's folder to resume; None = a new one.

    Raises:
        ValueError: one line.
    """
    for flag in ("superres", "up_factor", "resolution"):
        if values[flag] is not None:
            raise ValueError(f"--{flag} cannot be used with a recipe, whose stages define their resolutions")
    if folder is None:
        missing = [f"--{flag}" for flag in ("outdir", "data") if values[flag] is None]
        if missing and not values["dry_run"]:
            raise ValueError(f"missing {', '.join(missing)} (or --resume=FOLDER)")
        schedule = stages.Schedule(recipe.load(values["recipe"]), values["data"] or "")
    else:
        schedule = stages.read(folder)
        changed = (
            stages.differences(recipe.load(values["recipe"]), schedule.recipe) if values["recipe"] else ""
        )
        if changed:
            raise ValueError(
                f"--recipe={values['recipe']} is not the recipe of {folder} ({changed}): remove --recipe to "
                "resume "
                "with the recorded one, or start a new folder with --outdir"
            )
    given = given_flags(values)
    first = {flag: values[flag] for flag in OF_FIRST if values[flag]}
    schedule = dataclasses.replace(schedule, data=values["data"] or schedule.data)
    if folder is not None and values["stages"] is None:
        schedule = stages.changed(schedule, given, first, folder)
    else:
        selected = stages.parse_selected(values["stages"], schedule.recipe)
        new = [
            stages.Override(given, selected if values["stages"] else None),
            stages.Override(first, selected[:1]),
        ]
        overrides = (*schedule.overrides, *(o for o in new if o.flags))
        schedule = dataclasses.replace(schedule, overrides=overrides, selected=selected)
    if not all("gpus" in schedule.flags(s) for s in schedule.stages) and not values["dry_run"]:
        raise ValueError("missing --gpus: this recipe does not define the number of processes")
    return schedule


def unfinished_folder(outdir: str, desc: str, schedule: stages.Schedule) -> Path | None:
    """The newest folder of this schedule, if it is not done. --restart_every resumes it."""
    for _, path in sorted(run_folders(outdir).items(), reverse=True):
        if path.name.split("-", 1)[-1] == desc and run_folder.is_recipe_folder(path):
            same = json.loads(json.dumps(stages.read(path).to_json())) == json.loads(
                json.dumps(schedule.to_json())
            )
            return path if same and not stages.is_done(schedule, path) else None
    return None


def check(planned: list[plan.Planned], folder: Path | None = None) -> None:
    """Find problems of any stage before the first one starts.

    Args:
        planned: the selected stages.
        folder: folder of the schedule if its stages resume.

    Raises:
        ValueError: one line.
        OSError: one line.
    """
    for p in planned:
        assert p.dataset is not None
        try:
            run_plan.check(p.config, p.dataset, p.stem, resuming=plan.has_begun(p.stage, folder))
            if p.config.loss.cls_weight > 0:
                build.make_classifier(p.config.loss, p.dataset)
        except ValueError as err:
            raise ValueError(f"stage {p.stage.resolution}: {err}") from None


def start(
    schedule: stages.Schedule,
    folder: Path | None,
    values: dict[str, Any],
    desc: str,
    measures: Measures,
    deadline: float,
) -> str:
    """Create or lock the folder, and run the selected stages in it.

    Args:
        schedule: the schedule.
        folder: folder to resume; None = a new one in values["outdir"].
        values: see `schedule_of`.
        desc: description in the name of a new folder.
        measures: see `Measures`.
        deadline: time.monotonic() after which no further stage starts.

    Returns:
        The outcome.
    """
    last = schedule.config(schedule.recipe.stages[-1])
    if distributed.under_torchrun():
        launch.join(last)
    existing = distributed.broadcast_object(folder) or restart.folder_of_job(values["outdir"] or "", desc)
    from_scratch = values["from_scratch"] and not (existing and restart.is_of_job(existing))
    resumed = values["resume"] is not None
    again = resumed and values["batch_gpu"] == AUTO
    with ExitStack() as stack, terminated_as_interrupted():
        target = existing or distributed.on_main(lambda: new_run_folder(values["outdir"], desc))
        distributed.on_main(lambda: enter(stack, schedule, target))
        restart.note_job(target)

        def is_done() -> bool:
            return stages.is_done(schedule, target)

        def train_stage(config: TrainConfig, run_dir: Path) -> str:
            with ExitStack() as inner:
                distributed.on_main(lambda: run_dir.mkdir(exist_ok=True))
                launch.enter(inner, run_dir, config, from_scratch)
                config = launch.settle_batch_gpu(launch.fit_processes(config), run_dir, again)
                ending = launch.run_in_folder(
                    config, run_dir, measures.evaluate, target, deadline - time.monotonic()
                )
            finished = ending.outcome == run_folder.FINISHED
            if finished and ending.was_asked and not distributed.on_main(is_done):
                _say(f"Stopped. Resume with --resume={target}")
                return run_folder.INTERRUPTED
            return ending.outcome

        def measure(network: Path, run_dir: Path, metric: str) -> None:
            arguments = (to_json(last), str(network), str(run_dir), metric, measures.final)
            with ending_logged(run_dir):
                launcher.launch(measure_process, launch.fit_processes(last).run.gpus, *arguments)

        try:
            hooks = stages.Hooks(train_stage, measure, _say, deadline)
            outcome = stages.run(schedule, target, bool(values["stages"] and resumed), hooks)
            distributed.on_main(lambda: run_folder.write_status(target, outcome))
            return outcome
        except KeyboardInterrupt:
            _say(f"Stopped. Resume with --resume={target}")
            return run_folder.INTERRUPTED


def enter(stack: ExitStack, schedule: stages.Schedule, folder: Path) -> None:
    """Lock the folder of a recipe until `stack` is closed, and record the schedule in it. Process 0.

    Its status is "interrupted" from now on, until `start` knows the outcome: the process may be killed where
    all stages that have begun are finished.

    Raises:
        ValueError: another process is there, or in the folder of a selected stage. Nothing has been changed.
    """
    stack.enter_context(locked(folder))
    for stage in schedule.stages:
        check_free(folder / stage.name)
    stack.enter_context(restored_if_refused(folder, schedule))
    write_json(
        folder / run_folder.RECIPE_FILE,
        {**schedule.to_json(), "command": sys.argv, "torch": str(torch.__version__)},
    )
    run_folder.write_status(folder, run_folder.INTERRUPTED)
    print(f"Recipe folder: {folder}")


@contextlib.contextmanager
def restored_if_refused(folder: Path, schedule: stages.Schedule) -> Iterator[None]:
    """Within, an error before a selected stage has begun or resumed restores the schedule and status.

    A recipe of an older version has no status.
    """
    schedule_file, status_file = folder / run_folder.RECIPE_FILE, folder / run_folder.STATUS_FILE
    records = [folder / stage.name / run_folder.OPTIONS_FILE for stage in schedule.stages]
    before = {path: path.read_bytes() for path in (schedule_file, status_file) if path.exists()}
    stamps = [_stamp(record) for record in records]
    try:
        yield
    except (ValueError, OSError):
        if schedule_file in before and [_stamp(record) for record in records] == stamps:
            if status_file not in before:
                status_file.unlink(missing_ok=True)
            for path, content in before.items():
                with atomic_write(path) as f:
                    f.write(content)
        raise


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when a file is replaced; None if there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _say(line: str) -> None:
    """Print a line in the main process."""
    if distributed.is_main():
        print(line, flush=True)


def measure_process(
    tree: dict[str, Any],
    network: str,
    run_dir: str,
    metric: str,
    final: Callable[[TrainConfig, str, torch.device], Any],
) -> None:
    """One process of an evaluation at the resolution of the last stage. Writes final.json to `run_dir`.

    Args:
        tree: configuration of the last stage as JSON.
        network: file of the network.
        run_dir: run folder of its stage.
        metric: the metric.
        final: see `Measures`.
    """
    config = from_json(tree)
    device = launch.join(config)
    evaluator = final(config, metric, device)
    file = files.read(network).only("G_ema")
    G = file.generators["G_ema"].to(device)
    G.synthesis.reduced_dtype = devices.pick_precision(config.run.precision, device)
    source = stages.Upsampled(G, evaluator.dataset.resolution)
    with memory.out_of_memory_hint(device, launch.memory_remedy(config)):
        (record,) = evaluator(source, snapshot=network, details=source.details())
    if distributed.is_main():
        size = evaluator.dataset.resolution
        chosen = stems.network_summary(network, file.provenance)
        print(f"  {record.metric} {record.value:.4f} at {size}x{size}: {chosen}", flush=True)
        write_json(
            Path(run_dir) / run_folder.FINAL_FILE, {**record.as_dict(), "sha256": sha256_file(network)}
        )
