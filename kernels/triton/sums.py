"""The second step of sums that several programs have a part in, in a fixed order; and gradients of such sums."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import Strides
from .tiles import ELEMENTWISE, MEAN, SUMS


def finish_rows(sums: Tensor, shape: torch.Size, reduction: str | None) -> Tensor:
    """From (rows, programs a row): over the programs of a row, and over rows if the reduction asks for it.

    Sums of shape (rows,) are finished: a row had one program.
    """
    if sums.dim() == 1:
        return sums
    if reduction == "channel":
        return sums.view(*shape[:2], -1).sum(2)
    if reduction == "sample":
        return sums.view(-1) if sums.shape[1] == 1 else sums.sum(1)
    return sums.sum() if reduction == "sum" else sums.sum() / sums.shape[0]


def finish_elementwise(values: Tensor, reduction: str | None) -> Tensor:
    """Of channels that the kernel cannot sum."""
    return values.flatten(2).sum(2) if reduction == "channel" and values.dim() > 2 else values


def sums_of_columns(like: Tensor, programs: int, event: int) -> Tensor:
    """Empty, for the gradient of a tensor that the batch shares: (programs a column, event) to be summed, or the
    gradient itself where one program sums each column."""
    if programs == 1 and like.numel() == event and like.dtype is torch.float32:
        return like.new_empty(like.shape)
    return like.new_empty((programs, event), dtype=torch.float32)


def finish_columns(sums: Tensor, like: Tensor) -> Tensor:
    """The gradient of ``like`` from `sums_of_columns`."""
    if are_finished(sums, like):
        return sums
    total = sums.sum() if like.numel() == 1 else sums if sums.shape[0] == 1 else sums.sum(0)
    return total.view(like.shape) if like.dtype is torch.float32 else total.to(like.dtype).view(like.shape)


def are_finished(sums: Tensor, like: Tensor) -> bool:
    return sums.shape == like.shape and like.dtype is torch.float32


def sum_of_rows(values: Tensor, like: Tensor) -> Tensor:
    """The gradient of a tensor with one number a row, from (rows, *event)."""
    return values.flatten(1).sum(1).to(like.dtype).view(like.shape)


def grad_view(grad: Tensor, shape: torch.Size, reduction: str | None) -> tuple[Tensor | None, Strides, int]:
    """How the gradient of a KL or log-likelihood is read: as a tensor of ``shape``, or None and strides; what it is."""
    if reduction == "none":
        return grad, (0, 0, 0), ELEMENTWISE.value
    if reduction == "channel":
        return grad.view(*grad.shape, *[1] * (len(shape) - 2)).expand(shape), (0, 0, 0), ELEMENTWISE.value
    row_stride = grad.stride(0) if reduction == "sample" else 0
    return None, (0, row_stride, 0), (MEAN if reduction == "batchmean" else SUMS).value
