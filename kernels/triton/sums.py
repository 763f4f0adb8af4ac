"""The second step of sums that several programs have a part in, in a fixed order; and gradients of such sums.

The way from what a kernel writes to the gradient of a tensor, which the batch may share:

    UNWANTED    nothing is written
    WHOLE       the gradient itself
    COLUMNS     sums of columns, one for each program that has a part in them (or the gradient itself)
    ROWS        the gradient of each coordinate, of a tensor with one number a row
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import Strides
from .tiles import ELEMENTWISE, FULL, MEAN, SUMS
from .views import extent_of, is_one_a_row

UNWANTED, WHOLE, COLUMNS, ROWS = "unwanted", "whole", "columns", "rows"


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


def way_of(like: Tensor | None, wanted: bool, shape: torch.Size) -> str:
    """That to the gradient of ``like``, beside data or a latent of ``shape``."""
    if like is None or not wanted:
        return UNWANTED
    if is_one_a_row(like, shape):
        return ROWS
    return WHOLE if extent_of(like, shape) == FULL.value else COLUMNS


def buffer_of(like: Tensor | None, way: str, programs: int, shape: torch.Size) -> Tensor | None:
    """Empty, for what a kernel writes of the gradient of ``like``; ``programs`` have a part in each column."""
    if like is None or way == UNWANTED:
        return None
    if way == WHOLE:
        return torch.empty_like(like)
    if way == ROWS:
        return like.new_empty(shape, dtype=torch.float32)
    event = math.prod(shape[1:])
    if programs == 1 and like.numel() == event and like.dtype is torch.float32:
        return like.new_empty(like.shape)
    return like.new_empty((programs, event), dtype=torch.float32)


def is_left(buffer: Tensor | None, like: Tensor | None, way: str) -> bool:
    """Whether the kernel's sums are not the gradient of ``like`` yet."""
    if buffer is None or like is None or way not in (COLUMNS, ROWS):
        return False
    return buffer.shape != like.shape or like.dtype is not torch.float32


def finish_gradient(buffer: Tensor | None, like: Tensor | None, way: str) -> Tensor | None:
    """The gradient of ``like`` from what the kernel has written."""
    if buffer is None or like is None or not is_left(buffer, like, way):
        return buffer
    return finish_columns(buffer, like) if way == COLUMNS else sum_of_rows(buffer, like)


def finish_columns(sums: Tensor, like: Tensor) -> Tensor:
    """The gradient of ``like`` from sums of columns."""
    total = sums.sum() if like.numel() == 1 else sums if sums.shape[0] == 1 else sums.sum(0)
    return total.view(like.shape) if like.dtype is torch.float32 else total.to(like.dtype).view(like.shape)


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
