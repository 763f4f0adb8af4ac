"""fastvae: the latent arithmetic of variational autoencoders as fused kernels for CPU and GPU.

The ops are differentiable functions: `sample_and_kl`, `sample_and_kl_packed`, `sample_and_log_prob`, `reparameterize`,
`gaussian_kl`, `noise`. `fastvae.nn`, `fastvae.likelihoods` and `fastvae.priors` build models from them,
`fastvae.objectives` and `fastvae.schedules` train the models, `fastvae.monitors` inspects their latents; `patch` makes
other libraries use the ops. `load` returns the model of a run of ``fastvae train``. `backends` lists the available
backends, `use_backend` selects one.
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
from .kernels.backend import backends, use_backend
from .training.saved_run import load

__version__ = "0.2.0"

__all__ = [
    "DiagonalGaussian",
    "backends",
    "gaussian_kl",
    "integrations",
    "likelihoods",
    "load",
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


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
