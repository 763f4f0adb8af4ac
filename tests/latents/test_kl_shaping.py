"""Free bits, weight, capacity and the KL per coordinate: values and gradients against the formulas written out."""

from __future__ import annotations

import pytest
import torch

import fastvae
from tests.formulas import reduce

ONLY_SHAPE = (4, 3, 2, 5)


def problem(shape, device):
    mu, logvar = (0.7 * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    exact = [t.requires_grad_() for t in (mu, logvar)]
    return exact, [t.detach().float().to(device).requires_grad_() for t in exact]


def elementwise(mu, logvar):
    return 0.5 * (mu**2 + torch.expm1(logvar) - logvar)


def grouped(kl, group):
    """(B, groups): the KL of each group of coordinates."""
    if group == "coordinate":
        return kl.flatten(1)
    return kl.flatten(2).sum(2) if group == "channel" else kl.flatten(1).sum(1, keepdim=True)


def compare(got, inputs, exact, exact_inputs):
    torch.testing.assert_close(got.detach().cpu().double(), exact.detach(), rtol=1e-5, atol=1e-6)
    weights = torch.randn(exact.shape, dtype=torch.float64)
    got_grads = torch.autograd.grad(got, inputs, weights.to(got))
    exact_grads = torch.autograd.grad(exact, exact_inputs, weights, retain_graph=True)
    for one, other in zip(got_grads, exact_grads, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "batchmean"])
@pytest.mark.parametrize("group", ["coordinate", "channel", "latent"])
def test_free_bits_of_each_sample(backend, device, poisoned_memory, group, reduction):
    if reduction == "none" and group != "coordinate":
        pytest.skip("refused: test_bad_arguments_are_named")
    exact, inputs = problem(ONLY_SHAPE, device)
    free = {"coordinate": 0.2, "channel": 3.0, "latent": 8.5}[group]
    kl = grouped(elementwise(*exact), group)
    assert 0.2 < (kl < free).double().mean() < 0.8
    kl = kl.clamp_min(free)
    expected = kl.view(ONLY_SHAPE) if reduction == "none" else reduce(kl, reduction)
    keywords = {"free_bits": free, "free_bits_group": group, "reduction": reduction}
    compare(fastvae.gaussian_kl(*inputs, **keywords), inputs, expected, exact)
    z, kl = fastvae.sample_and_kl(*inputs, seed=1, **keywords)
    compare(kl, inputs, expected, exact)
    assert torch.equal(z, fastvae.reparameterize(*inputs, seed=1))


@pytest.mark.parametrize("reduction", ["sum", "batchmean"])
@pytest.mark.parametrize("group", ["coordinate", "channel", "latent"])
def test_free_bits_of_the_mean_over_the_batch(backend, device, poisoned_memory, group, reduction):
    exact, inputs = problem(ONLY_SHAPE, device)
    free = {"coordinate": 0.3, "channel": 3.0, "latent": 9.0}[group]
    mean = grouped(elementwise(*exact), group).mean(0)
    if group != "latent":
        assert 0 < (mean < free).sum() < mean.numel()
    expected = mean.clamp_min(free).sum() * (ONLY_SHAPE[0] if reduction == "sum" else 1)
    got = fastvae.gaussian_kl(
        *inputs, free_bits=free, free_bits_group=group, free_bits_over="batch", reduction=reduction
    )
    compare(got, inputs, expected, exact)


def test_the_mean_over_the_batch_is_gated_group_by_group(backend, device):
    mu = torch.tensor([[2.0, 0.1], [2.0, 0.1]], device=device, requires_grad=True)
    kl = fastvae.gaussian_kl(
        mu, torch.zeros(2, 2, device=device), free_bits=0.5, free_bits_over="batch", reduction="batchmean"
    )
    assert kl.item() == pytest.approx(2.5)
    assert torch.autograd.grad(kl, mu)[0].tolist() == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("event", [(6,), ()], ids=["vectors", "numbers"])
@pytest.mark.parametrize("group", ["coordinate", "channel", "latent"])
def test_free_bits_of_events_of_lower_rank(backend, device, group, event):
    exact, inputs = problem((5, *event), device)
    kl = elementwise(*exact).reshape(5, -1)
    kl = kl.sum(1, keepdim=True) if group == "latent" else kl
    keywords = {"free_bits": 0.3, "free_bits_group": group}
    compare(fastvae.gaussian_kl(*inputs, **keywords), inputs, kl.clamp_min(0.3).sum(1), exact)
    got = fastvae.gaussian_kl(*inputs, **keywords, free_bits_over="batch", reduction="batchmean")
    compare(got, inputs, kl.mean(0).clamp_min(0.3).sum(), exact)


