# SPDX-License-Identifier: Apache-2.0
"""Describes the machine and the software on which a benchmark was run."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from torch_utils.ops.backend import extension

ROOT = Path(__file__).resolve().parent.parent


def _output(*command: str) -> str:
    """Return the output of a command; '' if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(device: str) -> dict[str, Any]:
    """Return the device, the versions and the commit.

    The commit is empty outside a git checkout. `kernels` is the hash of the kernels' sources and build
    options.
    """
    facts: dict[str, Any] = {
        "device": processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "changed": bool(_output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "kernels": extension.source_hash(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts |= {
            "device": properties.name,
            "driver": _output(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ).splitlines()[:1],
            "memory_gb": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "l2_mb": properties.L2_cache_size / 2**20,
        }
    return facts
