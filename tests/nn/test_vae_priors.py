"""The VAE's prior, its importance weights, and what encoders and decoders may return."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastvae
from fastvae.likelihoods import Bernoulli, Gaussian
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.priors import LearnedGaussian, VampPrior

from .test_vae import SHAPE, _ImageEncoder, _vae, _x

# Priors


def _normal(mu: torch.Tensor, logvar: torch.Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(mu, torch.exp(0.5 * logvar))


def _with_learned_prior() -> VAE:
    vae = VAE(MLPEncoder(SHAPE, 16, 6), MLPDecoder(6, 16, SHAPE), Bernoulli(), prior=LearnedGaussian(6)).double()
    torch.nn.init.normal_(vae.prior.mu)
    torch.nn.init.normal_(vae.prior.logvar)
    return vae


def test_a_learned_prior_has_the_bound_that_torch_distributions_computes():
    vae, x = _with_learned_prior(), _x(dtype=torch.float64)
    posterior, prior = _normal(*vae.encoder(x)), _normal(vae.prior.mu, vae.prior.logvar)
    z = posterior.loc + posterior.scale * fastvae.noise(3, (8, 6), dtype=torch.float64)
    reconstruction = torch.distributions.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum((1, 2, 3))
    expected = reconstruction - torch.distributions.kl_divergence(posterior, prior).sum(1)
    came = vae.elbo(x, seed=3).elbo
    torch.testing.assert_close(came, expected)
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(came.mean(), parameters), torch.autograd.grad(expected.mean(), parameters)
    )


def _weights_in_plain_torch(vae: VAE, x: torch.Tensor, seed: int, hold_posterior: bool) -> torch.Tensor:
    mu, logvar = vae.encoder(x)
    eps = torch.stack([fastvae.noise(seed, mu.shape, draw=k, dtype=mu.dtype) for k in range(3)])
    z = mu + torch.exp(0.5 * logvar) * eps
    of_log_q = _normal(mu.detach(), logvar.detach()) if hold_posterior else _normal(mu, logvar)
    if vae.prior is None or not vae.prior.state_dict():
        prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    else:
        prior = _normal(vae.prior.mu, vae.prior.logvar)
    pixels = torch.distributions.Bernoulli(logits=vae.decoder(z.flatten(0, 1)).unflatten(0, (3, -1)))
    log_likelihood = pixels.log_prob(x.expand(3, *x.shape)).flatten(2).sum(2)
    return log_likelihood + prior.log_prob(z).sum(2) - of_log_q.log_prob(z).sum(2)


class _NamelessEncoder(nn.Module):
    """Says nothing of the shape of z."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = MLPEncoder(SHAPE, 16, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers(x)


@pytest.mark.parametrize("hold_posterior", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: _vae().double(),
        _with_learned_prior,
        lambda: VAE(_NamelessEncoder(), MLPDecoder(6, 16, SHAPE), Bernoulli()).double(),
    ],
    ids=["N(0, I)", "learned", "no latent shape"],
)
def test_log_weights_are_those_that_torch_distributions_computes(make, hold_posterior):
    vae, x = make(), _x(dtype=torch.float64)
    came = vae.log_weights(x, 3, seed=4, hold_posterior=hold_posterior).log_weights
    expected = _weights_in_plain_torch(vae, x, 4, hold_posterior)
    torch.testing.assert_close(came, expected)
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(came.logsumexp(0).mean(), parameters),
        torch.autograd.grad(expected.logsumexp(0).mean(), parameters),
    )


def test_the_draws_of_log_weights_are_on_the_way_of_the_gradient():
    vae = _vae()
    drawn = vae.log_weights(_x(), 3, seed=0, hold_posterior=True)
    (z,) = drawn.z
    z.register_hook(torch.zeros_like)
    drawn.log_weights.sum().backward()
    assert all(not parameter.grad.any() for parameter in vae.encoder.parameters())
    assert all(parameter.grad.any() for parameter in vae.decoder.parameters())


def test_log_likelihood_under_the_prior_decodes_draws_of_the_prior():
    vae, x = _vae(), _x()
    came = vae.log_likelihood_under_prior(x, 4, seed=9)
    logits = vae.decoder(fastvae.noise(9, (4, 6)))
    expected = torch.stack([Bernoulli().log_prob(one.expand(x.shape), x) for one in logits])
    torch.testing.assert_close(came, expected)


def test_free_bits_are_those_of_the_fused_op():
    vae, x = _vae(), _x()
    shaping = {"free_bits": 0.05, "free_bits_over": "batch", "beta": 2.0}
    terms = vae.terms(x, seed=1, per_coordinate=True, **shaping)
    _, kl, each = fastvae.sample_and_kl(*vae.encode(x), seed=1, reduction="batchmean", per_coordinate=True, **shaping)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.kl_per_latent, (each,))


