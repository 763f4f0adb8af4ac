"""Checks of what a user's encoder, decoder, likelihood or prior returned: a wrong shape would broadcast in silence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["check_returned", "check_rows"]


def check_returned(who: str, value: Tensor, shape: Sequence[int], meaning: str) -> Tensor:
    """``value``, if it is a tensor of that shape; the error names who returned it and says what was expected."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{who} returned a {type(value).__name__}, expected a tensor of shape {tuple(shape)}: {meaning}"
        )
    if value.shape != tuple(shape):
        raise ValueError(f"{who} returned shape {tuple(value.shape)}, expected {tuple(shape)}: {meaning}")
    return value


def check_rows(who: str, value: object, given: object) -> None:
    """A tensor, or the first of several, must have as many rows as a tensor that was given; other objects may be
    anything."""
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(first, Tensor) and isinstance(given, Tensor) and first.shape[:1] != given.shape[:1]:
        rows = given.shape[0]
        raise ValueError(f"{who} returned shape {tuple(first.shape)}, expected {rows} rows, as its input has")
