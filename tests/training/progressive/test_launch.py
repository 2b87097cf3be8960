# SPDX-License-Identifier: Apache-2.0
"""How a recipe starts and is stopped. Its stages are trained in e2e tests."""

import dataclasses
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from training import launch, run_folder
from training.progressive import launch as recipe_launch
from training.progressive import recipe, stages
from training.run.enter import RunLock


@pytest.fixture
def schedule() -> stages.Schedule:
    source = recipe.load("demo64")
    return stages.Schedule(source, "data.zip", selected=tuple(s.resolution for s in source.stages))


@pytest.mark.parametrize("writer", [False, True])
def test_a_stage_that_another_process_trains_refuses_the_recipe_before_anything_is_written(
    writer, schedule, tmp_path
):
    stage = tmp_path / schedule.stages[-1].name
    stage.mkdir()
    (tmp_path / run_folder.RECIPE_FILE).write_text("{}")
    lock = RunLock(stage, writer)
    with pytest.raises(ValueError, match=f"{stage.name} is in use by another training"), ExitStack() as stack:
        recipe_launch.enter(stack, schedule, tmp_path)
    assert (tmp_path / run_folder.RECIPE_FILE).read_text() == "{}"
    lock.release()
    with ExitStack() as stack:
        recipe_launch.enter(stack, schedule, tmp_path)
        assert stages.read(tmp_path).selected == schedule.selected
    assert lock.lock.last_holder() is not None, "a check must not hide who was in the folder last"


@pytest.mark.parametrize("old", [False, True])
def test_a_recipe_is_unfinished_from_its_start_on_and_a_refused_resume_changes_nothing(
    old, schedule, tmp_path
):
    """Recipes of older versions have no status."""
    with ExitStack() as stack:
        recipe_launch.enter(stack, schedule, tmp_path)
        assert run_folder.recorded_outcome(tmp_path) == run_folder.INTERRUPTED
    if old:
        (tmp_path / run_folder.STATUS_FILE).unlink()
    else:
        run_folder.write_status(tmp_path, run_folder.FINISHED)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    with pytest.raises(ValueError, match="refused"), ExitStack() as stack:
        recipe_launch.enter(stack, dataclasses.replace(schedule, data="other.zip"), tmp_path)
        raise ValueError("refused")
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert len(before) == (1 if old else 2)


@pytest.mark.parametrize("asked", [False, True])
def test_a_signal_too_late_for_a_stage_stops_the_recipe_before_the_next(
    asked, schedule, tmp_path, monkeypatch, capsys
):
    trained = []

    def run(config, run_dir, *_):
        trained.append(run_dir.name)
        run_folder.write_status(run_dir, run_folder.FINISHED, 0)
        (run_dir / run_folder.NEWEST_NETWORK).touch()
        return launch.Ending(run_folder.FINISHED, asked)

    monkeypatch.setattr(launch, "run_in_folder", run)
    monkeypatch.setattr(stages, "write_lineage", lambda *_: None)
    monkeypatch.setattr(stages, "is_measured", lambda *_: True)
    values = {"outdir": str(tmp_path), "resume": None, "stages": None, "from_scratch": False, "batch_gpu": 8}
    outcome = recipe_launch.start(
        schedule, None, values, "x", recipe_launch.Measures(None, None), float("inf")
    )
    names = [stage.name for stage in schedule.stages]
    assert trained == (names[:1] if asked else names) and len(names) > 1
    assert outcome == (run_folder.INTERRUPTED if asked else run_folder.FINISHED)
    (folder,) = tmp_path.glob("0*")
    assert run_folder.recorded_outcome(folder) == outcome
    assert (f"Stopped. Resume with --resume={tmp_path}" in capsys.readouterr().out) is asked


def test_what_a_stage_started_from_is_not_needed_once_it_has_begun(schedule, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        recipe_launch.run_plan, "check", lambda config, dataset, stem, resuming: seen.append(resuming)
    )
    planned = [
        SimpleNamespace(stage=stage, config=schedule.config(stage), dataset=object(), stem=None)
        for stage in schedule.stages
    ]
    done, begun = (tmp_path / stage.name for stage in schedule.stages[:2])
    done.mkdir()
    run_folder.write_status(done, run_folder.FINISHED, 16)
    (done / run_folder.NEWEST_NETWORK).touch()
    checkpoints = run_folder.checkpoint_folder(begun)
    checkpoints.mkdir(parents=True)
    (checkpoints / "checkpoint-000000000016-0123456789abcdef.pt").touch()
    for folder in (tmp_path, None):
        recipe_launch.check(planned, folder)
    assert seen == [True, True, False, False, False, False]
