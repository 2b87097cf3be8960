# SPDX-License-Identifier: Apache-2.0
"""Objectives: values, signs and shapes; training a SAN on a toy problem finds the direction it should."""

import pytest
import torch

import san

LOGITS = torch.tensor([[-2.0, -1.0, 0.0], [0.5, 1.0, 3.0]])


def terms(loss: str, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(terms of real, terms of generated samples)."""
    table = san.discriminator_loss(loss)
    return table.real(logits), table.fake(logits)


def test_hinge():
    real, fake = terms("hinge", LOGITS)
    torch.testing.assert_close(real, torch.tensor([[3.0, 2.0, 1.0], [0.5, 0.0, 0.0]]))
    torch.testing.assert_close(fake, torch.tensor([[0.0, 0.0, 1.0], [1.5, 2.0, 4.0]]))


def test_wasserstein_direction():
    real, fake = terms("wasserstein", LOGITS)
    assert torch.equal(real, -LOGITS) and torch.equal(fake, LOGITS)


def test_terms_pair_each_output_with_its_loss():
    logits = san.SANLogits(fun=LOGITS, dir=10 * LOGITS)
    real, fake = san.discriminator_terms(logits, real=True), san.discriminator_terms(logits, real=False)
    hinge_real, hinge_fake = terms("hinge", LOGITS)
    assert torch.equal(real.fun, hinge_real) and torch.equal(real.dir, -10 * LOGITS)
    assert torch.equal(fake.fun, hinge_fake) and torch.equal(fake.dir, 10 * LOGITS)


def test_generator_logit():
    assert torch.equal(san.generator_terms(LOGITS), -LOGITS)
    assert torch.equal(san.generator_objective("logit")(LOGITS), LOGITS)


def test_generator_objectives_increase():
    x = torch.linspace(-5, 5, 101)
    for name in san.GENERATOR_OBJECTIVES:
        assert (san.generator_objective(name)(x).diff() > 0).all(), name


@pytest.mark.parametrize(
    ("call", "known"),
    [(lambda: san.discriminator_loss("hingee"), "hinge"), (lambda: san.generator_objective("ns?"), "logit")],
)
def test_unknown_names_are_refused_with_the_known_ones(call, known):
    with pytest.raises(ValueError, match=known) as error:
        call()
    assert "\n" not in str(error.value)


def test_direction_loss_turns_the_direction_to_the_difference_of_means():
    """The optimum of the Wasserstein form on the unit sphere is the normalised difference of the feature
    means (SAN: direction optimality).
    """
    generator = torch.Generator().manual_seed(0)
    layer = san.SANLinear(8, 1, bias=False, generator=generator)
    shift = torch.randn(8, generator=generator)
    real, fake = torch.randn(512, 8, generator=generator) + shift, torch.randn(512, 8, generator=generator)
    optimizer = torch.optim.SGD([layer.weight], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        wasserstein = san.discriminator_loss("wasserstein")
        (wasserstein.real(layer(real).dir) + wasserstein.fake(layer(fake).dir)).mean().backward()
        optimizer.step()
        san.normalize_(layer)
    best = torch.nn.functional.normalize(real.mean(0) - fake.mean(0), dim=0)
    assert layer.weight[0] @ best > 0.999


BY_HAND = {  # loss -> (terms of real, terms of generated), in the papers' words
    "hinge": (lambda d: torch.clamp(1 - d, min=0), lambda d: torch.clamp(1 + d, min=0)),
    "bce": (lambda d: -torch.log(torch.sigmoid(d)), lambda d: -torch.log(1 - torch.sigmoid(d))),
    "ns": (lambda d: -torch.log(torch.sigmoid(d)), lambda d: -torch.log(1 - torch.sigmoid(d))),
    "ls": (lambda d: 0.5 * (d - 1) ** 2, lambda d: 0.5 * (d + 1) ** 2),
    "ls01": (lambda d: (1 - d) ** 2, lambda d: d**2),
    "wasserstein": (lambda d: -d, lambda d: d),
    "ls_softplus": (
        lambda d: torch.log1p(torch.exp(1 - d)) ** 2,
        lambda d: torch.log1p(torch.exp(d)) ** 2,
    ),
}
POINTS = torch.tensor([-3.3, -1.2, -0.4, 0.3, 0.9, 2.7], dtype=torch.float64)


def finite_differences(f, x, step=1e-6):
    return (f(x + step) - f(x - step)) / (2 * step)


def test_every_discriminator_loss_is_tested_here():
    assert {*BY_HAND, "relativistic"} == set(san.DISCRIMINATOR_LOSSES)


@pytest.mark.parametrize("name", BY_HAND)
def test_discriminator_losses_and_their_gradients(name):
    loss = san.discriminator_loss(name)
    for ours, theirs in zip((loss.real, loss.fake), BY_HAND[name], strict=True):
        x = POINTS.clone().requires_grad_()
        torch.testing.assert_close(ours(x), theirs(x))
        (grad,) = torch.autograd.grad(ours(x).sum(), x)
        torch.testing.assert_close(grad, finite_differences(ours, POINTS), rtol=1e-6, atol=1e-8)


def test_relativistic_pairs():
    real, fake = POINTS.clone().requires_grad_(), POINTS.flip(0).clone().requires_grad_()
    loss = san.discriminator_objective(real, fake, "relativistic")
    torch.testing.assert_close(loss, -torch.log(torch.sigmoid(real - fake)).mean())
    grads = torch.autograd.grad(loss, (real, fake))
    torch.testing.assert_close(grads[0], -(1 - torch.sigmoid(real - fake)) / len(POINTS))
    torch.testing.assert_close(grads[1], -grads[0])
    with pytest.raises(ValueError, match="pairs"):
        san.discriminator_terms(san.SANLogits(real, real), real=True, loss="relativistic")


def s_squared_slope(d):
    """The derivative of softplus(1 - d)^2, by hand."""
    return -2 * torch.log1p(torch.exp(1 - d)) * torch.sigmoid(1 - d)


# loss -> gradients of its terms of dir, real and generated; for all others -1 and +1 (Wasserstein)
DIRECTION_SLOPES = {"ls_softplus": (s_squared_slope, lambda d: -s_squared_slope(d))}


@pytest.mark.parametrize("reals", [1, 3])
def test_pairs_need_as_many_real_as_generated_samples(reals: int):
    """A single real sample would be paired with all generated ones."""
    real, fake = (san.SANLogits(torch.zeros(n, 1), torch.zeros(n, 1)) for n in (reals, 4))
    with pytest.raises(ValueError, match="not pairs: give as many real as generated samples"):
        san.discriminator_objective(real, fake, "relativistic")
    with pytest.raises(ValueError, match="not pairs"):
        san.generator_terms(fake, "ns", real)
    with pytest.raises(ValueError, match="not pairs"):
        san.discriminator_objective(real.fun, fake.fun, "relativistic")
    assert torch.isfinite(san.discriminator_objective(real, fake, "hinge"))


@pytest.mark.parametrize("name", [*BY_HAND, "relativistic"])
def test_san_form_adds_the_loss_of_the_direction_on_dir(name):
    """On fun the gradient is the GAN's own; on dir it is that of the direction's loss: -1/n on real and +1/n
    on generated samples, unless the table has another.
    """
    parts = [POINTS.clone().requires_grad_() for _ in range(4)]
    real, fake = san.SANLogits(*parts[:2]), san.SANLogits(*parts[2:])
    grads = torch.autograd.grad(san.discriminator_objective(real, fake, name), parts)
    plain = [POINTS.clone().requires_grad_() for _ in range(2)]
    expected = torch.autograd.grad(san.discriminator_objective(*plain, name), plain)
    torch.testing.assert_close(grads[0], expected[0])
    torch.testing.assert_close(grads[2], expected[1])
    wasserstein = (lambda d: -torch.ones_like(d), torch.ones_like)
    on_real, on_fake = DIRECTION_SLOPES.get(name, wasserstein)
    torch.testing.assert_close(grads[1], on_real(POINTS) / len(POINTS))
    torch.testing.assert_close(grads[3], on_fake(POINTS) / len(POINTS))
    for is_real, index in ((True, 1), (False, 3)):
        if not san.is_paired(name):
            terms = san.discriminator_terms((real, fake)[not is_real], is_real, name)
            torch.testing.assert_close(torch.autograd.grad(terms.dir.mean(), parts[index])[0], grads[index])
    pairs = san.discriminator_pair_terms(real, fake, name)
    torch.testing.assert_close(
        pairs.fun.mean() + pairs.dir.mean(), san.discriminator_objective(real, fake, name)
    )


def test_mixed_logits_are_refused():
    with pytest.raises(ValueError, match="different kinds"):
        san.discriminator_objective(san.SANLogits(LOGITS, LOGITS), LOGITS)


def test_gan_logits_train_everything_as_an_ordinary_layer():
    layer = san.SANLinear(5, 2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(7, 5, requires_grad=True)
    logits = layer(x)
    assert torch.equal(san.gan_logits(logits), logits.fun)
    inputs = [x, layer.weight, layer.scale, layer.bias]
    ours = torch.autograd.grad(san.gan_logits(logits).square().sum(), inputs)
    weight = layer.scale[:, None] * torch.nn.functional.normalize(layer.weight, dim=1)
    theirs = torch.autograd.grad(((x + layer.bias) @ weight.t()).square().sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


FIELDS = {  # objective -> h' by hand
    "logit": torch.ones_like,
    "ns": lambda d: 1 - torch.sigmoid(d),
    "vanilla": torch.sigmoid,
    "vanilla(5)": lambda d: torch.sigmoid(d + 5),
    "vanilla(C=0.5)": lambda d: torch.sigmoid(d + 0.5),
    "mle": torch.exp,
    "arcsinh": lambda d: 1 / torch.sqrt(1 + d**2),
    "d + 0.1*exp(d)": lambda d: 1 + 0.1 * torch.exp(d),
    "-(2 - d)/3": lambda d: torch.full_like(d, 1 / 3),
    "d**3 + d": lambda d: 3 * d**2 + 1,
    "ls_softplus": lambda d: -s_squared_slope(d),
    "arctan(d)": lambda d: 1 / (1 + d**2),
    "tanh(d)": lambda d: 1 - torch.tanh(d) ** 2,
}


@pytest.mark.parametrize("objective", FIELDS)
def test_generator_objectives_imply_their_vector_field(objective):
    expected = FIELDS[objective](POINTS)
    torch.testing.assert_close(san.vector_field(objective, POINTS), expected)
    torch.testing.assert_close(
        finite_differences(san.generator_objective(objective), POINTS), expected, rtol=1e-6, atol=1e-8
    )
    samples = POINTS.clone().requires_grad_()
    san.generator_terms(samples, objective).sum().backward()
    torch.testing.assert_close(-samples.grad, expected)  # descent moves a sample along h'(d)
    san.check_increasing(san.generator_objective(objective))


def test_every_generator_objective_is_tested_here():
    assert set(san.GENERATOR_OBJECTIVES) <= set(FIELDS)


def test_callables_and_pairs():
    twice = lambda d: 2 * d  # noqa: E731
    assert torch.equal(san.generator_terms(LOGITS, twice), -2 * LOGITS)
    torch.testing.assert_close(
        san.generator_terms(LOGITS, "ns", LOGITS.flip(0)),
        -torch.nn.functional.logsigmoid(LOGITS - LOGITS.flip(0)),
    )


def unlike_h(d):
    return d - d.mean()


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("d**2", r"decreases at d = -15"),
        ("-d", r"decreases at d = -15"),
        ("d - 0.1*d**2", r"decreases at d = 5"),
        ("relu(d)", r"is flat at d = -15"),
        ("1 + 0*d", r"is flat at d = -15"),
        ("log(d)", r"not finite at d = -15"),
        (unlike_h, "unlike_h: h must be elementwise"),
        (lambda d: 3.0, "elementwise"),
        (lambda d: d.detach() * 1.0, "not finite"),
        (lambda d: torch.where(d > 2, 4 - d, d), r"decreases at d = 2"),
        ("vanilla(-1)", "must not be negative"),
        ("vanilla(1e)", "vanilla"),
        ("__import__('os').system('true') + d", "not supported"),
        ("d.real", "not supported"),
        ("(lambda: d)()", "not supported"),
        ("d**d", "exponent"),
        ("d**99999999", "exponent"),
        ("exp(d, d)", "one argument"),
        ("d +", "not an expression"),
        ("d" + "+d" * 200, "characters"),
        ("hinge", "unknown generator objective"),
        ("True*d", "not supported"),
    ],
)
def test_bad_generator_objectives_are_refused_in_one_line(objective, says):
    with pytest.raises(ValueError, match=says) as error:
        san.generator_objective(objective)
    assert "\n" not in str(error.value)


def test_least_squares_and_bce_find_the_density_ratio():
    """Minimising over free logits on two Bernoulli-like bins gives the optimum the papers state: log p/q, and
    (p - q)/(p + q).
    """
    p, q = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.8], dtype=torch.float64)
    for name, expected in {"bce": torch.log(p / q), "ls": (p - q) / (p + q), "ls01": p / (p + q)}.items():
        d = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        loss = san.discriminator_loss(name)
        optimizer = torch.optim.LBFGS([d], max_iter=100, tolerance_grad=1e-12)

        def closure(d=d, loss=loss, optimizer=optimizer):
            optimizer.zero_grad()
            total = (p * loss.real(d) + q * loss.fake(d)).sum()
            total.backward()
            return total

        optimizer.step(closure)
        torch.testing.assert_close(d.detach(), expected, rtol=1e-4, atol=1e-4)


def test_relativistic_pairing_finds_the_log_ratio_up_to_a_constant():
    p, q = (
        torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )
    d = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    pair = san.discriminator_loss("relativistic").pair
    optimizer = torch.optim.LBFGS([d], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        total = (p[:, None] * q[None, :] * pair(d[:, None] - d[None, :])).sum()
        total.backward()
        return total

    optimizer.step(closure)
    found, expected = d.detach() - d.detach().mean(), torch.log(p / q) - torch.log(p / q).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ls01_is_hifigans_and_outside_of_the_check():
    """Targets 1 and 0; the generator's term rises again beyond d = 1, so that it is no objective of
    MonoFlow's table.
    """
    loss = san.discriminator_loss("ls01")
    assert float(loss.real(torch.ones(()))) == 0 == float(loss.fake(torch.zeros(())))
    torch.testing.assert_close(san.generator_terms(POINTS, "ls01"), (1 - POINTS) ** 2)
    torch.testing.assert_close(san.vector_field("ls01", POINTS), 2 * (1 - POINTS))
    assert "ls01" not in san.GENERATOR_OBJECTIVES and list(san.FALLING_OBJECTIVES) == ["ls01"]
    for objective in (san.generator_objective("ls01"), "-(1 - d)**2"):
        with pytest.raises(ValueError, match="decreases at d = 1"):
            san.check_increasing(objective) if callable(objective) else san.generator_objective(objective)
    with pytest.raises(ValueError, match="choose one of arcsinh, logit, ls01"):
        san.generator_objective("hinge")


def test_ls_softplus_is_a_game_that_ends_at_equal_densities():
    """Where p = q its optimal logit is 1/2, it increases with p/q, and a direction's two terms cancel."""
    loss, ratio = san.discriminator_loss("ls_softplus"), torch.logspace(-2, 2, 9, dtype=torch.float64)
    low, high = torch.full_like(ratio, -20), torch.full_like(ratio, 20)
    for _ in range(60):  # the slope of p real(d) + q fake(d) in d increases: bisection
        d = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad((ratio * loss.real(d) + loss.fake(d)).sum(), d)
        low, high = torch.where(slope < 0, d, low).detach(), torch.where(slope < 0, high, d).detach()
    assert (low.diff() > 0).all()
    torch.testing.assert_close(low[4], torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(loss.direction.real(POINTS), -loss.direction.fake(POINTS))


def heads(kind, seed: int):
    """Logits of three heads, of different shapes, in a list, tuple or dict, nested or not; and as a flat
    list.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = [san.SANLogits(*torch.randn(2, 4, width, generator=generator).unbind()) for width in (1, 2, 5)]
    return kind(*flat), flat


NESTED = {
    "list": lambda a, b, c: [a, b, c],
    "tuple": lambda a, b, c: (a, b, c),
    "dict": lambda a, b, c: {"a": a, "b": b, "c": c},
    "nested": lambda a, b, c: {"scales": [a, (b,)], "periods": c},
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("loss", sorted(san.DISCRIMINATOR_LOSSES))
def test_several_heads_are_summed(kind, loss):
    (real, reals), (fake, fakes) = heads(NESTED[kind], 0), heads(NESTED[kind], 1)
    each = [san.discriminator_objective(r, f, loss) for r, f in zip(reals, fakes, strict=True)]
    torch.testing.assert_close(san.discriminator_objective(real, fake, loss), torch.stack(each).sum())
    pairs = san.discriminator_pair_terms(real, fake, loss)
    torch.testing.assert_close(pairs.fun + pairs.dir, torch.stack(each).sum())
    if not san.is_paired(loss):
        for is_real, logits, flat in ((True, real, reals), (False, fake, fakes)):
            terms = [san.discriminator_terms(x, is_real, loss) for x in flat]
            for part in (0, 1):
                expected = torch.stack([t[part].mean() for t in terms]).sum()
                torch.testing.assert_close(san.discriminator_terms(logits, is_real, loss)[part], expected)
    plain = [NESTED[kind](*(x.fun for x in flat)) for flat in (reals, fakes)]
    each = [san.discriminator_objective(r.fun, f.fun, loss) for r, f in zip(reals, fakes, strict=True)]
    torch.testing.assert_close(san.discriminator_objective(*plain, loss), torch.stack(each).sum())


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("objective", ["logit", "ns", "ls01", "arcsinh"])
def test_the_generators_side_of_several_heads(kind, objective):
    (real, reals), (fake, fakes) = heads(NESTED[kind], 0), heads(NESTED[kind], 1)
    alone = torch.stack([san.generator_terms(f.fun, objective).mean() for f in fakes]).sum()
    pairs = zip(fakes, reals, strict=True)
    paired = torch.stack([san.generator_terms(f.fun, objective, r.fun).mean() for f, r in pairs]).sum()
    for logits, others in ((fake, real), [NESTED[kind](*(x.fun for x in flat)) for flat in (fakes, reals)]):
        torch.testing.assert_close(san.generator_terms(logits, objective), alone)
        torch.testing.assert_close(san.generator_terms(logits, objective, others), paired)


def test_one_head_keeps_its_shape_and_a_list_of_one_is_a_list():
    one = san.SANLogits(LOGITS, LOGITS)
    assert san.discriminator_terms(one, True).fun.shape == san.generator_terms(one).shape == LOGITS.shape
    assert san.discriminator_terms([one], True).fun.shape == san.generator_terms([one]).shape == ()
    assert torch.equal(san.generator_terms(one), -LOGITS)


ONE = san.SANLogits(LOGITS, LOGITS)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: san.discriminator_objective([ONE], [ONE, ONE]), "1 and 2 heads"),
        (lambda: san.discriminator_objective([], []), "0 and 0 heads"),
        (lambda: san.discriminator_objective({"a": ONE}, {"b": ONE}), r"heads \(a\) and \(b\)"),
        (lambda: san.discriminator_objective({"a": [ONE]}, {"a": [ONE] * 2}), "logits at a: 1 and 2 heads"),
        (lambda: san.discriminator_objective([ONE], ONE), "have the type list and SANLogits"),
        (
            lambda: san.discriminator_objective([ONE, "x"], [ONE, "x"]),
            "logits at 1 have the type str and str",
        ),
        (lambda: san.discriminator_objective([ONE, LOGITS], [ONE, LOGITS]), "without feature maps"),
        (lambda: san.discriminator_terms([LOGITS], True), "plain tensors, but SANLogits are needed"),
        (lambda: san.discriminator_pair_terms(LOGITS, LOGITS), "plain tensors, but SANLogits are needed"),
        (lambda: san.generator_terms(([ONE], [LOGITS])), "without feature maps"),
        (lambda: san.generator_terms(None), "have the type NoneType"),
        (lambda: san.generator_terms([ONE], "logit", [ONE, ONE]), "1 and 2 heads"),
        (lambda: san.discriminator_objective([ONE], [ONE], "hing"), "unknown discriminator loss"),
    ],
)
def test_heads_that_do_not_match_are_refused_in_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
