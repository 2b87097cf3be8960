# SPDX-License-Identifier: Apache-2.0
"""For foreign StyleGAN-family code and pickles alone: compiles C++ and CUDA extensions on first use.

Our own kernels are built by `torch_utils.ops.backend.extension`.
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

# 'none', 'brief' (one line per build) or 'full' (the compiler's output, too).
verbosity = "brief"

_plugins: dict[tuple[str, str], Any] = {}


def get_plugin(
    module_name: str,
    sources: list[str],
    headers: list[str] | None = None,
    source_dir: str | None = None,
    **build_kwargs: Any,
) -> Any:
    """Builds an extension, unless that has been done, and returns its module.

    Args:
        module_name: of the extension.
        sources, headers: file names; what the cached build is known by, with torch's version and the build
        options. source_dir: folder of the names; None = the current one. build_kwargs: for
        torch.utils.cpp_extension.load.

    Raises:
        ValueError: a file is missing. OSError: no folder can be made that only this user can write to.
    """
    folder = Path(source_dir or ".")
    files = [folder / name for name in [*sources, *(headers or [])]]
    digest = hashlib.sha256(
        repr((module_name, torch.__version__, torch.version.cuda, sorted(build_kwargs.items()))).encode()
    )
    for file in files:
        if not file.is_file():
            raise ValueError(f"{module_name} cannot be built: there is no file {file}")
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    key = module_name, digest.hexdigest()[:16]
    if key not in _plugins:
        if verbosity != "none":
            print(f'Setting up PyTorch plugin "{module_name}"...', flush=True)
        target = _private_folder(f"{key[0]}-{key[1]}")
        with file_lock(target / "owner", f"builds {module_name}"), _nobody_else_may_write():
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


def _private_folder(name: str) -> Path:
    """A folder for a build, from which nobody else can make us load what they want; a fresh one if somebody
    could have put something there.
    """
    folder = Path(code_cache_path("plugins", name))
    trust.make_private(folder)
    if any(trust.distrust(path) for path in (folder, *folder.iterdir())):
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
    return trust.trusted_path(folder)


@contextlib.contextmanager
def _nobody_else_may_write() -> Iterator[None]:
    """What is written here, the compiler's files too, is this user's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _load(**arguments: Any) -> Any:
    import torch.utils.cpp_extension  # slow to import

    return torch.utils.cpp_extension.load(**arguments)