@pytest.mark.parametrize("reduction", ["sample", "sum", "batchmean"])
def test_weight_and_capacity(backend, device, reduction):
    exact, inputs = problem((6, 5), device)
    capacity = {"sample": 1.7, "sum": 20.0, "batchmean": 1.0}[reduction]
    expected = 4.0 * (reduce(elementwise(*exact), reduction) - capacity).abs()
    compare(fastvae.gaussian_kl(*inputs, beta=4.0, capacity=capacity, reduction=reduction), inputs, expected, exact)


def test_free_bits_come_before_capacity_and_weight(backend, device):
    exact, inputs = problem((6, 5), device)
    expected = 0.5 * (elementwise(*exact).clamp_min(0.2).sum(1).mean() - 3.0).abs()
    got = fastvae.gaussian_kl(*inputs, beta=0.5, capacity=3.0, free_bits=0.2, reduction="batchmean")
    compare(got, inputs, expected, exact)


@pytest.mark.parametrize("shape", [(7, 10), (300, 6), (5, 3, 4, 2), (3, 2100)], ids=str)
def test_the_kl_of_each_coordinate_is_the_mean_over_the_batch(backend, device, poisoned_memory, shape):
    exact, inputs = problem(shape, device)
    for keywords in ({}, {"free_bits": 1.0}, {"beta": 3.0, "reduction": "batchmean"}):
        _kl, each = fastvae.gaussian_kl(*inputs, per_coordinate=True, **keywords)
        assert not each.requires_grad
        torch.testing.assert_close(each.cpu().double(), elementwise(*exact).detach().mean(0), rtol=1e-5, atol=1e-6)


def test_shaping_works_on_packed_moments_and_priors(backend, device):
    moments = torch.randn(4, 6, 2, 2, device=device, requires_grad=True)
    prior = [torch.randn(3, 2, 2, device=device, requires_grad=True) for _ in range(2)]
    keywords = {"seed": 2, "free_bits": 2.0, "free_bits_group": "channel", "beta": 0.5, "per_coordinate": True}
    results = []
    for function in (
        lambda: fastvae.sample_and_kl_packed(moments, *prior, **keywords),
        lambda: fastvae.sample_and_kl(*moments.chunk(2, 1), *prior, **keywords),
    ):
        z, kl, each = function()
        results.append((z, kl, each, *torch.autograd.grad((z.square().sum(), kl.sum()), (moments, *prior))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_nothing_of_the_size_of_the_latent_is_kept(backend, device):
    from .test_autograd import saved_storages

    mu, logvar = (torch.randn(16, 4, 32, device=device, requires_grad=True) for _ in range(2))
    inputs = {t.untyped_storage().data_ptr() for t in (mu, logvar)}
    for keywords in (
        {"free_bits": 0.2},
        {"free_bits": 0.2, "free_bits_over": "batch", "reduction": "batchmean"},
        {"free_bits": 2.0, "free_bits_group": "channel", "per_coordinate": True},
        {"capacity": 1.0, "beta": 2.0},
    ):
        kept, _outputs = saved_storages(lambda keywords=keywords: fastvae.sample_and_kl(mu, logvar, **keywords))
        beyond = sum(size for address, size in kept.items() if address not in inputs)
        assert beyond <= 2 * 4 * 16 * 4 + 8 * 4 * 32 + 16, keywords


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"free_bits": -0.1}, ValueError, "free_bits is -0.1, expected a finite number of 0 or more"),
        ({"free_bits": float("nan")}, ValueError, "free_bits is nan"),
        ({"free_bits": "1"}, TypeError, "free_bits is a str, expected a number"),
        ({"beta": -1.0}, ValueError, "beta is -1.0"),
        ({"capacity": -1.0}, ValueError, "capacity is -1.0"),
        ({"capacity": 1.0, "reduction": "none"}, ValueError, "capacity was given with reduction 'none'"),
        ({"free_bits_group": "pixel"}, ValueError, "free_bits_group is 'pixel', expected one of 'coordinate'"),
        ({"free_bits_over": "epoch"}, ValueError, "free_bits_over is 'epoch', expected one of 'sample', 'batch'"),
        (
            {"free_bits": 1.0, "free_bits_over": "batch"},
            ValueError,
            "free_bits_over is 'batch' with reduction 'sample'",
        ),
        (
            {"free_bits": 1.0, "free_bits_group": "latent", "reduction": "none"},
            ValueError,
            "free_bits_group is 'latent' with reduction 'none'",
        ),
    ],
)
def test_bad_arguments_are_named(keywords, error, message):
    mu = torch.zeros(2, 3, 4)
    for call in (
        lambda: fastvae.gaussian_kl(mu, mu, **keywords),
        lambda: fastvae.sample_and_kl(mu, mu, **keywords),
        lambda: fastvae.sample_and_kl_packed(torch.zeros(2, 6, 4), **keywords),
    ):
        with pytest.raises(error, match=message):
            call()
