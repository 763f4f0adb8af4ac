"""What the encoders and decoders do to their inputs: checks of shapes, and the condition beside the input."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_tensor
from ..sizes import positive_size


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
