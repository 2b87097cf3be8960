# SPDX-License-Identifier: Apache-2.0
"""The generator: StyleGAN3's alias-free layers at StyleGAN-XL's sizes, in one self-contained file.

A network pickle contains the source of this file. At import time it therefore uses only numpy, scipy, torch
and the names that every StyleGAN repository has (torch_utils.persistence, torch_utils.ops). It runs with
Python 3.8 and torch 1.9 or later, which those repositories require.

A generator is a mapping network and a list of layers (`LayerSpec`). `plan_stem` computes the list of a first
stage, `plan_superres` that of a later stage: the layers of a trimmed stem plus those of a head. The same
class builds both.

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
import torch

from torch_utils import persistence
from torch_utils.ops import bias_act, conv2d_gradfix, filtered_lrelu

__persistent_module__ = "training.generator"  # where torch_utils.persistence finds this source

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
MAX_TAPS = 256  # per filter; published filters have 24
MAX_LAYERS = 256  # per network file


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """The complete definition of one synthesis layer.

    Frequencies are in cycles per image width, sizes in samples including margins.
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
        """Reject values that no layer has, because a network pickle may contain anything."""
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
                f"{self.out_sampling_rate:g} are not small multiples of each other"
            )

    @property
    def kernel(self) -> int:
        """Size of the convolution kernel."""
        return 1 if self.is_torgb else self.conv_kernel

    @property
    def tmp_sampling_rate(self) -> float:
        """Sampling rate of the nonlinearity."""
        return max(self.in_sampling_rate, self.out_sampling_rate) * (
            1 if self.is_torgb else self.lrelu_upsampling
        )

    @property
    def up_factor(self) -> int:
        """Upsampling factor before the nonlinearity."""
        return round(self.tmp_sampling_rate / self.in_sampling_rate)

    @property
    def down_factor(self) -> int:
        """Downsampling factor after the nonlinearity."""
        return round(self.tmp_sampling_rate / self.out_sampling_rate)

    @property
    def up_taps(self) -> int:
        """Taps of the upsampling filter; 1 = no filter."""
        return self.filter_size * self.up_factor if self.up_factor > 1 and not self.is_torgb else 1

    @property
    def down_taps(self) -> int:
        """Taps of the downsampling filter; 1 = no filter."""
        return self.filter_size * self.down_factor if self.down_factor > 1 and not self.is_torgb else 1

    @property
    def down_radial(self) -> bool:
        """Whether the downsampling filter is radially symmetric."""
        return self.use_radial_filters and not self.is_critically_sampled

    @property
    def padding(self) -> list[int]:
        """[left, right, top, bottom] at the temporary rate.

        With it, filtered_lrelu returns out_size samples.
        """
        total = (self.out_size - 1) * self.down_factor + 1  # samples needed after the down filter
        total -= (self.in_size + self.kernel - 1) * self.up_factor  # samples available
        total += self.up_taps + self.down_taps - 2
        low = (total + self.up_factor) // 2
        return [low, total - low, low, total - low]

    def design_filters(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the up filter [taps] and the down filter [taps] or [taps, taps], float64.

        They are None for a factor of 1.
        """
        up = design_lowpass_filter(
            self.up_taps, self.in_cutoff, self.in_half_width * 2, self.tmp_sampling_rate
        )
        down = design_lowpass_filter(
            self.down_taps, self.out_cutoff, self.out_half_width * 2, self.tmp_sampling_rate, self.down_radial
        )
        return up, down

    def to_dict(self) -> dict[str, Any]:
        """Return the plain-dict form."""
        return dataclasses.asdict(self)


def as_spec(layer: LayerSpec | Mapping[str, Any]) -> LayerSpec:
    """Return a LayerSpec from itself or from its plain-dict form.

    Raises:
        ValueError: Keys are unknown or missing.
    """
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
    """Design a Kaiser-windowed low-pass filter with unit sum (StyleGAN3, appendix C).

    Args:
        numtaps: Number of taps.
        cutoff: Cutoff frequency, in the unit of fs.
        width: Width of the transition band, in the unit of fs.
        fs: Sampling rate.
        radial: Radially symmetric instead of separable.

    Returns:
        [numtaps], or [numtaps, numtaps] if radial; None for one tap (no filter).
    """
    if numtaps < 1:
        raise ValueError(f"a filter needs at least one tap, got {numtaps}")
    if numtaps == 1:
        return None
    window = np.kaiser(numtaps, _kaiser_beta(numtaps, width / (fs / 2)))
    if not radial:
        if not 0 < cutoff < fs / 2:
            raise ValueError(f"the cutoff of a filter must be between 0 and {fs / 2:g}, not {cutoff:g}")
        # To the last bit scipy.signal.firwin(numtaps, cutoff, width=width, fs=fs), whose import takes longer
        # than a small picture.
        relative = cutoff / (0.5 * fs)
        taps: np.ndarray = relative * np.sinc(relative * (np.arange(numtaps) - 0.5 * (numtaps - 1)))
        taps *= window
        taps /= taps.sum()
        return taps
    import scipy.special

    x = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
    r = np.hypot(*np.meshgrid(x, x))
    # jinc: j1(2 pi c r) / (pi r), whose limit at r = 0 is c.
    # Deviation: the published filter is 0/0 there (odd numbers of taps, which no published network uses).
    jinc = np.divide(
        scipy.special.j1(2 * np.pi * cutoff * r), np.pi * r, out=np.full_like(r, cutoff), where=r > 0
    )
    taps = jinc * np.outer(window, window)
    taps /= taps.sum()
    return taps


def _kaiser_beta(numtaps: int, width: float) -> float:
    """The shape of the Kaiser window for a transition band of `width` half sampling rates (Kaiser, 1974)."""
    attenuation = 2.285 * (numtaps - 1) * np.pi * width + 7.95  # of the stop band, in dB
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return float(0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21))
    return 0.0


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
    """Return the layers between plan entries.

    Layer i maps entry max(i - 1, 0) to entry i. The last layer is toRGB, and the NUM_CRITICAL layers before
    it are critically sampled.
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
    """Return a geometric progression of cutoffs and stopbands up to the output resolution.

    It has num_layers + 1 entries (StyleGAN3, section 3.2). If `first` is given, entry 0 keeps this (sampling
    rate, channels).
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
    """Return the layers of a first stage: num_layers layers and toRGB.

    Args:
        img_resolution: Output size in pixels.
        num_layers: Number of layers without toRGB.
        channel_base: Capacity, including the factor of the configuration.
        channel_max: Largest number of channels, including that factor.
        conv_kernel: Kernel size of the convolutions.
        use_radial_filters: Use radially symmetric downsampling filters.
        img_channels: Channels of the images.
        magnitude_ema_beta: Decay of the moving averages of input magnitudes.
        margin_size: Extra pixels on each side of every feature map.

    Raises:
        ValueError: The resolution is not a power of two >= 8, there are fewer than 3 layers, or the margin is
            negative.
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
    """Return the layers of a superresolution stage.

    The stem loses its critically sampled layers and toRGB. The new layers go from the band of its last kept
    layer to img_resolution pixels by the rules of a stem; the first of them repeats that band. Names follow
    the published numbering, which leaves out one index between the two parts.

    Args:
        stem: The layers of the stem.
        img_resolution: Output size in pixels.
        head_layers: Number of new layers without toRGB.
        channel_base: The stem's.
        channel_max: The stem's.
        conv_kernel: Kernel size of the convolutions.
        use_radial_filters: Use radially symmetric downsampling filters.
        magnitude_ema_beta: Decay of the moving averages of input magnitudes.

    Returns:
        (kept stem layers, head_layers + 1 new layers).

    Raises:
        ValueError: The resolution does not fit, or there are fewer than 3 head layers.
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


def _unread_samples(padding: Sequence[int], up_factor: int) -> int:
    """Return how many samples on every side of a map upsampling with this padding does not read.

    Upsampling puts zeros after each sample, and a negative padding then removes what is outside.

    Args:
        padding: [left, right, top, bottom] after upsampling.
        up_factor: Upsampling factor.
    """
    left, right, top, bottom = padding
    return max(0, min(-(left // up_factor), -right // up_factor, -(top // up_factor), -bottom // up_factor))


def _normalize_rms(x: torch.Tensor) -> torch.Tensor:
    """Divide x [N, C] by its root mean square over C."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _is_one_image(x: torch.Tensor) -> bool:
    """Return whether the batch has one image.

    Exports replace this function, because a graph for any number of images must not depend on the number.
    """
    return len(x) == 1


def _full(dtype: torch.dtype) -> torch.dtype:
    """Return the type of full-precision values: float32, or float64 in a network of that type."""
    return torch.promote_types(dtype, torch.float32)


def _powers(weight: torch.Tensor) -> torch.Tensor:
    """Return the sums of squares [O, I] of kernels [O, I, k, k], without a gradient.

    Norms take a third of the time of plain operations. On a CPU, chunks whose squares stay in the caches take
    half of that.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous():
        norms: torch.Tensor = torch.linalg.vector_norm(weight, dim=[2, 3])
        return norms.square()
    kernels = weight.flatten(2).flatten(0, 1)
    ones = weight.new_ones(kernels.shape[1])
    return torch.cat([part.square() @ ones for part in kernels.split(1 << 15)]).view(weight.shape[:2])


def modulated_conv2d(
    x: torch.Tensor,  # [N, I, H, W]
    weight: torch.Tensor,  # [O, I, k, k] float32
    styles: torch.Tensor,  # [N, I] float32
    demodulate: bool = True,
    padding: int = 0,
    input_gain: torch.Tensor | None = None,  # scalar, [I] or [N, I]
    dtype: torch.dtype | None = None,  # of the convolution; None = x's
) -> torch.Tensor:
    """Convolution whose weight is scaled per sample and input channel and normalised per output channel.

    StyleGAN2, equations 1 to 3. The convolution is linear in its input, so `styles` scale the input and the
    normalisation scales the output: one dense convolution with one weight for the whole batch, instead of N
    convolutions with N weights. All coefficients are computed in float32.

    Returns:
        [N, O, H', W'] in the type of x.
    """
    dtype = x.dtype if dtype is None else dtype
    if demodulate:
        # StyleGAN3 first divides weight and styles by their RMS to keep float16 in range; demodulation
        # cancels this. Deviation: the RMS of the styles is per sample, not over the whole batch, so that an
        # image does not depend on its batch (same mathematics). Where nothing overflows, the RMS of the
        # weight only enters the coefficients, and no scaled copy of the weight is made.
        styles = styles * styles.square().mean(dim=1, keepdim=True).rsqrt()
        if torch.is_grad_enabled():
            power = weight.square().sum(dim=[2, 3])  # [O, I]
        else:
            power = _powers(weight)
        norm = (power.mean(dim=1) / weight[0, 0].numel()).rsqrt()  # [O]: 1 / RMS of the weight
        scale = ((styles.square() @ power.t()) * norm.square() + 1e-8).rsqrt()  # [N, O]
        if dtype == torch.float16:
            weight = weight * norm[:, None, None, None]
        else:
            scale = scale * norm
    if input_gain is not None:
        styles = styles * input_gain
    full = dtype == _full(dtype)
    # float32 convolutions and their gradients are fastest with contiguous images, those in reduced precision
    # with channels-last images.
    layout = torch.contiguous_format if full else torch.channels_last
    if _is_one_image(x) and not torch.is_grad_enabled() and not (full and weight.numel() > x.numel()):
        # For a single image, multiply all coefficients into the weight, in float32, so that only the
        # convolution reads and writes images. In full precision it is the smaller one that is multiplied.
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


def _normal(shape: Sequence[int], scale: float = 1) -> torch.Tensor:
    """Draw initial weights from N(0, scale^2).

    On the meta device the result has only its shape: there torch's random numbers and arithmetic import its
    compiler and sympy, which takes longer than a small picture.
    """
    values = torch.empty(shape)
    return values if values.is_meta else torch.randn(shape) * scale


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """A fully connected layer with equalised learning rate: [N, in_features] -> [N, out_features].

    y = activation(x (weight * gain)^T + bias * m) with m = lr_multiplier.
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
        self.weight = torch.nn.Parameter(_normal([out_features, in_features], weight_init / lr_multiplier))
        self.bias = (
            torch.nn.Parameter(torch.full([out_features], float(bias_init / lr_multiplier))) if bias else None
        )
        self.weight_gain = float(lr_multiplier / math.sqrt(in_features))
        self.bias_gain = float(lr_multiplier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x [N, in_features]."""
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        y = torch.nn.functional.linear(x, (self.weight * self.weight_gain).to(x.dtype), bias)
        return y if self.activation == "linear" else bias_act.bias_act(y, act=self.activation)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{self.in_features} -> {self.out_features}, {self.activation}"


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """Maps latents and labels to styles: z [N, Z], labels [N] -> ws [N, num_ws, W].

    `labels` describes the accepted forms of labels.

    Args:
        z_dim: Z.
        c_dim: Number of classes, 0 = unconditional.
        w_dim: W.
        num_ws: Number of copies of w.
        num_layers: Number of fully connected layers.
        lr_multiplier: Learning rate multiplier of these layers.
        w_avg_beta: Decay of the moving average of w.
        embed_dim: Width of the class table.
        num_embeddings: Rows of the class table; None = c_dim. Published networks have 1000 rows for any
            c_dim, even without classes.
        linear_labels: As in StyleGAN3, use one layer on one-hot labels instead of a class table, and one
            average of w for all classes.
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
            raise ValueError(f"a class table of {rows} rows is too small for {c_dim} classes")
        if self.linear_labels:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        elif rows > 0:
            self.embed = torch.nn.Embedding(rows, embed_dim, _weight=_normal([rows, embed_dim]))
            if c_dim > 0:
                self.embed_proj = FullyConnectedLayer(embed_dim, z_dim, activation="lrelu")
            else:
                self.embed.requires_grad_(False)  # stored but never used
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
        """Return labels as int64 [batch], or None for an unconditional network.

        Args:
            c: int [N], one-hot [N, c_dim], or None. A row of zeros is class 0, as in published networks:
                visualizers without support for classes pass it.
            batch: N.

        Raises:
            ValueError: Wrong shape, a label out of range, a row with several classes, or a missing label.
        """
        if self.c_dim == 0:
            if c is None or (c.ndim == 2 and c.shape[1] == 0):
                return None
            raise ValueError("this network is unconditional: pass None as its labels")
        if c is None:
            raise ValueError(f"this network has {self.c_dim} classes: pass a label for each latent")
        # Reading values waits for an accelerator, and torch.compile cannot trace it, so training skips this
        # check there: the data set has checked its labels.
        checked = c.device.type == "cpu" or (c.device.type != "meta" and not self.training)
        checked = checked and not torch.compiler.is_compiling()
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
        """Copy `table` [rows, embed_dim] to the trainable class table.

        Raises:
            ValueError: The shape differs, or a value is not finite.
        """
        target = self.embed.weight if hasattr(self, "embed") and not self.linear_labels else None
        if target is None:
            raise ValueError("the network has no class embedding")
        if table.shape != target.shape:
            raise ValueError(
                f"the class embedding has shape {list(table.shape)}, the network needs {list(target.shape)}"
            )
        if not bool(torch.isfinite(table).all()):
            raise ValueError("the class embedding has non-finite values")
        with torch.no_grad():
            target.copy_(table)

    def class_features(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the class input of fc0: [N, Z], or [N, W] with linear labels.

        Args:
            labels: Checked labels, int64 [N].
        """
        if self.linear_labels:
            return _normalize_rms(
                self.embed(torch.nn.functional.one_hot(labels, self.c_dim).to(self.embed.weight.dtype))
            )
        return _normalize_rms(self.embed_proj(self.embed(labels)))

    def styles(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return w [N, W] for latents z [N, Z] and checked labels (int64 [N] or None), without truncation."""
        x = _normalize_rms(z.to(_full(self.fc0.weight.dtype)))
        if labels is not None:
            x = torch.cat([x, self.class_features(labels)], dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x

    @torch.no_grad()
    def update_w_avg(self, w: torch.Tensor, c: torch.Tensor | None = None) -> None:
        """Update the moving average of w in place, with decay w_avg_beta.

        Conditional: each sample moves the average of its class, one after the other in batch order. This is
        computed at once for each class, as beta^n avg + (1 - beta) sum_j beta^(n - 1 - j) w_j for the n
        samples of the class. Unconditional: the mean of the batch moves the one average. With several
        processes, gather w and c of all of them first and call this in every process, so that the averages
        stay equal.

        Args:
            w: [N, W].
            c: Labels of the same batch, as for `labels`.
        """
        beta = self.w_avg_beta
        w = w.detach().to(self.w_avg.dtype)
        labels = self.labels(c, w.shape[0])
        if w.shape[0] == 0:
            return
        if labels is None or self.linear_labels:
            self.w_avg.copy_(w.mean(dim=0).lerp(self.w_avg, beta))
            return
        # Not torch.unique, whose number of rows an accelerator must be asked for. Every sample has a row, and
        # those of a class are copies of its first one.
        order = torch.arange(len(labels), device=w.device)
        first = torch.where(labels[:, None] == labels[None, :], order, len(labels)).amin(dim=1)  # [N]
        member = first[None, :] == order[:, None]  # [N, N]: row i has the samples whose class begins with i
        later = member.flip(1).cumsum(dim=1).flip(1) - 1  # samples of the same class after this one
        weight = torch.where(member, beta ** later.to(w.dtype), 0) * (1 - beta)
        count = member.sum(dim=1, keepdim=True).to(w.dtype)
        rows = self.w_avg[labels] * beta ** count[first] + (weight @ w)[first]
        self.w_avg.index_copy_(0, labels, rows)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> torch.Tensor:
        """Return ws [N, num_ws, W].

        The first truncation_cutoff of them (None = all) are truncated: w_avg[c] + psi (w - w_avg[c]).
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
        """Describe the network in one line."""
        return f"{self.z_dim} latents, {self.c_dim} classes -> {self.num_ws} x {self.w_dim}"


@persistence.persistent_class
class SynthesisInput(torch.nn.Module):
    """Fourier features that w translates and rotates: w [N, W] -> [N, channels, size, size] float32.

    StyleGAN3, section 3.2 and appendix F. `transform` is a 3x3 matrix set by the user and applied to the
    canvas of every image (inverse mapping; identity by default).
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
        freqs, phases = _normal([channels, 2]), torch.empty([channels])
        if not freqs.is_meta:  # see _normal
            radii = freqs.square().sum(dim=1, keepdim=True).sqrt()
            freqs = freqs / (radii * radii.square().exp().pow(0.25)) * self.bandwidth
            phases = torch.rand([channels]) - 0.5
        self.weight = torch.nn.Parameter(_normal([channels, channels]))
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0)
        # [1, 0, 0, 0]: no rotation, no translation
        self.affine.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.register_buffer("transform", torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", phases)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return the features [N, channels, size, size] for w [N, W]."""
        t = self.affine(w)  # [N, 4]: rotation cos, sin; translation x, y
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, dx, dy = t.unbind(dim=1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).reshape(-1, 3, 3)
        translation = torch.stack([one, zero, -dx, zero, one, -dy, zero, zero, one], dim=1).reshape(-1, 3, 3)
        matrix = rotation @ translation @ self.transform  # [N, 3, 3]
        phases = self.phases + (self.freqs @ matrix[:, :2, 2:]).squeeze(2)  # [N, C]
        freqs = self.freqs @ matrix[:, :2, :2]  # [N, C, 2]

        # A rotation or scaling may move a frequency beyond the band of this sampling rate: fade it out.
        amplitude = 1 - (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitude = amplitude.clamp(0, 1)

        width, height = self.size
        # torch.full, because a tensor of Python numbers would wait for its copy to the device, and CUDA
        # graphs could not capture it.
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
        features: torch.Tensor = x.reshape(-1, height, width, self.channels).permute(0, 3, 1, 2)
        return features

    def extra_repr(self) -> str:
        """Describe the input in one line."""
        return (
            f"{self.channels}x{self.size[1]}x{self.size[0]}, rate {self.sampling_rate:g}, band "
            f"{self.bandwidth:g}"
        )


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """One alias-free layer: modulated convolution, upsampling, leaky ReLU, downsampling.

    x [N, in_channels, in_size, in_size], w [N, W] -> [N, out_channels, out_size, out_size], in the type of
    the computation.
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
        # Attributes that readers of network pickles expect; their sizes are [width, height].
        self.in_size, self.out_size = [spec.in_size] * 2, [spec.out_size] * 2
        self.conv_kernel = spec.kernel
        self.tmp_sampling_rate = spec.tmp_sampling_rate
        self.up_factor, self.down_factor = spec.up_factor, spec.down_factor
        self.up_taps, self.down_taps = spec.up_taps, spec.down_taps
        self.down_radial = spec.down_radial
        self.padding = spec.padding

        self.affine = FullyConnectedLayer(w_dim, spec.in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(
            _normal([spec.out_channels, spec.in_channels, spec.kernel, spec.kernel])
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
        """Apply the layer to x [N, in_channels, in_size, in_size] with w [N, W]."""
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode {noise_mode!r}: use random, const or none")
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
        # Multiplying by rounded coefficients loses accuracy. A CPU uses float32, unless the coefficients are
        # multiplied into the weight of a single image.
        exact = x.device.type == "cpu" and (
            torch.is_grad_enabled() or not _is_one_image(x) or dtype == torch.float16
        )
        # Where a margin ends, upsampling reads the middle of the map only: the rest is not computed.
        unread = _unread_samples(self.padding, self.up_factor)
        border = self.conv_kernel - 1 - unread  # zeros around the input; negative: samples that are left out
        if border < 0:
            x = x[:, :, -border:border, -border:border]
        x = modulated_conv2d(
            x.to(full if exact else dtype),
            self.weight,
            styles,
            demodulate=not self.is_torgb,
            padding=max(border, 0),
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
            padding=[side + unread * self.up_factor for side in self.padding],
            gain=1 if self.is_torgb else math.sqrt(2),
            slope=1 if self.is_torgb else 0.2,
            clamp=self.conv_clamp,
        )

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return (
            f"{self.in_channels}x{self.in_size[0]} -> {self.out_channels}x{self.out_size[0]}, "
            f"kernel={self.conv_kernel}, "
            f"up={self.up_factor}, down={self.down_factor}, radial={self.down_radial}, torgb={self.is_torgb}"
        )


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """Maps styles to images: ws [N, num_ws, W] -> [N, img_channels, R, R] float32.

    ws[:, 0] controls the input, and each of the others one layer. `reduced_dtype` is the type of the layers
    that are marked for reduced precision (torch.bfloat16 or torch.float16); None = float32 everywhere.
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
        # a name, because a pickle of this module should contain plain values
        self._reduced_dtype: str | None = None
        first = specs[0]
        self.input = SynthesisInput(
            w_dim, first.in_channels, first.in_size, first.in_sampling_rate, first.in_cutoff
        )
        for spec in specs:
            setattr(self, spec.name, SynthesisLayer(w_dim, spec))

    @property
    def reduced_dtype(self) -> torch.dtype | None:
        """Type of the layers that are marked for reduced precision."""
        return None if self._reduced_dtype is None else getattr(torch, self._reduced_dtype)

    @reduced_dtype.setter
    def reduced_dtype(self, dtype: torch.dtype | None) -> None:
        """Type of the layers that are marked for reduced precision."""
        if dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"reduced_dtype must be None, torch.float16 or torch.bfloat16, not {dtype}")
        self._reduced_dtype = None if dtype is None else str(dtype)[len("torch.") :]

    def forward(
        self, ws: torch.Tensor, noise_mode: str = "const", force_fp32: bool = False, update_emas: bool = False
    ) -> torch.Tensor:
        """Return images [N, img_channels, R, R], about in [-1, 1].

        noise_mode is accepted for compatibility: these layers have no noise inputs. update_emas=True also
        updates magnitude_ema of every layer with this batch; training uses False, as the published code does.
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
        img: torch.Tensor = x.to(full) * self.output_scale
        return img

    def specs(self) -> list[LayerSpec]:
        """Return the specifications of the layers."""
        return [layer_spec(name, vars(getattr(self, name))) for name in self.layer_names]

    def extra_repr(self) -> str:
        """Describe the network in one line."""
        return (
            f"w_dim={self.w_dim}, num_ws={self.num_ws}, img_resolution={self.img_resolution}, "
            f"img_channels={self.img_channels}"
        )


def _check_chain(specs: Sequence[LayerSpec], img_resolution: int, img_channels: int) -> None:
    """Check that layers fit one another.

    Raises:
        ValueError: They do not.
    """
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
    """Maps latents and labels to images: z [N, Z], c [N] -> [N, img_channels, R, R] float32.

    Args:
        z_dim: Z.
        c_dim: Number of classes, 0 = unconditional.
        w_dim: Dimensions of w.
        img_resolution: R, pixels.
        img_channels: Channels of the images.
        layers: A plan (`plan_stem`, `plan_superres`), as LayerSpec or as plain dicts.
        num_frozen_layers: Number of leading layers from an earlier stage. If it is not 0, the input, these
            layers and the mapping network are not trained.
        mapping_kwargs: num_layers, lr_multiplier, w_avg_beta, embed_dim, num_embeddings of MappingNetwork.
        output_scale: Factor on the output of the last layer.
        channel_base: Capacity that the plan was made with; a superresolution stage uses that of its stem.
            None = unknown.
        channel_max: As channel_base.
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
        """Switch gradients on (or off) for everything that this stage trains, and off for the rest.

        Returns self.
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
        """Return images [N, img_channels, R, R].

        c: int64 [N], one-hot [N, c_dim], or None if unconditional.
        """
        ws = self.mapping(
            z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff, update_emas=update_emas
        )
        img: torch.Tensor = self.synthesis(ws, update_emas=update_emas, **synthesis_kwargs)
        return img


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
    map_lr_multiplier: float = 0.01,
    magnitude_ema_beta: float = 0.999,
    margin_size: int = MARGIN,
) -> Generator:
    """Build a first-stage generator with fresh weights from torch's global random state.

    cbase and cmax are those of the command line, without the factor of the configuration.

    Raises:
        ValueError: Unknown configuration, or sizes that do not give a valid plan.
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
        mapping_kwargs=dict(
            num_layers=mapping_layers,
            lr_multiplier=map_lr_multiplier,
            embed_dim=embed_dim,
            num_embeddings=num_embeddings,
        ),
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
    """Build a superresolution stage on `stem`, which is a first or a later stage.

    The weights and buffers of the stem are copied and frozen; the head is new. cbase and cmax are those of
    the command line, without the factor of the configuration; None = the stem's.

    Raises:
        ValueError: Unknown configuration, or a factor or head that does not give a valid plan.
    """
    settings = _config(config)
    resolution = stem.img_resolution * up_factor
    channel_base = stem.channel_base if cbase is None else cbase * settings["width"]
    channel_max = stem.channel_max if cmax is None else cmax * settings["width"]
    if channel_base is None or channel_max is None:
        raise ValueError("the capacity of the stem is unknown: give cbase and cmax")
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
    """Return arguments that rebuild a mapping network like this one, whatever its original arguments were."""
    kwargs: dict[str, Any] = dict(
        num_layers=mapping.num_layers, w_avg_beta=mapping.w_avg_beta, lr_multiplier=mapping.fc0.bias_gain
    )
    if mapping.linear_labels:
        kwargs.update(linear_labels=True)
    elif hasattr(mapping, "embed"):
        kwargs.update(num_embeddings=mapping.embed.weight.shape[0], embed_dim=mapping.embed.weight.shape[1])
    return kwargs


def generator_kwargs(generator: Generator) -> dict[str, Any]:
    """Return arguments of Generator that rebuild this generator, whatever its original arguments were.

    They are plain values that JSON preserves exactly.
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
    """Return the specification of a layer from the attributes of a synthesis layer, ours or a published one.

    Numbers may be numpy scalars. StyleGAN3's layers do not store filter_size, lrelu_upsampling and
    use_radial_filters; these are derived from other attributes.
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
    """Derive filter_size, lrelu_upsampling and use_radial_filters from factors, taps and rates."""
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
    """Return a finite plain number from a number or a numpy scalar."""
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, (int, float)):
        raise ValueError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    if not math.isfinite(number) or abs(number) > 2**53:
        raise ValueError(f"{what} is {number}: it must be positive, and at most 65536")
    return number


def _square(layer: str, field: str, value: Any) -> int:
    """Return the size of a square feature map.

    Reads at most three elements, because a file may nest lists without end.
    """
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
    return int(sizes[0])
