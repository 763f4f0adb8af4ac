"""Bad arguments of the family of Gaussian latents, and the opt-in check of values."""

from __future__ import annotations

import pytest
import torch

import fastvae

MU = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((), {"scale": "sigma"}, ValueError, "scale is 'sigma', expected one of 'logvar', 'logstd', 'std'"),
        ((), {"clamp": (2.0, 1.0)}, ValueError, r"clamp is \(2.0, 1.0\), expected \(low, high\)"),
        ((), {"clamp": (float("nan"), 1.0)}, ValueError, "clamp is"),
        ((), {"clamp": 3.0}, TypeError, "clamp is 3.0, expected a pair"),
        ((), {"clamp": (1.0, 2.0, 3.0)}, TypeError, "clamp is .* expected a pair"),
        ((), {"clamp": (-1.0, 1.0), "soft_clamp": 5.0}, ValueError, "clamp and soft_clamp were both given"),
        ((), {"soft_clamp": 0.0}, ValueError, "soft_clamp is 0.0, expected more than 0"),
        ((), {"soft_clamp": 5.0, "scale": "std"}, ValueError, "soft_clamp was given with scale 'std'"),
        ((), {"floor": 1e-4}, ValueError, "floor is 0.0001 with scale 'logvar'"),
        ((), {"floor": -1.0, "scale": "softplus"}, ValueError, "floor is -1.0"),
        ((), {"residual": True}, ValueError, "residual is True without a prior"),
        ((), {"residual": 1}, TypeError, "residual is a int"),
        ((MU, MU), {"residual": True, "scale": "std"}, ValueError, "residual is True with scale 'std'"),
        ((MU,), {}, ValueError, "prior_logvar is None, expected both"),
        ((None, MU), {}, ValueError, "prior_mu is None, expected both"),
        ((MU, "0"), {}, TypeError, "prior_logvar is a str"),
        ((MU, MU.double()), {}, TypeError, "prior_logvar is float64, mu is float32"),
        ((torch.zeros(5), MU), {}, ValueError, r"prior_mu has shape \(5,\), mu has \(3, 4\)"),
        ((torch.zeros(2, 3, 4), MU), {}, ValueError, r"prior_mu has shape \(2, 3, 4\)"),
    ],
)
def test_bad_arguments_are_named(arguments, keywords, error, message):
    calls = [
        lambda: fastvae.gaussian_kl(MU, MU, *arguments, **keywords),
        lambda: fastvae.sample_and_kl(MU, MU, *arguments, **keywords),
        lambda: fastvae.sample_and_log_prob(MU, MU, *arguments, **keywords),
        lambda: fastvae.sample_and_kl_packed(torch.zeros(3, 8), *arguments, **keywords),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples is 0, expected 1 or more"),
        ({"num_samples": 1.5}, TypeError, "num_samples is a float"),
        ({"num_samples": True}, TypeError, "num_samples is a bool"),
        ({"temperature": -1.0}, ValueError, "temperature is -1.0"),
        ({"temperature": float("inf")}, ValueError, "temperature is inf"),
        ({"temperature": None}, TypeError, "temperature is a NoneType"),
    ],
)
def test_bad_draws_are_named(keywords, error, message):
    for call in (fastvae.reparameterize, fastvae.sample_and_kl, fastvae.sample_and_log_prob):
        with pytest.raises(error, match=message):
            call(MU, MU, **keywords)


def test_a_draw_of_the_noise_is_checked():
    with pytest.raises(ValueError, match="draw is -1"):
        fastvae.noise(1, (2, 3), draw=-1)
    with pytest.raises(TypeError, match="draw is a float"):
        fastvae.noise(1, (2, 3), draw=1.0)


def test_the_opt_in_check_names_the_first_offending_index():
    std = torch.ones(3, 4)
    std[1, 2], std[2, 0] = -0.5, -1.0
    with pytest.raises(ValueError, match=r"logvar, a std, is -0.5 at index \[1, 2\], expected 0 or more"):
        fastvae.sample_and_kl(MU, std, scale="std", check=True)
    with pytest.raises(ValueError, match=r"prior_logvar, a std, is -0.5 at index \[1, 2\]"):
        fastvae.gaussian_kl(MU, torch.ones(3, 4), MU, std, scale="std", check=True)
    mu = torch.zeros(3, 4)
    mu[2, 3] = float("nan")
    for call in (fastvae.sample_and_kl, fastvae.gaussian_kl, fastvae.reparameterize, fastvae.sample_and_log_prob):
        with pytest.raises(ValueError, match=r"mu is nan at index \[2, 3\], expected a finite number"):
            call(mu, MU, check=True)
        call(mu, MU)  # off by default
        call(MU, MU, check=True)
