# SPDX-License-Identifier: Apache-2.0
"""The training step: generator, path length, discriminator (StyleGAN-XL with SAN heads).

Each part accumulates gradients over its micro-batches, averages them over processes, refuses anything
non-finite before a weight moves, and takes one optimizer step. Loss weights are such that the gradient is
that of the mean over the whole batch. Forward and backward passes of a micro-batch are a function,
`_..._micro_batch`, of which --compile=graphs makes a CUDA graph (graphs.py).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from san.diagnostics import Recorder
from san.layers import SANEmbedding, SANLogits
from san.objectives import is_paired
from san.sona import TERMS
from torch_utils import devices, distributed, rng, training_stats, watchdog
from torch_utils.ops import conv2d_gradfix
from torch_utils.reduction import Reduction
from training import compiled, energy, losses, nonfinite, schedules
from training.config import LossConfig, TrainConfig
from training.discriminator import ProjectedDiscriminator
from training.graphs import During, Phase
from training.guard import Cause, Guard
from training.inputs import InputSource, MicroBatch, RealMicroBatch
from training.state import TrainState

Classifier = Callable[[torch.Tensor], torch.Tensor]
_LAST_LAYER = re.compile(r"\.(last_layer|embed|sona\.omega)$")  # in names of heads
_Styles = list[tuple[torch.Tensor, torch.Tensor | None]]  # w and labels of each micro-batch


def train_step(
    state: TrainState,
    inputs: InputSource,
    cfg: TrainConfig,
    pixels: torch.Tensor,
    labels: torch.Tensor | None,
    classifier: Classifier | None = None,
    most: int | None = None,
    reals_of_classes: energy.Reals | None = None,
) -> None:
    """G, path length, D, EMA: in this order, with the image count before the step (StyleGAN-XL).

    Args:
        state: networks, optimizers, counters; counts the step and its images.
        inputs: latents, labels and augmentation draws.
        cfg: the options.
        pixels: real images of this process, uint8 [n, C, R, R], in the order of `inputs.real_indices`.
        labels: their classes, int64 [n].
        classifier: for guidance; None = without.
        most: micro-batches of every part, for trials; None = all.
        reals_of_classes: for the energy distance; None = without.
    """
    p, loss = state.progress, cfg.loss
    reals = inputs.real_micro_batches(p.nimg, pixels, labels)[:most]
    sigma = schedules.blur_sigma(p.nimg, cfg.blur_init_sigma, loss.blur_fade_kimg)
    state.D.advance_spectral_norms()
    g_step(state, inputs.micro_batches("G", p.nimg)[:most], loss, sigma, classifier, reals, reals_of_classes)
    if (
        loss.pl_weight > 0
        and not cfg.generator.superres
        and p.nimg >= loss.pl_start_kimg * 1000
        and p.step % loss.pl_interval == 0
    ):
        path_length_step(
            state,
            inputs.micro_batches("path_length", p.nimg, loss.pl_batch_shrink)[:most],
            loss,
            cfg.run.seed,
        )
    d_step(state, inputs.micro_batches("D", p.nimg)[:most], reals, loss, sigma)
    state.update_ema(schedules.ema_beta(p.nimg, cfg.run.batch, cfg.ema_kimg, cfg.ema_rampup))
    p.nimg += cfg.run.batch
    p.step += 1
    state.guard.end_step()


def apply_gradients(
    params: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    where: str,
    cause: Callable[[], Cause | None] = lambda: None,
    reduction: Reduction | None = None,
    guard: Guard | None = None,
) -> None:
    """Average gradients over processes, check them, step, forget them.

    Args:
        params: by name.
        optimizer: of them.
        where: the step, for errors: "generator: step 12, at 96 images".
        cause: finds what made a gradient not finite, in all processes.
        reduction: the averages, which the last backward pass has begun; None = begin them now.
        guard: checks the gradients; None = read them at once.

    Raises:
        guard.NonFiniteError: naming the network, the step and the first such tensor. Nothing has been
            updated.
    """
    (reduction or Reduction(params.values())).finish()
    grads = {name: p.grad for name, p in params.items() if p.grad is not None}
    if guard is None:
        guard = Guard(torch.device("cpu"))
    guard.step(optimizer, grads, where, cause)
    optimizer.zero_grad(set_to_none=True)


def reduction_of(params: dict[str, torch.nn.Parameter]) -> Reduction:
    """The reduction of a network: its layers from the last to the first, at the end the mapping network."""
    layers = sorted(params, key=lambda name: not name.startswith("mapping."))
    return Reduction(params[name] for name in reversed(layers))


def _where(network: str, state: TrainState) -> str:
    return f"{network}: step {state.progress.step}, at {state.progress.nimg} images"


def _report(kind: str, logits: losses.Logits | losses.SONA) -> None:
    fun = torch.cat([x.fun.detach().flatten() for x in logits.values()])
    training_stats.report(f"Loss/scores/{kind}", fun)
    training_stats.sample(f"Logits/{kind}", fun)
    training_stats.report(f"Loss/signs/{kind}", fun.sign())


def pairs_generator(cfg: LossConfig) -> bool:
    """Whether the generator's objective needs real images.

    It does with a paired discriminator loss, unless a constant shift of the logits does not change h's slope.
    """
    return is_paired(cfg.d_loss) and cfg.g_loss != "logit"


def _conditioned(
    wanted: bool, micro_batches: list[MicroBatch], reals: Sequence[RealMicroBatch] | None
) -> list[MicroBatch]:
    """Replace the classes of generated images by those of the real ones, if they are to be the same.

    SONA heads, --mbstd and the energy distance compare images by class. With --match-classes, the numbers of
    real and generated images of a class are equal in every discriminator step. If they differ, the gradient
    of the class's direction contains their difference times the mean feature, which is larger than the
    difference that it is for.
    """
    if not wanted:
        return micro_batches
    assert reals is not None
    return [r._replace(labels=x.labels) for r, x in zip(micro_batches, reals, strict=True)]


@torch.no_grad()
def _no_grad_logits(state: TrainState, reals: RealMicroBatch, kernel: torch.Tensor | None) -> Any:
    return state.D(losses.blur(reals.images, kernel), reals.labels, reals.draws)


def _adversarial(
    state: TrainState, images: torch.Tensor, r: MicroBatch, real: RealMicroBatch | None, cfg: LossConfig,
    kernel: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Return the adversarial loss of generated images; `real` is None unless it is needed."""
    logits = state.D(losses.blur(images, kernel), r.labels, r.draws)
    logits_real = None if real is None else _no_grad_logits(state, real, kernel)
    _report("fake", logits)
    if not state.D.sona:
        return losses.generator_adversarial(logits, cfg.g_loss, cfg.adversarial_scale, logits_real)
    assert logits_real is not None, "SONA heads compare with real images"
    terms = losses.sona_generator(logits, logits_real, cfg.g_loss, cfg.adversarial_scale)
    training_stats.report("Loss/G/conditional", terms.conditional)
    return terms.total()


