# SPDX-License-Identifier: Apache-2.0
"""Builds, finds and loads the CPU kernels of `csrc/cpu/`: one call of the C++ compiler, a few seconds, at
their first use.

The library is made of the CPU's own instructions. Its name holds a hash of the sources, the flags and the
CPU, so machines that differ may share a folder. It knows nothing of torch, and serves every release. Folders,
locks and interrupted builds are as in `extension.py`.

$STYLESAN_XL_CPU_KERNELS names another instruction set, as the compiler's -march does (x86-64-v3: without
AVX-512), or is "off": matrix products take the kernels' place.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

from dnnlib import trust
from dnnlib.util import file_lock
from torch_utils.ops.backend.extension import (
    BuildError,
    compiler,
    folders,
    is_usable,
    make_folder,
    put_in_place,
    warn_of_open_cache,
)

SOURCE_FOLDER = Path(__file__).resolve().parent.parent / "csrc" / "cpu"
INSTRUCTIONS_VARIABLE = "STYLESAN_XL_CPU_KERNELS"
_FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_BUILD_SECONDS = 300.0


def instructions() -> str | None:
    """What to compile for, as in the compiler's -march; None = the kernels are switched off."""
    named = os.environ.get(INSTRUCTIONS_VARIABLE, "").strip() or "native"
    return None if named.lower() == "off" else named


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, f"-march={instructions()}")


def _cpu() -> str:
    """The CPU's kind and instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    wanted = (
        "vendor_id",
        "cpu family",
        "model",
        "flags",
        "Features",
        "CPU implementer",
        "CPU architecture",
        "CPU part",
        "isa",
    )
    known = [line for line in lines if line.partition(":")[0].strip() in wanted]
    return "\n".join(known) if known else f"{platform.processor()} of {platform.node()}"


def openmp_runtime() -> Path | None:
    """The OpenMP library in this process that torch uses; None if there is none."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    mapped = {Path(line.split(maxsplit=5)[5]) for line in lines if "/" in line}
    found = sorted(
        path for path in mapped if re.match(r"lib(gomp|iomp5|omp)\b.*\.so", path.name) and path.exists()
    )
    of_torch = [
        path for path in found if Path(torch.__file__).resolve().parent.parent in path.resolve().parents
    ]
    return next(iter(of_torch + found), None)


@functools.cache
def library_name() -> str:
    """File name of the library for this CPU."""
    digest = hashlib.sha256()
    for path in (*sorted(SOURCE_FOLDER.iterdir()), SOURCE_FOLDER.parent / "activations.h"):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    runtime = openmp_runtime()
    digest.update(
        repr(
            (_flags(), platform.machine(), platform.system(), _cpu(), runtime.name if runtime else None)
        ).encode()
    )
    return f"ops-cpu-{digest.hexdigest()[:16]}.so"


def find() -> Path | None:
    """The library, if it has been built."""
    return next((folder / library_name() for folder in folders() if is_usable(folder / library_name())), None)


def build(folder: Path) -> Path:
    """Builds the library into a folder, unless it is there, and returns its path.

    Raises:
        BuildError: there is no compiler, it failed, the folder cannot be written to, or the kernels are
        switched off.
    """
    if instructions() is None:
        raise BuildError(f"{INSTRUCTIONS_VARIABLE}=off asks for no CPU kernels: unset it to build them")
    target = folder / library_name()
    if is_usable(target):
        return target
    if compiler() is None:
        raise BuildError(
            "there is no C++ compiler: install g++ 11 or newer (apt install g++), or name one in $CXX"
        )
    try:
        make_folder(folder)
        with file_lock(folder / (target.name + ".lock"), "builds the CPU kernels", _BUILD_SECONDS):
            if not is_usable(target):
                _compile(target)
    except OSError as error:
        raise BuildError(
            f"cannot write to {folder}: {error}; set DNNLIB_CACHE_DIR to a folder that can be written to"
        ) from None
    return target


def _compile(target: Path) -> None:
    runtime = openmp_runtime()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as work:
        made, product = f"{work}/kernels.o", f"{work}/ops.so"
        _call(
            *_flags(),
            *(["-fopenmp"] if runtime else []),
            "-c",
            str(SOURCE_FOLDER / "kernels.cpp"),
            "-o",
            made,
        )
        # Linked to the very runtime that torch uses: a second one would bring a second pool of threads.
        _call("-shared", made, *([str(runtime)] if runtime else []), "-o", product)
        put_in_place(Path(product), target)


def _call(*arguments: str) -> None:
    try:
        done = subprocess.run(
            [str(compiler()), *arguments], capture_output=True, text=True, timeout=_BUILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"the compiler did not finish within {_BUILD_SECONDS:.0f} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if re.search(r"error|fatal", line)][
            :3
        ] or done.stderr.splitlines()[-3:]
        raise BuildError("the compiler failed: " + " | ".join(line.strip() for line in lines))


def describe() -> str:
    """What a CPU uses and why, in words; nothing is built."""
    if instructions() is None:
        return (
            f"none, as {INSTRUCTIONS_VARIABLE}=off asks: matrix products take their place, which take 3 "
            "to 6 times as long"
        )
    path = find()
    if path is not None:
        runtime = openmp_runtime()
        return f"{path}, {'threads of ' + runtime.name if runtime else 'one thread (torch uses no OpenMP)'}"
    if compiler() is None:
        return (
            "none, and no C++ compiler to build them: matrix products take their place, which take 3 to "
            "6 times as long (apt install g++)"
        )
    return (
        "not built yet: a few seconds at their first use, or now with python -m torch_utils.ops build --cpu"
    )


@functools.cache
def load() -> ctypes.CDLL | None:
    """Finds or builds the library and loads it, once per process.

    None where that fails: with a warning if the compiler or the library did, silently where there is no
    compiler or they are switched off, as the matrix products of `resampling.py` are fast, too.
    """
    if instructions() is None:
        return None
    warn_of_open_cache()
    try:
        library = ctypes.CDLL(str(trust.trusted_path(find() or build(folders()[-1]))))
    except (BuildError, OSError) as error:
        if compiler() is not None:
            warnings.warn(
                f"The CPU kernels are not in use ({error}). Matrix products take their place, which take "
                "longer.",
                stacklevel=2,
            )
        return None
    return library
