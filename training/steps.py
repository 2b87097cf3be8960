# SPDX-License-Identifier: Apache-2.0
"""The algorithm: a generator step, a path length step, a discriminator step, and the training step of all
three (StyleGAN-XL with SAN heads).

Each step accumulates gradients over its rounds, averages them over processes, refuses anything non-finite
before a weight moves, and takes one optimizer step. Loss weights are such that the gradient is that of the
mean over the step's whole batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from san.diagnostics import Recorder
from san.layers import SANEmbedding, SANLogits
from san.objectives import is_paired
from torch_utils import distributed, rng, training_stats
from torch_utils.ops import conv2d_gradfix
from training import losses, nonfinite, schedules
from training.config import LossConfig, TrainConfig
from training.inputs import InputSource, MicroBatch, RealMicroBatch
from training.state import TrainState

Classifier = Callable[[torch.Tensor], torch.Tensor]


class NonFiniteError(RuntimeError):
    """A gradient is NaN or infinite. The weights and the last checkpoint are intact."""


def train_step(
    state: TrainState,
    inputs: InputSource,
    cfg: TrainConfig,
    pixels: torch.Tensor,
    labels: torch.Tensor | None,
    classifier: Classifier | None = None,
    most_rounds: int | None = None,
) -> None:
    """G, path length, D, EMA: in this order, with the image count before the step (StyleGAN-XL). Counts the
    step and its images.

    Args:
        pixels, labels: this process's real images, uint8 [n, 3, R, R], and classes, int64 [n], in the order
        of `inputs.real_indices`. most_rounds: of every kind, for trials; None = all.
    """
    p, loss = state.progress, cfg.loss
    reals = inputs.real_micro_batches(p.nimg, pixels, labels)
    sigma = schedules.blur_sigma(p.nimg, cfg.blur_init_sigma, loss.blur_fade_kimg)
    state.D.advance_spectral_norms()
    g_step(state, inputs.micro_batches("G", p.nimg)[:most_rounds], loss, sigma, classifier, reals)
    if (
        loss.pl_weight > 0
        and not cfg.generator.superres
        and p.nimg >= loss.pl_start_kimg * 1000
        and p.step % loss.pl_interval == 0
    ):
        path_length_step(
            state,
            inputs.micro_batches("path_length", p.nimg, loss.pl_batch_shrink)[:most_rounds],
            loss,
            cfg.run.seed,
        )
    d_step(state, inputs.micro_batches("D", p.nimg)[:most_rounds], reals[:most_rounds], loss, sigma)
    state.update_ema(schedules.ema_beta(p.nimg, cfg.run.batch, cfg.ema_kimg, cfg.ema_rampup))
    p.nimg += cfg.run.batch
    p.step += 1


def apply_gradients(
    params: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    where: str,
    cause: Callable[[], nonfinite.Cause | None] = lambda: None,
) -> None:
    """Average gradients over processes, check them, step, forget them.

    where: the step, for errors: "generator: step 12, at 96 images". cause: finds what made a gradient not
    finite, in all processes.

    Raises:
        NonFiniteError: naming the network, the step and the first tensor concerned; nothing has been updated
        then.
    """
    grads = {name: p.grad for name, p in params.items() if p.grad is not None}
    distributed.all_reduce_mean_(list(grads.values()))
    norms = torch.stack(torch._foreach_norm(list(grads.values()))) if grads else torch.zeros(0)
    if not bool(torch.isfinite(norms).all()):
        name = next(n for n, norm in zip(grads, norms, strict=True) if not torch.isfinite(norm))
        found = cause()
        if found is None:
            raise NonFiniteError(f"{where}: the gradient of '{name}' is not finite")
        raise NonFiniteError(f"{found.network}: {where.partition(': ')[2]}: {found.what} is not finite")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _where(network: str, state: TrainState) -> str:
    return f"{network}: step {state.progress.step}, at {state.progress.nimg} images"


def _report(kind: str, logits: losses.Logits) -> None:
    fun = torch.cat([x.fun.detach().flatten() for x in logits.values()])
    training_stats.report(f"Loss/scores/{kind}", fun)
    training_stats.report(f"Loss/signs/{kind}", fun.sign())


def pairs_generator(cfg: LossConfig) -> bool:
    """True if the generator's objective needs real images: a paired discriminator loss, and an h to which a
    constant shift is not invisible.
    """
    return is_paired(cfg.d_loss) and cfg.g_loss != "logit"


@torch.no_grad()
def _no_grad_logits(state: TrainState, reals: RealMicroBatch, blur_sigma: float) -> losses.Logits:
    return state.D(losses.blur(reals.images, blur_sigma), reals.labels, reals.draws)


def _trainable(state: TrainState, which: str) -> None:
    for p in state.g_params.values():
        p.requires_grad_(which == "G")
    for p in state.d_params.values():
        p.requires_grad_(which == "D")


def g_step(
    state: TrainState,
    rounds: list[MicroBatch],
    cfg: LossConfig,
    blur_sigma: float,
    classifier: Classifier | None = None,
    reals: list[RealMicroBatch] | None = None,
) -> None:
    """Generator: minimise -h(fun of generated images) + guidance (MonoFlow; StyleGAN-XL, eq. 1).

    reals: real images of each round; read by a relativistic pairing alone, whose h is of the difference of
    logits.
    """
    _trainable(state, "G")
    pairs = pairs_generator(cfg) and reals is not None
    for i, r in enumerate(rounds):
        images = state.G(r.z, r.labels)
        logits = state.D(losses.blur(images, blur_sigma), r.labels, r.draws)
        logits_real = _no_grad_logits(state, reals[i], blur_sigma) if pairs and reals is not None else None
        loss = losses.generator_adversarial(logits, cfg.g_loss, cfg.adversarial_scale, logits_real)
        if classifier is not None and cfg.cls_weight > 0 and r.labels is not None:
            guidance = losses.guidance(classifier, images, r.labels)
            training_stats.report("Loss/G/guidance_loss", guidance)
            loss = loss + cfg.cls_weight * guidance
        _report("fake", logits)
        training_stats.report("Loss/G/loss", loss)
        loss.div(len(rounds)).backward()
    cause = functools.partial(
        nonfinite.find, state, rounds, reals if pairs and reals is not None else (), blur_sigma
    )
    apply_gradients(state.g_params, state.g_opt, _where(nonfinite.GENERATOR, state), cause)


def path_length_step(state: TrainState, rounds: list[MicroBatch], cfg: LossConfig, seed: int) -> None:
    """Path length regularisation (StyleGAN2, section 3.2), without the lazy gain and without weight gradients
    in the first derivative.
    """
    _trainable(state, "G")
    for r in rounds:
        ws = state.G.mapping(r.z, r.labels)
        if not ws.requires_grad:  # a frozen mapping network
            ws.requires_grad_(True)
        images = state.G.synthesis(ws)
        noise = rng.normal(seed, "path_length", state.progress.nimg, r.samples, tuple(images.shape[1:])).to(
            images.device
        )
        with conv2d_gradfix.no_weight_gradients():
            lengths = losses.path_lengths(images, ws, noise)
        everyone = distributed.all_gather_cat(lengths.detach())
        penalty, mean, surrogate = losses.path_length_penalty(lengths, state.pl_mean, cfg.pl_decay, everyone)
        state.pl_mean.copy_(mean)
        training_stats.report("Loss/pl_penalty", penalty)
        training_stats.report("Loss/G/reg", penalty * cfg.pl_weight)
        surrogate.mul(cfg.pl_weight / len(rounds)).backward()
    apply_gradients(state.g_params, state.g_opt, _where("path length regularisation", state))


def d_step(
    state: TrainState,
    rounds: list[MicroBatch],
    reals: list[RealMicroBatch],
    cfg: LossConfig,
    blur_sigma: float,
) -> None:
    """Discriminator: its own loss on fun, Wasserstein on dir (SAN), then the directions return to the unit
    sphere.

    Without cfg.san: its own loss alone, on the ordinary logits of the same heads, and no return.

    Args:
        rounds: latents, labels and draws of the generated images. reals: the real ones with theirs, equally
        many.
    """
    _trainable(state, "D")
    styles = []
    diagnosis = _diagnosis(state, cfg)
    for fake, real in zip(rounds, reals, strict=True):
        with torch.no_grad():
            ws = state.G.mapping(fake.z, fake.labels)
            generated = state.G.synthesis(ws)
        styles.append((ws[:, 0], fake.labels))
        with diagnosis.side("fake"):
            logits_fake = state.D(losses.blur(generated, blur_sigma), fake.labels, fake.draws)
        if is_paired(cfg.d_loss):
            with diagnosis.side("real"):
                logits_real = state.D(losses.blur(real.images, blur_sigma), real.labels, real.draws)
            loss = losses.discriminator_pairs(
                logits_real, logits_fake, cfg.d_loss, cfg.adversarial_scale, cfg.san
            )
            _backward(loss, len(rounds))
            _report("fake", logits_fake)
        else:
            loss_fake = losses.discriminator(logits_fake, False, cfg.d_loss, cfg.adversarial_scale, cfg.san)
            _backward(loss_fake, len(rounds))  # frees its graph before the next is made
            _report("fake", logits_fake)
            with diagnosis.side("real"):
                logits_real = state.D(losses.blur(real.images, blur_sigma), real.labels, real.draws)
            loss_real = losses.discriminator(logits_real, True, cfg.d_loss, cfg.adversarial_scale, cfg.san)
            _backward(loss_real, len(rounds))
            loss = SANLogits(loss_fake.fun + loss_real.fun, loss_fake.dir + loss_real.dir)
        _report("real", logits_real)
        training_stats.report("Loss/D/fun", loss.fun)
        training_stats.report("Loss/D/dir", loss.dir)
        training_stats.report("Loss/D/loss", loss.fun + loss.dir)
    diagnosis.finish()
    _update_w_avg(state, styles)
    cause = functools.partial(nonfinite.find, state, rounds, reals, blur_sigma)
    apply_gradients(state.d_params, state.d_opt, _where(nonfinite.DISCRIMINATOR, state), cause)
    if cfg.san:
        state.D.normalize_()


def _backward(loss: SANLogits, rounds: int) -> None:
    (loss.fun + loss.dir).div(rounds).backward()


class _Diagnosis:
    """Reads the heads during the passes of one discriminator step; with no recorder, nothing."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder

    def side(self, kind: str) -> AbstractContextManager[None]:
        return nullcontext() if self.recorder is None else self.recorder.side(kind)

    def finish(self) -> None:
        """Report Diagnostics/<quantity> (mean and spread over heads) and Diagnostics/<quantity>/<head>."""
        if self.recorder is None:
            return
        self.recorder.close()
        for name, head in self.recorder.report().items():
            for quantity, value in head._asdict().items():
                if math.isfinite(value):
                    training_stats.report(f"Diagnostics/{quantity}", value)
                    training_stats.report(
                        f"Diagnostics/{quantity}/{name.removesuffix('.last_layer').removesuffix('.embed')}",
                        value,
                    )


def _diagnosis(state: TrainState, cfg: LossConfig) -> _Diagnosis:
    """Once per tick, in its first step: SAN's three conditions, head by head."""
    if not cfg.diagnostics or state.progress.nimg != state.progress.tick_start_nimg:
        return _Diagnosis(None)
    heads = state.D.discriminators
    embeddings = [name for name, module in heads.named_modules() if isinstance(module, SANEmbedding)]
    return _Diagnosis(
        Recorder(heads, projections={name: f"{name.removesuffix('embed')}cls" for name in embeddings})
    )


def _update_w_avg(state: TrainState, styles: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    """Feed the average styles in the order of the global samples, whatever the number of processes."""
    if not any(p is q for p in state.G.mapping.parameters() for q in state.g_params.values()):
        return  # a frozen mapping network keeps its average
    for w, labels in styles:  # round by round: gathered, a round is a contiguous run of global samples
        everyone = distributed.all_gather_cat(w)
        state.G.mapping.update_w_avg(everyone, None if labels is None else distributed.all_gather_cat(labels))
