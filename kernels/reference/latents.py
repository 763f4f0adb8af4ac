"""The family of Gaussian latents (`fastvae.kernels.family` has the formulas) in plain PyTorch, one draw at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..family import Gradients, Latents, Options
from ..layout import compute_dtype, draws_like
from .bounds import at_least, between
from .philox import noise

LOG_2_PI = math.log(2.0 * math.pi)


class Scale(NamedTuple):
    """A scale parameter, resolved."""

    std: Tensor
    logvar: Tensor
    raw: Tensor  # as given, before the clamp
    x: Tensor  # after it


class Resolved(NamedTuple):
    """Posterior and prior, and what of them enters the KL; all in the dtype of the arithmetic."""

    mu: Tensor
    scale: Scale
    prior_mu: Tensor | None  # None: 0
    prior: Scale | None  # None: 1
    difference: Tensor  # mu - mu_p
    log_ratio: Tensor  # logvar - logvar_p


def resolve_scale(raw: Tensor, options: Options) -> Scale:
    x = raw
    if options.clamp == "hard":
        x = between(raw, options.low, options.high)
    elif options.clamp == "soft":
        x = options.high * torch.tanh(raw / options.high)
    if options.scale == "logvar":
        return Scale(torch.exp(0.5 * x), x, raw, x)
    if options.scale == "logstd":
        return Scale(torch.exp(x), 2.0 * x, raw, x)
    if options.scale == "var":
        return Scale(torch.sqrt(x), torch.log(x), raw, x)
    std = x if options.scale == "std" else F.softplus(x, threshold=40.0) + options.floor
    return Scale(std, 2.0 * torch.log(std), raw, x)


def resolve(
    mu: Tensor, scale: Tensor, prior_mu: Tensor | None, prior_scale: Tensor | None, options: Options
) -> Resolved:
    if prior_mu is None or prior_scale is None:
        posterior = resolve_scale(scale, options)
        return Resolved(mu, posterior, None, None, mu, posterior.logvar)
    prior = resolve_scale(prior_scale, options)
    if not options.residual:
        posterior = resolve_scale(scale, options)
        return Resolved(mu, posterior, prior_mu, prior, mu - prior_mu, posterior.logvar - prior.logvar)
    posterior = resolve_scale(prior_scale + scale, options)
    if options.clamp == "none":  # what was given is the difference; subtracting would lose what adding has rounded
        log_ratio = scale if options.scale == "logvar" else 2.0 * scale
    else:
        log_ratio = posterior.logvar - prior.logvar
    return Resolved(prior_mu + mu, posterior, prior_mu, prior, mu, log_ratio)


def kl_of(resolved: Resolved) -> Tensor:
    """The KL of each coordinate."""
    squared = resolved.difference.square()
    if resolved.prior is not None:
        squared = squared * torch.exp(-resolved.prior.logvar)
    # expm1(d) >= d holds for exact values; the clamp keeps it so when expm1 is rounded down.
    return 0.5 * (squared + at_least(torch.expm1(resolved.log_ratio) - resolved.log_ratio, 0.0))


def reduce_kl(kl: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return kl
    if reduction == "channel":
        return kl.flatten(2).sum(2) if kl.dim() > 2 else kl
    if reduction == "sample":
        return event_sum(kl)
    return kl.sum() if reduction == "sum" else kl.sum() / kl.shape[0]


def event_sum(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0], math.prod(values.shape[1:])).sum(1)


def log_probabilities(resolved: Resolved, z: Tensor, scaled_eps: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z|x) and log p(z) of one draw, summed over the event."""
    log_q = -0.5 * event_sum(scaled_eps.square() + resolved.scale.logvar + LOG_2_PI)
    if resolved.prior is None or resolved.prior_mu is None:
        return log_q, -0.5 * event_sum(z.square() + LOG_2_PI)
    distance = (z - resolved.prior_mu).square() * torch.exp(-resolved.prior.logvar)
    return log_q, -0.5 * event_sum(distance + resolved.prior.logvar + LOG_2_PI)


def _resolved_in(dtype: torch.dtype, *tensors: Tensor | None, options: Options) -> Resolved:
    mu, scale, prior_mu, prior_scale = (None if tensor is None else tensor.to(dtype) for tensor in tensors)
    assert mu is not None
    assert scale is not None
    return resolve(mu, scale, prior_mu, prior_scale, options)


def latent_forward(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    kl_mean: bool,
    log_probs: bool,
    options: Options,
) -> Latents:
    compute = compute_dtype(mu.dtype)
    resolved = _resolved_in(compute, mu, scale, prior_mu, prior_scale, options=options)
    z = log_q = log_p = kl = mean = None
    if reduction is not None or kl_mean:
        elementwise = kl_of(resolved)
        if kl_mean:
            mean = elementwise.mean(0)
        if reduction is not None:
            kl = reduce_kl(at_least(elementwise, options.free_bits), reduction)
    if seed is not None:
        draws = 1 if num_samples is None else num_samples
        z = torch.empty_like(mu) if num_samples is None else draws_like(mu, draws)
        if log_probs:
            log_q, log_p = (mu.new_empty((draws, mu.shape[0]), dtype=compute) for _ in range(2))
        for k in range(draws):
            eps = noise(seed, tuple(mu.shape), row_offset, compute, draw=k).mul_(options.temperature)
            drawn = torch.addcmul(resolved.mu, resolved.scale.std, eps)
            (z if num_samples is None else z[k]).copy_(drawn)
            if log_q is not None and log_p is not None:
                log_q[k], log_p[k] = log_probabilities(resolved, drawn, eps)
        if num_samples is None and log_q is not None and log_p is not None:
            log_q, log_p = log_q[0], log_p[0]
    return Latents(z, kl, mean, log_q, log_p)


