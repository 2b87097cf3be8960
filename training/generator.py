# SPDX-License-Identifier: Apache-2.0
"""The generator: StyleGAN3's alias-free layers at StyleGAN-XL's sizes, as one self-contained file.

A network pickle carries the text of this file, so it imports numpy, scipy, torch and the names that every
StyleGAN repository has (torch_utils.persistence, torch_utils.ops), and nothing else at import time. It runs
from Python 3.8 and torch 1.9 on, which is what those repositories ask for (`from_stub` and `load` are for
this project alone).

A generator is a mapping network and a list of layers (`LayerSpec`). `plan_stem` computes the list of a first
stage, `plan_superres` the list of a later one: a trimmed stem's layers plus a head's. Both are built by the
same class.

Sources: Karras et al., "Alias-Free Generative Adversarial Networks" (StyleGAN3, NeurIPS 2021); Sauer et al.,
"StyleGAN-XL" (SIGGRAPH 2022).

Shapes: N batch, Z latent, W style, L layers, C channels, H W height and width, I O input and output channels,
k kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.signal
import scipy.special
import torch

from torch_utils import persistence
from torch_utils.ops import bias_act, conv2d_gradfix, filtered_lrelu

__persistent_module__ = "training.generator"  # where this text is installed, for torch_utils.persistence

# Constants of the two published configurations (SIGGRAPH 2022 networks), not doubled by --cbase and --cmax.
STEM_CONFIGS = {
    "stylegan3-t": dict(conv_kernel=3, use_radial_filters=False, width=2),
    "stylegan3-r": dict(conv_kernel=1, use_radial_filters=True, width=4),
}
FIRST_CUTOFF = 2.0
FIRST_STOPBAND = 2.0**2.1
LAST_STOPBAND_REL = 2.0**0.3
MARGIN = 10  # pixels kept around the canvas on each side
NUM_CRITICAL = 2  # critically sampled layers before toRGB
NUM_REDUCED_OCTAVES = 4  # the highest octaves that may run in reduced precision
MAX_SIZE_FACTOR = 16
MAX_TAPS = 256  # of one filter; published ones have 24
MAX_LAYERS = 256  # of a network that is read


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """Everything that defines one synthesis layer. Frequencies are in cycles per image width, sizes in
    samples including margins.
    """

    name: str
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    in_sampling_rate: float
    out_sampling_rate: float
    in_cutoff: float
    out_cutoff: float
    in_half_width: float
    out_half_width: float
    is_torgb: bool = False
    is_critically_sampled: bool = False
    use_fp16: bool = False  # may run in reduced precision
    conv_kernel: int = 3  # toRGB always uses 1
    use_radial_filters: bool = False
    filter_size: int = 6  # taps per factor of up- or downsampling
    lrelu_upsampling: int = 2
    conv_clamp: float | None = 256
    magnitude_ema_beta: float = 0.999

    def __post_init__(self) -> None:
        """Refuse numbers that no layer has: a network pickle may say anything."""
        counts = (
            self.in_channels,
            self.out_channels,
            self.in_size,
            self.out_size,
            self.conv_kernel,
            self.filter_size,
            self.lrelu_upsampling,
        )
        bands = (
            self.in_sampling_rate,
            self.out_sampling_rate,
            self.in_cutoff,
            self.out_cutoff,
            self.in_half_width,
            self.out_half_width,
        )
        if not all(0 < count <= 2**16 for count in counts) or not all(0 < band <= 2**16 for band in bands):
            raise ValueError(
                f"layer {self.name}: channels, sizes, rates and cutoffs must be positive, and at most 65536"
            )
        rates = (
            self.tmp_sampling_rate / self.in_sampling_rate,
            self.tmp_sampling_rate / self.out_sampling_rate,
        )
        if any(rate != round(rate) for rate in rates) or max(rates) * self.filter_size > MAX_TAPS:
            raise ValueError(
                f"layer {self.name}: sampling rates {self.in_sampling_rate:g} and "
                f"{self.out_sampling_rate:g} are no small multiples"
            )

    @property
    def kernel(self) -> int:
        return 1 if self.is_torgb else self.conv_kernel

    @property
    def tmp_sampling_rate(self) -> float:
        """Rate at which the nonlinearity runs."""
        return max(self.in_sampling_rate, self.out_sampling_rate) * (
            1 if self.is_torgb else self.lrelu_upsampling
        )

    @property
    def up_factor(self) -> int:
        return round(self.tmp_sampling_rate / self.in_sampling_rate)

    @property
    def down_factor(self) -> int:
        return round(self.tmp_sampling_rate / self.out_sampling_rate)

    @property
    def up_taps(self) -> int:
        return self.filter_size * self.up_factor if self.up_factor > 1 and not self.is_torgb else 1

    @property
    def down_taps(self) -> int:
        return self.filter_size * self.down_factor if self.down_factor > 1 and not self.is_torgb else 1

    @property
    def down_radial(self) -> bool:
        return self.use_radial_filters and not self.is_critically_sampled

    @property
    def padding(self) -> list[int]:
        """[left, right, top, bottom] at the temporary rate, so that out_size samples come out of
        filtered_lrelu.
        """
        total = (self.out_size - 1) * self.down_factor + 1  # samples needed after the down filter
        total -= (self.in_size + self.kernel - 1) * self.up_factor  # samples there are
        total += self.up_taps + self.down_taps - 2
        low = (total + self.up_factor) // 2
        return [low, total - low, low, total - low]

    def design_filters(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Up filter [taps] and down filter [taps] or [taps, taps], float64; None where the factor is 1."""
        up = design_lowpass_filter(
            self.up_taps, self.in_cutoff, self.in_half_width * 2, self.tmp_sampling_rate
        )
        down = design_lowpass_filter(
            self.down_taps, self.out_cutoff, self.out_half_width * 2, self.tmp_sampling_rate, self.down_radial
        )
        return up, down

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def as_spec(layer: LayerSpec | Mapping[str, Any]) -> LayerSpec:
    """A LayerSpec from itself or from its plain-dict form. Raises ValueError for unknown or missing keys."""
    if isinstance(layer, LayerSpec):
        return layer
    try:
        return LayerSpec(**layer)
    except TypeError as err:
        raise ValueError(
            f"layer {dict(layer).get('name', '?')!r} is not a layer specification: {err}"
        ) from None


