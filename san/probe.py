# SPDX-License-Identifier: Apache-2.0
"""Trial passes of a discriminator on an example input. They change neither it nor any random generator."""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from san.layers import SANLogits, widened
from san.logits import coarseness, leaves


def run(module: nn.Module, example: Any, problem: str = "does not accept the example") -> Any:
    """Return the module's output for an example.

    The pass is in the module's current mode, without gradients. Buffers and random generators are restored.

    Args:
        module: the discriminator.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments.
        problem: start of the error message.

    Raises:
        ValueError: the pass fails.
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else ((example,), {})
    if type(example) in (tuple, list):
        args = tuple(example)
    buffers = {name: x.clone() for name, x in module.named_buffers() if not nn.parameter.is_lazy(x)}
    devices = {x.get_device() for x in module.parameters() if x.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(list(devices)):
        torch.manual_seed(0)
        try:
            return module(*args, **kwargs)
        except Exception as error:
            if isinstance(error, ValueError):
                raise
            reason = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
            raise ValueError(f"{type(module).__name__} {problem}: {reason}") from error
        finally:
            for name, x in module.named_buffers():
                if name in buffers:
                    x.copy_(buffers[name])


def repeats(module: nn.Module, example: Any, before: Any) -> bool:
    """Return whether another pass gives the same output."""
    try:
        compare(before, run(module, example), 0.0)
    except ValueError:
        return False
    return True


@contextmanager
def called(module: nn.Module) -> Any:
    """Collect the names of the innermost modules with parameters in the order of their calls."""
    names: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, part in module.named_modules()
        if {child for child, _ in part.named_children()} <= {"parametrizations"}
        if next(part.parameters(), None) is not None
    ]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def compare(before: Any, after: Any, eps: float) -> None:
    """Check that a converted module's output equals the original's, in both parts of the logits.

    Args:
        before: output of the original.
        after: output of the converted module.
        eps: machine epsilon of the least precise type in the computation.

    Raises:
        ValueError: the outputs differ. One line.
    """
    old, new = list(leaves(before)), list(leaves(after))
    if len(old) != len(new):
        raise ValueError(f"the conversion changes the output: {len(old)} tensors before, {len(new)} after")
    for a, b in zip(old, new, strict=True):
        for part in (b.fun, b.dir) if isinstance(b, SANLogits) else (b,):
            _compare_tensors(a.fun if isinstance(a, SANLogits) else a, part, eps)


def _compare_tensors(a: Tensor, b: Tensor, eps: float) -> None:
    if a.shape != b.shape:
        shapes = f"{tuple(a.shape)} before, {tuple(b.shape)} after"
        raise ValueError(f"the conversion changes the output: shape {shapes}")
    if a.is_meta or b.is_meta or not a.numel():
        return
    limit = max(eps, coarseness(a), coarseness(b)) ** 0.5
    x, y = (t.detach() if t.is_floating_point() else t.detach().double() for t in (widened(a), widened(b)))
    size = x.abs().max()
    if not torch.allclose(x, y, rtol=0, atol=limit * float(size), equal_nan=True):
        raise ValueError(
            f"the conversion changes the output by up to {float((x - y).abs().max()):.3g} (it was up to "
            f"{float(size):.3g}): the layer, or its use in the module, depends on more than its weight"
        )


def compare_layers(original: nn.Module, layer: nn.Module) -> None:
    """Raise ValueError unless a converted layer agrees with its original on a random input."""
    weight: Any = original.weight
    if weight.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    if isinstance(original, nn.Embedding):
        x = torch.arange(min(original.num_embeddings, 3), device=weight.device)
    else:
        x = torch.randn(_input_shape(original), generator=generator).to(weight)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        try:
            before = original(x)
        except RuntimeError:  # the device does not support the type
            return
        out = layer(x)
    compare(before, SANLogits(out.fun, out.dir), coarseness(weight))


def _input_shape(layer: Any) -> tuple[int, ...]:
    """Return the shape of two samples, slightly larger than a convolution's kernel and padding."""
    if isinstance(layer, nn.Linear):
        return (2, layer.in_features)
    padding = (0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
    geometry = zip(layer.kernel_size, layer.dilation, padding, strict=True)
    return (2, layer.in_channels, *(max(d * (k - 1) + 2, p + 1) for k, d, p in geometry))
