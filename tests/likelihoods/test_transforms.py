"""The likelihoods under torch.func and forward-mode differentiation: what single calls and autograd give."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from fastvae import ops
from fastvae.autograd import run_likelihood
from fastvae.likelihoods import bernoulli_log_prob, gaussian_log_prob

from .cases import CASES, draw, shapes_of

TO_ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def drawn(case, dtype=torch.float32):
    """log p of each row as a function of the parameters, these, and the data."""
    x, parameters = draw(case, shapes_of(case)[1], dtype)
    spec, bounds = case.under("sample")
    return lambda *given: run_likelihood(x, given, spec, bounds), parameters


def gradients(function, *inputs, **keywords):
    leaves = [one.detach().requires_grad_() for one in inputs]
    return torch.autograd.grad(function(*leaves), leaves, **keywords)


def along(gradient, directions):
    return sum((one * other).sum() for one, other in zip(gradient, directions, strict=True))


def test_gradients_jacobians_and_tangents(case):
    log_prob, parameters = drawn(case)
    arguments = tuple(range(len(parameters)))
    weights = torch.randn(log_prob(*parameters).shape)

    def weighted(*given):
        return (weights * log_prob(*given)).sum()

    expected = gradients(weighted, *parameters)
    torch.testing.assert_close(grad(weighted, arguments)(*parameters), expected, **TO_ROUNDING)
    for jacobian in (jacrev, jacfwd):
        rows = jacobian(log_prob, arguments)(*parameters)
        came = tuple(torch.tensordot(weights, one, 1) for one in rows)
        torch.testing.assert_close(came, expected, **TO_ROUNDING)
    tangents = tuple(torch.randn_like(one) for one in parameters)
    value, slope = jvp(weighted, parameters, tangents)
    torch.testing.assert_close((value, slope), (weighted(*parameters), along(expected, tangents)), **TO_ROUNDING)


def test_second_derivatives(case):
    log_prob, parameters = drawn(case, torch.float64)
    tangents = tuple(torch.randn_like(one) for one in parameters)
    arguments = tuple(range(len(parameters)))

    def total(*given):
        return log_prob(*given).sin().sum()

    expected = torch.autograd.functional.hvp(total, parameters, tangents)[1]
    of_kernels = grad(lambda *given: along(grad(total, arguments)(*given), tangents), arguments)(*parameters)
    torch.testing.assert_close(of_kernels, expected)
    torch.testing.assert_close(jvp(grad(total, arguments), parameters, tangents)[1], expected)


def test_under_grad_the_kernels_run(monkeypatch):
    ran = []
    for name in ("likelihood", "likelihood_backward"):
        run = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *given, name=name, run=run: ran.append(name) or run(*given))
    grad(lambda logits: bernoulli_log_prob(logits, torch.ones(2, 3)).sum())(torch.zeros(2, 3))
    assert ran == ["likelihood", "likelihood_backward"]


def test_the_gradient_of_x():
    x, mean = torch.randn(2, 3, 4)
    function = lambda x, mean: gaussian_log_prob(mean, torch.zeros(1), x).sum()  # noqa: E731
    torch.testing.assert_close(grad(function, (0, 1))(x, mean), gradients(function, x, mean))
    torch.testing.assert_close(torch.diagonal(hessian(function)(x, mean).reshape(12, 12)), -torch.ones(12))


def test_log_prob_and_gradient_of_every_row():
    logits, x = torch.randn(5, 6), torch.rand(5, 6)

    def of_row(logits, x):
        return bernoulli_log_prob(logits.unsqueeze(0), x.unsqueeze(0), mask=x.unsqueeze(0) > 0.2).squeeze(0)

    torch.testing.assert_close(vmap(of_row)(logits, x), bernoulli_log_prob(logits, x, mask=x > 0.2), **TO_ROUNDING)
    each = vmap(grad(of_row))(logits, x)
    expected = gradients(lambda one: bernoulli_log_prob(one, x, mask=x > 0.2).sum(), logits)[0]
    torch.testing.assert_close(each, expected, **TO_ROUNDING)