def design_lowpass_filter(
    numtaps: int, cutoff: float, width: float, fs: float, radial: bool = False
) -> np.ndarray | None:
    """Kaiser-windowed low-pass filter with unit sum: separable [numtaps], or radially symmetric [numtaps,
    numtaps] (StyleGAN3, appendix C).

    cutoff, width (of the transition band) and fs are in the same unit. Returns None for one tap (no filter).
    """
    if numtaps < 1:
        raise ValueError(f"a filter needs at least one tap, got {numtaps}")
    if numtaps == 1:
        return None
    if not radial:
        return scipy.signal.firwin(numtaps=numtaps, cutoff=cutoff, width=width, fs=fs)
    x = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
    r = np.hypot(*np.meshgrid(x, x))
    # jinc: j1(2 pi c r) / (pi r), whose limit at r = 0 is c.
    # Deviation: the published filter is 0/0 there (an odd number of taps); no published network has one.
    jinc = np.divide(
        scipy.special.j1(2 * np.pi * cutoff * r), np.pi * r, out=np.full_like(r, cutoff), where=r > 0
    )
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(numtaps, width / (fs / 2)))
    window = np.kaiser(numtaps, beta)
    taps = jinc * np.outer(window, window)
    return taps / taps.sum()


@dataclasses.dataclass(frozen=True)
class _PlanEntry:
    """Band and size of the signal between two layers."""

    cutoff: float
    sampling_rate: float
    half_width: float
    size: int
    channels: int


def _layers_between(
    entries: Sequence[_PlanEntry], first_index: int, img_resolution: int, **layer_kwargs: Any
) -> list[LayerSpec]:
    """Layer i maps plan entry max(i - 1, 0) to entry i; the last is toRGB and the NUM_CRITICAL before it are
    critically sampled.
    """
    last = len(entries) - 1
    layers = []
    for i, out in enumerate(entries):
        src = entries[max(i - 1, 0)]
        layers.append(
            LayerSpec(
                name=f"L{first_index + i}_{out.size}_{out.channels}",
                in_channels=src.channels,
                out_channels=out.channels,
                in_size=src.size,
                out_size=out.size,
                in_sampling_rate=src.sampling_rate,
                out_sampling_rate=out.sampling_rate,
                in_cutoff=src.cutoff,
                out_cutoff=out.cutoff,
                in_half_width=src.half_width,
                out_half_width=out.half_width,
                is_torgb=(i == last),
                is_critically_sampled=(i >= last - NUM_CRITICAL),
                use_fp16=(out.sampling_rate * 2**NUM_REDUCED_OCTAVES > img_resolution),
                **layer_kwargs,
            )
        )
    return layers


def _progression(
    first_cutoff: float,
    first_stopband: float,
    img_resolution: int,
    num_layers: int,
    channel_base: float,
    channel_max: int,
    img_channels: int,
    margin_size: int,
    first: tuple[float, int] | None = None,
) -> list[_PlanEntry]:
    """Geometric progression of cutoffs and stopbands up to the output resolution (StyleGAN3, section 3.2):
    num_layers + 1 entries.

    first = (sampling rate, channels) that entry 0 has to keep, or None.
    """
    last_cutoff = img_resolution / 2
    last_stopband = last_cutoff * LAST_STOPBAND_REL
    entries = []
    for i in range(num_layers + 1):
        exponent = min(i / (num_layers - NUM_CRITICAL), 1)
        cutoff = first_cutoff * (last_cutoff / first_cutoff) ** exponent
        stopband = first_stopband * (last_stopband / first_stopband) ** exponent
        sampling_rate = float(2 ** math.ceil(math.log2(min(stopband * 2, img_resolution))))
        channels = int(np.rint(min((channel_base / 2) / cutoff, channel_max)))
        if i == 0 and first is not None:
            sampling_rate, channels = first
        if channels < 1:
            raise ValueError(
                f"a capacity of {channel_base} (channel_base) leaves no channels for {img_resolution} "
                "pixels: raise cbase"
            )
        half_width = max(stopband, sampling_rate / 2) - cutoff
        size = img_resolution if i >= num_layers - 1 else int(sampling_rate) + margin_size * 2
        entries.append(
            _PlanEntry(cutoff, sampling_rate, half_width, size, img_channels if i == num_layers else channels)
        )
    return entries


def _check_resolution(img_resolution: int) -> None:
    if img_resolution < 8 or img_resolution & (img_resolution - 1):
        raise ValueError(f"resolution {img_resolution} is not a power of two of at least 8")


def plan_stem(
    img_resolution: int,
    num_layers: int = 14,
    channel_base: int = 2 * 32768,
    channel_max: int = 2 * 512,
    conv_kernel: int = 3,
    use_radial_filters: bool = False,
    img_channels: int = 3,
    magnitude_ema_beta: float = 0.999,
    margin_size: int = MARGIN,
) -> list[LayerSpec]:
    """Layers of a first stage with img_resolution output pixels: num_layers layers and toRGB. Channel numbers
    are the doubled ones.

    Raises ValueError for a resolution that is not a power of two >= 8, fewer than 3 layers, or a negative
    margin.
    """
    _check_resolution(img_resolution)
    if margin_size < 0:
        raise ValueError(f"the margin around feature maps must not be negative, got {margin_size}")
    if num_layers <= NUM_CRITICAL:
        raise ValueError(f"a stem needs at least {NUM_CRITICAL + 1} layers, got {num_layers}")
    entries = _progression(
        FIRST_CUTOFF,
        FIRST_STOPBAND,
        img_resolution,
        num_layers,
        channel_base,
        channel_max,
        img_channels,
        margin_size,
    )
    return _layers_between(
        entries,
        0,
        img_resolution,
        conv_kernel=conv_kernel,
        use_radial_filters=use_radial_filters,
        magnitude_ema_beta=magnitude_ema_beta,
    )


