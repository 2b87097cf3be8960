# SPDX-License-Identifier: Apache-2.0
"""Builds, finds and loads the CUDA kernels of `csrc/`.

A library is a single file with a name that describes its build: `ops-<hash of sources, flags, torch and
CUDA>-<architectures>.so`. It is built in a temporary folder next to its final place and renamed when
complete, so an interrupted build cannot be mistaken for a library. Processes that start together wait for one
build through a lock on an open file, which the system releases when its process ends, for any reason. If
locks do not work, each process builds for itself and the last rename wins.

A library is loaded only if no other user than root can change it (`dnnlib.trust`). Other libraries are
skipped with a warning, and a new one is built in a private folder.

Deviation: this file calls ninja with its own build file instead of torch.utils.cpp_extension.load. The
    latter's
lock is a file that survives a killed process and then blocks all later processes, and it finds the wrong
toolkit folder (one level too high) if nvcc is a wrapper script.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib import trust
from dnnlib.util import code_cache_path, file_lock, make_cache_dir_path

SOURCE_FOLDER = Path(__file__).resolve().parent.parent / "csrc"
CUDA_SOURCES = (
    "bias_act.cu",
    "filtered_lrelu_banded.cu",
    "filtered_lrelu_radial.cu",
    "filtered_lrelu_separable.cu",
    "gate.cu",
    "upfirdn2d.cu",
)
FOLDER_VARIABLE = "STYLESAN_XL_OPS"
TENSOR_CORES_VARIABLE = "STYLESAN_XL_TENSOR_CORES"
# Common GPUs in clusters: machine code for Ampere and Hopper, PTX for anything newer.
DEFAULT_ARCHITECTURES = ("sm_80", "sm_90", "compute_80")
# The bindings use torch's stable C interface of version 2.11.
_CXX_FLAGS = ["-std=c++20", "-O2", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC"]
_LOCK_SECONDS = 600.0
_LEFTOVER_SECONDS = 24 * 3600.0


class BuildError(RuntimeError):
    """The kernels cannot be built. The message contains the reason and the remedy."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit with a working compiler: its folder and the version of its nvcc."""

    root: Path
    version: tuple[int, int]

    @property
    def nvcc(self) -> Path:
        """Path of the compiler."""
        return self.root / "bin" / "nvcc"


def folders() -> list[Path]:
    """Return the folders to search for libraries, in order: $STYLESAN_XL_OPS, then the cache folder.

    Libraries are built in the cache folder. It is replaced by a private folder if other users can change it.
    """
    shared = os.environ.get(FOLDER_VARIABLE)
    return ([Path(shared).expanduser()] if shared else []) + [Path(code_cache_path("ops"))]


def is_usable(library: Path) -> bool:
    """Return whether a library exists and no other user can change it. Warns about untrusted libraries."""
    if not library.is_file():
        return False
    reason = trust.untrusted_reason(library)
    if reason:
        _warn_untrusted(reason)
    return not reason


@functools.cache
def _warn_untrusted(reason: str) -> None:
    """Warn about an untrusted folder or library, once per run and reason."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        warnings.warn(
            f"Compiled kernels are not loaded from a place that other users can change: {reason}. "
            f"{folders()[-1]} is used instead.",
            stacklevel=3,
        )


def warn_of_open_cache() -> None:
    """Warn if the cache folder is replaced by a private one, with the reason."""
    cache = make_cache_dir_path("ops")
    if folders()[-1] != Path(cache):
        _warn_untrusted(trust.untrusted_reason(cache))


def make_folder(folder: Path) -> None:
    """Create a private folder for libraries.

    Raises:
        BuildError: other users can write to the folder.
        OSError: the folder cannot be created.
    """
    trust.make_private(folder)
    reason = trust.untrusted_reason(folder)
    if reason:
        raise BuildError(
            f"{reason}; code is not loaded from such a folder: set DNNLIB_CACHE_DIR to a folder that only "
            "you can write to"
        )


def put_in_place(made: Path, target: Path) -> None:
    """Rename a finished library to its final name, writable by this user only for any umask."""
    os.chmod(made, 0o755)
    os.replace(made, target)


def compiler() -> str | None:
    """Return the C++ compiler: $CXX, c++ or g++; None if there is none."""
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def ninja() -> str | None:
    """Return ninja from the running Python's environment or from PATH; None if there is none."""
    beside = Path(sysconfig.get_path("scripts")) / "ninja"
    return str(beside) if beside.exists() else shutil.which("ninja")


