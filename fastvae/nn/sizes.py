"""Checks and small steps that the encoders and decoders share: sizes, shapes, and the condition beside the input."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import check_tensor


def positive_size(name: str, size: int) -> int:
    try:
        given = operator.index(size)
    except TypeError:
        raise TypeError(f"{name} is {size!r}, expected a positive int") from None
    if given < 1:
        raise ValueError(f"{name} is {given}, expected a positive int")
    return given


def positive_sizes(name: str, sizes: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes as a tuple; one int counts as one size."""
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return tuple(positive_size(f"{name}[{i}]", size) for i, size in enumerate(sizes))
    return (positive_size(name, sizes),)


def event_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = positive_sizes(name, shape)
    if not sizes:
        raise ValueError(f"{name} is {shape!r}, expected at least one size")
    return sizes


def check_rows(name: str, tensor: Tensor, event: tuple[int, ...]) -> None:
    check_tensor(name, tensor)
    if tensor.shape[1:] != event:
        expected = ", ".join(["batch", *map(str, event)])
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({expected})")


def check_condition_dim(condition_dim: int | None) -> int:
    """How many channels the condition adds: none without one."""
    return 0 if condition_dim is None else positive_size("condition_dim", condition_dim)


def join_condition(h: Tensor, condition: Tensor | None, condition_dim: int) -> Tensor:
    """h (B, C, ...) with the condition (B, condition_dim) as further channels, the same at every position."""
    if not condition_dim:
        if condition is not None:
            raise TypeError("condition was given to a module without condition_dim, expected None")
        return h
    if condition is None:
        raise TypeError(f"condition is None, expected a tensor of shape (batch, {condition_dim})")
    check_rows("condition", condition, (condition_dim,))
    if len(condition) != len(h):
        raise ValueError(f"condition has {len(condition)} rows, the input has {len(h)}; expected the same")
    positions = h.shape[2:]
    channels = condition.reshape(condition.shape + (1,) * len(positions)).expand(-1, -1, *positions)
    return torch.cat([h, channels], 1)
