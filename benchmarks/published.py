# SPDX-License-Identifier: Apache-2.0
"""The published algorithm, written plainly from its description: a baseline of speed, an oracle of tests.

Modulated convolutions are grouped convolutions with one weight per sample, resampling and activations are
torch's own operations, everything is float32, generated and real images pass through the discriminator one
after the other, images are resized and projected in the published order, and every tensor is updated by
itself. Only the parameters, the fixed random draws and the frozen networks' definitions are shared with the
project.

Shapes: N batch, C channels, R image resolution, I O input and output channels.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_utils import features
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import filter2d
from training.config import TrainConfig
from training.discriminator import ProjectedDiscriminator
from training.discriminator.heads import Head, SpectralConv2d
from training.discriminator.projection import RandomProjection
from training.generator import FullyConnectedLayer, Generator, MappingNetwork, SynthesisLayer
from training.inputs import InputSource
from training.schedules import blur_sigma, ema_beta, lazy_adam

SCALE = 8.0  # samples of a published micro-batch: the adversarial term is a sum over them


def fully_connected(layer: FullyConnectedLayer, x: Tensor) -> Tensor:
    """Apply a layer with equalised learning rate, and leaky ReLU with gain sqrt(2) if it has one."""
    y = x @ (layer.weight * layer.weight_gain).t()
    if layer.bias is not None:
        y = y + layer.bias * layer.bias_gain
    return y if layer.activation == "linear" else F.leaky_relu(y, 0.2) * math.sqrt(2)


def _unit_rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def styles(mapping: MappingNetwork, z: Tensor, c: Tensor | None) -> Tensor:
    """Map latents [N, Z] and labels [N] to w [N, W]."""
    x = _unit_rms(z)
    if c is not None and mapping.c_dim > 0:
        rows = F.embedding(c, mapping.embed.weight)
        x = torch.cat([x, _unit_rms(fully_connected(mapping.embed_proj, rows))], dim=1)
    for i in range(mapping.num_layers):
        x = fully_connected(getattr(mapping, f"fc{i}"), x)
    return x


def modulated_conv2d(
    x: Tensor, weight: Tensor, s: Tensor, demodulate: bool, pad: int, gain: Tensor
) -> Tensor:
    """Convolve x [N, I, H, W] with a separate weight per sample (StyleGAN2, equations 1 to 3).

    Args:
        x: Images.
        weight: [O, I, k, k].
        s: Styles [N, I].
        demodulate: Normalise the weight of each sample and output channel.
        pad: Zeros around the images.
        gain: Factor of the input.
    """
    if demodulate:
        weight = weight * weight.square().mean(dim=[1, 2, 3], keepdim=True).rsqrt()
        s = s * s.square().mean(dim=1, keepdim=True).rsqrt()
    w = weight * s[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    w = w * gain
    n, o, i, k, _ = w.shape
    y = F.conv2d(x.reshape(1, n * i, *x.shape[2:]), w.reshape(n * o, i, k, k), padding=pad, groups=n)
    return y.reshape(n, o, *y.shape[2:])


def synthesis_layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    """Apply an alias-free layer to x [N, I, H, W] with w [N, W]."""
    s = fully_connected(layer.affine, w)
    if layer.is_torgb:
        s = s / math.sqrt(layer.in_channels)
    pad = layer.conv_kernel - 1
    x = modulated_conv2d(x, layer.weight, s, not layer.is_torgb, pad, layer.magnitude_ema.rsqrt())
    return filtered_lrelu(
        x,
        fu=layer.up_filter,
        fd=layer.down_filter,
        b=layer.bias,
        up=layer.up_factor,
        down=layer.down_factor,
        padding=layer.padding,
        gain=1 if layer.is_torgb else math.sqrt(2),
        slope=1 if layer.is_torgb else 0.2,
        clamp=layer.conv_clamp,
        impl="ref",
    )


def generate(G: Generator, z: Tensor, c: Tensor | None) -> Tensor:
    """Return images [N, 3, R, R] for latents and labels."""
    w = styles(G.mapping, z, c)
    x = G.synthesis.input(w)
    for name in G.synthesis.layer_names:
        x = synthesis_layer(getattr(G.synthesis, name), x, w)
    images: Tensor = x * G.synthesis.output_scale
    return images


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images with the kernel 2^-(x/sigma)^2 of radius floor(3 sigma)."""
    radius = int(sigma * 3)
    if radius == 0:
        return images
    taps = torch.arange(-radius, radius + 1).div(sigma).square().neg().exp2()
    return filter2d(images, taps / taps.sum(), impl="ref")


