"""q(z|x) as encoders give it, and the draws from it: with the KL, or with the densities of importance weights.

An encoder returns the pair (mu, logvar), or one tensor of moments (B, 2C, ...), whose halves along dimension 1 they
are and which the fused op reads in place. One that can do both has the attribute ``packs_moments = True`` and is asked
for its moments by ``encoder(x, packed=True)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import check_posterior
from ..functional import reparameterize, sample_and_kl, sample_and_kl_packed, sample_and_log_prob
from ..priors import Prior, log_normal

Gaussian = tuple[Tensor, Tensor]
"""mu and logvar of a prior, or what the parameterisation has in the place of logvar."""


class Posterior(NamedTuple):
    """q(z|x) = N(mu, diag exp(logvar)); both (B, *latent_shape)."""

    mu: Tensor
    logvar: Tensor


class Encoded(NamedTuple):
    """What an encoder gave: mu and logvar, and the one tensor that they are the halves of, if there is one."""

    mu: Tensor
    logvar: Tensor
    moments: Tensor | None


def encode(name: str, encoder: nn.Module, x: Tensor, condition: Tensor | None = None) -> Encoded:
    """The checked output of ``encoder(x)``, or of ``encoder(x, condition)``; ``name`` is what errors call it."""
    inputs = (x,) if condition is None else (x, condition)
    given = encoder(*inputs, packed=True) if getattr(encoder, "packs_moments", False) else encoder(*inputs)
    if isinstance(given, Tensor):
        if given.dim() < 2 or given.shape[1] % 2:
            raise TypeError(
                f"{name} returned Tensor, expected the pair (mu, logvar) or moments (B, 2C, ...); its shape is "
                f"{tuple(given.shape)}"
            )
        mu, logvar = given.chunk(2, 1)
        return Encoded(mu, logvar, given)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        came = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
        raise TypeError(f"{name} returned {came}, expected the pair (mu, logvar)")
    mu, logvar = check_posterior(*given)
    return Encoded(mu, logvar, None)


def draw_with_kl(posterior: Encoded, prior: Prior | Gaussian | None, **keywords: Any) -> tuple[Tensor, ...]:
    """z and its KL to the prior, N(0, I) if None, in one pass; keywords and results as for `fastvae.sample_and_kl`."""
    mu, logvar, moments = posterior
    if isinstance(prior, Prior):
        if moments is None or not prior.closed_form:
            return prior.sample_and_kl(mu, logvar, **keywords)
        prior_mu, prior_logvar = prior.gaussian(mu.dtype)
    else:
        prior_mu, prior_logvar = prior or (None, None)
    if moments is None:
        return sample_and_kl(mu, logvar, prior_mu, prior_logvar, **keywords)
    return sample_and_kl_packed(moments, prior_mu, prior_logvar, **keywords)


def draws_with_log_prob(
    posterior: Encoded, prior: Prior | Gaussian | None, num_samples: int, *, hold_posterior: bool, **draw: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """z (K, B, *latent), log q(z|x) and log p(z) (K, B), as from `fastvae.priors.Prior.sample_and_log_prob`."""
    mu, logvar, _ = posterior
    if isinstance(prior, Prior):
        return prior.sample_and_log_prob(mu, logvar, num_samples, hold_posterior=hold_posterior, **draw)
    if not hold_posterior:
        return sample_and_log_prob(mu, logvar, *(prior or ()), num_samples=num_samples, **draw)
    z = reparameterize(mu, logvar, num_samples=num_samples, **draw)
    log_q = log_normal(z, mu.detach(), logvar.detach(), mu.dim() - 1)
    prior_mu, prior_logvar = prior or (torch.zeros_like(mu), torch.zeros_like(mu))
    return z, log_q, log_normal(z, prior_mu, prior_logvar, mu.dim() - 1)
