"""The discretized logistic mixture of 8-bit images, by the formula in `fastvae.kernels.likelihood_spec`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .functions import at_least, sigmoid, softplus, tanh, tanh_slope

HALF_A_LEVEL = 1.0 / 255.0
# Between the highest level but one and the highest, in [-1, 1].
EXTREME = 1.0 - HALF_A_LEVEL


class Components(NamedTuple):
    """The parts of the parameter, each (B, C, M, ...) but the logits, (B, M, ...); coefficients None with C = 1."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor | None


class Bins(NamedTuple):
    """What the log-probability of a level is made of, (B, C, M, ...)."""

    upper: Tensor  # a
    lower: Tensor  # b
    log_prob: Tensor
    inverse_scale: Tensor
    highest: Tensor
    lowest: Tensor


def levels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels in [-1, 1], (B, C, ...)."""
    unit = x.to(dtype) / 255.0 if not x.is_floating_point() else x.to(dtype)
    return 2.0 * unit - 1.0


def split(parameter: Tensor, channels: int, components: int) -> Components:
    logits, rest = parameter[:, :components], parameter[:, components:]
    rest = rest.unflatten(1, (channels, -1, components))
    return Components(logits, rest[:, :, 0], rest[:, :, 1], rest[:, :, 2] if channels == 3 else None)


def mixed_means(y: Tensor, parts: Components) -> Tensor:
    """Means, (B, C, M, ...): those of green and blue depend on the levels before them."""
    if parts.coefficients is None:
        return parts.means
    red, green = y[:, 0].unsqueeze(1), y[:, 1].unsqueeze(1)
    factors = tanh(parts.coefficients)
    of_green = parts.means[:, 1] + factors[:, 0] * red
    of_blue = parts.means[:, 2] + factors[:, 1] * red + factors[:, 2] * green
    return torch.stack((parts.means[:, 0], of_green, of_blue), 1)


def bins(y: Tensor, parts: Components, lowest_log_scale: float) -> Bins:
    level = y.unsqueeze(2)
    inverse_scale = torch.exp(-at_least(parts.log_scales, lowest_log_scale))
    centred = level - mixed_means(y, parts)
    upper, lower = (centred + HALF_A_LEVEL) * inverse_scale, (centred - HALF_A_LEVEL) * inverse_scale
    highest, lowest = level > EXTREME, level < -EXTREME
    below_upper = torch.where(highest, 0.0, -softplus(-upper))
    above_lower = torch.where(lowest, 0.0, -softplus(lower))
    width = torch.where(highest | lowest, 1.0, 2.0 * HALF_A_LEVEL * inverse_scale)
    log_part = torch.where(highest | lowest, 0.0, torch.log(-torch.expm1(-width)))
    return Bins(upper, lower, log_part + below_upper + above_lower, inverse_scale, highest, lowest)


def log_prob(y: Tensor, parameter: Tensor, components: int, lowest_log_scale: float) -> Tensor:
    """log p of each pixel, (B, ...), from y (B, C, ...) in [-1, 1]; autograd can differentiate it."""
    parts = split(parameter, y.shape[1], components)
    of_components = bins(y, parts, lowest_log_scale).log_prob.sum(1)
    return torch.logsumexp(torch.log_softmax(parts.logits, 1) + of_components, 1)


def gradient(grad: Tensor, y: Tensor, parameter: Tensor, components: int, lowest_log_scale: float) -> Tensor:
    """Of the parameter; ``grad`` is that of each pixel's log p, (B, ...)."""
    parts = split(parameter, y.shape[1], components)
    found = bins(y, parts, lowest_log_scale)
    weights = torch.softmax(torch.log_softmax(parts.logits, 1) + found.log_prob.sum(1), 1)  # p(component|x)
    grad = grad.unsqueeze(1)
    of_logits = grad * (weights - torch.softmax(parts.logits, 1))
    of_component = (grad * weights).unsqueeze(1)
    # d log P by a, without the width, and by -b; the width 2/255 exp(-s) is a - b.
    by_upper = torch.where(found.highest, 0.0, sigmoid(-found.upper))
    by_lower = torch.where(found.lowest, 0.0, sigmoid(found.lower))
    of_means = of_component * (by_lower - by_upper) * found.inverse_scale
    width = torch.where(found.highest | found.lowest, 1.0, 2.0 * HALF_A_LEVEL * found.inverse_scale)
    by_log_width = torch.where(found.highest | found.lowest, 0.0, width / torch.expm1(width))
    of_scales = of_component * (by_lower * found.lower - by_upper * found.upper - by_log_width)
    of_scales = torch.where(parts.log_scales >= lowest_log_scale, of_scales, 0.0)
    each = [of_means, of_scales]
    if parts.coefficients is not None:
        red, green = y[:, 0].unsqueeze(1), y[:, 1].unsqueeze(1)
        through = torch.stack((of_means[:, 1] * red, of_means[:, 2] * red, of_means[:, 2] * green), 1)
        each.append(through * tanh_slope(parts.coefficients))
    return torch.cat((of_logits, torch.stack(each, 2).flatten(1, 3)), 1)
