# SPDX-License-Identifier: Apache-2.0
"""What only one of two processes has: other options, a changed weight, a damaged view of the checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from tests.toy_data import make_zip
from tests.toy_runs import config, final_state
from torch_utils import checkpoint, distributed, launcher
from training import launch, loop, run_folder
from training.config import from_json, to_json

pytestmark = [pytest.mark.e2e, pytest.mark.once]


def no_metrics(*_):
    return None


def _flipped(path, mode):
    """One bit of the file, as a process alone sees it."""
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    view = Path(path).parent.parent / "view.tmp"
    view.write_bytes(content)
    return open(view, mode)


def _disagree(tree: dict, run_dir: str) -> list[str]:
    """One of two processes. Returns the errors, which must be the same in both."""
    distributed.init("cpu")
    second = distributed.rank() == 1
    real_step, errors = loop.one_step, []

    def changing_step(cfg, state, *rest):
        real_step(cfg, state, *rest)
        if second and state.progress.step == 3:
            with torch.no_grad():
                next(iter(state.d_params.values())).mul_(1.000001)

    def run(**changes):
        own = from_json(tree).override({name.replace("__", "."): x for name, x in changes.items()})
        try:
            launch.train_process(to_json(own), run_dir, run_dir, no_metrics)
        except ValueError as error:
            errors.append(str(error))
        else:
            errors.append("")

    run(optim__glr=0.001 if second else 0.002)
    loop.one_step = changing_step
    run()
    loop.one_step = real_step
    if second:
        checkpoint.open = _flipped
    run()
    if second:
        del checkpoint.open
    run(run__kimg=0.024)
    assert distributed.all_gather_object(errors) == [errors] * 2
    return errors


def test_what_one_process_alone_has_stops_all(tmp_path):
    data = make_zip(tmp_path, "three16", classes=3, count=24)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    cfg = config(data, run__gpus=2, run__kimg=0.032, run__tick=0.016, run__variety=0)
    options, weight, view, healthy = launcher.launch(_disagree, 2, to_json(cfg), str(run_dir))
    assert "option optim.glr differs between processes 0 and 1 (process 0 on " in options
    assert "at 32 images, 'D.discriminators." in weight and "differs between processes 0 and 1" in weight
    assert f"the last checkpoint, of 16 images, with --resume={run_dir}" in weight
    assert view.startswith("process 1 on ") and "is damaged" in view
    assert healthy == "" and final_state(run_dir)["progress"]["nimg"] == 24  # nothing was overwritten
    lines = run_folder.read_jsonl(run_dir / run_folder.STATS_FILE)
    assert [line["kimg"] for line in lines] == [0.016, 0.024], json.dumps(lines)
