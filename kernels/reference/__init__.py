"""The reference backend: plain PyTorch, any device, float64-capable. The oracle of the tests and the last fallback."""

import torch

from .head import head
from .latents import latent_backward, latent_forward
from .likelihoods import likelihood_backward, likelihood_forward
from .philox import noise

__all__ = [
    "describe",
    "head",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "noise",
]


def describe(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """What a latent op runs on, in words."""
    return f"PyTorch's own operations on {device}"
