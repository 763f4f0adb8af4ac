"""Gradients where a factor is infinite or cancels, and results that depend on the inputs alone, on every backend."""

from __future__ import annotations

import pytest
import torch

import fastvae


def gradients(device, outputs, given, **options):
    leaf = given.to(device).requires_grad_()
    mu = torch.zeros_like(given, device=device)
    z, kl = fastvae.sample_and_kl(mu, leaf, seed=0, **options)
    outputs(z, kl).backward()
    return leaf.grad.cpu()


@pytest.mark.parametrize("num_samples", [None, 2])
def test_a_kl_with_a_gradient_of_0_has_no_part_where_std_is_0(backend, device, num_samples):
    """Its factor is infinite there, and it has one coordinate of a whole batch not count."""
    std = torch.tensor([[0.0, 0.5], [0.7, 0.9]])

    def some(z, kl):
        return z.sum() + (kl * torch.tensor([[0.0, 1.0], [1.0, 1.0]], device=kl.device))[kl.isfinite()].sum()

    came = gradients(device, some, std, scale="std", reduction="none", num_samples=num_samples)
    eps = sum(fastvae.noise(0, (2, 2), draw=k) for k in range(num_samples or 1))
    assert came[0, 0].isfinite()
    torch.testing.assert_close(came[0, 0], eps[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("draws", [(), (3,)])
def test_a_draw_of_the_distribution_has_its_gradient_where_std_is_0(backend, device, draws):
    std = torch.zeros(1, 2, device=device, requires_grad=True)
    fastvae.DiagonalGaussian(torch.zeros(1, 2, device=device), std, scale="std").rsample(draws).sum().backward()
    assert std.grad.isfinite().all()
    assert std.grad.any()


def test_a_prior_of_std_0_gets_no_gradient_from_draws_alone(backend, device):
    prior = [torch.zeros(2, 3, device=device, requires_grad=True) for _ in range(2)]
    mu, std = torch.zeros(2, 3, device=device), torch.ones(2, 3, device=device, requires_grad=True)
    z, _ = fastvae.sample_and_kl(mu, std, *prior, scale="std", seed=0, num_samples=2)
    z.sum().backward()
    assert not any(one.grad.any() for one in prior)  # NaN is any


@pytest.mark.parametrize("raw", [-87.0, -95.0, -120.0])
def test_the_kl_of_softplus_has_its_gradient_where_std_underflows(backend, device, raw):
    """d KL / d x = (std^2 - 1) sigmoid(x) / std, which goes to -1: the quotient of two numbers that both underflow."""
    came = gradients(device, lambda z, kl: kl.sum(), torch.full((1, 2), raw), scale="softplus")
    torch.testing.assert_close(came, torch.full((1, 2), -1.0), rtol=1e-4, atol=0.0)


def test_the_gradient_of_a_soft_clamp_does_not_cancel_near_its_bound(backend, device):
    """1 - tanh^2, which float32 has but a ten-thousandth of at four times the bound."""
    raw = torch.linspace(-30.0, 30.0, 401)
    exact = raw.double().requires_grad_()
    (1.5 * torch.tanh(exact / 1.5)).sum().backward()
    expected = 2.0 / (1.0 + torch.cosh(2.0 * exact.detach() / 1.5))
    for create_graph in (False, True):
        leaf = raw.to(device)[None].requires_grad_()
        mu = torch.zeros_like(leaf)
        kl = fastvae.gaussian_kl(mu, leaf, scale="logvar", soft_clamp=1.5, reduction="none")
        (came,) = torch.autograd.grad(kl.sum(), leaf, create_graph=create_graph)
        of_logvar = 0.5 * torch.expm1(1.5 * torch.tanh(raw.double() / 1.5))
        apart = of_logvar.abs() > 0.1
        ratio = came.detach().cpu().double()[0] / of_logvar
        torch.testing.assert_close(ratio[apart], expected[apart], rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("scale", ["logvar", "logstd", "std", "var", "softplus"])
def test_in_the_reference_nothing_depends_on_how_a_batch_is_split_or_on_threads(scale):
    options = {"scale": scale, "seed": 3, "reduction": "none"}
    for dtype in (torch.float32, torch.float64):
        mu, raw = torch.randn(65, 703, dtype=dtype), torch.rand(65, 703, dtype=dtype) + 0.05
        raw[0] -= 0.0 if scale in ("std", "var") else 3.0

        def step(rows, mu=mu, raw=raw):
            leaves = [one[rows].clone().requires_grad_() for one in (mu, raw)]
            z, kl = fastvae.sample_and_kl(*leaves, row_offset=rows.start or 0, **options)
            total = fastvae.gaussian_kl(*leaves, scale=scale, reduction="sum")
            return z, kl, *torch.autograd.grad(z.sum() + kl.sum(), leaves), total

        before = torch.get_num_threads()
        with fastvae.use_backend("reference"):
            try:
                found = []
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    found.append(step(slice(0, None)))
            finally:
                torch.set_num_threads(before)
            parts = [step(slice(0, 20)), step(slice(20, 65))]
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        for index in range(4):
            assert torch.equal(found[0][index], torch.cat([part[index] for part in parts]))