@functools.cache
def find_toolkit() -> Toolkit | None:
    """Return the first CUDA toolkit with a working nvcc and the runtime's headers; None if there is none.

    It searches $CUDA_HOME, $CUDA_PATH, the folder of nvcc in PATH, and /usr/local/cuda.
    """
    candidates = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    found = shutil.which("nvcc")
    if found:
        candidates.append(str(Path(found).resolve().parent.parent))
    for candidate in [*candidates, "/usr/local/cuda"]:
        if not candidate or not (Path(candidate) / "include" / "cuda_runtime.h").exists():
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run(
                [Path(candidate) / "bin" / "nvcc", "--version"],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout
            match = re.search(r"release (\d+)\.(\d+)", text)
            if match:
                return Toolkit(Path(candidate), (int(match[1]), int(match[2])))
    return None


def source_hash(host: bool = False) -> str:
    """Return 16 hex digits of a hash over the sources, the flags, torch, its CUDA version and the machine.

    A library depends on these and on its architectures.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCE_FOLDER.iterdir() if path.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    facts = (torch.__version__, torch.version.cuda, platform.machine(), _CXX_FLAGS, _NVCC_FLAGS, host)
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


def device_architectures() -> list[str]:
    """Return the architectures of the visible devices, as sm_XY."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted({"sm_{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(count)})


def library_name(architectures: Sequence[str], host: bool = False) -> str:
    """Return the file name of a library for these architectures."""
    return f"ops-{source_hash(host)}-{'host' if host else '+'.join(sorted(architectures))}.so"


def runs_on(library: Path, architectures: Sequence[str]) -> bool:
    """Return whether, by its name, a library has code for all architectures.

    Suitable code is machine code of the same major version, or PTX that is not newer.
    """
    offered = [
        re.fullmatch(r"(sm|compute)_(\d+)(\d)", name) for name in library.stem.split("-", 2)[2].split("+")
    ]

    def serves(offer: re.Match[str] | None, wanted: tuple[int, int]) -> bool:
        if offer is None:
            return False
        version = int(offer[2]), int(offer[3])
        return version <= wanted and (offer[1] == "compute" or version[0] == wanted[0])

    versions = [(int(name[3:-1]), int(name[-1])) for name in architectures]
    return all(any(serves(offer, version) for offer in offered) for version in versions)


def find(architectures: Sequence[str]) -> Path | None:
    """Return a library built from the current sources for this torch that runs on the architectures."""
    for folder in folders():
        for path in sorted(folder.glob(f"ops-{source_hash()}-*.so")) if folder.is_dir() else []:
            if not path.stem.endswith("-host") and runs_on(path, architectures) and is_usable(path):
                return path
    return None


def problems() -> list[str]:
    """Return the reasons why the CUDA kernels cannot be built, one line each with its remedy; [] if none."""
    found = []
    if torch.version.cuda is None:
        return [
            f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch "
            "(https://pytorch.org/get-started)"
        ]
    if sys.platform != "linux":
        found.append("the kernels can be built on Linux only: use WSL2, or the reference implementation")
    if compiler() is None:
        found.append(
            "no C++ compiler found: install g++ 11 or newer (apt install g++), or set $CXX to another one"
        )
    if ninja() is None:
        found.append("ninja not found: pip install ninja")
    toolkit = find_toolkit()
    wanted = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    if toolkit is None:
        version = ".".join(map(str, wanted))
        found.append(
            f"nvcc not found: install the CUDA toolkit {version} (or another {wanted[0]}.x) and set "
            "CUDA_HOME to its folder"
        )
    elif toolkit.version[0] != wanted[0]:
        found.append(
            f"nvcc in {toolkit.root} has CUDA version {'.'.join(map(str, toolkit.version))}, but torch has "
            f"{torch.version.cuda}: "
            f"set CUDA_HOME to a toolkit {wanted[0]}.x, or install a torch for CUDA {toolkit.version[0]}"
        )
    return found


def build(
    folder: Path,
    architectures: Sequence[str] = DEFAULT_ARCHITECTURES,
    host: bool = False,
    verbose: bool = False,
) -> Path:
    """Build the library in a folder if it does not exist, and return its path.

    Args:
        folder: folder of the library; created if missing.
        architectures: sm_XY (machine code) and compute_XY (PTX).
        host: build the kernels for a CPU, for tests.
        verbose: print the commands.

    Raises:
        BuildError: a requirement is missing, or the compiler failed.
    """
    for name in architectures:
        if not re.fullmatch(r"(sm|compute)_\d{2,3}", name):
            raise BuildError(
                f"architecture {name!r} must be sm_XY (machine code) or compute_XY (PTX), e.g. sm_90"
            )
    target = folder / library_name(architectures, host)
    if is_usable(target):
        return target
    if host:
        found = [
            f"no {what} found"
            for what, path in (("C++ compiler", compiler()), ("ninja", ninja()))
            if path is None
        ]
    else:
        found = problems()
    if found:
        raise BuildError("; ".join(found))
    try:
        make_folder(folder)
        with file_lock(folder / (target.name + ".lock"), "builds the CUDA kernels", _LOCK_SECONDS):
            if not is_usable(target):
                _compile(target, architectures, host, verbose)
    except OSError as error:
        raise BuildError(
            f"cannot write to {folder}: {error}; set DNNLIB_CACHE_DIR to a writable folder"
        ) from None
    return target


