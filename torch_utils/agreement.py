# SPDX-License-Identifier: Apache-2.0
"""Proofs that all processes hold the same: values at the start, tensors bit for bit while they train.

Processes that share gradients but not weights train something that no single process would. Nothing fails by
itself then, so it is compared.
"""

import hashlib
import platform
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from torch_utils import distributed

_COLUMNS = 1024
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Disagreement(ValueError):
    """Processes hold different values where they must be the same."""


@torch.no_grad()
def fingerprint(x: torch.Tensor) -> torch.Tensor:
    """int64 [2]: two sums, modulo 2^64, over the bits of a dense tensor of any dtype.

    The first changes with any single element, the second with their order too. Integer sums do not depend on
    the order of summation, so all devices find the same. Nothing as large as x is allocated.
    """
    flat = x.detach().contiguous().reshape(-1).view(_INTEGERS[x.element_size()])
    rows = len(flat) // _COLUMNS
    body, tail = flat[: rows * _COLUMNS].view(rows, _COLUMNS), flat[rows * _COLUMNS :]
    sums = torch.cat([body.sum(1, dtype=torch.int64), tail.to(torch.int64), body.sum(0, dtype=torch.int64)])
    weights = torch.arange(1, 2 * len(sums), 2, device=x.device)
    return torch.stack([sums[: rows + len(tail)].sum(), (sums * weights).sum()])


def fingerprints(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """int64 [len(tensors), 2], on the CPU."""
    if not tensors:
        return torch.zeros(0, 2, dtype=torch.int64)
    return torch.stack([fingerprint(x) for x in tensors.values()]).cpu()


def check_tensors(tensors: Mapping[str, torch.Tensor], when: str) -> None:
    """Compare tensors over processes, bit for bit. All processes call it, with the same names.

    Args:
        tensors: by name.
        when: for the message: "at 800 images".

    Raises:
        Disagreement: in all processes, naming the first tensor and the processes.
    """
    if distributed.world_size() == 1:
        return
    mine = fingerprints(tensors)
    everyone = distributed.all_gather_cat(mine[None])  # [processes, tensors, 2]
    wrong = (everyone != everyone[:1]).any(0).any(-1)
    if not bool(wrong.any()):
        return
    index = int(wrong.nonzero()[0])
    who = differing([tuple(row) for row in everyone[:, index].tolist()])
    count = int(wrong.sum()) - 1
    more = f" (and {count} other tensor{'s' * (count > 1)})" if count else ""
    raise Disagreement(f"{when}, '{list(tensors)[index]}'{more} differs {who}")


def check_values(values: Mapping[str, Any]) -> None:
    """Compare picklable values over processes. All processes call it.

    Raises:
        Disagreement: in all processes, naming the first value that differs, its processes and machines.
    """
    everyone = distributed.all_gather_object((platform.node(), dict(values)))
    for name in values:
        column = [repr(other.get(name)) for _, other in everyone]
        if len(set(column)) > 1:
            hosts = [host for host, _ in everyone]
            shown = "; ".join(f"process {i} on {hosts[i]}: {column[i][:80]}" for i in _examples(column))
            raise Disagreement(f"{name} differs {differing(column)} ({shown})")


def differing(column: list[Any]) -> str:
    """Which processes differ, in words: those that are not with the majority. column: of every process."""
    (common, count), *_ = Counter(column).most_common()
    if count <= len(column) / 2:
        return f"between processes {' and '.join(str(i) for i in _examples(column))}"
    others = [str(i) for i, value in enumerate(column) if value != common]
    shown = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
    return f"in process{'es' * (len(others) > 1)} {shown} of {len(column)}"


def _examples(column: list[Any]) -> list[int]:
    """The first process with each of the two most common values, in order."""
    return sorted(column.index(value) for value, _ in Counter(column).most_common(2))


def code_version(root: Path, folders: Collection[str]) -> str:
    """Hash of the Python and C++ sources in `root` and in some folders below it."""
    files = [*root.glob("*.py")]
    for folder in folders:
        files += [p for p in (root / folder).rglob("*") if p.suffix in (".py", ".cpp", ".cu", ".h")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
