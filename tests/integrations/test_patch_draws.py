"""Draws and KLs of torch's Normals under `fastvae.patch`: what autograd may do with them, and what is remembered."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

import fastvae
from fastvae.integrations.support import formula_dtype

pytestmark = pytest.mark.usefixtures("patched")


@pytest.fixture
def patched():
    with fastvae.patch("torch"):
        yield


def computed(shape=(4, 3), seed=0):
    """Parameters as an encoder gives them."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return weights * 2, weights.exp()


def draw_and_kl(loc, scale):
    posterior = Normal(loc, scale)
    z = posterior.rsample()
    kl = kl_divergence(posterior, Normal(0.0, 1.0))
    assert kl.grad_fn is z.grad_fn  # one pass
    return z, kl


def exact_gradients(loc, scale, z):
    return {"draw": (torch.ones_like(loc), (z - loc) / scale), "KL": (loc, scale - 1 / scale)}


@pytest.mark.parametrize("order", [("draw", "KL"), ("KL", "draw")])
def test_backward_goes_through_draw_and_kl_one_after_the_other(order):
    loc, scale = computed()
    outputs = dict(zip(("draw", "KL"), draw_and_kl(loc, scale), strict=True))
    expected = exact_gradients(loc, scale, outputs["draw"])
    for name in order:
        found = torch.autograd.grad(outputs[name].sum(), (loc, scale))
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match=f"the {name} of a Normal a second time, expected retain_graph=True"):
            torch.autograd.grad(outputs[name].sum(), (loc, scale))


