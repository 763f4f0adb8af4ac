"""The latent ops with torch.distributions: Normal.rsample, Normal.log_prob and kl_divergence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence


def _normal(mu: Tensor, logvar: Tensor) -> Normal:
    return Normal(mu, torch.exp(0.5 * logvar))


def _standard_normal(like: Normal) -> Normal:
    return Normal(torch.zeros_like(like.loc), torch.ones_like(like.scale))


def _kl(posterior: Normal, prior: Normal) -> Tensor:
    return kl_divergence(posterior, prior).flatten(1).sum(1)


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    posterior = _normal(mu, logvar)
    return posterior.rsample(), _kl(posterior, _standard_normal(posterior))


def sample_and_kl_two(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor]:
    posterior = _normal(mu, logvar)
    return posterior.rsample(), _kl(posterior, _normal(prior_mu, prior_logvar))


def sample_and_kl_softplus(mu: Tensor, raw: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    posterior = Normal(mu, F.softplus(raw) + floor)
    return posterior.rsample(), _kl(posterior, _standard_normal(posterior))


def sample_and_kl_free_bits(mu: Tensor, logvar: Tensor, free_bits: float) -> tuple[Tensor, Tensor]:
    posterior = _normal(mu, logvar)
    kl = kl_divergence(posterior, _standard_normal(posterior))
    return posterior.rsample(), kl.mean(0).clamp(min=free_bits).sum()


def sample_and_log_prob(mu: Tensor, logvar: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    posterior = _normal(mu, logvar)
    z = posterior.rsample((num_samples,))
    log_q = posterior.log_prob(z).flatten(2).sum(-1)
    return z, log_q, _standard_normal(posterior).log_prob(z).flatten(2).sum(-1)


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    return _normal(mu, logvar).rsample()


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    posterior = _normal(mu, logvar)
    return _kl(posterior, _standard_normal(posterior))


def gaussian_kl_two(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    return _kl(_normal(mu, logvar), _normal(prior_mu, prior_logvar))