def _scale_gradient(scale: Scale, grad_std: Tensor | float, grad_logvar: Tensor | float, options: Options) -> Tensor:
    """The chain rule from std and logvar to the parameter as given."""
    if options.scale == "logvar":
        grad = 0.5 * scale.std * grad_std + grad_logvar
    elif options.scale == "logstd":
        grad = scale.std * grad_std + 2.0 * grad_logvar
    elif options.scale == "var":
        grad = 0.5 / scale.std * grad_std + grad_logvar / scale.x
    else:
        grad = grad_std + 2.0 / scale.std * grad_logvar
        if options.scale == "softplus":
            grad = grad * torch.sigmoid(scale.x)
    if options.clamp == "hard":
        return torch.where((scale.raw >= options.low) & (scale.raw <= options.high), grad, 0.0)
    if options.clamp == "soft":
        return grad * (1.0 - (scale.x / options.high).square())
    return grad


def grad_kl_elementwise(grad_kl: Tensor, mu: Tensor, reduction: str) -> Tensor:
    """The gradient of each coordinate's KL, expanded from that of its sum."""
    if reduction == "none":
        return grad_kl
    if reduction == "batchmean":
        grad_kl = grad_kl / mu.shape[0]
    if reduction in ("sum", "batchmean"):
        return grad_kl.expand(mu.shape)
    return grad_kl.reshape(*grad_kl.shape, *[1] * (mu.dim() - grad_kl.dim())).expand(mu.shape)


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    grad_log_q: Tensor | None,
    grad_log_p: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    options: Options,
    wants_prior: bool,
    out: tuple[Tensor, Tensor] | None = None,
) -> Gradients:
    compute = compute_dtype(mu.dtype)
    resolved = _resolved_in(compute, mu, scale, prior_mu, prior_scale, options=options)
    inverse = 1.0 if resolved.prior is None else torch.exp(-resolved.prior.logvar)
    grad_mu, grad_std, grad_logvar, grad_prior_mu, grad_prior_logvar = (
        torch.zeros(mu.shape, dtype=compute, device=mu.device) for _ in range(5)
    )
    if grad_kl is not None and reduction is not None:
        of_kl = grad_kl_elementwise(grad_kl, mu, reduction)
        if options.free_bits > 0:
            of_kl = torch.where(kl_of(resolved) >= options.free_bits, of_kl, 0.0)
        of_difference = of_kl * resolved.difference * inverse
        of_ratio = 0.5 * of_kl * torch.expm1(resolved.log_ratio)
        grad_mu += of_difference
        grad_logvar += of_ratio
        grad_prior_mu -= of_difference
        grad_prior_logvar -= of_ratio + 0.5 * of_difference * resolved.difference
    draws = 1 if num_samples is None else num_samples
    if seed is not None and not (grad_z is None and grad_log_q is None and grad_log_p is None):
        for k in range(draws):
            of_z, of_log_q, of_log_p = (
                gradient if gradient is None or num_samples is None else gradient[k]
                for gradient in (grad_z, grad_log_q, grad_log_p)
            )
            eps = noise(seed, tuple(mu.shape), row_offset, compute, draw=k).mul_(options.temperature)
            of_drawn = torch.zeros_like(grad_mu) if of_z is None else of_z.to(compute)
            if of_log_q is not None:
                grad_logvar -= 0.5 * _of_rows(of_log_q, mu)
            if of_log_p is not None:
                distance = resolved.mu + resolved.scale.std * eps
                if resolved.prior_mu is not None:
                    distance = distance - resolved.prior_mu
                toward_prior = _of_rows(of_log_p, mu) * distance * inverse
                of_drawn = of_drawn - toward_prior
                grad_prior_mu += toward_prior
                grad_prior_logvar += 0.5 * (toward_prior * distance - _of_rows(of_log_p, mu))
            grad_mu += of_drawn
            grad_std += of_drawn * eps
    grad_scale = _scale_gradient(resolved.scale, grad_std, grad_logvar, options)
    of_prior_mu = of_prior_scale = None
    if wants_prior and resolved.prior is not None and prior_mu is not None and prior_scale is not None:
        grad_prior_scale = _scale_gradient(resolved.prior, 0.0, grad_prior_logvar, options)
        if options.residual:
            grad_prior_mu = grad_prior_mu + grad_mu
            grad_prior_scale = grad_prior_scale + grad_scale
        of_prior_mu = grad_prior_mu.sum_to_size(prior_mu.shape).to(prior_mu.dtype)
        of_prior_scale = grad_prior_scale.sum_to_size(prior_scale.shape).to(prior_scale.dtype)
    written = out or (torch.empty_like(mu), torch.empty_like(scale))
    written[0].copy_(grad_mu)
    written[1].copy_(grad_scale)
    return Gradients(*written, of_prior_mu, of_prior_scale)


def _of_rows(per_row: Tensor, like: Tensor) -> Tensor:
    return per_row.reshape(-1, *[1] * (like.dim() - 1))
