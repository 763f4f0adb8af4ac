"""The reference backend: plain PyTorch, any device, float64-capable. The oracle of the tests and the last fallback."""

from .gaussian import backward, forward
from .latents import latent_backward, latent_forward
from .likelihoods import likelihood_backward, likelihood_forward
from .philox import noise

__all__ = [
    "backward",
    "forward",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "noise",
]
