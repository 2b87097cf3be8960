# SPDX-License-Identifier: Apache-2.0
"""Which layers of a discriminator make its logits: found where there is no doubt, asked for elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

LINEAR_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = (*LINEAR_KINDS, nn.Embedding)
# Linear and without weights: may follow the last layer.
PASSIVE: tuple[type[nn.Module], ...] = (
    *(nn.Flatten, nn.Identity, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Fold, nn.Unfold),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)


def candidates(module: nn.Module) -> dict[str, nn.Module]:
    """All layers that `convert` can turn into SAN layers, by name, in order of registration."""
    return {name: m for name, m in module.named_modules() if isinstance(m, KINDS)}


def find_last(module: nn.Module, order: Sequence[str] = ()) -> list[str]:
    """Names of the last linear maps, where there is no doubt.

    No doubt: `module` is that layer; it is an nn.Sequential (or ends in one, or holds one child) that ends in
    it; or exactly one layer, or the same layer of each of several numbered branches, has a single output. An
    nn.Embedding beside it may be a projection head or an input: doubt.

    order: names of modules with parameters in the order of their calls; then one that is called after all
    such layers is a doubt, too, and what is suggested is what is called last.

    Raises:
        ValueError: one line with the names to choose from.
    """
    found = _end_of(module, "")
    options = candidates(module)
    if not options:
        raise ValueError(f"{type(module).__name__} has no Linear, Conv or Embedding layer to convert")
    if found is None:
        single = [name for name, m in options.items() if not isinstance(m, nn.Embedding) and _outputs(m) == 1]
        other = _last_of_another_kind(module, options, order)
        if len({_branch_pattern(name) for name in single}) != 1 or other is not None:
            raise ValueError(_which(module, options, single, other, order))
        found = single
    embeddings = [name for name, m in options.items() if isinstance(m, nn.Embedding)]
    if embeddings:
        raise ValueError(
            f"{type(module).__name__} has the embedding '{embeddings[0]}': name the layers, "
            f"san.convert(D, {[*found, *embeddings]!r}) if its rows are multiplied with features (a "
            f"projection head), san.convert(D, {found!r}) if it is an input"
        )
    return found


def _last_of_another_kind(
    module: nn.Module,
    options: Mapping[str, nn.Module],
    order: Sequence[str],
) -> str | None:
    """A module with a weight, of neither torch's nor our kinds, that comes after every layer that can be
    converted.
    """
    modules = dict(module.named_modules())
    names = order or [name for name, m in modules.items() if isinstance(m, KINDS) or _has_foreign_weight(m)]
    after = names[max((i for i, name in enumerate(names) if name in options), default=-1) + 1 :]
    weighty = [name for name in after if any(p.ndim > 1 for p in modules[name].parameters())]
    return weighty[-1] if weighty else None


def _has_foreign_weight(module: nn.Module) -> bool:
    """Whether a module that is not torch's computes with a matrix of its own."""
    foreign = not type(module).__module__.startswith("torch.")
    return foreign and any(p.ndim > 1 for p in module.parameters(recurse=False))


def _which(
    module: nn.Module,
    options: Mapping[str, nn.Module],
    single: list[str],
    other: str | None,
    order: Sequence[str],
) -> str:
    """The question which layers make the logits; it suggests some only where they seem to be the last
    ones.
    """
    names = single or list(options)[-5:]
    last = [name for name in order if name in options][-1:] or single[-1:]
    if other is not None:
        kind = type(module.get_submodule(other)).__name__
        how = f"'{other}', a {kind}, comes last and cannot be converted: "
        how += "write it as torch's Linear or Conv, or name the layers"
    elif last:
        how = f"Name them, as in san.convert(D, {last[0]!r})"
    else:
        how = "Name them, or show how they are called by an example input, san.convert(D, example=images)"
    return f"which layers of {type(module).__name__} make its logits? {how}; candidates: {', '.join(names)}"


def _branch_pattern(name: str) -> str:
    """The name without the numbers of its branches: heads.0.conv and heads.1.conv are one layer of two
    branches, main.3 and main.5 are not."""
    *branches, last = name.split(".")
    return ".".join(["*" if part.isdigit() else part for part in branches] + [last])


def _outputs(layer: nn.Module) -> int:
    outputs: Any = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return int(outputs)


def _end_of(module: nn.Module, name: str) -> list[str] | None:
    """The layer that a chain of modules ends in; None where the order is not known."""
    if isinstance(module, LINEAR_KINDS):
        return [name]
    children = list(module.named_children())
    if not isinstance(module, nn.Sequential):
        single = len(children) == 1 and not _has_own(module)
        return _end_of(children[0][1], f"{name}.{children[0][0]}".lstrip(".")) if single else None
    while children and isinstance(children[-1][1], PASSIVE):
        children.pop()
    if not children:
        return None
    key, last = children[-1]
    leaf = next(last.children(), None) is None
    if leaf and type(last).__module__.startswith("torch.nn.") and not isinstance(last, KINDS):
        kind = type(last).__name__
        raise ValueError(f"the discriminator ends in {kind}, but a SAN needs logits: remove it first")
    return _end_of(last, f"{name}.{key}".lstrip("."))


def _has_own(module: nn.Module) -> bool:
    """True if the module computes with parameters of its own: then its only child need not come last."""
    own = next(module.parameters(recurse=False), None) is not None
    return own or isinstance(module, (nn.ModuleList, nn.ModuleDict))
