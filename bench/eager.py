"""The latent ops as a VAE in plain PyTorch writes them: what the fused ops are compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ N(mu, diag exp(logvar)) and its KL to N(0, I) in nats, (B,) (Kingma & Welling, arXiv 1312.6114)."""
    return reparameterize(mu, logvar), gaussian_kl(mu, logvar)


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return mu + torch.randn_like(std) * std


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu**2 - torch.exp(logvar)).flatten(1).sum(1)