def _run(
    state: TrainState,
    name: str,
    phase: Phase,
    params: dict[str, torch.nn.Parameter],
    args: tuple[Any, ...],
    during: During,
    eager: bool = False,
) -> Any:
    """Run the passes of one micro-batch: from a CUDA graph, if there is to be one.

    Args:
        state: Its first argument.
        name: Of the step.
        phase: The passes.
        params: What they train.
        args: Its further arguments.
        during: Context of the last backward pass, in which means over processes begin; a graph has none, and
            they begin after it.
        eager: Without a graph.
    """
    if state.graphs is None or eager:
        return phase(state, *args, during=during)
    return state.graphs.run(name, phase, params, (state, *args), during, state.progress.step)


def _trainable(state: TrainState, which: str) -> None:
    for p in state.g_params.values():
        p.requires_grad_(which == "G")
    for p in state.d_params.values():
        p.requires_grad_(which == "D")


def _pairs_logits(state: TrainState, cfg: LossConfig) -> bool:
    """Whether the adversarial loss of generated images needs the logits of real ones."""
    return pairs_generator(cfg) or bool(state.D.sona)


def _generator_micro_batch(
    state: TrainState, cfg: LossConfig, classifier: Classifier | None, count: int, r: MicroBatch,
    real: RealMicroBatch | None, reals_of_classes: energy.Reals | None, kernel: torch.Tensor | None,
    during: During,
) -> None:  # fmt: skip
    images = state.G(r.z, r.labels)
    loss = _adversarial(state, images, r, real, cfg, kernel)
    if reals_of_classes is not None:
        distance = energy.distance(images, r.labels, reals_of_classes)
        training_stats.report("Loss/G/energy_distance", distance)
        loss = loss + cfg.energy_weight * distance
    if classifier is not None and cfg.cls_weight > 0 and r.labels is not None:
        guidance = losses.guidance(classifier, images, r.labels)
        training_stats.report("Loss/G/guidance_loss", guidance)
        loss = loss + cfg.cls_weight * guidance
    training_stats.report("Loss/G/loss", loss)
    with during():
        loss.div(count).backward()


