# SPDX-License-Identifier: Apache-2.0
"""Finds the layers that compute a discriminator's logits. If they are ambiguous, the user must name them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

LINEAR_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = (*LINEAR_KINDS, nn.Embedding)
# Linear modules without weights, which may follow the last layer.
PASSIVE: tuple[type[nn.Module], ...] = (
    *(nn.Flatten, nn.Identity, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Fold, nn.Unfold),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def candidates(module: nn.Module) -> dict[str, nn.Module]:
    """Return all layers that `convert` can turn into SAN layers, by name, in order of registration."""
    return {name: m for name, m in module.named_modules() if isinstance(m, KINDS)}


def substitute(layer: nn.Module) -> str:
    """Return what an error message suggests in place of a layer that cannot be converted."""
    for dimensions, kind in enumerate(TRANSPOSED, 1):
        if isinstance(layer, kind):
            shuffle = ", or by Conv2d and PixelShuffle" if dimensions == 2 else ""
            return f"replace it by Upsample and Conv{dimensions}d{shuffle}"
    return "replace it by torch's Linear or Conv"


def find_last(module: nn.Module, order: Sequence[str] = ()) -> list[str]:
    """Return the names of the last linear layers if they are unambiguous.

    They are if `module` is such a layer; if it is an nn.Sequential (or ends in one, or has one child) that
    ends in it; or if exactly one layer, or the same or last layer of several branches (numbered modules, or
    those of a ModuleList or ModuleDict), has a single output. They are ambiguous if there is an
    nn.Embedding as well, which can be a projection head or an input.

    Args:
        module: the discriminator.
        order: names of the modules with parameters in the order of their calls. If given, the result is also
            ambiguous if another module with a weight is called after all layers that can be converted, and
            the error suggests the layer that is called last, and its likes in other branches.

    Raises:
        ValueError: the layers are ambiguous. One line with the candidates.
    """
    found = _end_of(module, "")
    options = candidates(module)
    if not options:
        remedy = f": {substitute(module)}" if isinstance(module, TRANSPOSED) else ""
        raise ValueError(f"{type(module).__name__} has no Linear, Conv or Embedding layer to convert{remedy}")
    if found is None:
        single = [name for name, m in options.items() if not isinstance(m, nn.Embedding) and _outputs(m) == 1]
        other = _last_of_another_kind(module, options, order)
        if len({_branch_pattern(module, name) for name in single}) != 1 or other is not None:
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
    """Return a module with a weight that cannot be converted and follows all layers that can; else None."""
    modules = dict(module.named_modules())
    names = order or [name for name, m in modules.items() if isinstance(m, KINDS) or _has_foreign_weight(m)]
    after = names[max((i for i, name in enumerate(names) if name in options), default=-1) + 1 :]
    weighty = [name for name in after if any(p.ndim > 1 for p in modules[name].parameters())]
    return weighty[-1] if weighty else None


def _has_foreign_weight(module: nn.Module) -> bool:
    """Return whether a module from outside torch has a matrix as a parameter."""
    foreign = not type(module).__module__.startswith("torch.")
    return foreign and any(p.ndim > 1 for p in module.parameters(recurse=False))


def _which(
    module: nn.Module,
    options: Mapping[str, nn.Module],
    single: list[str],
    other: str | None,
    order: Sequence[str],
) -> str:
    """Return the error message that asks for the layers. It suggests layers if they seem to be the last."""
    names = single or list(options)[-5:]
    last = [name for name in order if name in options][-1:] or single[-1:]
    if last and last[0] in single:
        last = [*single]
    elif last:
        pattern = _branch_pattern(module, last[0])
        last = [name for name in options if _branch_pattern(module, name) == pattern]
    if other is not None:
        layer = module.get_submodule(other)
        how = f"'{other}', a {type(layer).__name__}, comes last and cannot be converted: "
        how += f"{substitute(layer)}, or name the layers"
    elif last:
        them, names_of = ("them all", last) if last[1:] else ("them", last[0])
        how = f"Name {them}, as in san.convert(D, {names_of!r})"
    else:
        how = "Name them, or give an example input to trace the calls, san.convert(D, example=images)"
    kind = type(module).__name__
    return f"which layers of {kind} compute its logits? {how}; candidates: {', '.join(names)}"


def _branch_pattern(module: nn.Module, name: str) -> str:
    """Return the name of a layer without its branch, the same for the layers that end parallel branches.

    heads.0.conv and heads.1.conv are the same layer of two branches; main.3 and main.5 of a Sequential are
    not. In a ModuleList or ModuleDict, heads.0 and heads.1 are, and so are the ends heads.0.2 and heads.1.4
    of Sequential branches.
    """
    parts = name.split(".")
    pattern = []
    for i, part in enumerate(parts):
        parent = module.get_submodule(".".join(parts[:i]))
        is_branch = isinstance(parent, (nn.ModuleList, nn.ModuleDict))
        pattern.append("*" if is_branch or (part.isdigit() and i < len(parts) - 1) else part)
        if is_branch and _is_end(parent.get_submodule(part), parts[i + 1 :]):
            return ".".join(pattern)
    return ".".join(pattern)


def _is_end(branch: nn.Module, parts: list[str]) -> bool:
    """Return whether these parts of a name lead to the layer in which a branch ends."""
    try:
        return _end_of(branch, "") == [".".join(parts)]
    except ValueError:
        return False


def _outputs(layer: nn.Module) -> int:
    outputs: Any = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return int(outputs)


def _end_of(module: nn.Module, name: str) -> list[str] | None:
    """Return the last layer of a chain of modules; None if the order of calls is unknown."""
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
        if isinstance(last, (*TRANSPOSED, nn.Bilinear, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)):
            raise ValueError(
                f"the discriminator ends in {kind}, which cannot be converted: {substitute(last)}"
            )
        raise ValueError(f"the discriminator ends in {kind}, but a SAN needs logits: remove it first")
    return _end_of(last, f"{name}.{key}".lstrip("."))


def _has_own(module: nn.Module) -> bool:
    """Return whether the module has its own parameters, so that its only child may not come last."""
    own = next(module.parameters(recurse=False), None) is not None
    return own or isinstance(module, (nn.ModuleList, nn.ModuleDict))
