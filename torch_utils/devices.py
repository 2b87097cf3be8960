# SPDX-License-Identifier: Apache-2.0
"""The device of a process, and the reduced type that its large layers compute in."""

from __future__ import annotations

from pathlib import Path

import torch


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a process.

    Raises:
        ValueError: the named device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device=cuda, but torch finds no CUDA device: check the driver with nvidia-smi, or use "
            "--device=cpu"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device=mps, but torch finds no Apple GPU: use --device=cpu")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def _cpu_has_bf16_matrix_units() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text()


PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The reduced type of the generator's marked layers; None = float32 everywhere."""
    if name == "auto":
        if device.type == "cuda":
            name = "fp16"
        else:
            name = "bf16" if device.type == "cpu" and _cpu_has_bf16_matrix_units() else "fp32"
    return PRECISIONS[name]
