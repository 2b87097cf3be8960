# SPDX-License-Identifier: Apache-2.0
"""Use trained networks: generate images and videos, and evaluate the networks of a run.

`from generation import Network` is the short form of `from generation.network import Network`. The package
itself imports nothing, so that --help of the scripts is fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generation.network import Network as Network

__all__ = ["Network"]


def __getattr__(name: str) -> Any:
    if name == "Network":
        from generation.network import Network

        return Network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
