# SPDX-License-Identifier: Apache-2.0
"""TensorBundle: a module that only contains named tensors, used as the D of a network pickle.

Tools that read network pickles require D to be a module but never run it. The frozen backbones of the
discriminator have their own files, so a pickle contains only the tensors of its heads and random projection,
under their state_dict names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_utils import persistence

__persistent_module__ = "training.bundle"  # where torch_utils.persistence finds this source

DOT = "|"  # replaces the dot in names of buffers, which must not contain one


@persistence.persistent_class
class TensorBundle(torch.nn.Module):
    """Named tensors as buffers.

    The buffers are empty until `fill` is called.

    Args:
        names: The dotted names of the tensors, in order.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = list(names)
        for name in self.names:
            self.register_buffer(name.replace(".", DOT), torch.empty(0))

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> TensorBundle:
        """Copy the tensors to the buffers, on the CPU. Returns self."""
        for name in self.names:
            setattr(self, name.replace(".", DOT), tensors[name].detach().cpu().clone())
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by dotted name."""
        return {name: getattr(self, name.replace(".", DOT)) for name in self.names}


def bundle(tensors: Mapping[str, torch.Tensor]) -> TensorBundle:
    """Return a TensorBundle of a state dict."""
    return TensorBundle(list(tensors)).fill(tensors)


def dotted(name: str) -> str:
    """Return the dotted name of a buffer of a bundle."""
    return name.replace(DOT, ".")
