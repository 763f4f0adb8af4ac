"""Values that float32 formulas lose to cancellation, overflow or short series, on every backend, against 60 digits."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import mpmath
import pytest
import torch

import fastvae
from fastvae.kernels.backend import implementation
from fastvae.kernels.likelihood_spec import MIXTURE, NO_BOUNDS, Bounds, LikelihoodSpec
from fastvae.likelihoods import (
    continuous_bernoulli_log_prob,
    log_normal_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
)

EPS = mpmath.mpf("1e-8")
Formula = Callable[..., mpmath.mpf]


def log_poisson(lograte, x):
    return x * lograte - mpmath.exp(lograte) - mpmath.loggamma(x + 1)


def log_negative_binomial(mean, theta, x):
    at_zero = -theta * mpmath.log1p(mean / (theta + EPS))
    if x < EPS:
        return at_zero
    gammas = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    return at_zero + x * mpmath.log((mean + EPS) / (theta + mean + EPS)) + gammas


def log_log_normal(mu, logvar, x):
    apart = mpmath.log(x) - mu
    return -(apart**2 * mpmath.exp(-logvar) + logvar + mpmath.log(2 * mpmath.pi)) / 2 - mpmath.log(x)


def derivative(formula: Formula, index: int) -> Formula:
    """Of the argument at ``index``, by a difference that 60 digits make as good as exact."""

    def slope(*arguments):
        step = (abs(arguments[index]) + mpmath.mpf("1e-9")) * mpmath.mpf("1e-15")
        above, below = (
            formula(*arguments[:index], arguments[index] + sign * step, *arguments[index + 1 :]) for sign in (1, -1)
        )
        return (above - below) / (2 * step)

    return slope


def rounding_of_arguments(formula: Formula, arguments: Sequence[mpmath.mpf], unit: float) -> mpmath.mpf:
    """How far rounding one of the arguments to a float may move the result."""
    return max(abs(derivative(formula, index)(*arguments) * one) * unit for index, one in enumerate(arguments))


def assert_right(came: torch.Tensor, formula: Formula, arguments: Sequence[torch.Tensor], tolerance: float) -> None:
    """Within ``tolerance`` of the value, relative, and twice what rounding one argument to its dtype does."""
    unit = torch.finfo(came.dtype).eps
    with mpmath.workdps(60):
        for value, *given in zip(came.tolist(), *(one.tolist() for one in arguments), strict=True):
            exactly = [mpmath.mpf(one) for one in given]
            exact = formula(*exactly)
            allowed = tolerance * abs(exact) + rounding_of_arguments(formula, exactly, unit) + mpmath.mpf("1e-25")
            assert abs(mpmath.mpf(value) - exact) <= allowed, (given, value, float(exact))


# mean, theta, count
NEGATIVE_BINOMIALS = [
    (3.0, 1e8, 5.0),
    (8.0, 1e6, 9.0),
    (1e7, 10.0, 1e7),
    (1e6, 1.0, 1e6),
    (1e6, 0.3, 1e6),
    (1.1e7, 10.0, 1e7),
    (2.0**24, 1e5, 2.0**24),
    (2.0**24, 1e3, 2.0**24 - 2.0**17),
    (7.9, 1e4, 8.0),
    (100.0, 1e4, 8.0),
    (3.0, 1e12, 0.0),
    (1e-3, 0.5, 1.0),
    (0.0, 2.0, 3.0),
    (3.0, 2.0, 0.4),
    (3.0, 0.2, 0.8),
    (1e-6, 1e-6, 3.0),
    (1e5, 0.1, 2.0),
]


def random_negative_binomials(count: int) -> list[tuple[float, float, float]]:
    """Means near the counts, where the parts cancel, and far from them."""
    chance = random.Random(0)
    found = []
    for _ in range(count):
        x = float(round(10 ** chance.uniform(0, 7.2)))
        mean = x * chance.choice([1.0, 1.01, 0.9, 1 + 1e-3 * chance.random(), 10 ** chance.uniform(-3, 3)])
        found.append((mean, 10 ** chance.uniform(-3, 9), chance.choice([x, x, x, x, 0.0])))
    return found


def columns(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> list[torch.Tensor]:
    return list(torch.tensor(rows, dtype=dtype).unbind(1))


@pytest.fixture(params=["float32", "float64"])
def dtype(request, backend):
    if request.param == "float64" and backend != "reference":
        pytest.skip("the reference alone computes in float64")
    return getattr(torch, request.param)


def test_large_counts_and_large_theta_keep_their_digits(backend, device, dtype):
    rows = NEGATIVE_BINOMIALS + random_negative_binomials(60)
    mean, theta, x = columns(rows, dtype)
    leaves = [one.to(device).requires_grad_() for one in (mean, theta)]
    log_prob = negative_binomial_log_prob(*leaves, x.to(device), reduction="none")
    gradients = torch.autograd.grad(log_prob.sum(), leaves)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert_right(log_prob.detach().cpu(), log_negative_binomial, (mean, theta, x), tolerance)
    for index, one in enumerate(gradients):
        assert_right(one.cpu(), derivative(log_negative_binomial, index), (mean, theta, x), tolerance)


def test_gradients_of_gradients_start_from_the_same_ones(backend, device, dtype):
    """A gradient under create_graph is autograd's, of the formulas in plain PyTorch."""
    mean, theta, x = columns([row for row in NEGATIVE_BINOMIALS if row[1] <= 1e6 and row[2] != 1.0], dtype)
    leaves = [one.to(device).requires_grad_() for one in (mean, theta)]
    log_prob = negative_binomial_log_prob(*leaves, x.to(device), reduction="none")
    plain = torch.autograd.grad(log_prob.sum(), leaves, retain_graph=True)
    recorded = torch.autograd.grad(log_prob.sum(), leaves, create_graph=True)
    for one, other in zip(plain, recorded, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-5, atol=1e-10)
    twice = torch.autograd.grad(sum(one.sum() for one in recorded), leaves)
    assert all(one.isfinite().all() for one in twice)