def g_step(
    state: TrainState,
    micro_batches: list[MicroBatch],
    cfg: LossConfig,
    blur_sigma: float,
    classifier: Classifier | None = None,
    reals: list[RealMicroBatch] | None = None,
    reals_of_classes: energy.Reals | None = None,
) -> None:
    """Generator: minimise -h(fun of generated images) + guidance (MonoFlow; StyleGAN-XL, eq. 1).

    Args:
        state: networks and optimizers.
        micro_batches: latents, labels and draws.
        cfg: of the losses.
        blur_sigma: of all images, in pixels.
        classifier: for guidance; None = without.
        reals: real images of each micro-batch, for relativistic pairing and SONA heads, and their classes.
        reals_of_classes: for the energy distance; None = without.
    """
    watchdog.phase("G")
    _trainable(state, "G")
    compared = reals if _pairs_logits(state, cfg) else None
    by_class = state.D.sona or state.D.mbstd or reals_of_classes is not None
    micro_batches = _conditioned(by_class, micro_batches, reals)
    kernel = losses.blur_kernel(blur_sigma, state.pl_mean.device)
    reduction = reduction_of(state.g_params)
    for i, r in enumerate(micro_batches):
        watchdog.progress()
        real = None if compared is None else compared[i]
        args = (cfg, classifier, len(micro_batches), r._replace(samples=()), real, reals_of_classes, kernel)
        during = functools.partial(reduction.during, i == len(micro_batches) - 1)
        _run(state, "G", _generator_micro_batch, state.g_params, args, during)
    cause = functools.partial(nonfinite.find, state, micro_batches, compared or (), kernel)
    apply_gradients(
        state.g_params, state.g_opt, _where(nonfinite.GENERATOR, state), cause, reduction, state.guard
    )


def _path_length_micro_batch(
    state: TrainState, cfg: LossConfig, count: int, r: MicroBatch, noise: torch.Tensor, during: During
) -> None:
    ws = state.G.mapping(r.z, r.labels)
    if not ws.requires_grad:  # a frozen mapping network
        ws.requires_grad_(True)
    with compiled.eager(state.G.synthesis):  # no second derivatives in compiled graphs
        images = state.G.synthesis(ws)
    with conv2d_gradfix.no_weight_gradients():
        lengths = losses.path_lengths(images, ws, noise)
    everyone = distributed.all_gather_cat(lengths.detach())
    penalty, mean, surrogate = losses.path_length_penalty(lengths, state.pl_mean, cfg.pl_decay, everyone)
    state.pl_mean.copy_(mean)
    training_stats.report("Loss/pl_penalty", penalty)
    training_stats.report("Loss/G/reg", penalty * cfg.pl_weight)
    with during():
        surrogate.mul(cfg.pl_weight / count).backward()


def path_length_step(state: TrainState, micro_batches: list[MicroBatch], cfg: LossConfig, seed: int) -> None:
    """Path length regularisation (StyleGAN2, section 3.2), without the lazy gain.

    The first derivative has no weight gradients.
    """
    watchdog.phase("path length")
    _trainable(state, "G")
    reduction = reduction_of(state.g_params)
    shape = (state.G.img_channels, state.G.img_resolution, state.G.img_resolution)
    for i, r in enumerate(micro_batches):
        watchdog.progress()
        noise = rng.normal(seed, "path_length", state.progress.nimg, r.samples, shape)
        args = (cfg, len(micro_batches), r._replace(samples=()), devices.upload(noise, state.pl_mean.device))
        during = functools.partial(reduction.during, i == len(micro_batches) - 1)
        eager = distributed.world_size() > 1  # its gather is no part of a graph
        _run(state, "path length", _path_length_micro_batch, state.g_params, args, during, eager)
    where = _where("path length regularisation", state)
    apply_gradients(state.g_params, state.g_opt, where, lambda: None, reduction, state.guard)


