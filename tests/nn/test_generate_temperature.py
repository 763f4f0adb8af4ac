"""`generate(temperature=)`: the prior's standard deviation is multiplied, in every model and at every level."""

from __future__ import annotations

import pytest
import torch

import fastvae
from fastvae.likelihoods import Bernoulli, Gaussian
from fastvae.nn import VAE, ConditionalVAE, HierarchicalVAE, MLPDecoder, MLPEncoder
from fastvae.priors import GaussianMixture, LearnedGaussian, StandardNormal


def _vae(prior=None):
    torch.manual_seed(0)
    return VAE(MLPEncoder(6, 5, 3), MLPDecoder(3, 5, 6), Bernoulli(), prior=prior)


def test_the_noise_is_multiplied():
    vae = _vae()
    torch.testing.assert_close(vae.generate(4, seed=1, temperature=0.5), vae.decode(0.5 * fastvae.noise(1, (4, 3))))
    torch.testing.assert_close(vae.generate(4, seed=1, temperature=[0.5]), vae.generate(4, seed=1, temperature=0.5))


@pytest.mark.parametrize("prior", [StandardNormal(3), LearnedGaussian(3), GaussianMixture(3, 1)])
def test_a_prior_is_narrowed_around_its_mean(prior):
    with torch.no_grad():
        for name, value in (("mu", 2.0), ("logvar", -1.0)):
            if hasattr(prior, name):
                getattr(prior, name).fill_(value)
    mean = 0.0 if isinstance(prior, StandardNormal) else 2.0
    full, half, none = (prior.sample(50, seed=3, temperature=t) for t in (1.0, 0.5, 0.0))
    assert torch.equal(full, prior.sample(50, seed=3))
    torch.testing.assert_close(half - mean, 0.5 * (full - mean))
    torch.testing.assert_close(none, torch.full_like(none, mean))


def test_a_prior_of_the_condition_is_narrowed():
    encoder, decoder = MLPEncoder(6, 5, 3, condition_dim=2), MLPDecoder(3, 5, 6, condition_dim=2)
    vae = ConditionalVAE(encoder, decoder, Gaussian(), num_classes=2, prior=MLPEncoder(2, [], 3))
    mean = vae.decode(vae.prior(torch.eye(2))[0], condition=torch.tensor([0, 1]))
    came = vae.generate(2, condition=torch.tensor([0, 1]), temperature=0.0)
    torch.testing.assert_close(came, mean)


def test_each_level_has_its_own():
    torch.manual_seed(0)
    vae = HierarchicalVAE.of_mlps(6, 5, (2, 3), Bernoulli())
    still = vae.generate(8, seed=0, temperature=0.0)
    torch.testing.assert_close(still, still[:1].expand_as(still))
    top, bottom = (vae.generate(8, seed=0, temperature=t) for t in ((1.0, 0.0), (0.0, 1.0)))
    assert top.var(0).sum() > 1e-6
    assert bottom.var(0).sum() > 1e-6
    assert not torch.allclose(top, bottom)
    torch.testing.assert_close(vae.generate(8, seed=0, temperature=(1, 1)), vae.generate(8, seed=0))


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (-1.0, ValueError, "temperature is -1.0"),
        ("hot", TypeError, "temperature is a str"),
        ((1.0, 2.0), ValueError, "temperature has 2 numbers, expected 1"),
        ([float("inf")], ValueError, r"temperature\[0\] is inf"),
    ],
)
def test_what_is_no_temperature_is_refused(temperature, error, message):
    with pytest.raises(error, match=message):
        _vae().generate(2, temperature=temperature)