def plan_superres(
    stem: Sequence[LayerSpec],
    img_resolution: int,
    head_layers: int = 7,
    channel_base: int = 2 * 32768,
    channel_max: int = 2 * 512,
    conv_kernel: int = 3,
    use_radial_filters: bool = False,
    magnitude_ema_beta: float = 0.999,
) -> tuple[list[LayerSpec], list[LayerSpec]]:
    """Layers of a superresolution stage on `stem` (a network's layers): (kept stem layers, head_layers + 1
    new ones).

    The stem loses its critically sampled layers and toRGB. The new layers go from the band of its last kept
    layer to img_resolution pixels by the stem's rules; the first of them repeats that band. Names follow the
    published numbering, which leaves one index out between the two. channel_base and channel_max are the
    stem's. Raises ValueError for a resolution that does not fit, or fewer than 3 head layers.
    """
    _check_resolution(img_resolution)
    if head_layers <= NUM_CRITICAL:
        raise ValueError(
            f"a superresolution head needs at least {NUM_CRITICAL + 1} layers, got {head_layers}"
        )
    stem_resolution = stem[-1].out_size
    factor = img_resolution / stem_resolution
    if factor not in (2, 4, 8, MAX_SIZE_FACTOR):
        raise ValueError(
            f"a superresolution stage multiplies the resolution by 2, 4, 8 or 16; {stem_resolution} to "
            f"{img_resolution} is x{factor:g}"
        )
    kept = [layer for layer in stem if not layer.is_critically_sampled and not layer.is_torgb]
    if not kept:
        raise ValueError(f"the stem has no layer to build on: all {len(stem)} are critically sampled")
    last = kept[-1]
    entries = _progression(
        last.out_cutoff,
        last.out_cutoff + last.out_half_width,
        img_resolution,
        head_layers,
        channel_base,
        channel_max,
        stem[-1].out_channels,
        margin_size=(last.out_size - int(last.out_sampling_rate)) // 2,
        first=(last.out_sampling_rate, last.out_channels),
    )
    head = _layers_between(
        entries,
        len(kept) + 1,
        img_resolution,
        conv_kernel=conv_kernel,
        use_radial_filters=use_radial_filters,
        magnitude_ema_beta=magnitude_ema_beta,
    )
    return kept, head