def _compile(target: Path, architectures: Sequence[str], host: bool, verbose: bool) -> None:
    for leftover in target.parent.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
        work = Path(name)
        (work / "build.ninja").write_text(_ninja_file(architectures, host))
        command = [
            str(ninja()),
            "-C",
            name,
            *(["-v"] if verbose else []),
            *(["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []),
        ]
        done = subprocess.run(command, capture_output=not verbose, text=True)
        if done.returncode != 0:
            output = (done.stdout or "") + (done.stderr or "")
            lines = [line for line in output.splitlines() if re.search(r"error|fatal|FAILED", line)][
                :5
            ] or output.splitlines()[-5:]
            raise BuildError("the compiler failed: " + " | ".join(line.strip() for line in lines))
        put_in_place(work / "ops.so", target)


def _ninja_file(architectures: Sequence[str], host: bool) -> str:
    def escape(path: Path | str) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    torch_folder = Path(torch.__file__).parent
    includes, libraries, links = [torch_folder / "include"], [torch_folder / "lib"], ["-ltorch_cpu"]
    toolkit = find_toolkit()
    if host:
        defines = ["-DOPS_HOST", "-DOPS_NAMESPACE=stylesan_xl_host", "-DOPS_KEY=CPU"]
    else:
        assert toolkit is not None
        defines = ["-DUSE_CUDA", "-DOPS_NAMESPACE=stylesan_xl", "-DOPS_KEY=CUDA"]
        includes.append(toolkit.root / "include")
        libraries.append(
            next(
                (p for p in (toolkit.root / "lib64", toolkit.root / "lib") if p.is_dir()),
                toolkit.root / "lib64",
            )
        )
        links += ["-ltorch_cuda", "-lcudart"]
    system = " ".join(f'-isystem "{path}"' for path in includes)
    cxx = f'"{compiler()}" {" ".join(_CXX_FLAGS)} {" ".join(defines)}'
    if host:
        kernel = f"{cxx} -x c++"
    else:
        assert toolkit is not None
        codes = _code_flags(architectures)
        kernel = f'"{toolkit.nvcc}" {" ".join(_NVCC_FLAGS)} {codes} -ccbin "{compiler()}"'
    paths = " ".join(f'-L"{path}"' for path in libraries)
    lines = [
        f"rule cxx\n  command = {cxx} {system} -c $in -o $out",
        f"rule kernel\n  command = {kernel} -c $in -o $out",
        f'rule link\n  command = "{compiler()}" -shared $in {paths} {" ".join(links)} -o $out',
        f"build bindings.o: cxx {escape(SOURCE_FOLDER / 'bindings.cpp')}",
        *(f"build {name}.o: kernel {escape(SOURCE_FOLDER / name)}" for name in CUDA_SOURCES),
        f"build ops.so: link bindings.o {' '.join(f'{name}.o' for name in CUDA_SOURCES)}",
        "default ops.so",
    ]
    return "\n".join(lines) + "\n"


def _code_flags(architectures: Sequence[str]) -> str:
    """Return nvcc's options for the architectures.

    All architectures from Ampere on share one pass of the front end, because the kernels use no newer
    features. Each older architecture has its own pass.
    """
    groups: dict[int, list[str]] = {}
    versions = {name: int(name.split("_")[1]) for name in architectures}
    shared = min((version for version in versions.values() if version >= 80), default=0)
    for name, version in versions.items():
        groups.setdefault(shared if version >= 80 else version, []).append(name)
    return " ".join(
        f"-gencode arch=compute_{base},code=[{','.join(names)}]" for base, names in groups.items()
    )


def wants_tensor_cores() -> bool:
    """Return whether filtered_lrelu is to use tensor cores where it can.

    Raises:
        ValueError: the environment variable has another value than 'on' or 'off'.
    """
    value = os.environ.get(TENSOR_CORES_VARIABLE, "off")
    if value not in ("on", "off"):
        raise ValueError(f"{TENSOR_CORES_VARIABLE}={value} must be 'on' or 'off'")
    return value == "on"


@functools.cache
def load() -> bool:
    """Find or build the CUDA kernels and register them, once per process.

    Returns:
        Whether the kernels can be used. If not, there was a warning.

    Raises:
        ValueError: an environment variable has a wrong value.
    """
    tensor_cores = wants_tensor_cores()
    warn_of_open_cache()
    try:
        architectures = device_architectures()
        path = find(architectures) or build(folders()[-1], architectures)
        torch.ops.load_library(trust.trusted_path(path))
    except (BuildError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            warnings.warn(
                f"The CUDA kernels are not used ({error}). Torch's own operations are used instead, which "
                "take several times as long and more memory. Run `python -m torch_utils.ops doctor` for "
                "the remedy.",
                stacklevel=2,
            )
        return False
    if tensor_cores:
        torch.ops.stylesan_xl.use_tensor_cores(True)
    return True
