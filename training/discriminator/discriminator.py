# SPDX-License-Identifier: Apache-2.0
"""The projected SAN discriminator: per feature network DiffAugment, frozen features, random projection,
heads.

Sauer et al., "Projected GANs", NeurIPS 2021 and "StyleGAN-XL", SIGGRAPH 2022; Takida et al., "SAN", ICLR
2024. Shapes: N batch, C channels, R image resolution, K logits of one network's heads (published: 4 levels x
16).
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import san
from san.layers import SANLogits
from torch_utils.features import FeatureNetwork
from training.discriminator.augment import diff_augment
from training.discriminator.heads import KERNEL, HeadSet, SpectralConv2d
from training.discriminator.projection import RandomProjection

SAVED = (
    "discriminators.",
    "projections.",
)  # state that belongs to this network; the frozen networks are named by their hash


class ProjectedDiscriminator(nn.Module):
    """Images and labels to SAN logits, per feature network.

    backbones: frozen networks of torch_utils.features. Where compute_dtype asks for another type, a copy is
    cast and the network itself
        is left as it is; otherwise it is used itself, its weights put in channels-last order.
    c_dim: number of classes, 0 = unconditional. img_resolution: R, pixels.
    feature_size: pixels to which smaller images are brought before a convolutional network (None: its native
    size; larger images are not
        resized). Transformers and others of a fixed size always see that.
    proj_channels: width of the projection's finest level; head_channels: width of the heads at 64 pixels;
    cond_channels: width of the
        class embedding; num_levels: how many levels, from the finest, have a head (None: all four). A level
        whose map is below 4x4 pixels has no head.
    bn_group: consecutive samples that share batch statistics in the heads; None or 0 = the whole batch.
    augment: whether DiffAugment is applied when draws are given.
    compute_dtype: torch.bfloat16 runs networks, projection and head convolutions in it; statistics and logits
    stay float32. seed: of the projection and of the heads' initial weights. Global random state is not
    touched.

    Attributes that callers read: feature_networks, feature_sizes (pixels each network sees), names,
    num_logits (K), all by network.
    """

    def __init__(
        self,
        backbones: Sequence[FeatureNetwork],
        c_dim: int,
        img_resolution: int,
        *,
        feature_size: int | None = 224,
        proj_channels: int = 64,
        head_channels: int = 64,
        cond_channels: int = 64,
        num_levels: int | None = None,
        bn_group: int | None = 8,
        augment: bool = True,
        compute_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        names = [network.name for network in backbones]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the discriminator needs one or more different feature networks, got {names}")
        if num_levels is not None and not 1 <= num_levels <= 4:
            raise ValueError(
                f"num_levels={num_levels}: feature networks have 4 levels, use 1 to 4 or None for all"
            )
        self.c_dim, self.img_resolution = c_dim, img_resolution
        self.augment, self.compute_dtype = augment, compute_dtype
        self.names = {_key(name): name for name in names}
        self.feature_networks = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.discriminators = nn.ModuleDict()
        self.feature_sizes: dict[str, int] = {}
        generator = torch.Generator().manual_seed(seed)
        for network in backbones:
            key = _key(network.name)
            size = _input_size(network, img_resolution, feature_size)
            projection = RandomProjection(network.channels, network.kind, proj_channels, generator)
            sizes = _level_sizes(network, size)[:num_levels]
            sizes = [pixels for pixels in sizes if pixels >= KERNEL]
            if not sizes:
                raise ValueError(
                    f"feature_size={size} leaves {network.name} no map of {KERNEL}x{KERNEL} pixels: use at "
                    "least 32"
                )
            heads = HeadSet(
                projection.out_channels[: len(sizes)],
                sizes,
                c_dim,
                head_channels,
                cond_channels,
                bn_group,
                generator,
            )
            self.feature_sizes[key] = size
            self.feature_networks[key] = _prepared(network, compute_dtype)
            self.projections[key] = projection
            self.discriminators[key] = heads
        self.to(memory_format=torch.channels_last)
        self.normalize_()

    def forward(
        self, img: Tensor, c: Tensor | None = None, draws: Mapping[str, Tensor] | None = None
    ) -> dict[str, SANLogits]:
        """Logits per feature network, SANLogits of float32 [N, K].

        img: [N, 3, R, R] in [-1, 1]. c: int64 [N] in 0..c_dim-1; None if and only if the network is
        unconditional (c_dim = 0; labels are then ignored). draws: per network's name, uniform draws [N, 7]
        for DiffAugment; None = no augmentation. Changes no state. Raises ValueError for images, labels or
        draws that do not fit.
        """
        c = self._check(img, c)
        logits = {}
        for key, name in self.names.items():
            x = img
            if draws is not None and self.augment:
                if name not in draws:
                    raise ValueError(f"no augmentation draws for {name}: got {sorted(draws)}")
                x = diff_augment(x, draws[name])
            logits[name] = self.discriminators[key](self._features(key, x), c)
        return logits

    def network_input(self, key: str, img: Tensor) -> Tensor:
        """Images in [-1, 1], [N, 3, H, W], as the feature network `key` takes them: normalised, at its size
        and in its type.
        """
        network, size = self.feature_networks[key], self.feature_sizes[key]
        assert isinstance(network, FeatureNetwork)
        x = network.normalize((img + 1) / 2)
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        return x.to(self.compute_dtype).contiguous(memory_format=torch.channels_last)

    def _features(self, key: str, img: Tensor) -> list[Tensor]:
        """Projected maps of images in [-1, 1]. Records a graph only if the images ask for one: nothing here
        is trained.
        """
        heads = self.discriminators[key]
        assert isinstance(heads, HeadSet)
        return self.projections[key](self.feature_networks[key](self.network_input(key, img)))[
            : len(heads.mini_discs)
        ]

    def _check(self, img: Tensor, c: Tensor | None) -> Tensor | None:
        if img.ndim != 4 or img.shape[1:] != (3, self.img_resolution, self.img_resolution):
            raise ValueError(
                f"the discriminator takes images of shape [N, 3, {self.img_resolution}, "
                f"{self.img_resolution}], got {list(img.shape)}"
            )
        if self.c_dim == 0:
            return None
        if c is None or c.shape != img.shape[:1] or c.dtype != torch.int64:
            found = "none" if c is None else f"{c.dtype} of shape {list(c.shape)}"
            raise ValueError(
                f"the conditional discriminator takes int64 labels of shape [{img.shape[0]}], got {found}"
            )
        if (
            c.device.type == "cpu" and c.numel() and not 0 <= int(c.min()) <= int(c.max()) < self.c_dim
        ):  # elsewhere it would wait for the device
            raise ValueError(f"labels must be in 0..{self.c_dim - 1}, got {int(c.min())}..{int(c.max())}")
        return c

    def advance_spectral_norms(self) -> None:
        """One power iteration in every spectrally normalised convolution of the heads: to be called once per
        training step.
        """
        for module in self.discriminators.modules():
            if isinstance(module, SpectralConv2d):
                module.advance_spectral_norm()

    def normalize_(self) -> None:
        """Project the SAN directions of the heads to unit norm: after each discriminator step."""
        san.normalize_(self.discriminators)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the heads by name: all that is trained."""
        return {
            f"discriminators.{name}": parameter for name, parameter in self.discriminators.named_parameters()
        }

    def requires_grad_(self, requires_grad: bool = True) -> "ProjectedDiscriminator":
        """Switch gradients of the heads; the feature networks stay frozen."""
        self.discriminators.requires_grad_(requires_grad)
        return self

    def saved_state_dict(self) -> dict[str, Tensor]:
        """Heads and random projection: what a checkpoint stores. The feature networks come from their own
        files.
        """
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(SAVED)}

    def load_saved_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of saved_state_dict. Raises ValueError if names or shapes differ, before anything is
        changed.
        """
        own = self.saved_state_dict()
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())
            raise ValueError(
                f"the discriminator's state does not fit: {len(differing)} names differ, the first is "
                f"'{differing[0]}'"
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"the discriminator's state does not fit: '{name}' is {list(state[name].shape)}, not "
                    f"{list(tensor.shape)}"
                )
        self.load_state_dict(dict(state), strict=False)


def _key(name: str) -> str:
    """A timm name as a module name, which cannot contain dots."""
    return name.replace(".", "_")


def _input_size(network: FeatureNetwork, img_resolution: int, feature_size: int | None) -> int:
    if network.fixed_size:
        return network.input_size
    return max(img_resolution, network.input_size if feature_size is None else feature_size)


def _level_sizes(network: FeatureNetwork, size: int) -> list[int]:
    """Pixels of the projected maps: each level at twice its resolution, strides rounding up."""
    if network.kind == "vit":
        tokens = size // network.reductions[0]
        own = [4 * tokens, 2 * tokens, tokens, -(-tokens // 2)]
    else:
        own = [-(-size // reduction) for reduction in network.reductions]
    return [2 * own[0], *own[:-1]]


def _prepared(network: FeatureNetwork, dtype: torch.dtype) -> FeatureNetwork:
    """The network itself if it computes in `dtype`, else a copy that does."""
    if network.dtype == dtype:
        return network
    return copy.deepcopy(network).to(dtype)
