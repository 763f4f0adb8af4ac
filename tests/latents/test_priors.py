"""Priors: densities, KLs and gradients against torch.distributions, and what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

import fastvae
from fastvae.priors import GaussianMixture, LearnedGaussian, Prior, StandardNormal, VampPrior

SHAPE = (3, 2)
KINDS = ("standard", "learned", "mixture", "vamp")


class Encoder(nn.Module):
    """mu and logvar, (B, 3, 2) each, of x (B, 4)."""

    latent_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 12)

    def forward(self, x):
        mu, logvar = self.layer(x).unflatten(1, (2, *SHAPE)).unbind(1)
        return mu, logvar


def make(kind: str) -> Prior:
    """A prior that is not where it started."""
    prior = {
        "standard": lambda: StandardNormal(SHAPE),
        "learned": lambda: LearnedGaussian(SHAPE),
        "mixture": lambda: GaussianMixture(SHAPE, 5),
        "vamp": lambda: VampPrior(Encoder(), 4, 5),
    }[kind]()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape))
    return prior


def in_torch(prior: Prior):
    """The same in torch.distributions, float64."""
    if isinstance(prior, StandardNormal):
        return Independent(Normal(torch.zeros(SHAPE, dtype=torch.float64), 1.0), 2)
    if isinstance(prior, LearnedGaussian):
        return Independent(Normal(prior.mu.double(), torch.exp(prior.logvar.double() / 2)), 2)
    if isinstance(prior, GaussianMixture):
        logits, mu, logvar = prior.logits.double(), prior.mu.double(), prior.logvar.double()
    else:
        mu, logvar = (part.double() for part in prior.encoder(prior.pseudo_inputs))
        logits = torch.zeros(len(mu), dtype=torch.float64)
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mu, torch.exp(logvar / 2)), 2))


def posterior(batch: int = 6, dtype: torch.dtype = torch.float32):
    return [(0.6 * torch.randn(batch, *SHAPE)).to(dtype).requires_grad_() for _ in range(2)]


# Densities


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (4, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_that_of_torch_distributions(kind, shape, dtype):
    prior = make(kind)
    if dtype == torch.float64:
        prior = prior.double()
        if kind == "vamp":
            prior.encoder.double()
    z = torch.randn(*shape, *SHAPE).to(dtype)
    log_prob = prior.log_prob(z)
    assert log_prob.shape == shape
    assert log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = in_torch(prior).log_prob(z.double())
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(log_prob.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_log_prob_are_those_of_torch_distributions(kind):
    prior = make(kind)
    z = torch.randn(7, *SHAPE, requires_grad=True)
    inputs = [z, *prior.parameters()]
    exact = torch.autograd.grad(in_torch(prior).log_prob(z.double()).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(prior.log_prob(z).sum(), inputs), exact, rtol=1e-4, atol=1e-5)


def test_a_mixture_far_away_has_a_finite_log_prob():
    prior = GaussianMixture(2, 3)
    assert torch.isfinite(prior.log_prob(torch.full((1, 2), 1e4))).all()


# Draws


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_density(kind):
    prior = make(kind)
    z = prior.sample(200_000, seed=0)
    assert z.shape == (200_000, *SHAPE)
    assert not z.requires_grad
    exact = in_torch(prior)
    torch.testing.assert_close(z.double().mean(0), exact.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(z.double().var(0), exact.variance, rtol=0.02, atol=0.0)


def test_components_are_drawn_with_their_weights():
    prior = GaussianMixture(1, 4)
    with torch.no_grad():
        prior.mu.copy_(torch.tensor([[0.0], [100.0], [200.0], [300.0]]))
        prior.logits.copy_(torch.tensor([0.1, 0.2, 0.0, 0.7]).log())
    drawn = torch.bincount((prior.sample(100_000, seed=3) / 100).round().long().flatten(), minlength=4) / 100_000
    torch.testing.assert_close(drawn, torch.tensor([0.1, 0.2, 0.0, 0.7]), rtol=0, atol=0.006)


def test_the_component_does_not_depend_on_where_in_it_z_falls():
    prior = GaussianMixture(1, 2)
    with torch.no_grad():
        prior.mu.copy_(torch.tensor([[-50.0], [50.0]]))
    z = prior.sample(100_000, seed=0)
    for sign in (-1.0, 1.0):
        within = z[z.sign() == sign] - 50.0 * sign
        assert within.mean().abs() < 0.02
        assert (within.var() - 1.0).abs() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_only_seed_and_generator_determine_the_draw(kind):
    prior = make(kind)
    state = torch.get_rng_state()
    assert torch.equal(prior.sample(5, seed=1), prior.sample(5, seed=torch.tensor([1])))
    assert not torch.equal(prior.sample(5, seed=1), prior.sample(5, seed=2))
    first = prior.sample(5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(prior.sample(5, generator=torch.Generator().manual_seed(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(prior.sample(3, seed=1), prior.sample(5, seed=1)[:3])
    assert prior.sample(0).shape == (0, *SHAPE)


def test_the_standard_normal_draws_the_noise_stream():
    assert torch.equal(StandardNormal(SHAPE).sample(5, seed=1), fastvae.noise(1, (5, *SHAPE)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_dtype_of_the_module(kind, dtype):
    prior = make(kind).to(dtype)
    if kind == "vamp":
        prior.encoder.to(dtype)
    z = prior.sample(3, seed=0)
    assert z.dtype == dtype
    assert prior.log_prob(z).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# The KL


@pytest.mark.parametrize("kind", ["standard", "learned"])
def test_the_closed_form_is_torchs_kl_divergence(kind):
    prior = make(kind)
    mu, logvar = posterior()
    z, kl = prior.sample_and_kl(mu, logvar, seed=3)
    exact = kl_divergence(Independent(Normal(mu.double(), torch.exp(logvar.double() / 2)), 2), in_torch(prior))
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-6)
    inputs = [mu, logvar, *prior.parameters()]
    came, expected = (torch.autograd.grad(value.sum(), inputs, retain_graph=True) for value in (kl, exact))
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(z, fastvae.reparameterize(mu, logvar, seed=3))


@pytest.mark.parametrize("kind", ["mixture", "vamp"])
def test_the_estimated_kl_is_that_of_the_draw(kind):
    prior = make(kind)
    mu, logvar = posterior()
    z, kl = prior.sample_and_kl(mu, logvar, seed=3)
    assert torch.equal(z, fastvae.reparameterize(mu, logvar, seed=3))
    exact_inputs = [t.detach().double().requires_grad_() for t in (mu, logvar)]
    eps = fastvae.noise(3, mu.shape, dtype=torch.float64)
    std = torch.exp(exact_inputs[1] / 2)
    exact_z = exact_inputs[0] + std * eps
    exact = Independent(Normal(exact_inputs[0], std), 2).log_prob(exact_z) - in_torch(prior).log_prob(exact_z)
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-5)
    weights = list(prior.parameters())
    came = torch.autograd.grad(kl.sum(), [mu, logvar, *weights])
    expected = torch.autograd.grad(exact.sum(), [*exact_inputs, *weights])
    torch.testing.assert_close([g.double() for g in came], [g.double() for g in expected], rtol=1e-3, atol=1e-4)


def test_the_estimated_kl_is_right_on_average():
    prior = GaussianMixture(1, 3)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.5, -0.5, 0.0]))
        prior.logvar.copy_(torch.tensor([[0.3], [-1.0], [-2.0]]))
    mu, std = 0.4, 0.7
    z = torch.linspace(mu - 12 * std, mu + 12 * std, 20_001, dtype=torch.float64)
    log_q = Normal(torch.tensor(mu, dtype=torch.float64), std).log_prob(z)
    integral = torch.trapezoid(log_q.exp() * (log_q - prior.double().log_prob(z.unsqueeze(1))), z).item()
    n = 200_000
    full = torch.full((n, 1), mu, dtype=torch.float64)
    _, kl = prior.sample_and_kl(full, torch.full_like(full, std).log() * 2, seed=0)
    assert kl.std().item() > 0.1
    assert abs(kl.mean().item() - integral) < 4 * kl.std().item() / n**0.5
    assert (kl < 0).any(), "the estimate of one sample may be negative"


@pytest.mark.parametrize("kind", KINDS)
def test_shaping_of_the_kl_of_a_sample(kind):
    prior = make(kind)
    mu, logvar = posterior(40)
    kl = prior.sample_and_kl(mu, logvar, seed=0)[1]
    free = kl.median().item()
    cases = {
        "sum": ({"reduction": "sum"}, kl.sum()),
        "batchmean": ({"reduction": "batchmean"}, kl.mean()),
        "beta": ({"beta": 2.5}, 2.5 * kl),
        "capacity": ({"capacity": 3.0, "beta": 4.0, "reduction": "batchmean"}, 4.0 * (kl.mean() - 3.0).abs()),
        "free bits": ({"free_bits": free, "free_bits_group": "latent"}, kl.clamp_min(free)),
        "mean of free bits": (
            {"free_bits": free, "free_bits_group": "latent", "reduction": "batchmean"},
            kl.clamp_min(free).mean(),
        ),
        "free bits of the mean": (
            {"free_bits": 99.0, "free_bits_group": "latent", "free_bits_over": "batch", "reduction": "batchmean"},
            torch.tensor(99.0),
        ),
        "sum of free bits of the mean": (
            {"free_bits": 0.01, "free_bits_group": "latent", "free_bits_over": "batch", "reduction": "sum"},
            kl.sum(),
        ),
    }
    for name, (keywords, expected) in cases.items():
        came = prior.sample_and_kl(mu, logvar, seed=0, **keywords)[1]
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_free_bits_stop_the_gradient_of_an_estimate_below_them():
    mu, logvar = posterior(40)
    _, kl = make("mixture").sample_and_kl(mu, logvar, seed=0)
    free = kl.median().item()
    _, shaped = make("mixture").sample_and_kl(mu, logvar, seed=0, free_bits=free, free_bits_group="latent")
    (gradient,) = torch.autograd.grad(shaped.sum(), mu)
    assert torch.equal(gradient.flatten(1).any(1), shaped > free)
    assert 0 < (shaped > free).sum() < 40


def test_per_coordinate_needs_a_closed_form():
    mu, logvar = posterior()
    *_, each = make("learned").sample_and_kl(mu, logvar, per_coordinate=True)
    assert each.shape == SHAPE
    assert not each.requires_grad
    with pytest.raises(ValueError, match="per_coordinate is True, expected False: the KL to a GaussianMixture is est"):
        make("mixture").sample_and_kl(mu, logvar, per_coordinate=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_of_another_dtype(kind, dtype):
    mu, logvar = posterior(dtype=dtype)
    prior = make(kind)
    z, kl = prior.sample_and_kl(mu, logvar, seed=0)
    assert z.dtype == dtype
    assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = prior.sample_and_kl(mu.float(), logvar.float(), seed=0)[1]
    torch.testing.assert_close(kl, expected.to(kl.dtype), rtol=0.03, atol=0.3)
    kl.sum().backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())


# Many draws


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_and_their_densities(kind, hold):
    prior = make(kind)
    mu, logvar = posterior()
    z, log_q, log_p = prior.sample_and_log_prob(mu, logvar, 4, seed=3, row_offset=10, hold_posterior=hold)
    eps = torch.stack([fastvae.noise(3, mu.shape, row_offset=10, draw=k) for k in range(4)])
    torch.testing.assert_close(z, mu + torch.exp(logvar / 2) * eps, rtol=1e-5, atol=1e-5)
    exact_q = Independent(Normal(mu.double(), torch.exp(logvar.double() / 2)), 2).log_prob(z.double())
    torch.testing.assert_close(log_q.double(), exact_q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_p.double(), in_torch(prior).log_prob(z.double()), rtol=1e-5, atol=1e-5)
    assert z.shape == (4, 6, *SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_held_posterior_gets_its_gradient_through_z_alone(kind):
    prior = make(kind)
    mu, logvar = posterior()
    z, log_q, log_p = prior.sample_and_log_prob(mu, logvar, 4, seed=3, hold_posterior=True)
    through_z = torch.autograd.grad((log_p - log_q).sum(), z, retain_graph=True)[0]
    eps = torch.stack([fastvae.noise(3, mu.shape, draw=k) for k in range(4)])
    expected = [through_z.sum(0), (through_z * 0.5 * torch.exp(logvar / 2) * eps).sum(0)]
    came = torch.autograd.grad((log_p - log_q).sum(), [mu, logvar])
    torch.testing.assert_close(list(came), [part.detach() for part in expected], rtol=1e-4, atol=1e-4)
    with_respect_to_z = -eps * torch.exp(-logvar / 2)
    exact_z = z.detach().double().requires_grad_()
    of_prior = torch.autograd.grad(in_torch(prior).log_prob(exact_z).sum(), exact_z)[0]
    torch.testing.assert_close(through_z.double(), (of_prior - with_respect_to_z).detach(), rtol=1e-4, atol=1e-4)


def test_one_draw_without_a_dimension_for_it():
    mu, logvar = posterior()
    z, log_q, log_p = make("mixture").sample_and_log_prob(mu, logvar, None, seed=0)
    assert z.shape == mu.shape
    assert log_q.shape == log_p.shape == (6,)


def test_latents_of_one_number():
    mixture = GaussianMixture((), 3)
    mu, logvar = torch.randn(5), torch.zeros(5)
    assert mixture.sample(4).shape == (4,)
    for prior in (mixture, LearnedGaussian(()), StandardNormal(())):
        assert prior.log_prob(mu).shape == (5,)
        z, kl = prior.sample_and_kl(mu, logvar, free_bits=0.5, free_bits_group="latent")
        assert z.shape == kl.shape == (5,)
        assert (kl >= 0.5).all()