def test_a_retained_graph_allows_a_second_backward():
    loc, scale = computed()
    z, kl = draw_and_kl(loc, scale)
    first, second = (torch.autograd.grad((z + kl).sum(), (loc, scale), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_saved_tensors_are_freed_after_both_backwards():
    loc, scale = computed()
    z, kl = draw_and_kl(loc, scale)
    kept = weakref.ref(scale)
    del scale
    assert kept() is not None
    (z + kl).sum().backward()
    assert kept() is None
    del z, kl


@pytest.mark.parametrize("draws", [(), (5,)])
def test_a_draw_allows_in_place_changes_of_its_parameters(draws):
    loc, scale = computed()
    z = Normal(loc, scale).rsample(draws)
    eps = ((z - loc) / scale).detach()
    loc.add_(1.0)
    (gradient,) = torch.autograd.grad(z.sum(), scale)
    torch.testing.assert_close(gradient, eps.sum(0) if draws else eps, rtol=1e-4, atol=1e-5)


def test_a_kl_raises_an_error_after_in_place_changes():
    loc, scale = computed()
    _, kl = draw_and_kl(loc, scale)
    loc.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place after a draw and before backward through its KL"):
        kl.sum().backward()


@pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
def test_gradients_in_batches(way):
    loc, scale = computed()
    z, kl = draw_and_kl(loc, scale)
    directions = torch.randn(5, *loc.shape)

    def gradients_of(output, inputs):
        if way == "vmap":
            return torch.func.vmap(lambda one: torch.autograd.grad(output, inputs, one, retain_graph=True))(directions)
        return torch.autograd.grad(output, inputs, directions, is_grads_batched=True, retain_graph=True)

    expected = exact_gradients(loc, scale, z)
    for name, output in (("draw", z), ("KL", kl)):
        found = gradients_of(output, (loc, scale))
        assert not found[0].requires_grad
        torch.testing.assert_close(
            found, tuple(directions * exactly for exactly in expected[name]), rtol=1e-4, atol=1e-5
        )


def test_gradients_of_gradients_of_a_draw():
    weights = torch.tensor([[0.5, -1.0]], requires_grad=True)
    z = Normal(weights * 1, weights.exp()).rsample()
    (first,) = torch.autograd.grad(z.sum(), weights, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weights)
    torch.testing.assert_close(second, z.detach() - weights.detach())  # d2/dw2 (w + e^w eps) = e^w eps


def test_saved_tensors_hooks_and_checkpointing_work():
    loc, scale = computed()
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        Normal(loc, scale).rsample()
    assert {scale.data_ptr()} <= {tensor.data_ptr() for tensor in packed}

    def draw(loc, scale):
        posterior = Normal(loc, scale)
        return posterior.rsample() + kl_divergence(posterior, Normal(0.0, 1.0))

    gradients = []
    for run in (draw, lambda *given: checkpoint(draw, *given, use_reentrant=False)):
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(run(loc, scale).sum(), (loc, scale)))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (300, 100)])
def test_a_prior_is_inspected_again_for_each_kl(shape):
    loc, scale = computed((300, 100) if shape == (300, 100) else (4, 3))
    prior = Normal(torch.zeros(shape), torch.ones(shape))
    posterior = Normal(loc, scale)
    for change in (0.0, 1.0, 0.5):
        prior.loc.data.fill_(change)  # of which no version tells
        prior.scale.data.fill_(1.0 + change)
        kl_divergence(posterior, prior)
        posterior.rsample()
        expected = torch.log(prior.scale / scale) + (scale**2 + (loc - prior.loc) ** 2) / (2 * prior.scale**2) - 0.5
        torch.testing.assert_close(kl_divergence(posterior, prior), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
def test_copies_have_no_cache(again):
    prior = Normal(torch.zeros(3), torch.ones(3))
    copied = again(prior)
    assert b"fastvae." not in pickle.dumps(prior)
    copied.loc = torch.ones(3)
    posterior = Normal(torch.zeros(2, 3), torch.ones(2, 3))
    assert torch.equal(kl_divergence(posterior, copied), torch.full((2, 3), 0.5))
    assert torch.equal(kl_divergence(posterior, prior), torch.zeros(2, 3))


def test_a_copy_of_a_drawn_normal_has_a_kl_of_its_own():
    posterior = Normal(*computed())
    posterior.rsample()
    copied = copy.copy(posterior)
    first, second = (kl_divergence(one, Normal(0.0, 1.0)) for one in (posterior, copied))
    before = second.detach().clone()
    first.mul_(0.0)
    assert torch.equal(second, before)


@pytest.mark.parametrize("size", [5, 70_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_invalid_value_is_found_at_any_position(size, dtype):
    for place in (0, 1, size - 1):
        for name, value in (("loc", float("nan")), ("scale", float("nan")), ("scale", 0.0), ("scale", -1.0)):
            given = {"loc": torch.zeros(size, dtype=dtype), "scale": torch.ones(size, dtype=dtype)}
            given[name][place] = value
            with pytest.raises(ValueError, match=f"Expected parameter {name}"):
                Normal(**given, validate_args=True)
    strided = torch.ones(size, 2, dtype=dtype)
    strided[-1, 1] = 0.0
    Normal(strided[:, 0], strided[:, 0], validate_args=True)
    with pytest.raises(ValueError, match="Expected parameter scale"):
        Normal(strided[:, 0], strided[:, 1], validate_args=True)


@pytest.mark.parametrize("place", [0, 1, 69_999])
def test_one_different_value_makes_a_prior_non_standard(place):
    loc, scale = computed((1, 70_000))
    for name in ("loc", "scale"):
        given = {"loc": torch.zeros(70_000), "scale": torch.ones(70_000)}
        given[name][place] = 2.0
        posterior = Normal(loc, scale)
        z = posterior.rsample()
        prior = Independent(Normal(**given), 0)
        assert kl_divergence(Independent(posterior, 0), prior).grad_fn is not z.grad_fn


def test_formula_dtype_is_that_of_exp_under_autocast():
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert formula_dtype(half) == half.exp().dtype
        with torch.library._scoped_library("aten", "IMPL") as overridden:  # as CUDA's autocast has it
            overridden.impl("exp", lambda given: torch.sigmoid(given).float(), "AutocastCPU")
            assert formula_dtype(half) == torch.float32
    assert formula_dtype(half) == torch.bfloat16
