"""Checks of counts, sizes and shapes that users pass as ints."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .checks import int_of, is_integer

__all__ = ["check_count", "event_shape", "latent_shape_of", "positive_size", "positive_sizes"]


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


def check_count(name: str, count: int, at_least: int) -> None:
    if not is_integer(count):
        raise TypeError(f"{name} is a {type(count).__name__}, expected an int")
    if count < at_least:
        raise ValueError(f"{name} is {count}, expected {at_least} or more")