def augment(x: Tensor, u: Tensor) -> Tensor:
    """Apply DiffAugment to x [N, C, R, R] with uniform draws u [N, 7]."""
    size, each = x.shape[2], u.view(len(u), 7, 1, 1, 1)
    x = x + each[:, 0] - 0.5
    x = (x - x.mean(dim=1, keepdim=True)) * (2 * each[:, 1]) + x.mean(dim=1, keepdim=True)
    x = (x - x.mean(dim=[1, 2, 3], keepdim=True)) * (each[:, 2] + 0.5) + x.mean(dim=[1, 2, 3], keepdim=True)
    reach, side = int(size / 8 + 0.5), int(size / 5 + 0.5)
    shift = (u[:, 3:5] * (2 * reach + 1)).floor().long() - reach
    start = (u[:, 5:7] * (size + 1 - side % 2)).floor().long() - side // 2
    line, outputs = torch.arange(size), []
    for image, (dy, dx), (top, left) in zip(x, shift.tolist(), start.tolist(), strict=True):
        moved = F.pad(image, [reach] * 4)[:, reach + dy : reach + dy + size, reach + dx : reach + dx + size]
        rows, columns = (line >= top) & (line < top + side), (line >= left) & (line < left + side)
        outputs.append(moved * (~(rows[:, None] & columns[None, :])).to(x.dtype))
    return torch.stack(outputs)


def project(projection: RandomProjection, maps: list[Tensor]) -> list[Tensor]:
    """Mix channels and scales; each level is enlarged before its 1x1 convolution."""
    maps = maps if projection.reassemble is None else projection.reassemble(maps)
    below: Tensor | None = None
    mixed: list[Tensor] = []
    for level in reversed(range(len(maps))):
        across, along = (getattr(projection.scratch, f"layer{level}_{name}") for name in ("ccm", "csm"))
        x = F.conv2d(maps[level], across.weight, across.bias)
        x = x if below is None else x + below
        size = maps[level - 1].shape[2:] if level else (2 * x.shape[2], 2 * x.shape[3])
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        below = F.conv2d(x, along.out_conv.weight, along.out_conv.bias)
        mixed.insert(0, below)
    return mixed


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Within, feature networks are loaded with timm's own convolutions and linear layers."""
    patch = mock.patch.object
    with (
        patch(features, "replace_depthwise_", lambda body: None),
        patch(features, "fuse_relu6_", lambda body: None),
        patch(features, "replace_linear_", lambda body: None),
    ):
        yield


