# SPDX-License-Identifier: Apache-2.0
"""The projected SAN discriminator: DiffAugment, frozen features, random projection and heads per backbone.

Sources: Sauer et al., "Projected GANs", NeurIPS 2021; Sauer et al., "StyleGAN-XL", SIGGRAPH 2022; Takida et
al., "SAN", ICLR 2024.

Shapes: N batch, C channels, R image resolution, K logits of one backbone's heads (published: 4 levels x 16).
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import san
from san.layers import SANLogits, SONALogits
from torch_utils.features import FeatureNetwork
from torch_utils.images import to_rgb
from training.config import DIFFAUG
from training.discriminator.augment import diff_augment
from training.discriminator.heads import KERNEL, HeadSet, SpectralConv2d
from training.discriminator.projection import RandomProjection

BACKGROUND = "background"  # the draws of colours below transparent pixels
# Saved state; the frozen networks are identified by their hash instead.
SAVED = ("discriminators.", "projections.")


class ProjectedDiscriminator(nn.Module):
    """Maps images and labels to SAN logits, per backbone.

    Global random state is not changed.

    Args:
        backbones: Frozen networks of torch_utils.features. If compute_dtype is another type, a copy is cast
            and the original is not changed; otherwise the network itself is used and its weights are
            converted to channels-last order.
        c_dim: Number of classes, 0 = unconditional.
        img_resolution: R, pixels.
        img_channels: C, 1 (grey), 3 (RGB) or 4 (RGB and alpha). The backbones see RGB (images.to_rgb).
        feature_size: Smaller images are resized to this many pixels before a convolutional backbone (None:
            its native size). Larger images are not resized. Transformers and other networks of a fixed size
            always get that size.
        proj_channels: Channels of the finest level of the projection.
        head_channels: Channels of the heads at 64 pixels.
        cond_channels: Width of the class embedding.
        heads: "projection" or "sona" (conditional only).
        num_levels: Number of levels with a head, counted from the finest (None: all four). A level whose map
            is smaller than 4x4 pixels has no head.
        bn_group: Consecutive samples that share batch statistics in the heads; None or 0 = the whole batch.
        mbstd: Whether the heads also see the standard deviations of `class_deviations`.
        augment: Whether to apply DiffAugment when draws are given.
        diffaug: The operations of DiffAugment.
        compute_dtype: torch.bfloat16 = run backbones, projection and head convolutions in it; statistics and
            logits stay float32.
        seed: Seed of the projection and of the heads' initial weights.

    Attributes:
        feature_networks: The backbones by key.
        feature_sizes: Input size of each backbone in pixels, by key.
        names: Key -> timm name of each backbone.
        sona: Whether the heads are SONA heads.

    Raises:
        ValueError: The arguments do not fit each other.
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
        heads: str = "projection",
        num_levels: int | None = None,
        bn_group: int | None = 8,
        mbstd: bool = False,
        augment: bool = True,
        diffaug: Sequence[str] = DIFFAUG,
        compute_dtype: torch.dtype = torch.float32,
        seed: int = 0,
        img_channels: int = 3,
    ) -> None:
        super().__init__()
        names = [network.name for network in backbones]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the discriminator needs one or more distinct backbones, got {names}")
        if num_levels is not None and not 1 <= num_levels <= 4:
            raise ValueError(f"num_levels={num_levels}: backbones have 4 levels, use 1 to 4 or None for all")
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.augment, self.diffaug, self.compute_dtype = augment, tuple(diffaug), compute_dtype
        self.sona, self.mbstd = heads == "sona", mbstd
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
                    f"feature_size={size}: all maps of {network.name} are smaller than {KERNEL}x{KERNEL} "
                    "pixels: "
                    "use at least 32"
                )
            head_set = HeadSet(
                projection.out_channels[: len(sizes)],
                sizes,
                c_dim,
                head_channels,
                cond_channels,
                bn_group,
                generator,
                self.sona,
                mbstd,
            )
            self.feature_sizes[key] = size
            self.feature_networks[key] = _prepared(network, compute_dtype)
            self.projections[key] = projection
            self.discriminators[key] = head_set
        self.to(memory_format=torch.channels_last)
        self.normalize_()

    def forward(
        self,
        img: Tensor,
        c: Tensor | None = None,
        draws: Mapping[str, Tensor] | None = None,
        batches: int = 1,
    ) -> Mapping[str, SANLogits | SONALogits]:
        """Compute the logits per backbone. Changes no state.

        Args:
            img: [N, C, R, R] in [-1, 1].
            c: int64 [N] in 0..c_dim-1. Required if the network is conditional, otherwise ignored.
            draws: Uniform draws [N, 7] for DiffAugment, by backbone name; None = no augmentation. With four
                channels also [N, 3] by BACKGROUND: the colours below transparent pixels; white without.
            batches: The images are this many batches of equal size, which share no batch statistics.

        Returns:
            Backbone name -> SANLogits of float32 [N, K], or SONALogits of SONA heads.

        Raises:
            ValueError: Images, labels or draws do not fit.
        """
        c = self._check(img, c)
        img = to_rgb(img, _background(draws))
        logits = {}
        for key, name in self.names.items():
            x = img
            if draws is not None and self.augment:
                if name not in draws:
                    raise ValueError(f"no augmentation draws for {name}: got {sorted(draws)}")
                x = diff_augment(x, draws[name], self.diffaug)
            logits[name] = self.discriminators[key](self._features(key, x), c, batches)
        return logits

    def network_input(self, key: str, img: Tensor) -> Tensor:
        """Prepare images for a backbone: normalise, resize and cast.

        Args:
            key: Key of the backbone.
            img: [N, C, H, W] in [-1, 1].
        """
        network, size = self.feature_networks[key], self.feature_sizes[key]
        assert isinstance(network, FeatureNetwork)
        x = network.normalize((to_rgb(img) + 1) / 2)
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        return x.to(self.compute_dtype).contiguous(memory_format=torch.channels_last)

    def _features(self, key: str, img: Tensor) -> list[Tensor]:
        """Return the projected feature maps of images in [-1, 1].

        Records a graph only if the images require gradients, because nothing here is trained.
        """
        heads = self.discriminators[key]
        assert isinstance(heads, HeadSet)
        maps: list[Tensor] = self.projections[key](self.feature_networks[key](self.network_input(key, img)))
        return maps[: len(heads.mini_discs)]

    def _check(self, img: Tensor, c: Tensor | None) -> Tensor | None:
        if img.ndim != 4 or img.shape[1:] != (self.img_channels, self.img_resolution, self.img_resolution):
            raise ValueError(
                f"the discriminator takes images of shape [N, {self.img_channels}, {self.img_resolution}, "
                f"{self.img_resolution}], got {list(img.shape)}"
            )
        if self.c_dim == 0:
            return None
        if c is None or c.shape != img.shape[:1] or c.dtype != torch.int64:
            found = "none" if c is None else f"{c.dtype} of shape {list(c.shape)}"
            raise ValueError(
                f"the conditional discriminator takes int64 labels of shape [{img.shape[0]}], got {found}"
            )
        # only on the CPU: reading values from another device would wait for it
        checked = c.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and c.numel() and not 0 <= int(c.min()) <= int(c.max()) < self.c_dim:
            raise ValueError(f"labels must be in 0..{self.c_dim - 1}, got {int(c.min())}..{int(c.max())}")
        return c

    def advance_spectral_norms(self) -> None:
        """Run one power iteration in every spectrally normalised convolution of the heads.

        Call it once per training step.
        """
        for module in self.discriminators.modules():
            if isinstance(module, SpectralConv2d):
                module.advance_spectral_norm()

    def sona_weights(self) -> dict[str, Tensor]:
        """Return the weights of the terms of SONA heads by backbone name; empty for projection heads."""
        found = {}
        for key, name in self.names.items():
            heads = self.discriminators[key]
            assert isinstance(heads, HeadSet)
            if heads.weights is not None:
                found[name] = heads.weights()
        return found

    def normalize_(self) -> None:
        """Project the SAN directions of the heads to unit norm. Call it after each discriminator step."""
        san.normalize_(self.discriminators)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the heads by name. Nothing else is trained."""
        return {
            f"discriminators.{name}": parameter for name, parameter in self.discriminators.named_parameters()
        }

    def requires_grad_(self, requires_grad: bool = True) -> "ProjectedDiscriminator":
        """Switch gradients of the heads. The backbones stay frozen."""
        self.discriminators.requires_grad_(requires_grad)
        return self

    def backbone_hashes(self) -> dict[str, str]:
        """Return the sha256 of each backbone's weights file, or 'random:SEED', by name."""
        return {name: str(network.sha256) for name, network in self.feature_networks.items()}

    def saved_state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint stores: heads and random projection.

        The backbones come from their own files.
        """
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(SAVED)}

    def load_saved_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `saved_state_dict`.

        Raises:
            ValueError: Names or shapes differ. Nothing has been changed then.
        """
        own = self.saved_state_dict()
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())
            raise ValueError(
                f"the state does not fit this discriminator: {len(differing)} names differ, the first is "
                f"'{differing[0]}'"
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"the state does not fit this discriminator: '{name}' has shape "
                    f"{list(state[name].shape)}, "
                    f"not {list(tensor.shape)}"
                )
        self.load_state_dict(dict(state), strict=False)


