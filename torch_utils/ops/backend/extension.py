# SPDX-License-Identifier: Apache-2.0
"""Builds, finds and loads the CUDA kernels of `csrc/`.

A library is one file whose name says what it was built for: `ops-<hash of sources, flags, torch and
CUDA>-<architectures>.so`. It is built in a folder of its own beside its final place and renamed when
complete, so an interrupted build leaves nothing that could be taken for a library. Processes that start
together wait for one build through a lock on an open file: the system releases it with its process, however
that ends. Where locks do not work, each process builds for itself and the last rename wins.

A library is only loaded from where nobody but this user and root can change it (`dnnlib.trust`). Where others
can, it is passed over with a warning, and one is built in a private folder.

Deviation: ninja is called with a build file of our own rather than through torch.utils.cpp_extension.load,
whose lock is a file that outlives a killed process and then blocks every later one, and whose guess of the
toolkit's folder is one too high where nvcc is a wrapper script.
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
    "filtered_lrelu_radial.cu",
    "filtered_lrelu_separable.cu",
    "gate.cu",
    "upfirdn2d.cu",
)
FOLDER_VARIABLE = "STYLESAN_XL_OPS"
# What clusters run: Ampere and Hopper as machine code, anything newer through PTX.
DEFAULT_ARCHITECTURES = ("sm_80", "sm_90", "compute_80")
# The bindings use torch's stable C interface as it is since 2.11.
_CXX_FLAGS = ["-std=c++20", "-O2", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC"]
_LOCK_SECONDS = 600.0
_LEFTOVER_SECONDS = 24 * 3600.0


class BuildError(RuntimeError):
    """The kernels cannot be built; the message says why and how to mend it."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile: its folder and the version of its nvcc."""

    root: Path
    version: tuple[int, int]

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"


def folders() -> list[Path]:
    """Where libraries are looked for, in this order: $STYLESAN_XL_OPS, the cache folder (where they are also
    built).

    A cache folder that others can change gives way to a private one.
    """
    shared = os.environ.get(FOLDER_VARIABLE)
    return ([Path(shared).expanduser()] if shared else []) + [Path(code_cache_path("ops"))]


def is_usable(library: Path) -> bool:
    """Whether a library is there and nobody else can change it; one that is there and is not trusted is worth
    a warning.
    """
    if not library.is_file():
        return False
    reason = trust.distrust(library)
    if reason:
        _pass_over(reason)
    return not reason


@functools.cache
def _pass_over(reason: str) -> None:
    """One warning per run and reason."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        warnings.warn(
            f"Compiled kernels are not loaded from where others can change them: {reason}. Those in "
            f"{folders()[-1]} are used, or built there.",
            stacklevel=3,
        )


def warn_of_open_cache() -> None:
    """Say why another folder than the cache folder is used, if that is so."""
    cache = make_cache_dir_path("ops")
    if folders()[-1] != Path(cache):
        _pass_over(trust.distrust(cache))


def make_folder(folder: Path) -> None:
    """Make a private folder for libraries. Raises BuildError for one from which nobody should load any,
    OSError.
    """
    trust.make_private(folder)
    reason = trust.distrust(folder)
    if reason:
        raise BuildError(
            f"{reason}, and code is not loaded from there: set DNNLIB_CACHE_DIR to a folder that only you "
            "can write to"
        )


def put_in_place(made: Path, target: Path) -> None:
    """Give a finished library its name. Nobody else may write to it, whatever the umask."""
    os.chmod(made, 0o755)
    os.replace(made, target)


def compiler() -> str | None:
    """The C++ compiler: $CXX, c++ or g++."""
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def ninja() -> str | None:
    """ninja from the running Python's environment or from PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "ninja"
    return str(beside) if beside.exists() else shutil.which("ninja")