def test_large_poisson_counts_keep_their_digits(backend, device, dtype):
    chance = random.Random(0)
    rows = [(16.1, 1e7), (16.118, 1e7), (math.log(2.0**24), 2.0**24), (1.0, 3.0), (-30.0, 1.0), (0.3, 0.0), (0.5, 0.4)]
    rows += [(-80.0, 0.0), (40.0, 3.0), (2.0, 0.999), (2.0, 1.0)]
    for _ in range(60):
        x = float(round(10 ** chance.uniform(0, 7.2)))
        rows.append((math.log(x) + chance.choice([0.0, 1e-3, 0.1, 1.0, 5.0]) * chance.gauss(0, 1), x))
    lograte, x = columns(rows, dtype)
    came = poisson_log_prob(lograte.to(device), x.to(device), reduction="none").cpu()
    assert_right(came, log_poisson, (lograte, x), 1e-5 if dtype == torch.float32 else 1e-13)


def test_the_gradient_of_a_count_is_right_at_the_mode_and_far_from_it():
    rows = [(16.1, 1e7), (2.0, 7.0), (80.0, 5.0), (-80.0, 5.0), (1.0, 0.5)]
    lograte, x = columns(rows, torch.float64)
    x.requires_grad_()
    poisson_log_prob(lograte, x, reduction="none").sum().backward()
    torch.testing.assert_close(x.grad, lograte - torch.digamma(x.detach() + 1), rtol=1e-9, atol=1e-9)


def test_the_continuous_bernoulli_has_all_digits_of_float64():
    logits = torch.tensor([0.4999, 1e-9, 1e-4, 0.02, 0.3, 0.7, -0.9, 0.9999, 1.0001, 5.0], dtype=torch.float64)
    x = torch.full_like(logits, 0.25)
    logits.requires_grad_()
    log_prob = continuous_bernoulli_log_prob(logits, x, reduction="none")
    (plain,) = torch.autograd.grad(log_prob.sum(), logits, retain_graph=True)
    (recorded,) = torch.autograd.grad(log_prob.sum(), logits, create_graph=True)

    def formula(logit):
        return logit / 4 - mpmath.log1p(mpmath.exp(logit)) + mpmath.log(logit / mpmath.tanh(logit / 2))

    with mpmath.workdps(60):
        for index, logit in enumerate(logits.tolist()):
            exact, slope = formula(mpmath.mpf(logit)), derivative(formula, 0)(mpmath.mpf(logit))
            assert abs(log_prob[index].item() - exact) < 5e-15
            assert abs(plain[index].item() - slope) < 5e-15
            assert abs(recorded[index].item() - slope) < 5e-15