def _discriminator_micro_batch(
    state: TrainState, cfg: LossConfig, count: int, fake: MicroBatch, real: RealMicroBatch,
    kernel: torch.Tensor | None, diagnosis: _Diagnosis, during: During,
) -> torch.Tensor:  # fmt: skip
    """Return w of the generated images, [N, W]."""
    with torch.no_grad():
        ws = state.G.mapping(fake.z, fake.labels)
        generated = state.G.synthesis(ws)
    with diagnosis.reading():
        logits = _both_logits(state, generated, fake, real, kernel)
    loss = _sona_loss(state, *logits, cfg) if state.D.sona else _san_loss(*logits, cfg)
    with during():
        loss.div(count).backward()
    w: torch.Tensor = ws[:, 0]
    return w


def d_step(
    state: TrainState,
    micro_batches: list[MicroBatch],
    reals: list[RealMicroBatch],
    cfg: LossConfig,
    blur_sigma: float,
) -> None:
    """Discriminator: its own loss on fun, that of the direction on dir (SAN), then unit directions again.

    Without cfg.san: its own loss alone, on the ordinary logits of the same heads, and no normalisation.

    Args:
        state: networks and optimizers.
        micro_batches: latents, labels and draws of the generated images.
        reals: as many real images, with labels and draws.
        cfg: of the losses.
        blur_sigma: of all images, in pixels.
    """
    watchdog.phase("D")
    _trainable(state, "D")
    styles: _Styles = []
    diagnosis = _diagnosis(state, cfg)
    kernel = losses.blur_kernel(blur_sigma, state.pl_mean.device)
    reduction = reduction_of(state.d_params)
    by_class = state.D.sona or state.D.mbstd or cfg.match_classes
    micro_batches = _conditioned(by_class, micro_batches, reals)
    for i, (fake, real) in enumerate(zip(micro_batches, reals, strict=True)):
        watchdog.progress()
        args = (cfg, len(micro_batches), fake._replace(samples=()), real, kernel, diagnosis)
        during = functools.partial(reduction.during, i == len(micro_batches) - 1)
        eager = diagnosis.recorder is not None  # its hooks are no part of a graph
        w = _run(state, "D", _discriminator_micro_batch, state.d_params, args, during, eager)
        styles.append((w, fake.labels))
    gathered = _start_gathering(state, styles)
    diagnosis.finish()
    cause = functools.partial(nonfinite.find, state, micro_batches, reals, kernel)
    apply_gradients(
        state.d_params, state.d_opt, _where(nonfinite.DISCRIMINATOR, state), cause, reduction, state.guard
    )
    _update_w_avg(state, gathered())
    if cfg.san:
        state.D.normalize_()


def _both_logits(
    state: TrainState,
    generated: torch.Tensor,
    fake: MicroBatch,
    real: RealMicroBatch,
    kernel: torch.Tensor | None,
) -> tuple[Any, Any]:
    """Return the logits of generated and of real images, from one pass.

    Deviation: the published algorithm has two passes. Batch statistics are apart here too, so the results
    differ by rounding alone. One pass reads and normalises the weights of the heads once.
    """
    images = losses.blur(torch.cat([generated, real.images]), kernel)
    labels = None if fake.labels is None or real.labels is None else torch.cat([fake.labels, real.labels])
    draws = None
    if fake.draws is not None and real.draws is not None:
        draws = {name: torch.cat([u, real.draws[name]]) for name, u in fake.draws.items()}
    on_fake, on_real = {}, {}
    for name, x in state.D(images, labels, draws, batches=2).items():
        on_fake[name], on_real[name] = map(type(x)._make, zip(*(part.chunk(2) for part in x), strict=True))
    return on_fake, on_real


