"""The family of likelihoods (`fastvae.kernels.likelihoods` has the formulas) in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import likelihood_dtype
from ..likelihoods import EPS, MIXTURE, Density
from . import mixture
from .bounds import between
from .latents import LOG_2_PI, grad_kl_elementwise, reduce_kl

# Where log(l / tanh(l/2)) and its derivative come from their series at 0: beyond, they lose less to cancellation.
NEAR_0 = 0.5


def likelihood_forward(x: Tensor, parameters: tuple[Tensor, ...], reduction: str, density: Density) -> Tensor:
    compute = likelihood_dtype(x, *parameters)
    each = log_prob_elementwise(x, tuple(given.to(compute) for given in parameters), density)
    if reduction == "none":
        like = parameters[0][:, 0] if density.kind == MIXTURE else parameters[0]
        return torch.empty_like(like, dtype=compute).copy_(each)
    return reduce_kl(each, reduction)


def log_prob_elementwise(x: Tensor, parameters: tuple[Tensor, ...], density: Density) -> Tensor:
    """log p of each coordinate (pixel, of a mixture) in the parameters' dtype; autograd can differentiate it."""
    if density.kind == MIXTURE:
        return mixture.log_prob(mixture.levels(x, parameters[0].dtype), parameters[0], density)
    x = x.to(parameters[0].dtype)
    first, *others = parameters
    if density.kind == "bernoulli":
        return x * first - softplus(first)
    if density.kind == "continuous_bernoulli":
        return x * first - softplus(first) + log_normalizer(first)
    if density.kind == "gaussian":
        logvar = between(others[0], density.low, density.high)
        return -0.5 * ((x - first).square() * torch.exp(-logvar) + logvar + LOG_2_PI)
    if density.kind == "laplace":
        logscale = between(others[0], density.low, density.high)
        return -(x - first).abs() * torch.exp(-logscale) - logscale - math.log(2.0)
    if density.kind == "poisson":
        return x * first - torch.exp(first) - torch.lgamma(x + 1.0)
    theta = others[0]
    at_zero = -theta * torch.log1p(first / (theta + EPS))
    if density.kind == "negative_binomial":
        return at_zero + of_counts(x, first, theta)
    logits = others[1]
    return torch.where(
        is_zero(x),
        softplus(at_zero - logits) - softplus(-logits),
        at_zero + of_counts(x, first, theta) - softplus(logits),
    )


def softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40.0)


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
    reduction: str,
    density: Density,
    wants: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    compute = likelihood_dtype(x, *parameters)
    converted = tuple(given.to(compute) for given in parameters)
    if density.kind == MIXTURE:
        y = mixture.levels(x, compute)
        each = grad_kl_elementwise(grad, y[:, 0], reduction).to(compute)
        gradients: tuple[Tensor, ...] = (mixture.gradient(each, y, converted[0], density),)
    else:
        each = grad_kl_elementwise(grad, parameters[0], reduction).to(compute)
        gradients = tuple(each * one for one in derivatives(x.to(compute), converted, density))
    return tuple(
        torch.empty_like(given).copy_(gradient.sum_to_size(given.shape)) if wanted else None
        for gradient, given, wanted in zip(gradients, parameters, wants, strict=True)
    )


def derivatives(x: Tensor, parameters: tuple[Tensor, ...], density: Density) -> tuple[Tensor, ...]:
    """Of each coordinate's log p, by each parameter."""
    first, *others = parameters
    if density.kind == "bernoulli":
        return (x - torch.sigmoid(first),)
    if density.kind == "continuous_bernoulli":
        return (x - torch.sigmoid(first) + normalizer_gradient(first),)
    if density.kind == "poisson":
        return (x - torch.exp(first),)
    if density.kind in ("gaussian", "laplace"):
        scale = between(others[0], density.low, density.high)
        inside = (others[0] >= density.low) & (others[0] <= density.high) | others[0].isnan()
        if density.kind == "gaussian":
            of_mean = (x - first) * torch.exp(-scale)
            of_scale = 0.5 * ((x - first) * of_mean - 1.0)
        else:
            difference = x - first
            of_mean = torch.where(difference.isnan(), difference, difference.sign()) * torch.exp(-scale)
            of_scale = (x - first).abs() * torch.exp(-scale) - 1.0
        return of_mean, torch.where(inside, of_scale, 0.0)
    theta = others[0]
    total = theta + first + EPS
    log_ratio = torch.log1p(first / (theta + EPS))
    mean_at_zero = -theta / total
    theta_at_zero = theta * first / ((theta + EPS) * total) - log_ratio
    mean_beyond = mean_at_zero + x / (first + EPS) - x / total
    theta_beyond = theta_at_zero + (torch.digamma(x + theta) - torch.digamma(theta)) - x / total
    zero = is_zero(x)
    if density.kind == "negative_binomial":
        return torch.where(zero, mean_at_zero, mean_beyond), torch.where(zero, theta_at_zero, theta_beyond)
    logits = others[1]
    counted = torch.sigmoid(-theta * log_ratio - logits)  # the part of a zero's probability that is the binomial's
    return (
        torch.where(zero, counted * mean_at_zero, mean_beyond),
        torch.where(zero, counted * theta_at_zero, theta_beyond),
        torch.where(zero, torch.sigmoid(-logits) - counted, -torch.sigmoid(logits)),
    )
