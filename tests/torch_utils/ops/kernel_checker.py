# SPDX-License-Identifier: Apache-2.0
"""Every memory access of the CUDA kernels, checked without a GPU: the sources are compiled for the host as
test_kernels.py does, with a call at each access (g++ -fsanitize=thread) that goes to checker/runtime.cpp,
which says what is checked.
"""

import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dnnlib.util import file_lock, make_cache_dir_path
from torch_utils.ops.backend import extension, library

NAMESPACE = "stylesan_xl_check"
FOLDER = Path(__file__).resolve().parent / "checker"
# -O1 with little moved: an access stays where its line is, and structures are read in one piece, as a device
# reads them. Hidden: the shim's state must not be that of the other host build, should this process have
# loaded it.
_FLAGS = (
    "-fvisibility=hidden -O1 -g1 -fno-tree-sra -fno-reorder-blocks -fsanitize=thread "
    "-fsanitize-coverage=trace-pc"
)
_CONVERSIONS = ("host_shim.h", "platform.h")  # what reads or writes through these is the place of interest
_KERNEL = re.compile(r"KERNEL = (?:\w+::|\(anonymous namespace\)::|\{anonymous\}::)*(.*?)(?:\]|;|$)")


class Place(NamedTuple):
    """Where in the sources: a file's name, a line, the function it stands in."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


class Finding(NamedTuple):
    """A mistake of a kernel. what: memory, race, unwritten or alignment. other: for races, where the other
    thread's access stands.
    """

    what: str
    kernel: str
    place: Place | None
    other: Place | None
    count: int
    text: str

    def __str__(self) -> str:
        places = " and ".join(str(place) for place in (self.place, self.other) if place)
        return (
            f"{self.what}: {self.kernel}: {places or 'at the end of the launch'}: {self.text}; "
            f"{self.count} in all"
        )


class Usage(NamedTuple):
    """The warp instructions of a source line in a kernel that access one kind of memory with `bytes` per
    thread.
    """

    kernel: str
    place: Place
    shared: bool
    write: bool
    bytes: int
    instructions: int
    threads: int  # active ones, over all instructions
    waves: int  # passes through shared memory's banks
    ideal_waves: int
    sectors: int  # of 32 bytes of global memory
    ideal_sectors: int
    worst: float  # of waves / ideal_waves or sectors / ideal_sectors of an instruction

    @property
    def degree(self) -> float:
        """How many times as long as without bank conflicts (shared memory), or how many times the sectors
        that hold the bytes.
        """
        return self.waves / self.ideal_waves if self.shared else self.sectors / self.ideal_sectors


class Report(NamedTuple):
    """What a stretch of kernels did."""

    launches: int
    accesses: int
    kernels: list[str]
    findings: list[Finding]
    usage: list[Usage]


def missing() -> list[str]:
    """What the checker needs and this machine lacks."""
    tools = {
        "a C++ compiler": extension.compiler(),
        "ninja": extension.ninja(),
        "addr2line (binutils)": shutil.which("addr2line"),
    }
    return ["Linux"] * (sys.platform != "linux") + [name for name, path in tools.items() if path is None]


def ninja_file() -> str:
    """Build file of the checked library, ops.so, from the sources in extension.SOURCE_FOLDER."""
    text = extension._ninja_file((), host=True).replace("stylesan_xl_host", NAMESPACE)
    hooks = f"""-I "{extension.SOURCE_FOLDER}" -DOPS_OBSERVER='"{FOLDER / "hooks.h"}"'"""
    replacements = {
        " -x c++ -c": f" -x c++ {_FLAGS} {hooks} -c",
        "-shared": "-shared -Wl,-Bsymbolic",
        "link bindings.o": "link bindings.o runtime.o samples.cu.o",
    }
    for old, new in replacements.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    include = f'-I "{extension.SOURCE_FOLDER}"'
    text = text.replace(
        "rule link",
        f'rule runtime\n  command = "{extension.compiler()}" -std=c++20 -O2 -g1 -fPIC {include} -c $in -o '
        "$out\nrule link",
    )
    built = {"runtime.o: runtime": FOLDER / "runtime.cpp", "samples.cu.o: kernel": FOLDER / "samples.cu"}
    lines = [
        f"build {rule} {str(path).replace(' ', '$ ').replace(':', '$:')}" for rule, path in built.items()
    ]
    return text.replace("default ops.so", "\n".join([*lines, "default ops.so"]))


def build(folder: Path) -> Path:
    """Builds the checked library into a folder, unless it is there, and returns its path.

    Raises:
        extension.BuildError: the compiler failed.
    """
    text = ninja_file()
    digest = hashlib.sha256((extension.source_hash(host=True) + text).encode())
    for path in sorted(FOLDER.iterdir()):
        digest.update(path.read_bytes())
    target = folder / f"check-{digest.hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / (target.name + ".lock"), "builds the checked kernels", 600.0):
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as name:
                (Path(name) / "build.ninja").write_text(text)
                done = subprocess.run([str(extension.ninja()), "-C", name], capture_output=True, text=True)
                if done.returncode != 0:
                    raise extension.BuildError("the compiler failed: " + done.stdout[-2000:])
                os.replace(Path(name) / "ops.so", target)
    return target


class Checker:
    """The checked kernels as operators for CPU tensors, in the namespace `ops`."""

    def __init__(self) -> None:
        self.path = build(Path(make_cache_dir_path("ops")))
        library.define(NAMESPACE, library.packed_codes, {})
        torch.ops.load_library(self.path)
        self.ops = getattr(torch.ops, NAMESPACE)
        self._calls = ctypes.CDLL(str(self.path))
        self._calls.checker_report.restype = ctypes.c_char_p

    def reset(self, analyse: bool = False) -> None:
        """Forgets what was found and counted. analyse: count warp instructions from now on, which takes a few
        times as long.
        """
        self._calls.checker_reset(int(analyse))

    def sample(self, fault: int) -> bool:
        """Runs the sample kernel with a mistake (samples.cu); False if there is none of that number."""
        return bool(self._calls.checker_sample(fault))

    def report(self) -> Report:
        """What was found and counted since the last reset."""
        raw: dict[str, Any] = json.loads(self._calls.checker_report().decode())
        places = self._places(
            {p for f in raw["findings"] for p in (f["place"], f["other"])} | {u[1] for u in raw["usage"]}
        )
        kernels = [_kernel_name(text) for text in raw["kernels"]]
        findings = [
            Finding(
                f["what"],
                kernels[f["kernel"]],
                places.get(f["place"]),
                places.get(f["other"]),
                f["count"],
                f["text"],
            )
            for f in raw["findings"]
        ]
        usage = [Usage(kernels[u[0]], places[u[1]], bool(u[2]), bool(u[3]), *u[4:]) for u in raw["usage"]]
        return Report(raw["launches"], raw["accesses"], kernels, findings, usage)

    def _places(self, addresses: set[int]) -> dict[int, Place]:
        known = sorted(addresses - {0})
        if not known:
            return {}
        command = ["addr2line", "-e", str(self.path), "-a", "-i", "-f", "-C", "-s", *map(hex, known)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = {}
        # An address, then a function and a place for it and for each function that it is inlined in.
        for block in re.split(r"^(?=0x)", text, flags=re.M)[1:]:
            address, *frames = block.splitlines()
            pairs = list(zip(frames[::2], frames[1::2], strict=True))
            function, place = next((pair for pair in pairs if not pair[1].startswith(_CONVERSIONS)), pairs[0])
            file, line = place.split(" ")[0].rsplit(":", 1)
            name = (
                re.sub(r"<.*|\(.*", "", function.replace("(anonymous namespace)::", ""))
                .split("::")[-1]
                .split(" ")[-1]
            )
            # A kernel in the shim's lambda goes by the name of what calls that.
            found[int(address, 16)] = Place(
                file, int(line) if line.isdigit() else 0, "kernel" if name == "_Function_handler" else name
            )
        return found


def _kernel_name(text: str) -> str:
    pretty, operation, about = text.rsplit("|", 2)
    match = _KERNEL.search(pretty)
    name = (match[1] if match else pretty).replace("{anonymous}::", "").replace("ops::", "")
    return f"{operation} {name} {about}"


@functools.cache
def load() -> Checker:
    """The checker of this process, built if need be."""
    return Checker()


@contextmanager
def checked(analyse: bool = False) -> Iterator[Checker]:
    """The public operations on CPU tensors run through the checked kernels in this context, from an empty
    report on.
    """
    checker, before = load(), library.cpu_namespace
    checker.reset(analyse)
    library.cpu_namespace = NAMESPACE
    try:
        yield checker
    finally:
        library.cpu_namespace = before
        checker.ops.set_limits()
        checker.ops.use_tensor_cores(False)


def merge(usage: Sequence[Usage]) -> list[Usage]:
    """Adds up what differs in nothing but its place within a line."""
    rows: dict[tuple[Any, ...], Usage] = {}
    for u in usage:
        key = u[:5]
        if key in rows:
            old = rows[key]
            u = Usage(
                *key, *(a + b for a, b in zip(old[5:11], u[5:11], strict=True)), max(old.worst, u.worst)
            )  # type: ignore[arg-type]
        rows[key] = u
    return list(rows.values())
