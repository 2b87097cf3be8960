# SPDX-License-Identifier: Apache-2.0
"""Checks of options against the data, before a run starts or resumes."""

import pytest

from tests.toy_data import make_zip
from tests.toy_runs import config
from training import build
from training.run import plan


def check(data: str, resuming: bool = False, **changes) -> None:
    cfg = config(data, **changes)
    plan.check_options(cfg, build.make_dataset(cfg.data, 0), resuming)


@pytest.mark.parametrize("balanced", [False, True])
def test_runs_of_a_class_need_a_class_of_so_many_images(balanced, tmp_path):
    data = make_zip(tmp_path, "three", classes=3, count=12)
    check(data, data__class_run=4, data__balanced=balanced)
    with pytest.raises(ValueError, match=r"^--class-run=8 has no effect: .* at most 4 images; lower"):
        check(data, data__class_run=8, data__balanced=balanced)
    check(data, data__class_run=8, data__balanced=balanced, data__mirror=True)


def test_a_run_that_resumes_does_not_need_the_file_of_its_class_embedding(toy_zip):
    check(toy_zip, resuming=True, data__class_embedding="gone.npy")
    with pytest.raises(ValueError, match=r"--class-embedding=gone\.npy: file not found"):
        check(toy_zip, data__class_embedding="gone.npy")
