"""Bounds for what autograd differentiates: the gradient is 1 on them, as the kernels have it.

That of torch.clamp was 1 before PyTorch 2.14 and is 0 since, which would take with it the second derivative of the KL
where posterior and prior are equal.
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
