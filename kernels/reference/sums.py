"""Sums in an order that depends on the shape alone: PyTorch's own sum of a whole tensor depends on the threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# PyTorch shares out a sum among threads from 32768 elements on.
CHUNK = 4096


def sum_last(values: Tensor) -> Tensor:
    """Sum over the last dimension, chunk by chunk."""
    size = values.shape[-1]
    if size <= CHUNK:
        return values.sum(-1)
    whole = size - size % CHUNK
    chunks = values[..., :whole].unflatten(-1, (-1, CHUNK)).sum(-1)
    return sum_last(torch.cat((chunks, values[..., whole:].sum(-1, keepdim=True)), -1))


def event_sum(values: Tensor) -> Tensor:
    """Sum over all dimensions but the first."""
    return sum_last(values.reshape(values.shape[0], math.prod(values.shape[1:])))


def batch_sum(values: Tensor) -> Tensor:
    """Sum over the first dimension."""
    return sum_last(values.reshape(values.shape[0], math.prod(values.shape[1:])).t()).view(values.shape[1:])


def sum_to_size(values: Tensor, shape: torch.Size) -> Tensor:
    """`Tensor.sum_to_size`, for a shape that broadcasts over the batch, with one number a row, or of one element."""
    if values.shape == shape:
        return values
    if math.prod(shape) == 1:
        return sum_last(event_sum(values)).view(shape)
    if len(shape) == values.dim() and shape[0] == values.shape[0] == math.prod(shape):
        return event_sum(values).view(shape)
    return batch_sum(values).view(shape)
