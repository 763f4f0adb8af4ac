"""Likelihoods (`fastvae.kernels.likelihood_spec` has the formulas) in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import likelihood_dtype
from ..likelihood_spec import COUNTS, EPS, LEAST_VARIANCE, LOWEST_LOG, MIXTURE, NOTICING, Bounds, LikelihoodSpec
from . import mixture
from .bounds import at_least, between
from .latents import LOG_2_PI, grad_kl_elementwise, reduce_kl, softplus
from .sums import sum_to_size

# Where log(l / tanh(l/2)) and its derivative come from their series at 0: beyond, they lose less to cancellation.
NEAR_0 = 0.5


def likelihood_forward(
    x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec, bounds: Bounds, noticed: Tensor | None = None
) -> Tensor:
    compute = likelihood_dtype(x, *parameters)
    converted = tuple(given.to(compute) for given in parameters)
    if noticed is not None:
        notice(noticed, x, converted, spec)
    each = log_prob_elementwise(x, converted, spec, bounds)
    if spec.reduction == "none":
        like = parameters[0][:, 0] if spec.kind == MIXTURE else parameters[0]
        return torch.empty_like(like, dtype=compute).copy_(each)
    return reduce_kl(each, spec.reduction)


def notice(noticed: Tensor, x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec) -> None:
    """Set ``noticed``, of one element, if a value is outside the density's domain; without waiting for the device."""
    if spec.kind in NOTICING:
        if spec.kind in COUNTS:
            holds = (x >= 0) & (x.remainder(1) == 0) if x.is_floating_point() else x >= 0
        else:
            q = _scaled(parameters)
            holds = (q >= 0) & (q <= 1)
        noticed.logical_or_(~holds.all())


def _scaled(parameters: tuple[Tensor, ...]) -> Tensor:
    """The probability of x > 0 of a scaled Bernoulli."""
    probability, row_factor, column_factor = parameters
    return probability * row_factor * column_factor


def log_prob_elementwise(x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec, bounds: Bounds) -> Tensor:
    """log p of each coordinate (pixel, of a mixture) in the parameters' dtype; autograd can differentiate it."""
    if spec.kind == MIXTURE:
        return mixture.log_prob(mixture.levels(x, parameters[0].dtype), parameters[0], spec.components, bounds.low)
    x = x.to(parameters[0].dtype)
    first, *others = parameters
    if spec.kind == "bernoulli":
        return x * first - softplus(first)
    if spec.kind == "continuous_bernoulli":
        return x * first - softplus(first) + log_normalizer(first)
    if spec.kind == "gaussian":
        logvar = between(others[0], bounds.low, bounds.high)
        return -0.5 * ((x - first).square() * torch.exp(-logvar) + logvar + LOG_2_PI)
    if spec.kind == "laplace":
        logscale = between(others[0], bounds.low, bounds.high)
        return -(x - first).abs() * torch.exp(-logscale) - logscale - math.log(2.0)
    if spec.kind == "poisson":
        return x * first - torch.exp(first) - torch.lgamma(x + 1.0)
    if spec.kind == "scaled_bernoulli":
        q = _scaled(parameters)
        each = torch.where(x > 0, torch.log(q), torch.log1p(-q))
        return torch.where(x.isnan(), x, at_least(each, LOWEST_LOG))
    theta = others[0]
    at_zero = -theta * torch.log1p(first / (theta + EPS))
    if spec.kind == "negative_binomial":
        return at_zero + of_counts(x, first, theta)
    logits = others[1]
    return torch.where(
        is_zero(x),
        softplus(at_zero - logits) - softplus(-logits),
        at_zero + of_counts(x, first, theta) - softplus(logits),
    )


def is_zero(x: Tensor) -> Tensor:
    return x.abs() < EPS


def log_normalizer(logits: Tensor) -> Tensor:
    """log(l / tanh(l/2)) of the continuous Bernoulli."""
    near = logits.abs() < NEAR_0
    square = torch.where(near, logits, 0.0).square()
    series = math.log(2.0) + square * (1 / 12 - square * (7 / 1440 - square * (31 / 90720 - square * 127 / 4838400)))
    size = torch.where(near, 1.0, logits).abs()
    return torch.where(near, series, torch.log(size / torch.tanh(0.5 * size)))


