# SPDX-License-Identifier: Apache-2.0
"""Compiles C++ and CUDA extensions on first use, for code that was written for dnnlib. Our own kernels: `torch_utils.ops.extension`."""

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import make_cache_dir_path

# 'none', 'brief' (one line per build) or 'full' (the compiler's output, too).
verbosity = "brief"

_plugins: dict[tuple[str, str], Any] = {}


def get_plugin(module_name: str, sources: list[str], headers: list[str] | None = None, source_dir: str | None = None, **build_kwargs: Any) -> Any:
    """Builds an extension, unless that has been done, and returns its module.

    Args:
        module_name: of the extension.
        sources, headers: file names; what the cached build is known by, with torch's version and the build options.
        source_dir: folder of the names; None = the current one.
        build_kwargs: for torch.utils.cpp_extension.load.

    Raises:
        ValueError: a file is missing.
    """
    folder = Path(source_dir or ".")
    files = [folder / name for name in [*sources, *(headers or [])]]
    digest = hashlib.sha256(repr((module_name, torch.__version__, torch.version.cuda, sorted(build_kwargs.items()))).encode())
    for file in files:
        if not file.is_file():
            raise ValueError(f"{module_name} cannot be built: there is no file {file}")
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    key = module_name, digest.hexdigest()[:16]
    if key not in _plugins:
        if verbosity != "none":
            print(f'Setting up PyTorch plugin "{module_name}"...', flush=True)
        target = Path(make_cache_dir_path("plugins", f"{key[0]}-{key[1]}"))
        target.mkdir(parents=True, exist_ok=True)
        with open(target / "owner", "a") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            # torch's own lock outlives a killed process; we hold the real one, so what lies there is stale.
            (target / "lock").unlink(missing_ok=True)
            _plugins[key] = _load(
                name=module_name,
                sources=[os.fspath(folder / name) for name in sources],
                build_directory=os.fspath(target),
                verbose=verbosity == "full",
                **build_kwargs,
            )
    return _plugins[key]


def _load(**arguments: Any) -> Any:
    import torch.utils.cpp_extension  # slow to import

    return torch.utils.cpp_extension.load(**arguments)
