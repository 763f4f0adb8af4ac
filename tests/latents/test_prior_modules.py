"""Priors as modules: one encoder for the VampPrior, state, copies, compilation, priors of one's own, bad input."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.priors import GaussianMixture, LearnedGaussian, Prior, StandardNormal, VampPrior

from .test_priors import KINDS, SHAPE, Encoder, make, posterior


def vae_with(kind: str) -> VAE:
    encoder = MLPEncoder(4, 8, 2)
    prior = {
        "standard": lambda: StandardNormal(2),
        "learned": lambda: LearnedGaussian(2),
        "mixture": lambda: GaussianMixture(2, 3),
        "vamp": lambda: VampPrior(encoder, 4, 3, squash=torch.sigmoid),
    }[kind]()
    return VAE(encoder, MLPDecoder(2, 8, 4), Bernoulli(), prior=prior)


def test_the_vamp_priors_encoder_is_in_the_state_once():
    vae = vae_with("vamp")
    own = [name for name in vae.state_dict() if name.startswith("prior.")]
    assert own == ["prior.pseudo_inputs"]
    assert len(list(vae.parameters())) == len(vae.state_dict())
    assert vae.prior.encoder is vae.encoder


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_copies_of_the_model_hold_one_encoder_that_both_use(duplicate):
    vae = vae_with("vamp")
    twin = duplicate(vae)
    assert twin.prior.encoder is twin.encoder
    assert twin.encoder is not vae.encoder
    z = torch.randn(3, 2)
    assert torch.equal(twin.prior.log_prob(z), vae.prior.log_prob(z))
    with torch.no_grad():
        for parameter in twin.encoder.parameters():
            parameter.add_(0.5)
    assert not torch.equal(twin.prior.log_prob(z), vae.prior.log_prob(z))
    twin.double()
    assert twin.prior.log_prob(z.double()).dtype == torch.float64


def test_a_trained_vamp_prior_moves_encoder_and_pseudo_inputs():
    vae = vae_with("vamp")
    kl = vae.prior.sample_and_kl(torch.zeros(5, 2), torch.zeros(5, 2))[1]
    kl.mean().backward()
    for parameter in (vae.prior.pseudo_inputs, *vae.encoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_squash_is_applied_to_the_pseudo_inputs():
    plain = VampPrior(Encoder(), 4, 3)
    squashed = VampPrior(plain.encoder, 4, 3, squash=torch.sigmoid)
    with torch.no_grad():
        squashed.pseudo_inputs.copy_(torch.logit(plain.pseudo_inputs))
    z = torch.randn(5, *SHAPE)
    torch.testing.assert_close(squashed.log_prob(z), plain.log_prob(z), rtol=1e-5, atol=1e-5)


def test_an_encoder_may_return_packed_moments():
    encoder = Encoder()
    packed = nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (6, 2)))
    packed[0].load_state_dict(encoder.layer.state_dict())
    prior, other = VampPrior(encoder, 4, 3), VampPrior(packed, 4, 3, latent_shape=SHAPE)
    other.load_state_dict(prior.state_dict())
    z = torch.randn(5, *SHAPE)
    torch.testing.assert_close(other.log_prob(z), prior.log_prob(z))


@pytest.mark.parametrize("kind", KINDS)
def test_priors_save_and_load_and_move(kind):
    prior = make(kind)
    z = torch.randn(5, *SHAPE)
    for twin in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        assert torch.equal(twin.log_prob(z), prior.log_prob(z))
    other = make(kind)
    if kind == "vamp":
        other.encoder.load_state_dict(prior.encoder.state_dict())
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.log_prob(z), prior.log_prob(z))
    assert not any("_like" in name for name in prior.state_dict())


def test_components_start_apart_and_the_learned_gaussian_as_the_standard_one():
    prior = GaussianMixture(SHAPE, 4)
    assert len(torch.unique(prior.mu.detach().flatten(1), dim=0)) == 4
    assert len(torch.unique(VampPrior(Encoder(), 4, 3).pseudo_inputs.detach(), dim=0)) == 3
    z = torch.randn(5, *SHAPE)
    torch.testing.assert_close(LearnedGaussian(SHAPE).log_prob(z), StandardNormal(SHAPE).log_prob(z))


@pytest.mark.parametrize(("kind", "says"), [("learned", "exact KL"), ("vamp", "KL estimated from one draw")])
def test_repr_tells_how_the_kl_is_found(kind, says):
    assert says in repr(make(kind))
    assert f"latent_shape={SHAPE}" in repr(make(kind))


@pytest.mark.parametrize("kind", ["learned", "mixture", "vamp"])
def test_models_with_these_priors_compile_whole(kind):
    vae, x = vae_with(kind), torch.rand(5, 4).round()
    torch._dynamo.reset()

    def loss(x):
        return vae.elbo(x, seed=3).elbo.mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    parameters = list(vae.parameters())
    came, expected = (torch.autograd.grad(run(x), parameters) for run in (compiled, loss))
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)


# A prior of one's own


class Laplace(Prior):
    def log_prob(self, z):
        return torch.distributions.Laplace(0.0, 1.0).log_prob(z).sum(-1)

    def sample(self, n, *, seed=None, generator=None):
        return torch.distributions.Laplace(0.0, 1.0).sample((n, *self.latent_shape))


def test_a_custom_prior_needs_log_prob_and_sample():
    prior = Laplace(2)
    mu, logvar = torch.randn(5, 2), torch.zeros(5, 2)
    z, kl = prior.sample_and_kl(mu, logvar, seed=0)
    torch.testing.assert_close(kl, Normal(mu, 1.0).log_prob(z).sum(1) - prior.log_prob(z))
    assert VAE(MLPEncoder(4, 8, 2), MLPDecoder(2, 8, 4), Bernoulli(), prior=prior).generate(3).shape == (3, 4)
    own = Prior(2)
    for missing in (lambda: own.log_prob(mu), lambda: own.sample(3), lambda: own.gaussian(torch.float32)):
        with pytest.raises(NotImplementedError, match="Prior"):
            missing()


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: StandardNormal("3"), TypeError, "latent_shape is '3', expected a positive int"),
        (lambda: StandardNormal(True), TypeError, "latent_shape is True, expected a positive int"),
        (lambda: LearnedGaussian((3, 0)), ValueError, r"latent_shape\[1\] is 0, expected a positive int"),
        (lambda: GaussianMixture(3, 0), ValueError, "components is 0, expected 1 or more"),
        (lambda: GaussianMixture(3, 2.0), TypeError, "components is a float, expected an int"),
        (
            lambda: VampPrior(len, 4, 3),
            TypeError,
            "encoder is a builtin_function_or_method, expected a torch.nn.Module",
        ),
        (lambda: VampPrior(nn.Linear(4, 2), 4, 3), ValueError, "latent_shape is None, and encoder has neither"),
        (lambda: VampPrior(Encoder(), 4, 0), ValueError, "components is 0, expected 1 or more"),
        (lambda: VampPrior(Encoder(), -4, 2), ValueError, "input_shape is -4, expected a positive int"),
        (lambda: VampPrior(Encoder(), 4, 2, squash=1), TypeError, "squash is a int, expected a function or None"),
        (
            lambda: VampPrior(Encoder(), 4, 2, latent_shape=5).sample(1),
            ValueError,
            r"encoder returned mu of shape \(2, 3, 2\), expected \(2, 5\)",
        ),
        (lambda: make("mixture").log_prob([1.0]), TypeError, "z is a list, expected a torch.Tensor"),
        (lambda: make("standard").log_prob(torch.ones(3, 2).int()), TypeError, "z is int32, expected one of"),
        (
            lambda: make("learned").log_prob(torch.zeros(5, 2, 3)),
            ValueError,
            r"z has shape \(5, 2, 3\), expected \(..., 3, 2\)",
        ),
        (lambda: make("vamp").sample(-1), ValueError, "n is -1, expected 0 or more"),
        (lambda: make("standard").sample("3"), TypeError, "n is a str, expected an int"),
        (
            lambda: make("standard").sample_and_kl(torch.zeros(5, 3), torch.zeros(5, 3)),
            ValueError,
            r"mu has shape \(5, 3\), expected \(batch, 3, 2\)",
        ),
        (
            lambda: make("mixture").sample_and_kl(*posterior(), reduction="none"),
            ValueError,
            "reduction is 'none', expected 'sample', 'sum' or 'batchmean': the KL to a GaussianMixture is estimated",
        ),
        (lambda: make("mixture").sample_and_kl(*posterior(), reduction="mean"), ValueError, "reduction is 'mean'"),
        (
            lambda: make("vamp").sample_and_kl(*posterior(), free_bits=1.0),
            ValueError,
            "free_bits_group is 'coordinate', expected 'latent': the KL to a VampPrior is estimated",
        ),
        (lambda: make("vamp").sample_and_kl(*posterior(), beta=-1.0), ValueError, "beta is -1.0"),
        (lambda: make("vamp").sample_and_log_prob(*posterior(), 0), ValueError, "num_samples is 0, expected 1 or more"),
        (
            lambda: make("vamp").sample_and_log_prob(*posterior(), 2, seed=1, generator=torch.Generator()),
            ValueError,
            "seed and generator were both given",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
