"""Checks of counts, sizes and shapes that users pass as ints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .checks import int_of, is_integer

__all__ = [
    "check_count", "check_num_samples", "check_row_offset", "event_shape", "image_shape", "latent_shape_of",
    "positive_size", "positive_sizes",
]  # fmt: skip


def latent_shape_of(encoder: nn.Module, given: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """The shape of one z: the given one, else encoder.latent_shape or encoder.latent_dim, else None."""
    for name, shape in (
        ("latent_shape", given),
        ("latent_shape", getattr(encoder, "latent_shape", None)),
        ("latent_dim", getattr(encoder, "latent_dim", None)),
    ):
        if shape is not None:
            return positive_sizes(name, shape)
    return None


def positive_size(name: str, size: int) -> int:
    try:
        given = int_of(size)
    except TypeError:
        raise TypeError(f"{name} is {size!r}, expected a positive int") from None
    if given < 1:
        raise ValueError(f"{name} is {given}, expected a positive int")
    return given


def positive_sizes(name: str, sizes: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes as a tuple, also of a single int."""
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return tuple(positive_size(f"{name}[{i}]", size) for i, size in enumerate(sizes))
    return (positive_size(name, sizes),)


def event_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = positive_sizes(name, shape)
    if not sizes:
        raise ValueError(f"{name} is {shape!r}, expected at least one size")
    return sizes


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    sizes = event_shape(name, shape)
    if len(sizes) != 3:
        raise ValueError(f"{name} is {shape!r}, expected (C, H, W)")
    return sizes


def check_count(name: str, count: int, at_least: int, bits: int | None = None) -> int:
    """An int of ``at_least`` or more and, if given, of so many bits: Python's, or the compiler's as it is."""
    if not is_integer(count):
        raise TypeError(f"{name} is a {type(count).__name__}, expected an int")
    if count < at_least:
        raise ValueError(f"{name} is {count}, expected {at_least} or more")
    if bits is not None and count >= 2**bits:
        raise ValueError(f"{name} is {count}, expected less than 2**{bits}")
    return count if isinstance(count, torch.SymInt) else int(count)


def check_num_samples(num_samples: int | None) -> int | None:
    return None if num_samples is None else check_count("num_samples", num_samples, 1, bits=32)


def check_row_offset(row_offset: int) -> int:
    if type(row_offset) is int and 0 <= row_offset < 2**63:  # each call asks
        return row_offset
    return check_count("row_offset", row_offset, 0, bits=63)
