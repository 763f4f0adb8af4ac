"""Gradients for importance weights, computed with log p: equal to those of the plain op, with as many products."""

from __future__ import annotations

import pytest
import torch

import fastvae.likelihoods as L
from fastvae import head_chunks, weighed_head
from fastvae.kernels import head_spec
from fastvae.likelihoods import Linear, linear_log_prob
from fastvae.nn import VAE, HierarchicalVAE, MLPDecoder, MLPEncoder
from fastvae.objectives import IWAE

K, B, H, D = 4, 7, 5, 9
# Each with layers' activations; None: a tensor that is given.
DENSITIES = {
    "bernoulli": ("identity",),
    "gaussian": ("identity", None),
    "zero_inflated_negative_binomial": ("softmax", None, "identity"),
}


@pytest.fixture(params=DENSITIES)
def density(request):
    return request.param


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two rows of x, with their draws."""
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 1)
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 10)


@pytest.fixture
def scales(monkeypatch):
    """What backward found out, of each call."""
    found, real = [], weighed_head.scale_of
    monkeypatch.setattr(weighed_head, "scale_of", lambda *given: found.append(real(*given)) or found[-1])
    return found


def drawn(density, dtype=torch.float32):
    leaves = [torch.randn(K, B, H)]
    for how in DENSITIES[density]:
        leaves += [0.5 + torch.rand(D)] if how is None else [torch.randn(D, H), torch.randn(D)]
    x = torch.poisson(2 * torch.rand(B, D)) if "binomial" in density else torch.rand(B, D)
    if "softmax" in DENSITIES[density]:
        leaves.append(1 + x.sum(1))
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], x.to(dtype), torch.randn(K, B, dtype=dtype)


def log_prob(density, leaves, x, log_ratio):
    hidden, *rest = leaves
    layers = [rest.pop(0) if how is None else Linear(rest.pop(0), rest.pop(0), how) for how in DENSITIES[density]]
    return linear_log_prob(density, hidden, layers, x, library=rest[0] if rest else None, log_ratio=log_ratio)


def bound(density, leaves, x, log_ratio, given):
    return -torch.logsumexp(log_prob(density, leaves, x, log_ratio if given else None) + log_ratio, 0).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_bound(density, dtype, scales, poisoned_memory):
    leaves, x, log_ratio = drawn(density, dtype)
    losses = [bound(density, leaves, x, log_ratio, given) for given in (True, False)]
    torch.testing.assert_close(*losses)
    came, expected = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses)
    torch.testing.assert_close(came, expected, rtol=2e-5, atol=2e-5)
    assert len(scales) == 1
    assert scales[0] == pytest.approx(-1 / B, rel=1e-4)
    again = torch.autograd.grad(losses[0], leaves)
    torch.testing.assert_close(again, came)


def test_a_sum_of_bounds_leaves_nothing_to_be_multiplied(scales):
    leaves, x, log_ratio = drawn("bernoulli")
    (B * bound("bernoulli", leaves, x, log_ratio, True)).backward()
    assert scales == [-1.0]


def test_other_gradients_are_computed_again(density, scales):
    leaves, x, log_ratio = drawn(density)
    for weigh in (torch.sum, lambda values: (values * torch.linspace(-1, 1, B)).sum()):
        came, expected = (weigh(log_prob(density, leaves, x, given)) for given in (log_ratio, None))
        torch.testing.assert_close(torch.autograd.grad(came, leaves), torch.autograd.grad(expected, leaves))
    assert scales == [None, None]


def test_tempered_weights_are_not_taken_for_the_usual_ones(scales):
    leaves, x, log_ratio = drawn("bernoulli")
    losses = [
        torch.logsumexp(0.98 * (log_prob("bernoulli", leaves, x, r) + log_ratio), 0).sum() for r in (log_ratio, None)
    ]
    torch.testing.assert_close(*[torch.autograd.grad(loss, leaves) for loss in losses])
    assert scales == [None]


def test_second_derivatives():
    leaves, x, log_ratio = drawn("gaussian", torch.float64)

    def curvature(given):
        first = torch.autograd.grad(bound("gaussian", leaves, x, log_ratio, given), leaves, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), leaves)

    torch.testing.assert_close(curvature(True), curvature(False), rtol=1e-8, atol=1e-8)


@pytest.fixture
def products(monkeypatch):
    """The calls that compute outputs."""
    calls, real = [], head_chunks._product
    monkeypatch.setattr(head_chunks, "_product", lambda h, *others: calls.append(len(h)) or real(h, *others))
    return calls


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_a_step_of_iwae_computes_outputs_once(gradient, products):
    vae = VAE(MLPEncoder(D, H, 2), MLPDecoder(2, H, D), L.Bernoulli())
    IWAE(K, gradient=gradient)(vae, torch.rand(B, D).round()).loss.backward()
    assert sum(products) == K * B
    assert max(products) <= 10


def test_a_hierarchical_model_computes_outputs_once(products):
    IWAE(K)(HierarchicalVAE.of_mlps(D, H, (2, 3), L.Bernoulli()), torch.rand(B, D).round()).loss.backward()
    assert sum(products) == K * B


def test_the_shape_of_log_ratio_is_checked():
    leaves, x, log_ratio = drawn("bernoulli")
    with pytest.raises(ValueError, match=r"log_ratio has shape \(4, 6\), hidden has \(4, 7, 5\)"):
        log_prob("bernoulli", leaves, x, log_ratio[:, :6])


def test_a_library_of_each_draw_takes_the_plain_op():
    leaves, x, log_ratio = drawn("zero_inflated_negative_binomial")
    leaves[-1] = (leaves[-1] + torch.rand(K, B)).detach().requires_grad_()
    results = []
    for given in (None, log_ratio):
        value = log_prob("zero_inflated_negative_binomial", leaves, x, given)
        results.append((value.detach(), *torch.autograd.grad((value + log_ratio).logsumexp(0).sum(), leaves)))
    for plain, weighed in zip(*results, strict=True):
        torch.testing.assert_close(weighed, plain)
