"""The family of Gaussian latents: what may be asked of `latent_forward` and `latent_backward`, for every backend.

    x       = clamp(scale)                with ``residual``: clamp(prior_scale + scale), and mu stands for prior_mu + mu
    std, logvar of x:
        "logvar"    exp(x/2)              x
        "logstd"    exp(x)                2 x
        "std"       x                     2 log x
        "var"       sqrt(x)               log x
        "softplus"  softplus(x) + floor   2 log std
    clamp           "none"; "hard": clamp(., low, high), its gradient 1 on the bounds; "soft": high tanh(. / high)
    z               mu + temperature std eps, eps the noise stream of draw k = 0 .. K-1
    kl              1/2 ((mu - mu_p)^2 exp(-logvar_p) + expm1(d) - d), d = logvar - logvar_p; at least ``free_bits``
    log_q           -1/2 sum((temperature eps)^2 + logvar + log 2 pi)
    log_p           -1/2 sum((z - mu_p)^2 exp(-logvar_p) + logvar_p + log 2 pi)

The prior is described as the posterior is: same ``scale``, same clamp. Without one it is N(0, I).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

SCALES = ("logvar", "logstd", "std", "var", "softplus")
CLAMPS = ("none", "hard", "soft")

# Scales that add up: those a residual may be given in.
LOG_SCALES = ("logvar", "logstd")


class Options(NamedTuple):
    """What is the same for all elements, and mostly compiled into the kernel."""

    scale: str = "logvar"
    clamp: str = "none"
    low: float = 0.0  # hard clamp
    high: float = 0.0  # hard clamp; the bound of a soft one
    floor: float = 0.0  # softplus
    residual: bool = False
    temperature: float = 1.0
    free_bits: float = 0.0  # nats a coordinate: a smaller KL counts as this much, and has no gradient


PLAIN = Options()


class Latents(NamedTuple):
    """What `latent_forward` gives; None for what was not wanted."""

    z: Tensor | None
    kl: Tensor | None
    kl_mean: Tensor | None
    log_q: Tensor | None
    log_p: Tensor | None


class Gradients(NamedTuple):
    """What `latent_backward` gives; the prior's are None unless wanted."""

    mu: Tensor
    scale: Tensor
    prior_mu: Tensor | None
    prior_scale: Tensor | None
