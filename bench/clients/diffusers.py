"""diffusers: its posterior alone, and a training step of a small AutoencoderKL."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders import vae

from ..measure import optimiser_step


def make_posterior_step() -> Callable[[], torch.Tensor]:
    """Moments of 16 x 8 x 64 x 64 to z and KL, and back."""
    moments = torch.randn(16, 8, 64, 64, requires_grad=True)
    grad_z, grad_kl = torch.randn(16, 4, 64, 64), torch.randn(16)

    def step() -> torch.Tensor:
        posterior = vae.DiagonalGaussianDistribution(moments)
        z, kl = posterior.sample(), posterior.kl()
        (gradient,) = torch.autograd.grad((z, kl), moments, (grad_z, grad_kl))
        return gradient

    return step


def make_autoencoder_step() -> Callable[[], torch.Tensor]:
    model = AutoencoderKL(block_out_channels=(16,), norm_num_groups=4, latent_channels=4, layers_per_block=1)
    images = torch.rand(8, 3, 16, 16)

    def loss() -> torch.Tensor:
        posterior = model.encode(images).latent_dist
        reconstruction = model.decode(posterior.sample()).sample
        return (reconstruction - images).square().sum((1, 2, 3)).mean() + 1e-2 * posterior.kl().mean()

    return optimiser_step(torch.optim.Adam(model.parameters(), lr=3e-4), loss)


STEPS = {"diffusers' posterior, 16x8x64x64 to z and KL, and back": make_posterior_step}