def _normalize_rms(x: torch.Tensor) -> torch.Tensor:
    """X [N, C] divided by its root mean square over C."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _is_one_image(x: torch.Tensor) -> bool:
    """Whether the batch has one image. A function, for exports to replace: a graph for any number of images
    must not ask for the number.
    """
    return len(x) == 1


def _full(dtype: torch.dtype) -> torch.dtype:
    """What is never computed in reduced precision: float32, or float64 in a network of that type."""
    return torch.promote_types(dtype, torch.float32)


def modulated_conv2d(
    x: torch.Tensor,  # [N, I, H, W]
    weight: torch.Tensor,  # [O, I, k, k] float32
    styles: torch.Tensor,  # [N, I] float32
    demodulate: bool = True,
    padding: int = 0,
    input_gain: torch.Tensor | None = None,  # scalar, [I] or [N, I]
    dtype: torch.dtype | None = None,  # of the convolution; None = x's
) -> torch.Tensor:
    """Convolution whose weight is scaled per sample and input channel by `styles` and normalised per output
    channel: [N, O, H', W'] in x's dtype.

    StyleGAN2, equations 1 to 3. The convolution is linear in its input, so the styles scale the input and the
    normalisation scales the output: one dense convolution with one weight for the whole batch, instead of N
    convolutions with N weights. Every coefficient is computed in float32.
    """
    dtype = x.dtype if dtype is None else dtype
    if demodulate:
        # StyleGAN3 divides weight and styles by their RMS first, which demodulation cancels; it keeps float16
        # in range. Deviation: the styles' RMS is per sample, not over the whole batch, so that an image does
        # not depend on its batch (same mathematics). The weight's is left out where nothing overflows: it
        # enters the coefficients alone, and no scaled copy of the weight is made.
        styles = styles * styles.square().mean(dim=1, keepdim=True).rsqrt()
        if torch.is_grad_enabled():
            power = weight.square().sum(dim=[2, 3])  # [O, I]
        else:
            power = torch.linalg.vector_norm(
                weight, dim=[2, 3]
            ).square()  # the same in a third of the time, and no differentiable one at zero
        norm = (power.mean(dim=1) / weight[0, 0].numel()).rsqrt()  # [O]: 1 / RMS of the weight
        scale = ((styles.square() @ power.t()) * norm.square() + 1e-8).rsqrt()  # [N, O]
        if dtype == torch.float16:
            weight = weight * norm[:, None, None, None]
        else:
            scale = scale * norm
    if input_gain is not None:
        styles = styles * input_gain
    # float32 convolutions and their gradients are fastest on contiguous images, reduced-precision ones with
    # channels last.
    layout = torch.contiguous_format if dtype in (torch.float32, torch.float64) else torch.channels_last
    if _is_one_image(x) and not torch.is_grad_enabled():
        # The weight of a single image may as well take all coefficients, in float32: images are then read and
        # written by the convolution alone.
        factors = styles if not demodulate else styles * scale.t()  # [1 or O, I]
        return conv2d_gradfix.conv2d(
            x.to(dtype, memory_format=layout), (weight * factors[:, :, None, None]).to(dtype), padding=padding
        ).to(x.dtype)
    y = (x * styles.to(x.dtype)[:, :, None, None]).to(dtype, memory_format=layout)
    y = conv2d_gradfix.conv2d(y, weight.to(dtype), padding=padding).to(x.dtype)
    if demodulate:
        scale = scale.to(x.dtype)[:, :, None, None]
        y = y * scale if torch.is_grad_enabled() else y.mul_(scale)
    return y


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """y = activation(x (weight * gain)^T + bias * m): [N, in_features] -> [N, out_features], with equalised
    learning rate (m = lr_multiplier).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        bias: bool = True,
        lr_multiplier: float = 1,
        weight_init: float = 1,
        bias_init: float = 0,
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.weight = torch.nn.Parameter(
            torch.randn([out_features, in_features]) * (weight_init / lr_multiplier)
        )
        self.bias = (
            torch.nn.Parameter(torch.full([out_features], float(bias_init / lr_multiplier))) if bias else None
        )
        self.weight_gain = float(lr_multiplier / math.sqrt(in_features))
        self.bias_gain = float(lr_multiplier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        y = torch.nn.functional.linear(x, (self.weight * self.weight_gain).to(x.dtype), bias)
        return y if self.activation == "linear" else bias_act.bias_act(y, act=self.activation)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.activation}"


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """Latents and labels to styles: [N, Z], labels [N] -> ws [N, num_ws, W]. See `labels` for the forms a
    label may have.

    num_embeddings: rows of the class table; None = c_dim. Published networks have 1000 rows whatever c_dim
    is, even when there are no classes. linear_labels: one layer on one-hot labels instead of a class table,
    and one average of w for all classes, as in StyleGAN3.
    """

    embed: torch.nn.Embedding | FullyConnectedLayer
    embed_proj: FullyConnectedLayer
    fc0: FullyConnectedLayer
    w_avg: torch.Tensor  # [c_dim, W] or [W]

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
        embed_dim: int = 320,
        num_embeddings: int | None = None,
        linear_labels: bool = False,
    ):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        self.linear_labels = linear_labels and c_dim > 0
        rows = c_dim if num_embeddings is None else num_embeddings
        if rows < c_dim and not self.linear_labels:
            raise ValueError(f"a class table of {rows} rows cannot serve {c_dim} classes")
        if self.linear_labels:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        elif rows > 0:
            self.embed = torch.nn.Embedding(rows, embed_dim)
            if c_dim > 0:
                self.embed_proj = FullyConnectedLayer(embed_dim, z_dim, activation="lrelu")
            else:
                self.embed.requires_grad_(False)  # carried along, never read
        label_features = w_dim if self.linear_labels else z_dim if c_dim > 0 else 0
        features = [z_dim + label_features] + [w_dim] * num_layers
        for i in range(num_layers):
            setattr(
                self,
                f"fc{i}",
                FullyConnectedLayer(
                    features[i], features[i + 1], activation="lrelu", lr_multiplier=lr_multiplier
                ),
            )
        self.register_buffer(
            "w_avg", torch.zeros([c_dim, w_dim] if c_dim > 0 and not self.linear_labels else [w_dim])
        )

    def labels(self, c: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """Labels as int64 [batch], or None for an unconditional network. c: int [N], one-hot [N, c_dim], or
        None.

        A row of zeros is class 0, as in published networks: visualizers that know of no classes pass it.
        Raises ValueError for a wrong shape, a label out of range, a row with several classes, or no label
        where one is needed.
        """
        if self.c_dim == 0:
            if c is None or (c.ndim == 2 and c.shape[1] == 0):
                return None
            raise ValueError("this network is unconditional: pass None as its labels")
        if c is None:
            raise ValueError(f"this network has {self.c_dim} classes: pass a label for each latent")
        # Reading values off an accelerator waits for it, so training there skips this: its labels were
        # checked with the data set.
        checked = c.device.type == "cpu" or (c.device.type != "meta" and not self.training)
        if c.ndim == 2:
            if tuple(c.shape) != (batch, self.c_dim):
                raise ValueError(
                    f"one-hot labels have shape {list(c.shape)}, but this network needs [{batch}, "
                    f"{self.c_dim}]"
                )
            if checked and not bool(((c == 0) | (c == 1)).all() & (c.sum(dim=1) <= 1).all()):
                raise ValueError(
                    "labels with two dimensions must be one-hot: a row has several classes, or values "
                    "besides 0 and 1"
                )
            return c.argmax(dim=1)
        if c.ndim != 1 or c.shape[0] != batch or c.is_floating_point() or c.dtype == torch.bool:
            raise ValueError(
                f"labels must be int64 [{batch}] or one-hot [{batch}, {self.c_dim}], got {str(c.dtype)[6:]} "
                f"{list(c.shape)}"
            )
        if checked and batch > 0 and not bool(((c >= 0) & (c < self.c_dim)).all()):
            raise ValueError(
                f"a label is outside 0..{self.c_dim - 1}: {int(c.min())} to {int(c.max())} given"
            )
        return c.long()

    def set_class_embedding(self, table: torch.Tensor) -> None:
        """Take `table` [rows, embed_dim] as the initial content of the trainable class table."""
        target = self.embed.weight if hasattr(self, "embed") and not self.linear_labels else None
        if target is None or table.shape != target.shape:
            have = None if target is None else list(target.shape)
            raise ValueError(f"the class embedding has shape {list(table.shape)}, the network holds {have}")
        if not bool(torch.isfinite(table).all()):
            raise ValueError("the class embedding holds values that are not finite")
        with torch.no_grad():
            target.copy_(table)

    def class_features(self, labels: torch.Tensor) -> torch.Tensor:
        """What fc0 reads of checked labels (int64 [N]) beside the latents: [N, Z], or [N, W] of linear
        labels.
        """
        if self.linear_labels:
            return _normalize_rms(
                self.embed(torch.nn.functional.one_hot(labels, self.c_dim).to(self.embed.weight.dtype))
            )
        return _normalize_rms(self.embed_proj(self.embed(labels)))

    def styles(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """W [N, W] of latents z [N, Z] and checked labels (int64 [N] or None), without truncation."""
        x = _normalize_rms(z.to(_full(self.fc0.weight.dtype)))
        if labels is not None:
            x = torch.cat([x, self.class_features(labels)], dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x

    @torch.no_grad()
    def update_w_avg(self, w: torch.Tensor, c: torch.Tensor | None = None) -> None:
        """Moving average of w with decay w_avg_beta, in place. w: [N, W]; c: labels of the same batch, as in
        `labels`.

        Conditional: each sample moves its class's average, one after the other in batch order; computed at
        once, class by class, as beta^n avg + (1 - beta) sum_j beta^(n - 1 - j) w_j for the n samples of a
        class. Unconditional: the batch's mean moves the one average. With several processes, gather w and c
        of all of them first and call this everywhere with the result: the averages stay equal.
        """
        beta = self.w_avg_beta
        w = w.detach().to(self.w_avg.dtype)
        labels = self.labels(c, w.shape[0])
        if w.shape[0] == 0:
            return
        if labels is None or self.linear_labels:
            self.w_avg.copy_(w.mean(dim=0).lerp(self.w_avg, beta))
            return
        classes, which = labels.unique(return_inverse=True)
        member = (
            torch.arange(len(classes), device=w.device)[:, None] == which[None, :]
        )  # [classes present, N]
        later = member.flip(1).cumsum(dim=1).flip(1) - 1  # samples of the same class after this one
        weight = torch.where(member, beta ** later.to(w.dtype), 0) * (1 - beta)
        count = member.sum(dim=1, keepdim=True).to(w.dtype)
        self.w_avg[classes] = self.w_avg[classes] * beta**count + weight @ w

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> torch.Tensor:
        """Ws [N, num_ws, W]; truncated as w_avg[c] + psi (w - w_avg[c]) in the first truncation_cutoff of
        them (None = all).
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"latents have shape {list(z.shape)}, but this network needs [N, {self.z_dim}]")
        labels = self.labels(c, z.shape[0])
        w = self.styles(z, labels)
        if update_emas:
            self.update_w_avg(w, labels)
        ws = w[:, None, :].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            w_avg = self.w_avg if labels is None or self.linear_labels else self.w_avg[labels][:, None, :]
            cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)
        return ws

    def extra_repr(self) -> str:
        return f"{self.z_dim} latents, {self.c_dim} classes -> {self.num_ws} x {self.w_dim}"


@persistence.persistent_class
class SynthesisInput(torch.nn.Module):
    """Fourier features that w translates and rotates: w [N, W] -> [N, channels, size, size] float32
    (StyleGAN3, section 3.2 and appendix F).

    `transform` is a user's 3x3 matrix, applied to the canvas of every image (inverse mapping; identity by
    default).
    """

    transform: torch.Tensor  # [3, 3]
    freqs: torch.Tensor  # [C, 2], cycles per image width
    phases: torch.Tensor  # [C], cycles

    def __init__(
        self, w_dim: int, channels: int, size: int | Sequence[int], sampling_rate: float, bandwidth: float
    ):
        super().__init__()
        self.w_dim = w_dim
        self.channels = channels
        self.size = [int(v) for v in np.broadcast_to(np.asarray(size), [2])]  # width, height
        self.sampling_rate = float(sampling_rate)
        self.bandwidth = float(bandwidth)
        freqs = torch.randn([channels, 2])
        radii = freqs.square().sum(dim=1, keepdim=True).sqrt()
        freqs = freqs / (radii * radii.square().exp().pow(0.25)) * self.bandwidth
        phases = torch.rand([channels]) - 0.5
        self.weight = torch.nn.Parameter(torch.randn([channels, channels]))
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0)
        self.affine.bias = torch.nn.Parameter(
            torch.eye(4)[0].clone()
        )  # [1, 0, 0, 0]: no rotation, no translation
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", phases)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        t = self.affine(w)  # [N, 4]: rotation cos, sin; translation x, y
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, dx, dy = t.unbind(dim=1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).reshape(-1, 3, 3)
        translation = torch.stack([one, zero, -dx, zero, one, -dy, zero, zero, one], dim=1).reshape(-1, 3, 3)
        matrix = rotation @ translation @ self.transform  # [N, 3, 3]
        phases = self.phases + (self.freqs @ matrix[:, :2, 2:]).squeeze(2)  # [N, C]
        freqs = self.freqs @ matrix[:, :2, :2]  # [N, C, 2]

        # A rotation or scaling may move a frequency past the band that this sampling rate can hold: fade it
        # out.
        amplitude = 1 - (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitude = amplitude.clamp(0, 1)

        width, height = self.size
        # Through torch.full: a tensor made of Python numbers would wait for its copy to the device, and no
        # CUDA graph could hold it.
        half = torch.stack(
            [
                torch.full((), 0.5 * side / self.sampling_rate, dtype=w.dtype, device=w.device)
                for side in (width, height)
            ]
        )
        theta = torch.cat([torch.diag(half), torch.zeros_like(half[:, None])], dim=1)[None]
        grid = torch.nn.functional.affine_grid(
            theta, [1, 1, height, width], align_corners=False
        )  # [1, H, W, 2]
        x = (grid.reshape(1, height * width, 2) @ freqs.transpose(1, 2)) + phases[:, None, :]  # [N, HW, C]
        x = torch.sin(x * (2 * math.pi)) * amplitude[:, None, :]
        x = x @ (self.weight / math.sqrt(self.channels)).t()
        return x.reshape(-1, height, width, self.channels).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}x{self.size[1]}x{self.size[0]}, rate {self.sampling_rate:g}, band "
            f"{self.bandwidth:g}"
        )


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """One alias-free layer: modulated convolution, then leaky ReLU at the temporary sampling rate between an
    up and a down filter.

    x [N, in_channels, in_size, in_size], w [N, W] -> [N, out_channels, out_size, out_size] in the dtype it
    computes in.
    """

    in_channels: int
    out_channels: int
    is_torgb: bool
    use_fp16: bool
    conv_clamp: float | None
    magnitude_ema: torch.Tensor  # scalar: moving mean square of the input
    magnitude_ema_beta: float
    up_filter: torch.Tensor | None
    down_filter: torch.Tensor | None

    def __init__(self, w_dim: int, spec: LayerSpec | Mapping[str, Any]):
        super().__init__()
        spec = as_spec(spec)
        self.w_dim = w_dim
        for field, value in spec.to_dict().items():
            if field != "name":
                setattr(self, field, value)
        # The attributes that tools and readers of network pickles look at; sizes are [width, height] there.
        self.in_size, self.out_size = [spec.in_size] * 2, [spec.out_size] * 2
        self.conv_kernel = spec.kernel
        self.tmp_sampling_rate = spec.tmp_sampling_rate
        self.up_factor, self.down_factor = spec.up_factor, spec.down_factor
        self.up_taps, self.down_taps = spec.up_taps, spec.down_taps
        self.down_radial = spec.down_radial
        self.padding = spec.padding

        self.affine = FullyConnectedLayer(w_dim, spec.in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(
            torch.randn([spec.out_channels, spec.in_channels, spec.kernel, spec.kernel])
        )
        self.bias = torch.nn.Parameter(torch.zeros([spec.out_channels]))
        self.register_buffer("magnitude_ema", torch.ones([]))
        for name, taps in zip(["up_filter", "down_filter"], spec.design_filters()):  # noqa: B905 (Python 3.8)
            self.register_buffer(name, None if taps is None else torch.as_tensor(taps, dtype=torch.float32))

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        noise_mode: str = "const",
        force_fp32: bool = False,
        update_emas: bool = False,
        reduced_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode {noise_mode!r} is none of random, const, none")
        if update_emas:
            with torch.no_grad():
                self.magnitude_ema.copy_(
                    x.detach()
                    .to(_full(x.dtype))
                    .square()
                    .mean()
                    .lerp(self.magnitude_ema, self.magnitude_ema_beta)
                )
        styles = self.affine(w)
        if self.is_torgb:
            styles = styles / math.sqrt(self.in_channels)
        full = _full(self.weight.dtype)
        dtype = reduced_dtype if reduced_dtype is not None and self.use_fp16 and not force_fp32 else full
        # Multiplying by rounded coefficients costs accuracy; a CPU does it in float32, unless a single
        # image's weight takes them.
        exact = x.device.type == "cpu" and (
            torch.is_grad_enabled() or not _is_one_image(x) or dtype == torch.float16
        )
        x = modulated_conv2d(
            x.to(full if exact else dtype),
            self.weight,
            styles,
            demodulate=not self.is_torgb,
            padding=self.conv_kernel - 1,
            input_gain=self.magnitude_ema.rsqrt(),
            dtype=dtype,
        )
        return filtered_lrelu.filtered_lrelu(
            x,
            fu=self.up_filter,
            fd=self.down_filter,
            b=self.bias.to(x.dtype),
            up=self.up_factor,
            down=self.down_factor,
            padding=self.padding,
            gain=1 if self.is_torgb else math.sqrt(2),
            slope=1 if self.is_torgb else 0.2,
            clamp=self.conv_clamp,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}x{self.in_size[0]} -> {self.out_channels}x{self.out_size[0]}, "
            f"kernel={self.conv_kernel}, "
            f"up={self.up_factor}, down={self.down_factor}, radial={self.down_radial}, torgb={self.is_torgb}"
        )


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """Styles to images: ws [N, num_ws, W] -> [N, img_channels, R, R] float32. ws[:, 0] drives the input, then
    one each per layer.

    reduced_dtype: dtype of the layers that are flagged for reduced precision (torch.bfloat16 or
    torch.float16); None = float32 everywhere.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        layers: Sequence[LayerSpec | Mapping[str, Any]],
        output_scale: float = 0.25,
    ):
        super().__init__()
        specs = [as_spec(layer) for layer in layers]
        _check_chain(specs, img_resolution, img_channels)
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.output_scale = output_scale
        self.num_layers = len(specs)
        self.num_ws = len(specs) + 1
        self.layer_names = [spec.name for spec in specs]
        self._reduced_dtype: str | None = (
            None  # a name, because a pickle of this module should hold plain values
        )
        first = specs[0]
        self.input = SynthesisInput(
            w_dim, first.in_channels, first.in_size, first.in_sampling_rate, first.in_cutoff
        )
        for spec in specs:
            setattr(self, spec.name, SynthesisLayer(w_dim, spec))

    @property
    def reduced_dtype(self) -> torch.dtype | None:
        return None if self._reduced_dtype is None else getattr(torch, self._reduced_dtype)

    @reduced_dtype.setter
    def reduced_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"reduced_dtype is None, torch.float16 or torch.bfloat16, not {dtype}")
        self._reduced_dtype = None if dtype is None else str(dtype)[len("torch.") :]

    def forward(
        self, ws: torch.Tensor, noise_mode: str = "const", force_fp32: bool = False, update_emas: bool = False
    ) -> torch.Tensor:
        """Images [N, img_channels, R, R], about [-1, 1]. noise_mode is accepted for its callers: these layers
        have no noise inputs.

        update_emas=True also moves every layer's magnitude_ema by this batch; training leaves it False, as
        the published code does.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws has shape {list(ws.shape)}, but this network needs [N, {self.num_ws}, {self.w_dim}]"
            )
        full = _full(self.input.weight.dtype)
        styles = ws.to(full).unbind(dim=1)
        x = self.input(styles[0])
        for name, w in zip(self.layer_names, styles[1:]):  # noqa: B905 (Python 3.8; as many, by num_ws)
            x = getattr(self, name)(
                x,
                w,
                noise_mode=noise_mode,
                force_fp32=force_fp32,
                update_emas=update_emas,
                reduced_dtype=self.reduced_dtype,
            )
        return x.to(full) * self.output_scale

    def specs(self) -> list[LayerSpec]:
        """The list of layers that this network is."""
        return [layer_spec(name, vars(getattr(self, name))) for name in self.layer_names]

    def extra_repr(self) -> str:
        return (
            f"w_dim={self.w_dim}, num_ws={self.num_ws}, img_resolution={self.img_resolution}, "
            f"img_channels={self.img_channels}"
        )


def _check_chain(specs: Sequence[LayerSpec], img_resolution: int, img_channels: int) -> None:
    """Refuse a list of layers that do not fit one another."""
    if not specs:
        raise ValueError("a generator needs at least one layer")
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names) or not all(name.isidentifier() and name != "input" for name in names):
        raise ValueError(f"layer names must be distinct identifiers: {', '.join(names)}")
    for spec, after in zip(specs, specs[1:]):  # noqa: B905, RUF007 (Python 3.8)
        if (spec.out_channels, spec.out_size, spec.out_sampling_rate) != (
            after.in_channels,
            after.in_size,
            after.in_sampling_rate,
        ):
            raise ValueError(
                f"layer {after.name} does not fit onto {spec.name}: channels, size or sampling rate differ"
            )
    last = specs[-1]
    if (last.out_size, last.out_channels) != (img_resolution, img_channels):
        raise ValueError(
            f"layer {last.name} gives {last.out_channels} channels of {last.out_size} pixels, not "
            f"{img_channels} of {img_resolution}"
        )


@persistence.persistent_class
class Generator(torch.nn.Module):
    """Latents and labels to images: z [N, Z], c [N] -> [N, img_channels, R, R] float32.

    layers: a plan (`plan_stem`, `plan_superres`), as LayerSpec or as plain dicts.
    num_frozen_layers: leading layers taken from an earlier stage; when it is not 0 the input, these layers
    and the mapping do not train. mapping_kwargs: num_layers, lr_multiplier, w_avg_beta, embed_dim,
    num_embeddings of MappingNetwork. channel_base, channel_max: capacity the plan was made with (a
    superresolution stage goes on with its stem's); None = unknown.
    """

    def __init__(
        self,
        z_dim: int = 64,
        c_dim: int = 0,
        w_dim: int = 512,
        img_resolution: int = 16,
        img_channels: int = 3,
        layers: Sequence[LayerSpec | Mapping[str, Any]] = (),
        num_frozen_layers: int = 0,
        mapping_kwargs: Mapping[str, Any] | None = None,
        output_scale: float = 0.25,
        channel_base: int | None = 2 * 32768,
        channel_max: int | None = 2 * 512,
    ):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_frozen_layers = num_frozen_layers
        self.channel_base = channel_base
        self.channel_max = channel_max
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, layers, output_scale)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **(mapping_kwargs or {}))
        self.set_trainable(True)

    @property
    def head_layer_names(self) -> list[str]:
        """Names of the layers that this stage trains."""
        return self.synthesis.layer_names[self.num_frozen_layers :]

    def set_trainable(self, trainable: bool = True) -> Generator:
        """requires_grad_(trainable) for all that this stage trains, and False for what is frozen by
        construction. Returns self.
        """
        self.requires_grad_(False)
        if trainable and self.num_frozen_layers > 0:
            for name in self.head_layer_names:
                getattr(self.synthesis, name).requires_grad_(True)
        elif trainable:
            self.requires_grad_(True)
            if self.c_dim == 0 and hasattr(self.mapping, "embed"):
                self.mapping.embed.requires_grad_(False)
        return self

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        **synthesis_kwargs: Any,
    ) -> torch.Tensor:
        """Images [N, img_channels, R, R]. c: int64 [N], one-hot [N, c_dim], or None when unconditional."""
        ws = self.mapping(
            z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff, update_emas=update_emas
        )
        return self.synthesis(ws, update_emas=update_emas, **synthesis_kwargs)


def _config(config: str) -> dict[str, Any]:
    if config not in STEM_CONFIGS:
        raise ValueError(f"unknown generator configuration {config!r}: choose {' or '.join(STEM_CONFIGS)}")
    return STEM_CONFIGS[config]


def build_stem(
    config: str = "stylegan3-t",
    resolution: int = 16,
    c_dim: int = 0,
    *,
    syn_layers: int = 14,
    cbase: int = 32768,
    cmax: int = 512,
    embed_dim: int = 320,
    num_embeddings: int | None = None,  # None = c_dim
    z_dim: int = 64,
    w_dim: int = 512,
    img_channels: int = 3,
    mapping_layers: int = 2,
    magnitude_ema_beta: float = 0.999,
    margin_size: int = MARGIN,
) -> Generator:
    """A first-stage generator with fresh weights from torch's global random state. cbase and cmax are the
    undoubled --cbase and --cmax.

    Raises ValueError for an unknown configuration, or sizes that cannot be planned.
    """
    settings = _config(config)
    width = settings["width"]
    layers = plan_stem(
        resolution,
        syn_layers,
        channel_base=width * cbase,
        channel_max=width * cmax,
        conv_kernel=settings["conv_kernel"],
        use_radial_filters=settings["use_radial_filters"],
        img_channels=img_channels,
        magnitude_ema_beta=magnitude_ema_beta,
        margin_size=margin_size,
    )
    return Generator(
        z_dim=z_dim,
        c_dim=c_dim,
        w_dim=w_dim,
        img_resolution=resolution,
        img_channels=img_channels,
        layers=[layer.to_dict() for layer in layers],
        mapping_kwargs=dict(num_layers=mapping_layers, embed_dim=embed_dim, num_embeddings=num_embeddings),
        channel_base=width * cbase,
        channel_max=width * cmax,
    )


def build_superres(
    stem: Generator,
    config: str = "stylegan3-t",
    up_factor: int = 2,
    head_layers: int = 7,
    *,
    cbase: int | None = None,
    cmax: int | None = None,
    magnitude_ema_beta: float = 0.999,
) -> Generator:
    """A superresolution stage on `stem` (a first or a later stage): the stem's weights and buffers are copied
    and frozen, the head is new.

    cbase and cmax are the undoubled --cbase and --cmax of the head; None = the stem's.
    Raises ValueError for an unknown configuration, or a factor or head that cannot be planned.
    """
    settings = _config(config)
    resolution = stem.img_resolution * up_factor
    channel_base = stem.channel_base if cbase is None else cbase * settings["width"]
    channel_max = stem.channel_max if cmax is None else cmax * settings["width"]
    if channel_base is None or channel_max is None:
        raise ValueError("the stem does not say its capacity: give cbase and cmax")
    kept, head = plan_superres(
        stem.synthesis.specs(),
        resolution,
        head_layers,
        channel_base=channel_base,
        channel_max=channel_max,
        conv_kernel=settings["conv_kernel"],
        use_radial_filters=settings["use_radial_filters"],
        magnitude_ema_beta=magnitude_ema_beta,
    )
    generator = Generator(
        z_dim=stem.z_dim,
        c_dim=stem.c_dim,
        w_dim=stem.w_dim,
        img_resolution=resolution,
        img_channels=stem.img_channels,
        layers=[layer.to_dict() for layer in [*kept, *head]],
        num_frozen_layers=len(kept),
        mapping_kwargs=_mapping_kwargs(stem.mapping),
        output_scale=stem.synthesis.output_scale,
        channel_base=channel_base,
        channel_max=channel_max,
    )
    source = stem.state_dict()
    target = generator.state_dict()
    trained = tuple(f"synthesis.{layer.name}." for layer in head)
    with torch.no_grad():
        for name, value in target.items():
            if not name.startswith(trained):
                value.copy_(source[name])
    return generator


def _mapping_kwargs(mapping: MappingNetwork) -> dict[str, Any]:
    """Arguments that rebuild a mapping network like this one, whatever it is called with."""
    kwargs: dict[str, Any] = dict(
        num_layers=mapping.num_layers, w_avg_beta=mapping.w_avg_beta, lr_multiplier=mapping.fc0.bias_gain
    )
    if mapping.linear_labels:
        kwargs.update(linear_labels=True)
    elif hasattr(mapping, "embed"):
        kwargs.update(num_embeddings=mapping.embed.weight.shape[0], embed_dim=mapping.embed.weight.shape[1])
    return kwargs


def generator_kwargs(generator: Generator) -> dict[str, Any]:
    """Arguments of Generator that build one like this, whatever it was called with: plain values that JSON
    keeps exactly.
    """
    return dict(
        z_dim=generator.z_dim,
        c_dim=generator.c_dim,
        w_dim=generator.w_dim,
        img_resolution=generator.img_resolution,
        img_channels=generator.img_channels,
        layers=[spec.to_dict() for spec in generator.synthesis.specs()],
        num_frozen_layers=generator.num_frozen_layers,
        mapping_kwargs=_mapping_kwargs(generator.mapping),
        output_scale=generator.synthesis.output_scale,
        channel_base=generator.channel_base,
        channel_max=generator.channel_max,
    )


def layer_spec(name: str, attributes: Mapping[str, Any]) -> LayerSpec:
    """The specification of a layer from the attributes of a synthesis layer, ours or a published one (numbers
    may be numpy scalars).

    StyleGAN3's layers do not keep filter_size, lrelu_upsampling and use_radial_filters; these follow from
    what they keep.
    """
    attributes = {**_implied(name, attributes), **attributes}
    values: dict[str, Any] = dict(name=name)
    for field in dataclasses.fields(LayerSpec):
        if field.name == "name":
            continue
        if field.name not in attributes:
            raise ValueError(f"layer {name} has no attribute {field.name}")
        value = attributes[field.name]
        if field.name in ("in_size", "out_size"):
            value = _square(name, field.name, value)
        kind = {"int": int, "bool": bool}.get(str(field.type), float)
        if value is None and field.name == "conv_clamp":
            values[field.name] = None
        else:
            values[field.name] = kind(_number(f"layer {name}: attribute {field.name}", value, kind))
    return LayerSpec(**values)


def _implied(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """filter_size, lrelu_upsampling and use_radial_filters of a layer that has them in its factors, taps and
    rates.
    """
    if "filter_size" in attributes or "down_radial" not in attributes:
        return {}
    names = (
        "up_taps",
        "up_factor",
        "down_taps",
        "down_factor",
        "tmp_sampling_rate",
        "in_sampling_rate",
        "out_sampling_rate",
    )
    up_taps, up, down_taps, down, tmp_rate, in_rate, out_rate = (
        _number(f"layer {name}: attribute {key}", attributes.get(key), float) for key in names
    )
    if min(up, down, in_rate, out_rate) <= 0:
        raise ValueError(f"layer {name}: factors and sampling rates must be positive")
    size = up_taps / up if up > 1 else down_taps / down if down > 1 else 1
    return dict(
        filter_size=max(round(size), 1),
        lrelu_upsampling=max(round(tmp_rate / max(in_rate, out_rate)), 1),
        use_radial_filters=attributes["down_radial"],
    )


def _number(what: str, value: Any, kind: type) -> int | float:
    """A finite plain number from one or from a numpy scalar."""
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, (int, float)):
        raise ValueError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    if not math.isfinite(number) or abs(number) > 2**53:
        raise ValueError(f"{what} is {number}: it must be positive, and at most 65536")
    return number


def _square(layer: str, field: str, value: Any) -> int:
    """The one size of a square feature map. Looks at two elements only: a file may nest lists without end."""
    flat = (
        value.ravel()[:3].tolist()
        if isinstance(value, np.ndarray)
        else list(value[:3])
        if isinstance(value, (list, tuple))
        else [value]
    )
    sizes = [item.item() if isinstance(item, np.generic) else item for item in flat]
    if not 1 <= len(sizes) <= 2 or not all(isinstance(size, int) for size in sizes) or len(set(sizes)) != 1:
        raise ValueError(f"layer {layer} is not square: {field}")
    return sizes[0]
