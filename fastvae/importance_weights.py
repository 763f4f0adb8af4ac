"""Importance weights v_k = w_k / sum_j w_j so small that they count as 0.

Log w of two draws often differ by 80 nats and more, most of all early in training. A gradient times such a weight is a
denormal number in float32, and processors multiply matrices of denormal numbers tens of times as slowly as others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["smallest_weight", "without_small_weights"]


def smallest_weight(dtype: torch.dtype) -> float:
    """Far below the rounding of the sum of all weights, 1, and far above denormal numbers: 1.7e-21 in float32."""
    return torch.finfo(dtype).eps ** 3


def without_small_weights(log_weights: Tensor) -> Tensor:
    """log w of draws along dimension 0, those of smaller weights replaced: they get no gradient."""
    smallest = log_weights.detach().amax(0) + math.log(smallest_weight(log_weights.dtype))
    return torch.where(log_weights < smallest, smallest, log_weights)  # NaN and rows of -inf stay
