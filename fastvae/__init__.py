"""fastvae: the latent arithmetic of variational autoencoders as fused kernels for CPU and GPU.

The ops are functions (`sample_and_kl`, `sample_and_kl_packed`, `sample_and_log_prob`, `reparameterize`, `gaussian_kl`,
`noise`) with gradients; `fastvae.nn` and `fastvae.likelihoods` build models on them. `backends` tells what runs where,
`use_backend` chooses.
"""

from . import likelihoods, nn
from .distributions import DiagonalGaussian
from .functional import (
    gaussian_kl,
    noise,
    reparameterize,
    sample_and_kl,
    sample_and_kl_packed,
    sample_and_log_prob,
)
from .kernels.selection import backends, use_backend

__version__ = "0.1.0"

__all__ = [
    "DiagonalGaussian",
    "backends",
    "gaussian_kl",
    "likelihoods",
    "nn",
    "noise",
    "reparameterize",
    "sample_and_kl",
    "sample_and_kl_packed",
    "sample_and_log_prob",
    "use_backend",
]
