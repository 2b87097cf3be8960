# SPDX-License-Identifier: Apache-2.0
"""From options to a run's objects: files that options name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.memory_limit import limited
from training import build
from training.config import DataConfig


def embedding(path: Path) -> torch.Tensor | None:
    dataset: Any = SimpleNamespace(label_dim=3, path="x.zip")
    return build.make_class_embedding(DataConfig(class_embedding=str(path)), dataset, 0, torch.device("cpu"))


def test_a_class_embedding_is_read_and_bad_ones_are_one_line(tmp_path: Path) -> None:
    table = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "good.npy", table)
    found = embedding(tmp_path / "good.npy")
    assert found is not None and found.dtype == torch.float32 and found.tolist() == table.tolist()
    np.save(tmp_path / "classes.npy", table[:2])
    np.save(tmp_path / "flat.npy", table[0])
    np.save(tmp_path / "nan.npy", np.full((3, 4), np.nan))
    np.save(tmp_path / "text.npy", np.full((3, 4), "a"))
    np.save(tmp_path / "objects.npy", np.full((3, 4), None), allow_pickle=True)
    (tmp_path / "half.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-8])
    (tmp_path / "huge.npy").write_bytes(
        (tmp_path / "good.npy").read_bytes().replace(b"(3, 4)", b"(3, 4000000000)")
    )
    (tmp_path / "page.npy").write_bytes(b"<html>")
    for name in ("classes", "flat", "nan", "text", "objects", "half", "huge", "page", "none"):
        with (
            limited(300),
            pytest.raises(ValueError, match=rf"^--class-embedding={tmp_path}/{name}\.npy") as error,
        ):
            embedding(tmp_path / f"{name}.npy")
        assert "\n" not in str(error.value)