def _background(draws: Mapping[str, Tensor] | None) -> Tensor | float:
    """The colours below transparent pixels, [N, 3, 1, 1] in [-1, 1]; white without draws.

    With a random colour per image, an image with wrong alpha differs from a real one. With a fixed one, the
    generator could paint that colour instead of being transparent.
    """
    if draws is None or BACKGROUND not in draws:
        return 1.0
    return draws[BACKGROUND][:, :, None, None] * 2 - 1


def _key(name: str) -> str:
    """Convert a timm name to a module name, which cannot contain dots."""
    return name.replace(".", "_")


def _input_size(network: FeatureNetwork, img_resolution: int, feature_size: int | None) -> int:
    if network.fixed_size:
        return network.input_size
    return max(img_resolution, network.input_size if feature_size is None else feature_size)


def _level_sizes(network: FeatureNetwork, size: int) -> list[int]:
    """Return the sizes of the projected maps in pixels: twice each level's size, with strides rounding up."""
    if network.kind == "vit":
        tokens = size // network.reductions[0]
        own = [4 * tokens, 2 * tokens, tokens, -(-tokens // 2)]
    else:
        own = [-(-size // reduction) for reduction in network.reductions]
    return [2 * own[0], *own[:-1]]


def _prepared(network: FeatureNetwork, dtype: torch.dtype) -> FeatureNetwork:
    """Return the network itself if it computes in `dtype`, else a copy that does."""
    if network.dtype == dtype:
        return network
    return copy.deepcopy(network).to(dtype)
