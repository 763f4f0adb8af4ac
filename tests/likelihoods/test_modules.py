"""The likelihood modules: what a decoder must give them, means, samples, learned parameters, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import LogNormal as TorchLogNormal

from fastvae.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
    LogNormal,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
    zero_inflated_negative_binomial_log_prob,
)

from .cases import mixture

DRAWS = 40_000


def rows(*values: float) -> torch.Tensor:
    """Many rows of the same few values."""
    return torch.tensor([values]).expand(DRAWS, len(values))


MEAN, THETA, LOGITS = rows(0.5, 3.0, 20.0), rows(0.7, 2.0, 5.0), rows(-1.0, 0.0, 2.0)
# Each with a decoder's output, whose rows are alike.
MODULES = {
    "Bernoulli": (Bernoulli(), LOGITS),
    "ContinuousBernoulli": (ContinuousBernoulli(), rows(-8.0, 0.0, 3.0)),
    "Gaussian": (Gaussian(0.5), LOGITS),
    "Gaussian with logvar": (Gaussian(None, clamp=(-1.0, 1.0)), (MEAN, LOGITS)),
    "Laplace": (Laplace(0.5), LOGITS),
    "Laplace with logscale": (Laplace(None), (MEAN, LOGITS / 2)),
    "LogNormal": (LogNormal(0.5), LOGITS),
    "LogNormal with logvar": (LogNormal(None, clamp=(-1.0, 0.5)), (MEAN, LOGITS)),
    "Poisson": (Poisson(), LOGITS),
    "NegativeBinomial": (NegativeBinomial(3), MEAN),
    "NegativeBinomial with theta": (NegativeBinomial(), (MEAN, THETA)),
    "ZeroInflatedNegativeBinomial": (ZeroInflatedNegativeBinomial(3), (MEAN, LOGITS)),
    "ZeroInflatedNegativeBinomial with theta": (ZeroInflatedNegativeBinomial(), (MEAN, THETA, LOGITS)),
}


@pytest.mark.parametrize("name", MODULES)
def test_samples_have_the_mean_and_follow_the_generator(name):
    likelihood, parameters = MODULES[name]
    first = likelihood.sample(parameters, torch.Generator().manual_seed(0))
    assert torch.equal(first, likelihood.sample(parameters, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, likelihood.sample(parameters, torch.Generator().manual_seed(1)))
    mean = likelihood.mean(parameters)
    assert mean.shape == first.shape
    error = (first.mean(0) - mean[0]).abs()
    assert (error < 5 * first.std(0) / DRAWS**0.5 + 1e-6).all()


@pytest.mark.parametrize("name", MODULES)
def test_samples_are_as_likely_as_the_density_says(name):
    """The mean over samples of d log p / d parameter is 0: a sampler of another distribution does not pass."""
    likelihood, parameters = MODULES[name]
    parts = parameters if isinstance(parameters, tuple) else (parameters,)
    x = likelihood.sample(parameters, torch.Generator().manual_seed(3)).detach()
    leaves = tuple(part.clone().requires_grad_() for part in parts)
    log_prob = likelihood.log_prob(leaves if isinstance(parameters, tuple) else leaves[0], x)
    for score in torch.autograd.grad(log_prob.sum(), leaves):
        error = 5 * score.std(0) / DRAWS**0.5
        assert (score.mean(0).abs() <= error + 1e-6).all()


def test_the_continuous_bernoulli_is_torchs():
    logits = torch.linspace(-6, 6, 24, dtype=torch.float64).view(4, 6)
    x = torch.rand(4, 6, dtype=torch.float64)
    other = TorchContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001))
    torch.testing.assert_close(ContinuousBernoulli().log_prob(logits, x), other.log_prob(x).sum(1))
    torch.testing.assert_close(ContinuousBernoulli().mean(logits), other.mean)


def test_laplace_is_torchs():
    mean, x = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    expected = TorchLaplace(mean, 0.3).log_prob(x).sum(1)
    torch.testing.assert_close(Laplace(0.3).double().log_prob(mean, x), expected, rtol=1e-6, atol=1e-6)


def test_the_log_normal_is_torchs():
    mu, x = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    other, likelihood = TorchLogNormal(mu, 0.09**0.5), LogNormal(0.09).double()
    torch.testing.assert_close(likelihood.log_prob(mu, x), other.log_prob(x).sum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(likelihood.mean(mu), other.mean, rtol=1e-6, atol=1e-6)


def test_a_learned_theta_is_one_for_each_gene():
    likelihood = NegativeBinomial(features=3)
    x, mean = torch.poisson(torch.full((5, 3), 2.0)), torch.full((5, 3), 2.0)
    with torch.no_grad():
        likelihood.log_theta.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    expected = negative_binomial_log_prob(mean, likelihood.log_theta.exp(), x)
    torch.testing.assert_close(likelihood.log_prob(mean, x), expected)
    likelihood.log_prob(mean, x).sum().backward()
    assert likelihood.log_theta.grad.shape == (3,)
    inflated = ZeroInflatedNegativeBinomial(features=3)
    logits = torch.zeros(5, 3)
    expected = zero_inflated_negative_binomial_log_prob(mean, torch.ones(3), logits, x)
    torch.testing.assert_close(inflated.log_prob((mean, logits), x), expected)


def test_a_learned_scale_and_a_decoders_scale():
    assert [name for name, _ in Laplace(2.0, learned=True).named_parameters()] == ["logscale"]
    assert not list(Laplace().parameters())
    assert not Gaussian(None).state_dict()
    x = torch.randn(4, 3)
    fixed = Gaussian(0.5).log_prob(torch.zeros(4, 3), x)
    torch.testing.assert_close(Gaussian(None).log_prob((torch.zeros(4, 3), torch.full((4, 3), 0.5).log()), x), fixed)
    clamped = Gaussian(None, clamp=(0, 1)).log_prob((torch.zeros(4, 3), torch.full((4, 3), -5.0)), x)
    torch.testing.assert_close(clamped, Gaussian(1.0).log_prob(torch.zeros(4, 3), x))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mixture_is_normalised_and_its_samples_follow_it(channels):
    likelihood = DiscretizedLogisticMixture(components=3, channels=channels)
    parameter = torch.randn(1, likelihood.parameter_channels, 1)
    parameter[:, 3:] *= 0.4
    many = parameter.expand(DRAWS, -1, 1)
    x = likelihood.sample(many, torch.Generator().manual_seed(0))
    assert x.shape == (DRAWS, channels, 1)
    assert ((x * 255 - (x * 255).round()).abs() < 1e-3).all()
    # The entropy, by sampling, agrees with the log-probabilities' own mean under another sample.
    first = likelihood.log_prob(many, x)
    torch.testing.assert_close(first.double(), mixture(x.double(), many.double()).sum(1), rtol=1e-4, atol=1e-3)
    leaf = many.clone().requires_grad_()
    (score,) = torch.autograd.grad(likelihood.log_prob(leaf, x).sum(), leaf)
    assert (score.mean(0).abs() <= 5 * score.std(0) / DRAWS**0.5 + 1e-4).all()
    if channels == 1:
        levels = torch.arange(256).view(256, 1, 1)
        total = likelihood.log_prob(parameter.expand(256, -1, 1), levels).exp().sum()
        assert total.item() == pytest.approx(1.0, abs=1e-4)
    image = likelihood.mean(parameter)
    assert image.shape == (1, channels, 1)
    assert (image[0] - x.mean(0)).abs().max() < 0.05


@pytest.mark.parametrize("name", MODULES)
def test_they_pickle_and_copy(name):
    likelihood, parameters = MODULES[name]
    few = tuple(part[:4] for part in parameters) if isinstance(parameters, tuple) else parameters[:4]
    x = likelihood.sample(few).detach()
    for twin in (copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood))):
        assert torch.equal(twin.log_prob(few, x), likelihood.log_prob(few, x))
    assert repr(likelihood)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Laplace(0.0), ValueError, "scale is 0.0, expected a positive finite number"),
        (lambda: Laplace("1"), TypeError, "scale is a str"),
        (lambda: Gaussian(None, learned=True), ValueError, "learned is True with a logvar from the decoder"),
        (lambda: Gaussian(1.0, clamp=(-1, 1)), ValueError, "clamp was given without a logvar from the decoder"),
        (lambda: Gaussian(None, clamp=3), TypeError, "clamp is 3"),
        (lambda: LogNormal(-1.0), ValueError, "variance is -1.0, expected a positive finite number"),
        (lambda: LogNormal(None).log_prob(MEAN, MEAN), TypeError, r"expected the tensors \(mu, logvar\)"),
        (lambda: NegativeBinomial(0), ValueError, "features is 0, expected a positive int"),
        (lambda: NegativeBinomial(2.5), TypeError, "features is 2.5"),
        (lambda: DiscretizedLogisticMixture(0), ValueError, "components is 0, expected 1 or more"),
        (lambda: DiscretizedLogisticMixture(3, 2), ValueError, "channels is 2, expected 1 or 3"),
        (lambda: DiscretizedLogisticMixture(True), TypeError, "components is a bool"),
        (
            lambda: DiscretizedLogisticMixture(3).mean(torch.zeros(1, 20, 2)),
            ValueError,
            r"parameters has shape \(1, 20, 2\), expected \(batch, 30, \*spatial\)",
        ),
        (
            lambda: ZeroInflatedNegativeBinomial().log_prob((MEAN, THETA), MEAN),
            TypeError,
            r"parameters is 2 tensors, expected the tensors \(mean, theta, zero_logits\)",
        ),
        (
            lambda: Gaussian(None).log_prob(MEAN, MEAN),
            TypeError,
            r"parameters is Tensor, expected the tensors \(mean, logvar\)",
        ),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
