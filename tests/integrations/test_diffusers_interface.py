"""What users of diffusers' DiagonalGaussianDistribution expect of DiagonalGaussian, and where it differs."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastvae import DiagonalGaussian
from tests.latents.test_distributions import compare, parameters


def test_a_draw_with_a_generator_is_differentiable(backend, device):
    gaussian = DiagonalGaussian(*parameters((3, 4), device))
    draws = [gaussian.sample(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].requires_grad
    assert torch.equal(gaussian.sample(generator=torch.Generator().manual_seed(7)), draws[0])
    assert torch.equal(gaussian.sample(generator=[torch.Generator().manual_seed(7)]), draws[0])
    assert not torch.equal(gaussian.sample(torch.Generator().manual_seed(8)), draws[0])
    torch.manual_seed(3)
    default = gaussian.sample(None)
    assert default.requires_grad
    torch.manual_seed(3)
    assert torch.equal(gaussian.sample(generator=None), default)


def test_with_a_list_of_generators_each_sample_has_its_own(backend, device):
    mu, raw = parameters((3, 4), device)

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    z = DiagonalGaussian(mu, raw).sample(generators(1, 2, 3))
    again = DiagonalGaussian(mu, raw).sample(generator=generators(5, 2, 1))
    assert torch.equal(z[1], again[1])
    assert not torch.equal(z[0], again[0])
    alone = DiagonalGaussian(mu[1:2], raw[1:2]).sample(generators(2))
    assert torch.equal(alone[0], z[1])
    assert torch.autograd.grad(z.sum(), mu)[0].eq(1).all()
    with pytest.raises(ValueError, match="generator is a list of 2, expected one for each sample of batch"):
        DiagonalGaussian(mu, raw).sample(generators(1, 2))
    with pytest.raises(ValueError, match="sample_shape and a list of generators were both given"):
        DiagonalGaussian(mu, raw).sample((2,), generator=generators(1, 2, 3))
    with pytest.raises(TypeError, match="generator is a str"):
        DiagonalGaussian(mu, raw).sample(generator="seed")
    with pytest.raises(TypeError, match="generator is a int"):
        DiagonalGaussian(mu, raw).sample([*generators(1, 2), 3])


def test_mode_is_a_tensor_and_a_method():
    mu, raw = parameters((3, 4), "cpu")
    gaussian = DiagonalGaussian(mu, raw)
    assert torch.equal(gaussian.mode, mu)
    assert type(gaussian.mode()) is torch.Tensor
    assert type(gaussian.mode + 1) is torch.Tensor
    assert type(copy.deepcopy(DiagonalGaussian(mu.detach(), raw).mode)) is torch.Tensor
    file = io.BytesIO()
    torch.save(gaussian.mode, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), mu)
    for loss in (gaussian.mode.sum(), gaussian.mode().sum()):
        assert torch.equal(torch.autograd.grad(loss, mu)[0], torch.ones_like(mu))


def test_kl_and_nll_are_diffusers_formulas(backend, device):
    mu, raw = parameters((2, 4, 3, 3), device)
    other_mu, other_raw = parameters((2, 4, 3, 3), device)
    gaussian = DiagonalGaussian(mu, raw, clamp=(-30.0, 20.0))
    other = DiagonalGaussian(other_mu, other_raw, clamp=(-30.0, 20.0))
    dims = [1, 2, 3]
    compare(gaussian.kl(), 0.5 * torch.sum(mu**2 + raw.exp() - 1.0 - raw, dim=dims), (mu, raw))
    pairwise = (mu - other_mu) ** 2 / other_raw.exp() + raw.exp() / other_raw.exp() - 1.0 - raw + other_raw
    compare(gaussian.kl(other), 0.5 * torch.sum(pairwise, dim=dims), (mu, raw, other_mu, other_raw))
    sample = torch.randn_like(mu)
    terms = 0.5 * (math.log(2 * math.pi) + raw + (sample - mu) ** 2 / raw.exp())
    compare(gaussian.nll(sample), terms.sum(dims), (mu, raw))
    compare(gaussian.nll(sample, dims=[2, 3]), terms.sum([2, 3]), (mu, raw))
    compare(gaussian.nll(sample, dims=1), terms.sum(1), (mu, raw))


def test_attributes_are_diffusers():
    moments = torch.randn(2, 8, 3, 3) * 20
    gaussian = DiagonalGaussian.from_moments(moments, clamp=(-30.0, 20.0))
    mean, logvar = moments.chunk(2, 1)
    assert gaussian.parameters is moments
    assert torch.equal(gaussian.mean, mean)
    assert torch.equal(gaussian.logvar, logvar.clamp(-30.0, 20.0))
    torch.testing.assert_close(gaussian.std, torch.exp(0.5 * gaussian.logvar))
    torch.testing.assert_close(gaussian.var, torch.exp(gaussian.logvar))
    assert gaussian.deterministic is False


def test_kl_of_video_latents_is_summed_over_the_whole_event(backend, device):
    moments = torch.randn(2, 4, 2, 3, 3, device=device)
    mu, raw = moments.chunk(2, 1)
    expected = 0.5 * (mu**2 + raw.exp() - 1.0 - raw).flatten(1).sum(1)
    torch.testing.assert_close(DiagonalGaussian.from_moments(moments).kl(), expected)


def test_a_deterministic_distribution_is_a_point_mass():
    mu, raw = parameters((3, 4), "cpu")
    gaussian = DiagonalGaussian(mu, raw, deterministic=True)
    generators = [torch.Generator() for _ in range(3)]
    for draw in (gaussian.sample(None), gaussian.sample(generators), gaussian.sample(), gaussian.mode()):
        assert torch.equal(draw, mu)
    assert torch.equal(gaussian.rsample((2,)), mu.expand(2, 3, 4))
    assert gaussian.sample((2,), generator=None).shape == (2, 3, 4)
    with torch.no_grad():
        gaussian.sample(None).zero_()  # what is done to a draw is not done to the mean
    assert gaussian.mean.abs().sum() > 0
    assert torch.equal(gaussian.logvar, raw)
    with pytest.raises(ValueError, match="generator is a list of 2"):
        gaussian.sample(generators[:2])
    for zeros in (gaussian.std, gaussian.var):
        assert torch.equal(zeros, torch.zeros(3, 4))
    half = DiagonalGaussian(mu.bfloat16(), raw.bfloat16(), deterministic=True)
    for zeros in (gaussian.kl(), gaussian.nll(mu), gaussian.kl(DiagonalGaussian(mu, raw)), half.kl(), half.nll(mu)):
        assert torch.equal(zeros, torch.zeros(3))
        assert zeros.dtype == torch.float32
    for call in (gaussian.entropy, lambda: gaussian.log_prob(mu)):
        with pytest.raises(NotImplementedError, match="point mass"):
            call()
    for call in (gaussian.sample_and_kl, lambda: kl_divergence(gaussian, Normal(0.0, 1.0))):
        with pytest.raises(ValueError, match="point mass"):
            call()
