# SPDX-License-Identifier: Apache-2.0
"""The device of a process, and the reduced-precision type of its large layers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch_utils import cpu_speed, memory


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


def use_device(name: str, local_rank: int = 0) -> torch.device:
    """Return `pick_device`, and prepare this process for networks on it: on a CPU, freed memory is kept.

    For processes of commands. It stays in force, so a library leaves the choice to the program that calls it.
    """
    device = pick_device(name, local_rank)
    if device.type == "cpu":
        memory.keep_freed_memory()
    return device


PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Return the type of the generator's reduced-precision layers; None = float32 everywhere.

    Args:
        name: 'auto', 'fp32', 'fp16' or 'bf16'. 'auto' is fp16 on CUDA, bf16 on CPUs where it is measured to
            be faster than float32, and fp32 elsewhere.
        device: device that the layers run on.
    """
    if name == "auto" and device.type == "cuda":
        name = "fp16"
    return PRECISIONS[_measured(name, device)]


def pick_discriminator_precision(name: str, device: torch.device | None) -> torch.dtype:
    """Return the type of the discriminator's backbones, projection and head convolutions.

    Args:
        name: 'auto', 'fp32' or 'bf16'. 'auto' is bf16 on CUDA devices with units for it, and on CPUs where it
            is measured to be faster than float32, and fp32 elsewhere.
        device: device that it runs on; None = unknown, and 'auto' is fp32.
    """
    if name == "auto" and device is not None and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return PRECISIONS[_measured(name, device)] or torch.float32


def _measured(name: str, device: torch.device | None) -> str:
    if name != "auto":
        return name
    return "bf16" if device is not None and device.type == "cpu" and cpu_speed.choices().bf16 else "fp32"


def read_later(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to copy a tensor to the host, without waiting for the device.

    Returns:
        A function that waits for the copy alone, and returns it: x as it is now.
    """
    if x.device.type != "cuda":
        copy = x.detach().clone()
        return lambda: copy
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    pinned.copy_(x.detach(), non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(x.device))

    def read() -> torch.Tensor:
        done.synchronize()
        return pinned

    return read


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device; to CUDA, through pinned memory and without waiting for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
