"""fastvae: the latent arithmetic of variational autoencoders as fused kernels for CPU and GPU.

The ops are functions (`sample_and_kl`, `sample_and_kl_packed`, `sample_and_log_prob`, `reparameterize`, `gaussian_kl`,
`noise`) with gradients; `fastvae.nn`, `fastvae.likelihoods` and `fastvae.priors` build models on them,
`fastvae.objectives` and `fastvae.schedules` train them, `fastvae.monitors` watches; `patch` brings the ops into other
libraries. `backends` tells what runs where, `use_backend` chooses.
"""

from . import integrations, likelihoods, monitors, nn, objectives, priors, schedules
from .distributions import DiagonalGaussian
from .functional import (
    gaussian_kl,
    noise,
    reparameterize,
    sample_and_kl,
    sample_and_kl_packed,
    sample_and_log_prob,
)
from .integrations import patch, unpatch
from .kernels.selection import backends, use_backend

__version__ = "0.1.0"

__all__ = [
    "DiagonalGaussian",
    "backends",
    "gaussian_kl",
    "integrations",
    "likelihoods",
    "monitors",
    "nn",
    "noise",
    "objectives",
    "patch",
    "priors",
    "reparameterize",
    "sample_and_kl",
    "sample_and_kl_packed",
    "sample_and_log_prob",
    "schedules",
    "unpatch",
    "use_backend",
]
