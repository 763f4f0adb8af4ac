"""latent-diffusion's and generative-models' latents over the fused ops, against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastvae import DiagonalGaussian
from fastvae.integrations import compvis
from fastvae.integrations.compvis import DiagonalGaussianDistribution, DiagonalGaussianRegularizer

SHAPES = [(2, 6, 4, 4), (3, 4), (2, 4, 2, 3, 3)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SUMS = {torch.float16: torch.float32}  # float16 would overflow


def moments(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(shape, generator=generator).to(dtype)
    given.select(1, -1).fill_(-31.0)  # beyond the clamp, which the formulas would show
    return given.requires_grad_()


def wide(given):
    """mean and clamped logvar in float64, with their gradient."""
    mean, logvar = given.double().chunk(2, 1)
    return mean, logvar.clamp(-30.0, 20.0)


def kl_of(mean, logvar):
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)


def check_gradients(ours, theirs, given, rel):
    ours, theirs = (torch.autograd.grad(value, given)[0].double() for value in (ours, theirs))
    assert torch.allclose(ours, theirs, rtol=rel, atol=rel)
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sample", [True, False])
def test_the_kl_loss_is_the_sum_over_everything_by_sample(shape, dtype, sample):
    given = moments(shape, dtype)
    z, log = DiagonalGaussianRegularizer(sample)(given)
    expected = kl_of(*wide(given)).sum() / len(given)
    assert list(log) == ["kl_loss"]
    assert log["kl_loss"].shape == ()
    assert log["kl_loss"].item() == pytest.approx(expected.item(), rel=TOLERANCES[dtype])
    assert (z.shape, z.dtype) == (given.chunk(2, 1)[0].shape, dtype)
    check_gradients(log["kl_loss"], expected, given, TOLERANCES[dtype])


def test_the_regularizer_draws_around_the_mean():
    mean, logvar = torch.full((64, 8, 16, 16), 3.0), torch.full((64, 8, 16, 16), math.log(0.25))
    given = torch.cat([mean, logvar], 1).requires_grad_()
    torch.manual_seed(0)
    z, _ = DiagonalGaussianRegularizer()(given)
    error = 0.5 / z.numel() ** 0.5
    assert abs(z.mean().item() - 3.0) < 5 * error
    assert abs(z.std().item() - 0.5) < 5 * error
    torch.manual_seed(0)
    again, _ = DiagonalGaussianRegularizer()(given)
    other, _ = DiagonalGaussianRegularizer()(given)
    assert torch.equal(z, again)
    assert not torch.equal(z, other)
    of_mean, of_logvar = torch.autograd.grad(z.sum(), given)[0].chunk(2, 1)
    assert of_mean.eq(1.0).all()
    assert torch.allclose(of_logvar, 0.5 * (z.detach() - 3.0), atol=1e-5)


def test_without_sampling_the_regularizer_gives_the_mode():
    given = moments(SHAPES[0])
    z, _ = DiagonalGaussianRegularizer(sample=False)(given)
    assert torch.equal(z, given.chunk(2, 1)[0])


def test_the_regularizer_has_no_parameters():
    regularizer = DiagonalGaussianRegularizer()
    assert isinstance(regularizer, nn.Module)
    assert list(regularizer.get_trainable_parameters()) == []
    assert regularizer.state_dict() == {}
    assert repr(regularizer) == "DiagonalGaussianRegularizer(sample=True)"
    with pytest.raises(TypeError, match="sample is a int, expected a bool"):
        DiagonalGaussianRegularizer(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_distribution_has_the_values_of_the_formulas(shape, dtype):
    given, rel = moments(shape, dtype), TOLERANCES[dtype]
    posterior = DiagonalGaussianDistribution(given)
    mean, logvar = wide(given)
    expected = {"mean": mean, "logvar": logvar, "std": (0.5 * logvar).exp(), "var": logvar.exp()}
    for name, value in expected.items():
        ours = getattr(posterior, name)
        assert (ours.shape, ours.dtype) == (mean.shape, dtype), name
        assert torch.allclose(ours.double(), value, rtol=rel, atol=rel * 1e-3), name
    assert torch.equal(posterior.mode(), given.chunk(2, 1)[0])
    assert posterior.parameters is given
    assert posterior.deterministic is False
    assert posterior.kl().dtype == SUMS.get(dtype, dtype)
    assert torch.allclose(posterior.kl().double(), kl_of(mean, logvar), rtol=rel)
    check_gradients(posterior.kl().sum(), kl_of(mean, logvar).sum(), given, rel)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_negative_log_likelihood_is_that_of_the_formula(dtype):
    given = moments(SHAPES[0], dtype).detach().clone()
    given.select(1, -1).fill_(0.5)  # nll divides by the variance
    posterior = DiagonalGaussianDistribution(given.requires_grad_())
    mean, logvar = wide(given)
    sample = torch.ones_like(posterior.mean)
    terms = 0.5 * (math.log(2.0 * math.pi) + logvar + (sample.double() - mean).square() / logvar.exp())
    for dims in (None, [1, 2, 3], (1,)):
        nll = posterior.nll(sample) if dims is None else posterior.nll(sample, dims)
        assert nll.dtype == SUMS.get(dtype, dtype)
        assert torch.allclose(nll.double(), terms.sum(dims or [1, 2, 3]), rtol=TOLERANCES[dtype])
    check_gradients(posterior.nll(sample).sum(), terms.sum(), given, TOLERANCES[dtype])


def test_the_kl_between_two_is_that_of_the_formula():
    given = moments(SHAPES[0]).detach()
    given.select(1, -1).fill_(0.5)
    first, second = given.clone().requires_grad_(), given.flip(0)
    kl = DiagonalGaussianDistribution(first).kl(DiagonalGaussianDistribution(second))
    (mean, logvar), (prior_mean, prior_logvar) = wide(first), wide(second)
    terms = (mean - prior_mean).square() / prior_logvar.exp() + (logvar - prior_logvar).exp() - 1.0
    expected = 0.5 * (terms - logvar + prior_logvar).sum((1, 2, 3))
    assert kl.shape == (2,)
    assert torch.allclose(kl.double(), expected, rtol=1e-5)
    check_gradients(kl.sum(), expected.sum(), first, 1e-4)
    with pytest.raises(TypeError, match="other is a DiagonalGaussian, expected a DiagonalGaussianDistribution or None"):
        DiagonalGaussianDistribution(first).kl(DiagonalGaussian.from_moments(second))


def test_a_draw_has_the_posteriors_moments_and_gradients():
    given = torch.cat([torch.full((64, 8, 16, 16), -1.0), torch.full((64, 8, 16, 16), math.log(4.0))], 1)
    z = DiagonalGaussianDistribution(given.requires_grad_()).sample()
    assert z.requires_grad
    assert abs(z.mean().item() + 1.0) < 5 * 2.0 / z.numel() ** 0.5
    assert abs(z.std().item() - 2.0) < 5 * 2.0 / z.numel() ** 0.5


def test_a_deterministic_distribution_is_its_mean():
    given = moments(SHAPES[0])
    posterior = DiagonalGaussianDistribution(given, deterministic=True)
    mean, logvar = wide(given)
    assert posterior.deterministic is True
    assert torch.equal(posterior.sample(), posterior.mean)
    assert torch.equal(posterior.mean.double(), mean)
    assert posterior.std.count_nonzero() == posterior.var.count_nonzero() == 0
    assert torch.equal(posterior.logvar.double(), logvar)
    assert torch.equal(posterior.kl(), torch.zeros(1))
    assert torch.equal(posterior.nll(torch.ones_like(posterior.mean)), torch.zeros(1))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"moments has shape \(2, 3\), expected an even size in dim 1"):
        DiagonalGaussianDistribution(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"moments has shape \(2, 3\), expected an even size in dim 1"):
        DiagonalGaussianRegularizer()(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="deterministic is a str, expected a bool"):
        DiagonalGaussianDistribution(torch.zeros(2, 4), "yes")


@pytest.mark.parametrize("between_two", [False, True])
def test_sums_beyond_the_range_of_float16_are_finite(between_two):
    """latent-diffusion's own formula gives infinity here, unless autocast computes it in float32."""
    given = torch.zeros(1, 8, 4, 4, dtype=torch.float16)
    given[:, :4] = 141.5
    posterior = DiagonalGaussianDistribution(given.requires_grad_())
    prior = DiagonalGaussianDistribution(torch.zeros_like(given)) if between_two else None
    kl, nll = posterior.kl(prior), posterior.nll(torch.zeros_like(posterior.mean))
    expected = 0.5 * 64 * 141.5**2
    torch.testing.assert_close(kl, torch.tensor([expected]))
    torch.testing.assert_close(nll, torch.tensor([expected + 32 * math.log(2.0 * math.pi)]))
    of_kl, of_nll = (torch.autograd.grad(one.sum(), given)[0][:, :4] for one in (kl, nll))
    assert of_kl.dtype == torch.float16
    assert of_kl.eq(141.5).all()
    assert of_nll.eq(141.5).all()


def test_sums_have_the_dtype_of_the_formula_under_autocast(monkeypatch):
    """Autocast on a GPU computes exp and pow in float32; that of the CPU leaves them as they are."""
    given = torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)
    posterior = DiagonalGaussianDistribution(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert posterior.kl().dtype == given.exp().dtype
    monkeypatch.setattr(compvis, "formula_dtype", lambda tensor: torch.float32)
    assert posterior.kl().dtype == torch.float32
    assert posterior.nll(torch.zeros_like(given[:, :4])).dtype == torch.float32
