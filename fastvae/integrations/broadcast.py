"""The fused likelihoods of tensors that broadcast against each other, element-wise, as libraries call them.

Kernels take rows of an event: x and the first parameter full, expanded ones among them, the others full or shared. Here
the dimensions are chosen that become rows, so that what repeats is neither copied nor its gradient written in full:

    x (C, G), mean (S, C, G), several draws     the rows are the C cells
    x (1, G), mean (S, C, G), and all else      the rows are as many of the leading dimensions as go into one
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..autograd import run_likelihood
from ..kernels.likelihood_spec import NO_BOUNDS, LikelihoodSpec

__all__ = ["log_prob"]


def log_prob(kind: str, x: Tensor, parameters: tuple[Tensor, ...], noticed: Tensor | None = None) -> Tensor:
    """log p of each coordinate, in nats and float32, of the shape that x and the parameters broadcast to.

    ``noticed`` as in `fastvae.kernels`. The tensors have kernels, and at least one of them a dimension.
    """
    spec, first = LikelihoodSpec(kind, "none"), parameters[0]
    if x.dim() == 2 and first.shape == x.shape and all(one.shape in (x.shape, x.shape[1:]) for one in parameters):
        return run_likelihood(x, parameters, spec, NO_BOUNDS, noticed)
    shape = torch.broadcast_shapes(x.shape, *[one.shape for one in parameters])
    x, others = x.expand(shape), [one.reshape((1,) * (len(shape) - one.dim()) + one.shape) for one in parameters[1:]]
    first = first.expand(shape)
    repeats = len(shape) > 2 and x.stride(0) == 0 and x.stride(1) != 0
    if repeats:
        x, first, *others = [one.transpose(0, 1) for one in (x, first, *others)]
    rows = 1 if repeats else _dims_in_one(x, first, *others)
    fitted = [_as_rows(one, first.shape, rows) for one in others]
    each = run_likelihood(_merged(x, rows), (_merged(first, rows), *fitted), spec, NO_BOUNDS, noticed)
    each = each if rows == 1 else each.unflatten(0, first.shape[:rows])
    return each.transpose(0, 1) if repeats else each


def _dims_in_one(x: Tensor, first: Tensor, *others: Tensor) -> int:
    """How many of the leading dimensions can be seen as one in all tensors; the last one is the event's."""
    for dims in range(x.dim() - 1, 1, -1):
        full = [one.expand(x.shape) for one in others if not (_one_row(one, dims) or _one_a_row(one, dims))]
        if all(_is_one(tensor, dims) for tensor in (x, first, *full)):
            return dims
    return 1


def _is_one(tensor: Tensor, dims: int) -> bool:
    sizes, strides = tensor.shape, tensor.stride()
    return all(strides[dim] == sizes[dim + 1] * strides[dim + 1] for dim in range(dims - 1))


def _one_row(tensor: Tensor, rows: int) -> bool:
    return math.prod(tensor.shape[:rows]) == 1


def _one_a_row(tensor: Tensor, rows: int) -> bool:
    return math.prod(tensor.shape[rows:]) == 1


def _as_rows(tensor: Tensor, shape: torch.Size, rows: int) -> Tensor:
    """A parameter as the kernels take it beside tensors of ``shape`` with ``rows`` dimensions of rows."""
    if tensor.numel() == 1:
        return tensor.reshape((1,) * (1 + len(shape) - rows))
    if _one_row(tensor, rows):
        return tensor.reshape(1, *tensor.shape[rows:]).expand(1, *shape[rows:])
    if _one_a_row(tensor, rows):
        sizes = shape[:rows] + tensor.shape[rows:]
        return tensor.expand(sizes).reshape(math.prod(shape[:rows]), *tensor.shape[rows:])
    return _merged(tensor.expand(shape), rows)


def _merged(tensor: Tensor, rows: int) -> Tensor:
    return tensor if rows == 1 else tensor.view(math.prod(tensor.shape[:rows]), *tensor.shape[rows:])