class Published:
    """Networks with the parameters of others, and the published training step on them.

    Args:
        G: Generator; copied.
        D: Discriminator; its trained part and its projections are copied.
        cfg: Options of the run.
        power_iterations: Run a power iteration in every pass through the discriminator, as published, and
            not once per step.
    """

    def __init__(
        self, G: Generator, D: ProjectedDiscriminator, cfg: TrainConfig, power_iterations: bool = True
    ) -> None:
        self.cfg, self.power_iterations = cfg, power_iterations
        self.G = copy.deepcopy(G).train().requires_grad_(True)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.heads = copy.deepcopy(D.discriminators).to(memory_format=torch.contiguous_format)
        self.projections = copy.deepcopy(D.projections).to(memory_format=torch.contiguous_format)
        self.sizes, self.names = D.feature_sizes, D.names
        with plain_layers():
            self.backbones = {
                key: features.load(
                    name, cfg.discriminator.backbone_weights.get(name), cfg.run.seed, fold_batchnorm=False
                )
                for key, name in D.names.items()
            }
        optim, betas = cfg.optim, (cfg.optim.beta1, cfg.optim.beta2)
        self.g_params, self.d_params = list(self.G.parameters()), list(self.heads.parameters())
        g_lr, g_betas = lazy_adam(optim.glr, betas, cfg.loss.pl_interval)
        d_lr, d_betas = lazy_adam(optim.dlr, betas, optim.d_reg_interval)
        self.g_opt = torch.optim.Adam(self.g_params, g_lr, g_betas, optim.eps, foreach=False, fused=False)
        self.d_opt = torch.optim.Adam(self.d_params, d_lr, d_betas, optim.eps, foreach=False, fused=False)

    def _spectral(self, conv: SpectralConv2d, x: Tensor) -> Tensor:
        if self.power_iterations:
            conv.advance_spectral_norm()
        v = conv.weight_v.flatten()
        sigma = conv.weight_u @ (conv.weight_orig.flatten(1) @ v)
        return F.conv2d(x, conv.weight_orig / sigma, None, conv.stride, conv.padding)

    def _head(self, head: Head, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        for block in head.main:
            conv, norm = block.main  # type: ignore[misc]
            x = self._spectral(conv, x)
            group = norm.group if norm.group and len(x) % norm.group == 0 else len(x)
            parts = [F.batch_norm(p, None, None, norm.weight, norm.bias, True) for p in x.split(group)]
            x = F.leaky_relu(torch.cat(parts), 0.2)
        if c is None or not head.conditional:
            fun, direction = head.last_layer(x)
            return fun.flatten(1), direction.flatten(1)
        h, vector = self._spectral(head.cls, x), head.embed(c)
        gain = 1 / math.sqrt(h.shape[1])
        fun = (h * vector.fun[:, :, None, None]).sum(dim=1) * gain
        direction = (h.detach() * vector.dir[:, :, None, None]).sum(dim=1) * gain
        return fun.flatten(1), direction.flatten(1)

    def logits(
        self, images: Tensor, c: Tensor | None, draws: Mapping[str, Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (fun, dir), each [N, K], per backbone."""
        found = []
        for key, network in self.backbones.items():
            x = images if draws is None else augment(images, draws[self.names[key]])
            x, size = ((x + 1) / 2 - network.mean) / network.std, self.sizes[key]
            if x.shape[2:] != (size, size):
                x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
            heads, projection = self.heads[key], self.projections[key]
            assert isinstance(projection, RandomProjection)
            maps = project(projection, network(x))
            parts = [self._head(head, x, c) for head, x in zip(heads.mini_discs, maps, strict=False)]  # type: ignore[arg-type]
            found.append(tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))
        return found  # type: ignore[return-value]

    def step(self, inputs: InputSource, pixels: Tensor, labels: Tensor | None, nimg: int = 0) -> None:
        """Train the generator, then the discriminator, then average the weights."""
        sigma = blur_sigma(nimg, self.cfg.blur_init_sigma, self.cfg.loss.blur_fade_kimg)
        self.g_step(inputs, nimg, sigma)
        self.d_step(inputs, pixels, labels, nimg, sigma)
        beta = ema_beta(nimg, self.cfg.run.batch, self.cfg.ema_kimg, self.cfg.ema_rampup)
        with torch.no_grad():
            for averaged, p in zip(self.G_ema.parameters(), self.g_params, strict=True):
                averaged.copy_(p.lerp(averaged, beta))
            for kept, b in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
                kept.copy_(b)

    def g_step(self, inputs: InputSource, nimg: int, sigma: float) -> None:
        """Minimise -SCALE * sum over backbones of the mean logit."""
        self._train_only(self.g_params)
        rounds = inputs.micro_batches("G", nimg)
        for r in rounds:
            images = generate(self.G, r.z, r.labels)
            logits = self.logits(blur(images, sigma), r.labels, r.draws)
            loss = -SCALE * sum(fun.mean() for fun, _ in logits)
            torch.as_tensor(loss / len(rounds)).backward()
        self._update(self.g_params, self.g_opt)

    def d_step(
        self, inputs: InputSource, pixels: Tensor, labels: Tensor | None, nimg: int, sigma: float
    ) -> None:
        """Minimise hinge on fun and Wasserstein on dir: generated images, then real ones."""
        self._train_only(self.d_params)
        fakes, reals = inputs.micro_batches("D", nimg), inputs.real_micro_batches(nimg, pixels, labels)
        for fake, real in zip(fakes, reals, strict=True):
            with torch.no_grad():
                images = generate(self.G, fake.z, fake.labels)
                self.G.mapping.update_w_avg(styles(self.G.mapping, fake.z, fake.labels), fake.labels)
            for x, r, sign in ((images, fake, 1), (real.images, real, -1)):
                logits = self.logits(blur(x, sigma), r.labels, r.draws)
                loss = SCALE * sum((1 + sign * fun).relu().mean() + sign * d.mean() for fun, d in logits)
                torch.as_tensor(loss / len(fakes)).backward()
        self._update(self.d_params, self.d_opt)
        with torch.no_grad():
            for module in self.heads.modules():
                normalise = getattr(module, "normalize_", None)
                if normalise is not None:
                    normalise()

    def _train_only(self, params: list[nn.Parameter]) -> None:
        for p in (*self.g_params, *self.d_params):
            p.requires_grad_(False)
        for p in params:
            p.requires_grad_(True)

    @staticmethod
    def _update(params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for p in params:
            if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
                raise RuntimeError("a gradient is not finite")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
