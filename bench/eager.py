"""The latent op as a VAE in plain PyTorch writes it: what the fused op is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ N(mu, diag exp(logvar)) and its KL to N(0, I) in nats, (B,) (Kingma & Welling, arXiv 1312.6114)."""
    std = torch.exp(0.5 * logvar)
    z = mu + torch.randn_like(std) * std
    kl = -0.5 * (1 + logvar - mu**2 - torch.exp(logvar)).flatten(1).sum(1)
    return z, kl
