# SPDX-License-Identifier: Apache-2.0
"""TensorBundle: a module that only holds named tensors, for the D of a network pickle.

Tools that read network pickles insist that D is a module and never run it. The discriminator's frozen
backbones live in their own files, so a pickle carries the tensors of its heads and random projection, under
their state_dict names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_utils import persistence

__persistent_module__ = "training.bundle"  # where this text is installed, for torch_utils.persistence

DOT = "|"  # what stands for the dot of a dotted name: buffers may not have one


@persistence.persistent_class
class TensorBundle(torch.nn.Module):
    """Named tensors as buffers.

    names: the dotted names, in order. Values are given with `fill`; until then they are empty.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = list(names)
        for name in self.names:
            self.register_buffer(name.replace(".", DOT), torch.empty(0))

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> TensorBundle:
        """Copy in the tensors (to the CPU). Returns self."""
        for name in self.names:
            setattr(self, name.replace(".", DOT), tensors[name].detach().cpu().clone())
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by their dotted names."""
        return {name: getattr(self, name.replace(".", DOT)) for name in self.names}


def bundle(tensors: Mapping[str, torch.Tensor]) -> TensorBundle:
    """A TensorBundle of a state dict."""
    return TensorBundle(list(tensors)).fill(tensors)


def dotted(name: str) -> str:
    """The dotted name of a bundle's buffer."""
    return name.replace(DOT, ".")
