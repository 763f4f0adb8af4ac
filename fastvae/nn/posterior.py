"""Calling an encoder, and drawing from its posterior q(z|x): with the KL, or with log q and log p.

An encoder returns the pair (mu, logvar), or one tensor of moments (B, 2C, ...), packed along dimension 1, which the
fused op reads in place. An encoder that can return both sets ``packs_moments = True`` and is called with
``packed=True`` for its moments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import check_posterior
from ..functional import reparameterize, sample_and_kl, sample_and_kl_packed, sample_and_log_prob
from ..priors import Prior, normal_log_prob
from ..returned import check_returned, check_rows
from ..torch_internals import exportable

__all__ = ["EncoderOutput", "Gaussian", "Posterior", "draw_with_kl", "draw_with_log_prob", "encode"]

Gaussian = tuple[Tensor, Tensor]
"""mu and logvar of a prior, or mu and another scale where a model uses another parameterisation."""


@exportable
class Posterior(NamedTuple):
    """q(z|x) = N(mu, diag exp(logvar)); both (B, *latent_shape)."""

    mu: Tensor
    logvar: Tensor


@exportable
class EncoderOutput(NamedTuple):
    """mu and logvar, and the packed tensor that they are views of, if the encoder returned one."""

    mu: Tensor
    logvar: Tensor
    moments: Tensor | None


def encode(name: str, encoder: nn.Module, x: Tensor, condition: Tensor | None = None) -> EncoderOutput:
    """The checked output of ``encoder(x)`` or ``encoder(x, condition)``; error messages call the encoder ``name``."""
    inputs = (x,) if condition is None else (x, condition)
    output = encoder(*inputs, packed=True) if getattr(encoder, "packs_moments", False) else encoder(*inputs)
    if isinstance(output, Tensor):
        if output.dim() < 2 or output.shape[1] % 2:
            raise TypeError(
                f"{name} returned a Tensor of shape {tuple(output.shape)}, expected the pair (mu, logvar) or moments "
                "(B, 2C, ...)"
            )
        check_rows(name, output, x)
        mu, logvar = output.chunk(2, 1)
        return EncoderOutput(mu, logvar, output)
    if not isinstance(output, (tuple, list)) or len(output) != 2:
        actual = f"{len(output)} values" if isinstance(output, (tuple, list)) else type(output).__name__
        raise TypeError(f"{name} returned {actual}, expected the pair (mu, logvar)")
    check_rows(name, output, x)
    mu, logvar = output
    if isinstance(mu, Tensor) and isinstance(logvar, Tensor) and mu.dim() != logvar.dim():
        # One number a row would be taken for one a coordinate where a batch has as many rows.
        raise ValueError(
            f"{name} returned logvar of shape {tuple(logvar.shape)}, mu of {tuple(mu.shape)};"
            " expected as many dimensions"
        )
    mu, logvar = check_posterior(mu, logvar)
    return EncoderOutput(mu, logvar, None)


def draw_with_kl(posterior: EncoderOutput, prior: Prior | Gaussian | None, **keywords: Any) -> tuple[Tensor, ...]:
    """z and its KL to the prior, N(0, I) if None; keywords and results as for `fastvae.sample_and_kl`."""
    mu, logvar, moments = posterior
    if isinstance(prior, Prior):
        if moments is None or not prior.closed_form:
            z, kl, *rest = prior.sample_and_kl(mu, logvar, **keywords)
            who, reduction = f"{type(prior).__name__}.sample_and_kl", keywords.get("reduction", "sample")
            shapes = {"none": mu.shape, "sample": mu.shape[:1]}
            check_returned(who, z, mu.shape, "z, as mu")
            check_returned(who, kl, shapes.get(reduction, ()), f"the KL of reduction {reduction!r}")
            return z, kl, *rest
        prior_mu, prior_logvar = prior.gaussian(mu.dtype)
    else:
        prior_mu, prior_logvar = prior or (None, None)
    if moments is None:
        return sample_and_kl(mu, logvar, prior_mu, prior_logvar, **keywords)
    return sample_and_kl_packed(moments, prior_mu, prior_logvar, **keywords)


def draw_with_log_prob(
    posterior: EncoderOutput,
    prior: Prior | Gaussian | None,
    num_samples: int,
    *,
    hold_posterior: bool = False,
    **draw: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """z (K, B, *latent), log q(z|x) and log p(z) (K, B), as `fastvae.priors.Prior.sample_and_log_prob` returns them."""
    mu, logvar, _ = posterior
    if isinstance(prior, Prior):
        drawn = prior.sample_and_log_prob(mu, logvar, num_samples, hold_posterior=hold_posterior, **draw)
        draws, who = (num_samples, mu.shape[0]), f"{type(prior).__name__}.sample_and_log_prob"
        check_returned(who, drawn[0], (num_samples, *mu.shape), "the draws z")
        for name, one in zip(("log q(z|x)", "log p(z)"), drawn[1:], strict=True):
            check_returned(who, one, draws, f"{name} of each draw and row")
        return drawn
    if not hold_posterior:
        return sample_and_log_prob(mu, logvar, *(prior or ()), num_samples=num_samples, **draw)
    z = reparameterize(mu, logvar, num_samples=num_samples, **draw)
    log_q = normal_log_prob(z, mu.detach(), logvar.detach(), mu.dim() - 1)
    prior_mu, prior_logvar = prior or (torch.zeros_like(mu), torch.zeros_like(mu))
    return z, log_q, normal_log_prob(z, prior_mu, prior_logvar, mu.dim() - 1)