def test_generate_draws_from_the_models_prior():
    prior = LearnedGaussian(6)
    nn.init.constant_(prior.mu, 5.0)
    vae = VAE(MLPEncoder(SHAPE, 16, 6), MLPDecoder(6, 16, SHAPE), Bernoulli(), prior=prior)
    torch.testing.assert_close(vae.generate(4, seed=1), vae.decode(prior.sample(4, seed=1)))
    torch.testing.assert_close(vae.generate(4, seed=1), vae.decode(5.0 + fastvae.noise(1, (4, 6))))


def test_the_encoder_of_a_vamp_prior_is_the_models_own_and_there_once():
    encoder = MLPEncoder(SHAPE, 16, 6)
    vae = VAE(encoder, MLPDecoder(6, 16, SHAPE), Bernoulli(), prior=VampPrior(encoder, SHAPE, 3))
    assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.pseudo_inputs"]
    for twin in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert twin.prior.encoder is twin.encoder
        assert twin.encoder is not encoder


def test_the_standard_prior_is_not_part_of_the_state():
    assert {name.partition(".")[0] for name in _vae().state_dict()} == {"encoder", "decoder"}


def test_a_model_of_modules_in_another_dtype_generates_in_theirs():
    vae = VAE(MLPEncoder(SHAPE, 16, 6).double(), MLPDecoder(6, 16, SHAPE).double(), Bernoulli())
    expected = vae.decode(fastvae.noise(0, (2, 6), dtype=torch.float64))
    torch.testing.assert_close(vae.generate(2, seed=0), expected, rtol=0, atol=1e-12)


# Moments in one tensor, and parameters in several


class _MomentsEncoder(nn.Module):
    """mu and logvar of latents with a shape, in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_an_encoder_may_return_moments_in_one_tensor():
    encoder, decoder, x = _MomentsEncoder(), nn.Conv2d(2, 1, 3, padding=1), _x()
    vae = VAE(encoder, decoder, Bernoulli(), latent_shape=(2, 4, 5))
    pair = VAE(_ImageEncoder(), decoder, Bernoulli(), latent_shape=(2, 4, 5))
    pair.encoder.conv = encoder.conv
    torch.testing.assert_close(vae(x, seed=0), pair(x, seed=0))
    torch.testing.assert_close(vae.log_weights(x, 2, seed=0), pair.log_weights(x, 2, seed=0))
    assert vae.encode(x)._fields == ("mu", "logvar")
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(vae.elbo(x, seed=0).elbo.sum(), parameters),
        torch.autograd.grad(pair.elbo(x, seed=0).elbo.sum(), parameters),
    )


@pytest.mark.parametrize("prior", [None, LearnedGaussian(6)])
def test_moments_of_the_mlp_encoder_are_read_where_the_last_layer_put_them(prior):
    vae = VAE(MLPEncoder(SHAPE, 16, 6), MLPDecoder(6, 16, SHAPE), Bernoulli(), prior=prior)
    z = vae(_x()).z  # the graph lives as long as it does
    behind_the_draw = [function.name() for function, _ in z.grad_fn.next_functions if function is not None]
    assert behind_the_draw[0] == "AddmmBackward0"  # no chunk between the linear layer and the op


def test_hooks_of_the_encoder_see_its_pass():
    vae, seen = _vae(), []
    vae.encoder.register_forward_hook(lambda module, inputs, moments: seen.append(moments.shape))
    vae.elbo(_x())
    assert seen == [(8, 12)]


class _TwoHeads(nn.Module):
    """Decoders of Gaussians with a variance for each pixel return two tensors; a shared one has no rows."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.mean = MLPDecoder(6, 16, SHAPE)
        self.logvar = MLPDecoder(6, 16, SHAPE)
        self.shared = nn.Parameter(torch.randn(SHAPE)) if shared else None

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean(z), self.logvar(z) if self.shared is None else self.shared


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("takes_draws", [False, True])
def test_decoders_may_return_several_parameters(takes_draws, shared):
    vae, x = VAE(MLPEncoder(SHAPE, 16, 6), _TwoHeads(shared), Gaussian(None)), _x()
    vae.likelihood.takes_draws = takes_draws
    drawn = vae.log_weights(x, 3, seed=2)
    posterior, standard = _normal(*vae.encode(x)), torch.distributions.Normal(0.0, 1.0)
    for z, came in zip(drawn.z[0], drawn.log_weights, strict=True):
        log_likelihood = _normal(*vae.decoder(z)).log_prob(x).flatten(1).sum(1)
        expected = log_likelihood + (standard.log_prob(z) - posterior.log_prob(z)).sum(1)
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-4)
    z = fastvae.noise(5, (4, 6))
    mean, logvar = vae.decoder(z)
    expected = _normal(mean.unsqueeze(1), logvar if shared else logvar.unsqueeze(1)).log_prob(x).flatten(2).sum(2)
    torch.testing.assert_close(vae.log_likelihood_under_prior(x, 4, seed=5), expected, rtol=1e-5, atol=1e-4)
