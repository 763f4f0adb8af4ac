"""Functions whose values do not depend on how a tensor is split, and that autograd differentiates without cancellation.

torch's own sigmoid and softplus round the last elements of a tensor differently from the others. The gradient of a
bound is 1 on it, as the kernels have it: that of torch.clamp was 1 before PyTorch 2.14 and is 0 since, which would take
with it the second derivative of the KL where posterior and prior are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least(values: Tensor, low: float) -> Tensor:
    """torch.clamp_min; NaN stays NaN."""
    return torch.where(values < low, low, values)


def between(values: Tensor, low: float, high: float) -> Tensor:
    """torch.clamp; NaN stays NaN."""
    return torch.where(values > high, high, at_least(values, low))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)). Of two branches, since autograd has 0 for the derivative of abs at 0."""
    negative = x < 0.0
    return torch.where(negative, 0.0, x) + torch.log1p(torch.exp(torch.where(negative, x, -x)))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))"""
    negative = x < 0.0
    e = torch.exp(torch.where(negative, x, -x))
    return torch.where(negative, e, 1.0) / (1.0 + e)


def tanh(x: Tensor) -> Tensor:
    """torch.tanh; where it is near 1, autograd's 1 - tanh^2 would cancel."""
    small = x.abs() < 0.5
    e = torch.exp(-2.0 * torch.where(small, 1.0, x).abs())
    far = torch.where(x < 0.0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    return torch.where(small, torch.tanh(torch.where(small, x, 0.0)), far)


def tanh_slope(x: Tensor) -> Tensor:
    """1 - tanh(x)^2"""
    e = torch.exp(-2.0 * x.abs())
    return 4.0 * e / (1.0 + e).square()


def excess_over_log(excess: Tensor, ratio: Tensor) -> Tensor:
    """g(e) = e - log(1 + e) >= 0, from e, which is exact near 0, and from ratio = 1 + e, which is exact near 0 itself.

    Near e = 0, with v = e / (2 + e):  log(1 + e) = 2 (v + v^3/3 + v^5/5 + ..)  and  e - 2 v = e v.
    """
    near = excess.abs() < 0.2
    e = torch.where(near, excess, 0.0)
    v = e / (2.0 + e)
    square = v.square()
    series = torch.zeros_like(v)
    for power in range(17, 1, -2):
        series = series * square + 1.0 / power
    return torch.where(near, e * v - 2.0 * v * square * series, excess - torch.log(torch.where(near, 1.0, ratio)))