def _san_loss(fake: losses.Logits, real: losses.Logits, cfg: LossConfig) -> torch.Tensor:
    """Return the discriminator's loss for one micro-batch, and report it."""
    options = (cfg.d_loss, cfg.adversarial_scale, cfg.san)
    if is_paired(cfg.d_loss):
        loss = losses.discriminator_pairs(real, fake, *options)
    else:
        on_fake = losses.discriminator(fake, False, *options)
        on_real = losses.discriminator(real, True, *options)
        loss = SANLogits(on_fake.fun + on_real.fun, on_fake.dir + on_real.dir)
    _report("fake", fake)
    _report("real", real)
    _report_d(loss.fun, loss.dir, loss.fun + loss.dir)
    return loss.fun + loss.dir


def _sona_loss(state: TrainState, fake: losses.SONA, real: losses.SONA, cfg: LossConfig) -> torch.Tensor:
    """The same for SONA heads."""
    weights = state.D.sona_weights()
    terms = losses.sona_discriminator(real, fake, weights, cfg.d_loss, cfg.adversarial_scale)
    _report("fake", fake)
    _report("real", real)
    _report_d(terms.fun, terms.dir, terms.total())
    training_stats.report("Loss/D/conditional", terms.conditional)
    training_stats.report("Loss/D/matching", terms.matching)
    for term, s in zip(TERMS, torch.stack(list(weights.values())).detach().unbind(1), strict=True):
        training_stats.report(f"SONA/weight/{term}", s)
    return terms.total()


def _report_d(fun: torch.Tensor, direction: torch.Tensor, total: torch.Tensor) -> None:
    training_stats.report("Loss/D/fun", fun)
    training_stats.report("Loss/D/dir", direction)
    training_stats.report("Loss/D/loss", total)


@dataclass(frozen=True)
class _Diagnosis:
    """Reads the heads during the passes of one discriminator step; with no recorder, nothing."""

    D: ProjectedDiscriminator
    recorder: Recorder | None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within, D sees generated images and as many real ones after them."""
        if self.recorder is None:
            yield
            return
        with self.recorder.side("fake", "real"), compiled.eager(self.D):  # a compiled network calls no hooks
            yield

    def finish(self) -> None:
        """Report Diagnostics/<quantity> (mean and spread over heads) and Diagnostics/<quantity>/<head>."""
        if self.recorder is None:
            return
        self.recorder.close()
        for name, head in self.recorder.report().items():
            for quantity, value in head._asdict().items():
                if math.isfinite(value):
                    training_stats.report(f"Diagnostics/{quantity}", value)
                    training_stats.report(f"Diagnostics/{quantity}/{_LAST_LAYER.sub('', name)}", value)


def _diagnosis(state: TrainState, cfg: LossConfig) -> _Diagnosis:
    """Once per tick, in its first step: SAN's three conditions, head by head."""
    if not cfg.diagnostics or state.progress.nimg != state.progress.tick_start_nimg:
        return _Diagnosis(state.D, None)
    heads = state.D.discriminators
    embeddings = [name for name, module in heads.named_modules() if isinstance(module, SANEmbedding)]
    return _Diagnosis(
        state.D,
        Recorder(heads, projections={name: f"{name.removesuffix('embed')}cls" for name in embeddings}),
    )


def _start_gathering(state: TrainState, styles: _Styles) -> Callable[[], _Styles]:
    """Begin to gather the styles of each micro-batch, and their labels, over processes: one collective.

    Gathered, a micro-batch is a contiguous run of global samples, whatever the number of processes.
    """
    if not any(p is q for p in state.G.mapping.parameters() for q in state.g_params.values()):
        return list  # a frozen mapping network keeps its average
    gathered = distributed.start_all_gather([x for pair in styles for x in pair if x is not None])

    def finish() -> _Styles:
        tensors = iter(gathered())
        return [(next(tensors), None if labels is None else next(tensors)) for _, labels in styles]

    return finish


def _update_w_avg(state: TrainState, styles: _Styles) -> None:
    """Feed the average styles in the order of the global samples."""
    for w, labels in styles:
        state.G.mapping.update_w_avg(w, labels)