@functools.cache
def find_toolkit() -> Toolkit | None:
    """The first folder of $CUDA_HOME, $CUDA_PATH, nvcc's own and /usr/local/cuda with a working nvcc and the
    runtime's headers.
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
    """16 hex digits over all that a library depends on but its architectures: sources, flags, torch, its
    CUDA, the machine.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCE_FOLDER.iterdir() if path.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    facts = (torch.__version__, torch.version.cuda, platform.machine(), _CXX_FLAGS, _NVCC_FLAGS, host)
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


def device_architectures() -> list[str]:
    """Of the visible devices, as sm_XY."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted({"sm_{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(count)})


def library_name(architectures: Sequence[str], host: bool = False) -> str:
    """File name of a library for these architectures."""
    return f"ops-{source_hash(host)}-{'host' if host else '+'.join(sorted(architectures))}.so"


def runs_on(library: Path, architectures: Sequence[str]) -> bool:
    """True if the library's name promises code for all architectures: machine code of the same major version,
    or PTX no newer.
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
    """A library that was built from these very sources for this torch and runs on the architectures."""
    for folder in folders():
        for path in sorted(folder.glob(f"ops-{source_hash()}-*.so")) if folder.is_dir() else []:
            if not path.stem.endswith("-host") and runs_on(path, architectures) and is_usable(path):
                return path
    return None


def problems() -> list[str]:
    """Why the CUDA kernels cannot be built here, one line each with its remedy; empty if they can."""
    found = []
    if torch.version.cuda is None:
        return [
            f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch "
            "(https://pytorch.org/get-started)"
        ]
    if sys.platform != "linux":
        found.append("the kernels are built on Linux only: use WSL2, or the reference path")
    if compiler() is None:
        found.append(
            "there is no C++ compiler: install g++ 11 or newer (apt install g++), or name one in $CXX"
        )
    if ninja() is None:
        found.append("ninja is missing: pip install ninja")
    toolkit = find_toolkit()
    wanted = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    if toolkit is None:
        version = ".".join(map(str, wanted))
        found.append(
            f"there is no nvcc: install the CUDA toolkit {version} (or another {wanted[0]}.x) and set "
            "CUDA_HOME to its folder"
        )
    elif toolkit.version[0] != wanted[0]:
        found.append(
            f"nvcc in {toolkit.root} is of CUDA {'.'.join(map(str, toolkit.version))}, torch of CUDA "
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
    """Builds the library into a folder, unless it is there, and returns its path.

    Args:
        folder: where it goes; made if it is missing.
        architectures: sm_XY (machine code) and compute_XY (PTX).
        host: build the kernels for a CPU, for tests.
        verbose: show the commands.

    Raises:
        BuildError: something is missing, or the compiler failed.
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
            f"there is no {what}"
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
            f"cannot write to {folder}: {error}; set DNNLIB_CACHE_DIR to a folder that can be written to"
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
    """nvcc's options: one pass of its front end for all from Ampere on, of which the kernels use nothing
    newer, and one for each older one.
    """
    groups: dict[int, list[str]] = {}
    versions = {name: int(name.split("_")[1]) for name in architectures}
    shared = min((version for version in versions.values() if version >= 80), default=0)
    for name, version in versions.items():
        groups.setdefault(shared if version >= 80 else version, []).append(name)
    return " ".join(
        f"-gencode arch=compute_{base},code=[{','.join(names)}]" for base, names in groups.items()
    )


@functools.cache
def load() -> bool:
    """Finds or builds the CUDA kernels and registers them, once per process; False, with one warning, where
    that fails.
    """
    warn_of_open_cache()
    try:
        architectures = device_architectures()
        path = find(architectures) or build(folders()[-1], architectures)
        torch.ops.load_library(trust.trusted_path(path))
    except (BuildError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            warnings.warn(
                f"The CUDA kernels are not in use ({error}). Everything works through torch's own "
                "operations, which take several times as long "
                "and more memory. `python -m torch_utils.ops doctor` says how to mend it.",
                stacklevel=2,
            )
        return False
    return True
