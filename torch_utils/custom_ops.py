# SPDX-License-Identifier: Apache-2.0
"""Compiles C++ and CUDA extensions on first use, for other StyleGAN-family code and pickles only.

This project's kernels are built by `torch_utils.ops.backend.extension`.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dnnlib import trust
from dnnlib.util import code_cache_path, file_lock

# 'none', 'brief' (one line per build) or 'full' (with the compiler's output).
verbosity = "brief"

_plugins: dict[tuple[str, str], Any] = {}


def get_plugin(
    module_name: str,
    sources: list[str],
    headers: list[str] | None = None,
    source_dir: str | None = None,
    **build_kwargs: Any,
) -> Any:
    """Build an extension if necessary and return its module.

    The contents of the files, torch's version and the build options are the key of the cached build.

    Args:
        module_name: name of the extension.
        sources: file names of the sources.
        headers: file names of the headers.
        source_dir: folder of the files; None = the current one.
        **build_kwargs: passed to torch.utils.cpp_extension.load.

    Raises:
        ValueError: a file is missing.
        OSError: it is not possible to create a folder that only this user can write to.
    """
    folder = Path(source_dir or ".")
    files = [folder / name for name in [*sources, *(headers or [])]]
    digest = hashlib.sha256(
        repr((module_name, torch.__version__, torch.version.cuda, sorted(build_kwargs.items()))).encode()
    )
    for file in files:
        if not file.is_file():
            raise ValueError(f"{module_name} cannot be built: file {file} not found")
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    key = module_name, digest.hexdigest()[:16]
    if key not in _plugins:
        if verbosity != "none":
            print(f'Setting up PyTorch plugin "{module_name}"...', flush=True)
        target = _private_folder(f"{key[0]}-{key[1]}")
        with file_lock(target / "owner", f"builds {module_name}"), _private_umask():
            # torch's own lock file survives a killed process. This process holds the real lock, so any such
            # file is stale.
            (target / "lock").unlink(missing_ok=True)
            _plugins[key] = _load(
                name=module_name,
                sources=[os.fspath(folder / name) for name in sources],
                build_directory=os.fspath(target),
                verbose=verbosity == "full",
                **build_kwargs,
            )
    return _plugins[key]


def _private_folder(name: str) -> Path:
    """Return a build folder that only this user can write to.

    If another user could have written to the usual folder, a new one is created: loading a library from a
    folder that others can write to would let them run code in this process.
    """
    folder = Path(code_cache_path("plugins", name))
    trust.make_private(folder)
    if any(trust.untrusted_reason(path) for path in (folder, *folder.iterdir())):
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
    return trust.trusted_path(folder)


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    """Make files created in this context, also by the compiler, accessible to this user only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _load(**arguments: Any) -> Any:
    import torch.utils.cpp_extension  # slow to import

    return torch.utils.cpp_extension.load(**arguments)
