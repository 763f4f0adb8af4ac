"""pythae: training steps of its VAE and its IWAE, with the networks that it builds by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig

from .case import Case

BATCH = 128
SHAPE = (1, 28, 28)
LATENT = 16  # pythae's examples on MNIST


def cases() -> list[Case]:
    return [
        Case("pythae", "VAE, 784-512-16, batch 128", make_vae),
        Case("pythae", "IWAE, 784-512-16, 10 draws, batch 128", make_iwae),
    ]


def make_vae() -> Callable[[], torch.Tensor]:
    return training_step(VAE(VAEConfig(input_dim=SHAPE, latent_dim=LATENT)), torch.rand(BATCH, *SHAPE))


def make_iwae() -> Callable[[], torch.Tensor]:
    return training_step(
        IWAE(IWAEConfig(input_dim=SHAPE, latent_dim=LATENT, number_samples=10)), torch.rand(BATCH, *SHAPE)
    )


def training_step(model: torch.nn.Module, data: torch.Tensor) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = {"data": data}

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
