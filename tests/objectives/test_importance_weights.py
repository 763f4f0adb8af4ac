"""Importance weights that count as 0: the same bound, and no denormal numbers in its gradients."""

from __future__ import annotations

import math

import pytest
import torch

import fastvae.likelihoods as L
from fastvae.importance_weights import smallest_weight
from fastvae.likelihoods import Linear, linear_log_prob
from fastvae.objectives import iwae_bound

FAR = torch.tensor([[0.0, -700.0], [-30.0, -690.0], [-90.0, -650.0], [-200.0, -600.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_is_the_same_and_small_weights_get_no_gradient(dtype):
    given = FAR.to(dtype).requires_grad_()
    bound = iwae_bound(given)
    assert torch.equal(bound, torch.logsumexp(given, 0) - math.log(4))
    (came,) = torch.autograd.grad(bound.sum(), given)
    weights = torch.softmax(given.detach(), 0)
    torch.testing.assert_close(came, weights, rtol=1e-6, atol=smallest_weight(dtype))
    assert torch.equal(came > 0, weights > smallest_weight(dtype))


def test_nan_and_infinity_stay():
    log_weights = torch.tensor([[0.0, -math.inf], [math.nan, -math.inf]], requires_grad=True)
    bound = iwae_bound(log_weights)
    assert bound[0].isnan()
    assert bound[1] == -math.inf
    assert torch.autograd.grad(bound.sum(), log_weights)[0].isnan().all()


def test_weighed_heads_have_no_denormal_gradients():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 2, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    x, ratio = torch.rand(2, 9).round(), 5 * FAR
    log_prob = linear_log_prob("bernoulli", hidden, [Linear(weight)], x, log_ratio=ratio)
    of_hidden, of_weight = torch.autograd.grad(iwae_bound(log_prob + ratio).sum(), [hidden, weight])
    plain = L.bernoulli_log_prob(torch.nn.functional.linear(hidden, weight), x)
    expected = torch.autograd.grad(torch.logsumexp(plain + ratio, 0).sum(), [hidden, weight])
    torch.testing.assert_close((of_hidden, of_weight), expected, rtol=1e-5, atol=1e-6)
    sizes = of_hidden.abs().flatten()
    assert (of_hidden[0] == 0).all(1).tolist() == [False, True]
    assert not ((sizes > 0) & (sizes < torch.finfo(torch.float32).tiny)).any()