@pytest.mark.parametrize("shift", [-1e6])
def test_a_shift_of_all_logits_of_a_mixture_changes_nothing(backend, device, shift):
    components = 2
    x = torch.rand(1, 3, 5, device=device)
    parameter = torch.randn(1, 10 * components, 5, device=device)
    parameter[:, :components] = torch.tensor([1.0, -2.0], device=device)[:, None]  # exact with the shift
    shifted = parameter.clone()
    shifted[:, :components] += shift
    kernels = implementation(backend, device, torch.float32)
    arguments = LikelihoodSpec(MIXTURE, components=components), Bounds(low=-7.0)
    came, expected = (
        (
            kernels.likelihood_forward(x, (given,), *arguments),
            *kernels.likelihood_backward(torch.ones(1, device=device), x, (given,), *arguments, (True,)),
        )
        for given in (shifted, parameter)
    )
    torch.testing.assert_close(came, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_mixtures_coefficient_does_not_cancel_where_tanh_is_near_1(backend, device):
    """d tanh = 1 - tanh^2, which float32 has but a thousandth of at 4.5."""
    kernels = implementation(backend, device, torch.float32)
    x = torch.full((1, 3, 1), 0.25, device=device)
    parameter = torch.zeros(1, 10, 1, device=device)
    parameter[:, [1, 4, 7]], parameter[:, [3, 6, 9]] = 0.7, 4.5
    arguments = LikelihoodSpec(MIXTURE, components=1), Bounds(low=-7.0)
    grad = torch.ones(1, device=device)
    (came,) = kernels.likelihood_backward(grad, x, (parameter,), *arguments, (True,))
    reference = implementation("reference", torch.device("cpu"), torch.float64)
    (exact,) = reference.likelihood_backward(
        grad.double().cpu(), x.double().cpu(), (parameter.double().cpu(),), *arguments, (True,)
    )
    torch.testing.assert_close(came.double().cpu(), exact, rtol=3e-6, atol=0.0)


def test_the_log_normal_of_every_size_of_x(backend, device):
    x = torch.tensor([1e-37, 1e-20, 1e-3, 0.5, 0.999, 1.0, 1.001, 3.0, 1e4, 1e20, 3e38])
    mu, logvar = torch.meshgrid(torch.tensor([-50.0, 0.0, 0.3, 80.0]), torch.tensor([-3.0, 0.0, 20.0]), indexing="ij")
    x, mu, logvar = torch.broadcast_tensors(x[:, None, None], mu, logvar)
    given = [one.reshape(1, -1).to(device) for one in (mu, logvar, x)]
    mu, logvar = (one.requires_grad_() for one in given[:2])
    with fastvae.use_backend(backend):
        log_prob = log_normal_log_prob(*given, reduction="none")
    log_prob.sum().backward()
    arguments = [one.detach().cpu().flatten() for one in given]
    assert_right(log_prob.detach().cpu().flatten(), log_log_normal, arguments, 1e-6)
    for index, one in enumerate((mu, logvar)):
        assert_right(one.grad.cpu().flatten(), derivative(log_log_normal, index), arguments, 1e-6)


def test_outside_its_domain_a_log_normal_is_minus_infinity_or_nan(backend, device):
    mu = torch.zeros(1, 4, device=device, requires_grad=True)
    x = torch.tensor([[0.0, -1.0, torch.inf, torch.nan]], device=device)
    with fastvae.use_backend(backend):
        log_prob = log_normal_log_prob(mu, torch.ones(1, device=device), x, reduction="none")
    log_prob.sum().backward()
    for found, expected in (
        (log_prob, [-torch.inf, torch.nan, -torch.inf, torch.nan]),
        (mu.grad, [-torch.inf, torch.nan, torch.inf, torch.nan]),
    ):
        torch.testing.assert_close(found.cpu(), torch.tensor([expected]), equal_nan=True)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "log_normal"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (1, 1)], ids=["full", "shared", "one"])
def test_an_infinite_gradient_does_not_reach_a_clamped_scale(backend, device, kind, shape):
    kernels = implementation(backend, device, torch.float32)
    x, mean = torch.rand(2, 3, device=device), torch.randn(2, 3, device=device)
    scale = torch.full(shape, 5.0, device=device)
    grad = torch.full((2,), torch.inf, device=device)
    spec = LikelihoodSpec(kind, clamp=True)
    _, of_scale = kernels.likelihood_backward(grad, x, (mean, scale), spec, Bounds(-1.0, 0.5), (True, True))
    assert torch.equal(of_scale, torch.zeros_like(scale))


def test_an_infinite_gradient_does_not_reach_a_mixtures_clamped_scale(backend, device):
    kernels = implementation(backend, device, torch.float32)
    parameter = torch.zeros(1, 10, 1, device=device)
    parameter[:, [2, 5, 8]] = -9.0
    grad = torch.full((1,), torch.inf, device=device)
    arguments = LikelihoodSpec(MIXTURE, components=1), Bounds(low=-7.0)
    (came,) = kernels.likelihood_backward(
        grad, torch.full((1, 3, 1), 0.3, device=device), (parameter,), *arguments, (True,)
    )
    assert not came[:, [2, 5, 8]].any()


def test_bits_in_float64_depend_neither_on_threads_nor_on_how_a_batch_is_split():
    """Of the reference: sums in an order of their own, and functions that round alike at a tensor's end."""
    kernels = implementation("reference", torch.device("cpu"), torch.float64)
    x, mean, theta, logits = (torch.rand(64, 601, dtype=torch.float64) * 3 + 0.01 for _ in range(4))
    x, theta = x.round(), theta[:1]
    arguments = LikelihoodSpec("zero_inflated_negative_binomial"), NO_BOUNDS

    def step(rows):
        given = x[rows], (mean[rows], theta, logits[rows])
        grad = torch.ones(len(given[0]), dtype=torch.float64)
        wants = (True, True, True)
        return kernels.likelihood_forward(*given, *arguments), *kernels.likelihood_backward(
            grad, *given, *arguments, wants
        )

    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(step(slice(None)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    halves = [step(slice(33)), step(slice(33, None))]
    for index in (0, 1, 3):
        assert torch.equal(found[0][index], torch.cat([half[index] for half in halves]))
