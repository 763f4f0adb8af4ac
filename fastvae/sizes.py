"""Checks of counts and sizes that are given as ints."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import nn

from .arguments import is_integer


def latent_shape_of(encoder: nn.Module, given: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """The shape of one z: as given, or as the encoder tells; None if neither does."""
    for name, shape in (
        ("latent_shape", given),
        ("latent_shape", getattr(encoder, "latent_shape", None)),
        ("latent_dim", getattr(encoder, "latent_dim", None)),
    ):
        if shape is not None:
            return check_sizes(name, shape)
    return None


def check_sizes(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """Positive sizes; one int counts as one size."""
    try:
        sizes = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        raise TypeError(f"{name} is {shape!r}, expected an int or a sequence of ints") from None
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} is {shape!r}, expected positive sizes")
    return sizes


def check_count(name: str, count: int, at_least: int) -> None:
    if not is_integer(count):
        raise TypeError(f"{name} is a {type(count).__name__}, expected an int")
    if count < at_least:
        raise ValueError(f"{name} is {count}, expected {at_least} or more")
