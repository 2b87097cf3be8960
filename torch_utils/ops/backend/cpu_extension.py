# SPDX-License-Identifier: Apache-2.0
"""Builds, finds and loads the CPU kernels of `csrc/cpu/`.

They are compiled for the CPU's own instruction set at their first use: one call of the C++ compiler that
takes a few seconds. The library's name contains a hash of the sources, the flags and the CPU, so different
machines can share a folder. The library does not use torch and works with every release of it. Folders, locks
and interrupted builds are handled as in `extension.py`.

$STYLESAN_XL_CPU_KERNELS selects another instruction set, with the names of the compiler's -march (x86-64-v3:
without AVX-512). "off" disables the kernels; matrix products are used instead.
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
    """Return the instruction set to compile for (the compiler's -march); None = the kernels are disabled."""
    named = os.environ.get(INSTRUCTIONS_VARIABLE, "").strip() or "native"
    return None if named.lower() == "off" else named


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, f"-march={instructions()}")


def _cpu() -> str:
    """Return the CPU's model and instruction sets, as far as the system publishes them."""
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
    """Return the OpenMP library that torch uses in this process; None if there is none."""
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
    """Return the file name of the library for this CPU."""
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
    """Return the library's path if it has been built."""
    return next((folder / library_name() for folder in folders() if is_usable(folder / library_name())), None)


def build(folder: Path) -> Path:
    """Build the library in a folder if it does not exist, and return its path.

    Raises:
        BuildError: there is no compiler, it failed, the folder is not writable, or the kernels are disabled.
    """
    if instructions() is None:
        raise BuildError(f"{INSTRUCTIONS_VARIABLE}=off disables the CPU kernels: unset it to build them")
    target = folder / library_name()
    if is_usable(target):
        return target
    if compiler() is None:
        raise BuildError(
            "no C++ compiler found: install g++ 11 or newer (apt install g++), or set $CXX to another one"
        )
    try:
        make_folder(folder)
        with file_lock(folder / (target.name + ".lock"), "builds the CPU kernels", _BUILD_SECONDS):
            if not is_usable(target):
                _compile(target)
    except OSError as error:
        raise BuildError(
            f"cannot write to {folder}: {error}; set DNNLIB_CACHE_DIR to a writable folder"
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
        # Link to the runtime that torch uses: another one would start a second thread pool.
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
    """Describe what CPU tensors use and why. Builds nothing."""
    if instructions() is None:
        return (
            f"disabled by {INSTRUCTIONS_VARIABLE}=off: matrix products are used instead, which take 3 to 6 "
            "times as long"
        )
    path = find()
    if path is not None:
        runtime = openmp_runtime()
        return f"{path}, {'threads of ' + runtime.name if runtime else 'one thread (torch uses no OpenMP)'}"
    if compiler() is None:
        return (
            "not built, and no C++ compiler found (apt install g++): matrix products are used instead, which "
            "take 3 to 6 times as long"
        )
    return (
        "not built yet: this takes a few seconds at their first use, or run python -m torch_utils.ops build "
        "--cpu"
    )


@functools.cache
def load() -> ctypes.CDLL | None:
    """Find or build the library and load it, once per process.

    Returns:
        The library, or None. A failure of the compiler or of the library gives a warning. There is no warning
        without a compiler or with disabled kernels, because the matrix products of `resampling.py` are fast
        enough.
    """
    if instructions() is None:
        return None
    warn_of_open_cache()
    try:
        library = ctypes.CDLL(str(trust.trusted_path(find() or build(folders()[-1]))))
    except (BuildError, OSError) as error:
        if compiler() is not None:
            warnings.warn(
                f"The CPU kernels are not used ({error}). The slower matrix products are used instead.",
                stacklevel=2,
            )
        return None
    return library
