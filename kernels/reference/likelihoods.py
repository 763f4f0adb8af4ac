"""Likelihoods (`fastvae.kernels.likelihood_spec` has the formulas) in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import likelihood_dtype
from ..likelihood_spec import (
    COUNTS,
    EPS,
    LEAST_LOG,
    LEAST_VARIANCE,
    LOWEST_LOG,
    MIXTURE,
    NOTICING,
    Bounds,
    LikelihoodSpec,
)
from . import mixture
from .counts import negative_binomial, negative_binomial_at_zero, negative_binomial_slopes, poisson
from .functions import at_least, between, sigmoid, softplus
from .latents import LOG_2_PI, grad_kl_elementwise, reduce_kl
from .sums import sum_to_size


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
    if spec.kind in ("gaussian", "log_normal"):
        logvar = between(others[0], bounds.low, bounds.high)
        data = x if spec.kind == "gaussian" else torch.log(x)
        log_p = -0.5 * ((data - first).square() * torch.exp(-logvar) + logvar + LOG_2_PI)
        return log_p if spec.kind == "gaussian" else log_p - at_least(data, LEAST_LOG)
    if spec.kind == "laplace":
        logscale = between(others[0], bounds.low, bounds.high)
        return -(x - first).abs() * torch.exp(-logscale) - logscale - math.log(2.0)
    if spec.kind == "poisson":
        return poisson(x, first)
    if spec.kind == "scaled_bernoulli":
        q = _scaled(parameters)
        each = torch.where(x > 0, torch.log(q), torch.log1p(-q))
        return torch.where(x.isnan(), x, at_least(each, LOWEST_LOG))
    theta, zero = others[0], is_zero(x)
    at_zero = negative_binomial_at_zero(first, theta)
    counted = negative_binomial(torch.where(zero, 1.0, x), first, theta)
    if spec.kind == "negative_binomial":
        return torch.where(zero, at_zero, counted)
    logits = others[1]
    return torch.where(zero, softplus(at_zero - logits) - softplus(-logits), counted - softplus(logits))


def is_zero(x: Tensor) -> Tensor:
    return x.abs() < EPS


def sinh_series(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Whether |l| < 1; P(l^2) there, 1 elsewhere: sinh l = l + l^3/6 P(l^2), of which float64 needs 8 terms."""
    near = logits.abs() < 1.0
    square = torch.where(near, logits, 0.0).square()
    series = torch.ones_like(square)
    for factor in (272.0, 210.0, 156.0, 110.0, 72.0, 42.0, 20.0):
        series = 1.0 + square / factor * series
    return near, series


def log_normalizer(logits: Tensor) -> Tensor:
    """log(l / tanh(l/2)) of the continuous Bernoulli; near 0 log((1 + cosh l) l / sinh l)."""
    near, series = sinh_series(logits)
    inner = torch.where(near, logits, 0.0)
    by_series = torch.log((2.0 + 2.0 * torch.sinh(0.5 * inner).square()) / (1.0 + inner.square() / 6.0 * series))
    size = torch.where(near, 1.0, logits).abs()
    return torch.where(near, by_series, torch.log(size / torch.tanh(0.5 * size)))


def normalizer_gradient(logits: Tensor) -> Tensor:
    """Its derivative, 1/l - 1/sinh l."""
    near, series = sinh_series(logits)
    inner = torch.where(near, logits, 0.0)
    by_series = inner / 6.0 * series / (1.0 + inner.square() / 6.0 * series)
    outer = torch.where(near, 1.0, logits)
    e = torch.exp(-outer.abs())
    of_sinh = torch.where(outer < 0.0, -2.0, 2.0) * e / (1.0 - e.square())
    return torch.where(near, by_series, 1.0 / outer - of_sinh)


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
        slopes = derivatives(x.to(compute), converted, spec, bounds)
        gradients = tuple(torch.where(inside, each * one, 0.0) for one, inside in slopes)
    return tuple(
        torch.empty_like(given).copy_(sum_to_size(gradient, given.shape)) if wanted else None
        for gradient, given, wanted in zip(gradients, parameters, wants, strict=True)
    )


def derivatives(
    x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec, bounds: Bounds
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Of each coordinate's log p, by each parameter; and where the parameter counts, which is not beyond its bounds."""
    first, *others = parameters
    always = torch.ones((), dtype=torch.bool, device=first.device)
    if spec.kind == "bernoulli":
        return ((x - sigmoid(first), always),)
    if spec.kind == "continuous_bernoulli":
        return ((x - sigmoid(first) + normalizer_gradient(first), always),)
    if spec.kind == "poisson":
        return ((x - torch.exp(first), always),)
    if spec.kind in ("gaussian", "laplace", "log_normal"):
        scale = between(others[0], bounds.low, bounds.high)
        inside = (others[0] >= bounds.low) & (others[0] <= bounds.high) | others[0].isnan()
        difference = (torch.log(x) if spec.kind == "log_normal" else x) - first
        inverse = torch.exp(-scale)
        if spec.kind != "laplace":
            of_mean = difference * inverse
            of_scale = 0.5 * (difference * of_mean - 1.0)
        else:
            of_mean = torch.where(difference.isnan(), difference, difference.sign()) * inverse
            of_scale = difference.abs() * inverse - 1.0
        return (of_mean, always), (of_scale, inside)
    if spec.kind == "scaled_bernoulli":
        q = _scaled(parameters)
        came = torch.where(x.isnan(), x, (x > 0).to(q.dtype))
        of_q = (came - q) / torch.clamp((1.0 - q) * q, min=LEAST_VARIANCE)
        return (
            (of_q * others[0] * others[1], always),
            (of_q * first * others[1], always),
            (of_q * first * others[0], always),
        )
    theta = others[0]
    of_mean, of_theta = negative_binomial_slopes(x, first, theta)
    if spec.kind == "negative_binomial":
        return (of_mean, always), (of_theta, always)
    zero, logits = is_zero(x), others[1]
    # The part of a zero's probability that is the binomial's.
    counted = sigmoid(negative_binomial_at_zero(first, theta) - logits)
    of_logits = torch.where(zero, sigmoid(-logits) - counted, -sigmoid(logits))
    counted = torch.where(zero, counted, 1.0)
    return (counted * of_mean, always), (counted * of_theta, always), (of_logits, always)
