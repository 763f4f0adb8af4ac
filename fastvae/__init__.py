"""fastvae: the latent arithmetic of variational autoencoders as fused kernels for CPU and GPU.

The ops are functions (`sample_and_kl`, `sample_and_kl_packed`, `sample_and_log_prob`, `reparameterize`, `gaussian_kl`,
`noise`) with gradients; `fastvae.nn`, `fastvae.likelihoods` and `fastvae.priors` build models on them,
`fastvae.objectives` and `fastvae.schedules` train them, `fastvae.monitors` watches. `backends` tells what runs where,
`use_backend` chooses.
"""

from . import likelihoods, monitors, nn, objectives, priors, schedules
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
    "monitors",
    "nn",
    "noise",
    "objectives",
    "priors",
    "reparameterize",
    "sample_and_kl",
    "sample_and_kl_packed",
    "sample_and_log_prob",
    "schedules",
    "use_backend",
]
