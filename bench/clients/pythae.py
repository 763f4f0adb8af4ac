"""pythae: training steps of its VAE and its IWAE, with its default networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig

from ..measure import optimiser_step

BATCH = 128
SHAPE = (1, 28, 28)
LATENT = 16  # pythae's examples on MNIST


def training_step(model: torch.nn.Module, data: torch.Tensor) -> Callable[[], torch.Tensor]:
    return optimiser_step(torch.optim.Adam(model.parameters(), lr=1e-3), lambda: model({"data": data}).loss)


def make_vae() -> Callable[[], torch.Tensor]:
    return training_step(VAE(VAEConfig(input_dim=SHAPE, latent_dim=LATENT)), torch.rand(BATCH, *SHAPE))


def make_iwae() -> Callable[[], torch.Tensor]:
    model = IWAE(IWAEConfig(input_dim=SHAPE, latent_dim=LATENT, number_samples=10))
    return training_step(model, torch.rand(BATCH, *SHAPE))


STEPS = {"VAE, 784-512-16, batch 128": make_vae, "IWAE, 784-512-16, 10 draws, batch 128": make_iwae}
