"""The latent ops as written in plain PyTorch: the baseline for the fused ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ N(mu, diag exp(logvar)) and its KL to N(0, I) in nats, (B,) (Kingma & Welling, arXiv 1312.6114)."""
    return reparameterize(mu, logvar), gaussian_kl(mu, logvar)


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return mu + torch.randn_like(std) * std


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu**2 - torch.exp(logvar)).flatten(1).sum(1)


def gaussian_kl_two(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar))), as in the code of diffusion models."""
    ratio = torch.exp(logvar - prior_logvar)
    kl = 0.5 * (-1.0 + prior_logvar - logvar + ratio + (mu - prior_mu) ** 2 * torch.exp(-prior_logvar))
    return kl.flatten(1).sum(1)


def sample_and_kl_two(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor]:
    return reparameterize(mu, logvar), gaussian_kl_two(mu, logvar, prior_mu, prior_logvar)


def sample_and_kl_softplus(mu: Tensor, raw: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The bottleneck of audio VAEs: sigma is softplus(raw) + floor."""
    std = F.softplus(raw) + floor
    var = std * std
    z = mu + torch.randn_like(std) * std
    return z, 0.5 * (mu * mu + var - torch.log(var) - 1).flatten(1).sum(1)


def sample_and_kl_free_bits(mu: Tensor, logvar: Tensor, free_bits: float) -> tuple[Tensor, Tensor]:
    """The KL averaged over the batch, at least ``free_bits`` a coordinate (Kingma et al., arXiv 1606.04934)."""
    kl = -0.5 * (1 + logvar - mu**2 - torch.exp(logvar))
    return reparameterize(mu, logvar), kl.mean(0).clamp(min=free_bits).sum()


def sample_and_log_prob(mu: Tensor, logvar: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """z, (K, B, *event), with log q(z|x) and log p(z), (K, B), for an IWAE (arXiv 1509.00519)."""
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn(num_samples, *mu.shape, dtype=mu.dtype, device=mu.device)
    log_2_pi = math.log(2 * math.pi)
    log_q = -0.5 * (((z - mu) / std) ** 2 + logvar + log_2_pi).flatten(2).sum(-1)
    log_p = -0.5 * (z**2 + log_2_pi).flatten(2).sum(-1)
    return z, log_q, log_p