def normalizer_gradient(logits: Tensor) -> Tensor:
    """Its derivative, 1/l - 1/sinh(l)."""
    near = logits.abs() < NEAR_0
    inner = torch.where(near, logits, 0.0)
    square = inner.square()
    series = inner * (1 / 6 - square * (7 / 360 - square * (31 / 15120 - square * 127 / 604800)))
    outer = torch.where(near, 1.0, logits)
    return torch.where(near, series, 1.0 / outer - 1.0 / torch.sinh(outer))


def of_counts(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """What a negative binomial has beside its value at 0."""
    log_power = x * torch.log((mean + EPS) / (theta + mean + EPS))
    rise = torch.lgamma(x + theta) - torch.lgamma(theta)  # what is large cancels before anything else is added
    return log_power + (rise - torch.lgamma(x + 1.0))


def likelihood_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    spec: LikelihoodSpec,
    bounds: Bounds,
    wants: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    compute = likelihood_dtype(x, *parameters)
    converted = tuple(given.to(compute) for given in parameters)
    if spec.kind == MIXTURE:
        y = mixture.levels(x, compute)
        each = grad_kl_elementwise(grad, y[:, 0], spec.reduction).to(compute)
        gradients: tuple[Tensor, ...] = (mixture.gradient(each, y, converted[0], spec.components, bounds.low),)
    else:
        each = grad_kl_elementwise(grad, parameters[0], spec.reduction).to(compute)
        gradients = tuple(each * one for one in derivatives(x.to(compute), converted, spec, bounds))
    return tuple(
        torch.empty_like(given).copy_(sum_to_size(gradient, given.shape)) if wanted else None
        for gradient, given, wanted in zip(gradients, parameters, wants, strict=True)
    )


def derivatives(x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec, bounds: Bounds) -> tuple[Tensor, ...]:
    """Of each coordinate's log p, by each parameter."""
    first, *others = parameters
    if spec.kind == "bernoulli":
        return (x - torch.sigmoid(first),)
    if spec.kind == "continuous_bernoulli":
        return (x - torch.sigmoid(first) + normalizer_gradient(first),)
    if spec.kind == "poisson":
        return (x - torch.exp(first),)
    if spec.kind in ("gaussian", "laplace"):
        scale = between(others[0], bounds.low, bounds.high)
        inside = (others[0] >= bounds.low) & (others[0] <= bounds.high) | others[0].isnan()
        if spec.kind == "gaussian":
            of_mean = (x - first) * torch.exp(-scale)
            of_scale = 0.5 * ((x - first) * of_mean - 1.0)
        else:
            difference = x - first
            of_mean = torch.where(difference.isnan(), difference, difference.sign()) * torch.exp(-scale)
            of_scale = (x - first).abs() * torch.exp(-scale) - 1.0
        return of_mean, torch.where(inside, of_scale, 0.0)
    if spec.kind == "scaled_bernoulli":
        q = _scaled(parameters)
        came = torch.where(x.isnan(), x, (x > 0).to(q.dtype))
        of_q = (came - q) / torch.clamp((1.0 - q) * q, min=LEAST_VARIANCE)
        return of_q * others[0] * others[1], of_q * first * others[1], of_q * first * others[0]
    theta = others[0]
    total = theta + first + EPS
    log_ratio = torch.log1p(first / (theta + EPS))
    mean_at_zero = -theta / total
    theta_at_zero = theta * first / ((theta + EPS) * total) - log_ratio
    mean_beyond = mean_at_zero + x / (first + EPS) - x / total
    theta_beyond = theta_at_zero + (torch.digamma(x + theta) - torch.digamma(theta)) - x / total
    zero = is_zero(x)
    if spec.kind == "negative_binomial":
        return torch.where(zero, mean_at_zero, mean_beyond), torch.where(zero, theta_at_zero, theta_beyond)
    logits = others[1]
    counted = torch.sigmoid(-theta * log_ratio - logits)  # the part of a zero's probability that is the binomial's
    return (
        torch.where(zero, counted * mean_at_zero, mean_beyond),
        torch.where(zero, counted * theta_at_zero, theta_beyond),
        torch.where(zero, torch.sigmoid(-logits) - counted, -torch.sigmoid(logits)),
    )
