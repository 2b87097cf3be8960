# SPDX-License-Identifier: Apache-2.0
"""The device of a process, and the reduced-precision type of its large layers."""

from __future__ import annotations

from pathlib import Path

import torch


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a process.

    Args:
        name: 'auto', 'cuda', 'mps' or 'cpu'. 'auto' prefers cuda to mps to cpu.
        local_rank: index of the CUDA device.

    Raises:
        ValueError: the named device is not available.
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
    """Return the type of the generator's reduced-precision layers; None = float32 everywhere.

    Args:
        name: 'auto', 'fp32', 'fp16' or 'bf16'. 'auto' is fp16 on CUDA, bf16 on CPUs with matrix units for it,
            and fp32 elsewhere.
        device: device that the layers run on.
    """
    if name == "auto":
        if device.type == "cuda":
            name = "fp16"
        else:
            name = "bf16" if device.type == "cpu" and _cpu_has_bf16_matrix_units() else "fp32"
    return PRECISIONS[name]
