"""Likelihoods against torch.distributions and SciPy: values, gradients, dtypes, draws, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from fastvae.likelihoods import Bernoulli, Gaussian


def _data(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parameters = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    x = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return parameters.to(dtype), x.to(dtype)


# Values and gradients


def test_bernoulli_log_prob_is_that_of_torch_distributions():
    logits, x = _data(5, 3, 4)
    x = x.round()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli().log_prob(logits, x), expected)


def test_bernoulli_log_prob_of_grey_levels_is_minus_the_cross_entropy():
    logits, x = _data(5, 7)
    p = scipy.special.expit(logits.numpy())
    expected = (scipy.special.xlogy(x.numpy(), p) + scipy.special.xlogy(1 - x.numpy(), 1 - p)).sum(1)
    np.testing.assert_allclose(Bernoulli().log_prob(logits, x).numpy(), expected, rtol=1e-10)


def test_bernoulli_log_prob_is_finite_and_exact_for_extreme_logits():
    logits = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]])
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    assert Bernoulli().log_prob(logits, x).tolist() == [0.0, 0.0, -1e4, -1e4]


def test_bernoulli_gradient_of_the_logits_is_x_minus_p():
    logits, x = _data(5, 3, 4)
    logits.requires_grad_()
    Bernoulli().log_prob(logits, x).sum().backward()
    torch.testing.assert_close(logits.grad, x - torch.sigmoid(logits.detach()))


@pytest.mark.parametrize("learned", [False, True])
def test_gaussian_log_prob_is_that_of_scipy(learned):
    mean, x = _data(5, 3, 4)
    expected = scipy.stats.norm(mean.numpy(), math.sqrt(0.3)).logpdf(x.numpy()).sum((1, 2))
    came = Gaussian(0.3, learned).double().log_prob(mean, x)
    np.testing.assert_allclose(came.detach().numpy(), expected, rtol=1e-6)  # log 0.3 started in float32


def test_gaussian_gradients_are_those_of_torch_distributions():
    mean, x = (tensor.requires_grad_() for tensor in _data(5, 6))
    likelihood = Gaussian(0.3, learned=True).double()
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    came = torch.autograd.grad((likelihood.log_prob(mean, x) * weights).sum(), (mean, x, likelihood.logvar))
    std = torch.exp(0.5 * likelihood.logvar)
    log_prob = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    expected = torch.autograd.grad((log_prob * weights).sum(), (mean, x, likelihood.logvar))
    torch.testing.assert_close(came, expected)


def test_a_learned_variance_finds_the_variance_of_the_data():
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(500, 8, generator=generator)
    likelihood = Gaussian(1.0, learned=True)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-likelihood.log_prob(torch.zeros_like(x), x).mean()).backward()
        optimizer.step()
    assert likelihood.logvar.exp().item() == pytest.approx(x.square().mean().item(), rel=0.02)


def test_the_variance_is_a_parameter_only_if_learned():
    assert [name for name, _ in Gaussian(learned=True).named_parameters()] == ["logvar"]
    fixed = Gaussian()
    assert not list(fixed.parameters())
    assert list(fixed.state_dict()) == ["logvar"]


# Shapes and dtypes


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 2, 3), (0, 3), (4, 0)])
def test_log_prob_has_one_value_a_sample(likelihood, shape):
    assert likelihood.log_prob(*_data(*shape)).shape == shape[:1]


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_log_prob_sums_in_float32_or_better(likelihood, dtype):
    parameters, x = _data(3, 20_000, dtype=dtype)
    came = likelihood.log_prob(parameters, x)
    assert came.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(came.double(), likelihood.log_prob(parameters.double(), x.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_mean_and_sample_keep_shape_and_dtype(likelihood, dtype):
    parameters, _ = _data(4, 2, 3, dtype=dtype)
    for image in (likelihood.mean(parameters), likelihood.sample(parameters)):
        assert (image.shape, image.dtype) == (parameters.shape, dtype)


# Draws


def test_bernoulli_draws_zeros_and_ones_with_the_mean_as_frequency():
    logits = torch.tensor([-2.0, 0.0, 1.0]).repeat(20_000, 1)
    x = Bernoulli().sample(logits, torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(x.mean(0), Bernoulli().mean(logits[0]), rtol=0, atol=0.015)


def test_gaussian_draws_have_the_mean_and_the_variance():
    mean = torch.tensor([-2.0, 0.0, 1.0]).repeat(20_000, 1)
    x = Gaussian(0.25).sample(mean, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(x.var(0), torch.full((3,), 0.25), rtol=0.04, atol=0)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])
def test_the_generator_determines_the_draw(likelihood):
    parameters = torch.zeros(4, 50)

    def draw(seed: int) -> torch.Tensor:
        return likelihood.sample(parameters, torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5), Gaussian(0.5, learned=True)])
def test_likelihoods_pickle_and_copy(likelihood):
    data = _data(3, 4)
    expected = likelihood.log_prob(*data)
    for twin in (pickle.loads(pickle.dumps(likelihood)), copy.deepcopy(likelihood)):
        assert torch.equal(twin.log_prob(*data), expected)


# What they refuse


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()])
@pytest.mark.parametrize(
    ("parameters", "x", "error", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), ValueError, r"x has shape \(4, 2\), (logits|mean) has \(4, 3\)"),
        (torch.zeros(4, 3), torch.zeros(1, 3), ValueError, r"x has shape \(1, 3\), (logits|mean) has \(4, 3\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.complex64), TypeError, "x is complex64, expected one of"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3), TypeError, "parameters is int64, expected one of"),
        (torch.zeros(4, 3), np.zeros((4, 3)), TypeError, r"x is a ndarray, expected a torch\.Tensor"),
        (None, torch.zeros(4, 3), TypeError, r"parameters is a NoneType, expected a torch\.Tensor"),
        (torch.zeros(()), torch.zeros(()), ValueError, "parameters is 0-d, expected shape"),
        (torch.zeros(4, 3), torch.zeros(4, 3, device="meta"), ValueError, "x is on meta, (logits|mean) is on cpu"),
    ],
)
def test_log_prob_says_what_is_wrong(likelihood, parameters, x, error, message):
    with pytest.raises(error, match=message):
        likelihood.log_prob(parameters, x)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()])
def test_sample_refuses_a_generator_of_the_wrong_type(likelihood):
    with pytest.raises(TypeError, match=r"generator is a int, expected a torch\.Generator"):
        likelihood.sample(torch.zeros(2, 3), 0)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan])
def test_gaussian_refuses_a_variance_that_is_not_positive_and_finite(variance):
    with pytest.raises(ValueError, match=f"variance is {variance}, expected a positive finite number"):
        Gaussian(variance)


def test_gaussian_refuses_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match="variance is a str, expected a number"):
        Gaussian("1")
    with pytest.raises(TypeError, match="learned is a float, expected a bool"):
        Gaussian(1.0, 0.5)
