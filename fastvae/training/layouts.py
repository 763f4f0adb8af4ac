"""What the dimensions of an array mean: images, series or plain values.

An array (N, A, B, C) may be images whose channels come first or last, (N, A, B) grey images or series: the shape alone
does not always tell, and a wrong reading trains a model of nonsense without an error. What is not clear is refused,
with the readings that are possible; ``--layout`` chooses one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .errors import TrainingError

__all__ = ["LAYOUTS", "LAYOUT_HELP", "Layout", "arrange"]

LAYOUTS = ("auto", "image", "channels-first", "channels-last", "series", "values")
LAYOUT_HELP = (
    "what the dimensions of an array mean: image (N, H, W) or with channels first or last; channels-first and"
    " channels-last, with all channels as they are, transparency too; series (N, T) or (N, T, C); values: nothing"
)
# Grey, RGB and RGBA.
_USUAL_CHANNELS = (1, 3, 4)


class Layout(NamedTuple):
    """How rows of an array are to be read."""

    kind: str
    """"image" (C, H, W), "series" (C, T) or "values" (*event)."""
    alpha: bool = False
    """The fourth channel is how opaque the other three are."""
    note: str | None = None
    """What a user should know before training, where the shape did not say it."""


def arrange(x: np.ndarray, where: str, layout: str, in_unit: bool) -> tuple[np.ndarray, Layout]:
    """The array with its channels in front, and what it was read as.

    Args:
        x: (N, *event).
        where: the name of the data, for messages.
        layout: one of `LAYOUTS`.
        in_unit: the values are levels of images, or lie in [0, 1] as these do.

    Raises:
        TrainingError: the shape does not fit the layout, or has several readings.
    """
    if layout not in LAYOUTS:
        raise TrainingError(f"--layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if layout == "auto":
        return _guessed(x, where, in_unit)
    if layout == "values":
        return x, Layout("values")
    if layout == "series":
        return _series(x, where)
    if x.ndim == 3 and layout == "image":
        return x[:, None], Layout("image")
    if x.ndim != 4:
        expected = "(N, H, W) or (N, H, W, C)" if layout == "image" else "four dimensions"
        raise TrainingError(f"{where} has shape {x.shape}, --layout {layout} expected {expected}")
    if layout == "image":
        return _image(x, where, in_unit)
    return (x if layout == "channels-first" else x.transpose(0, 3, 1, 2)), Layout("image")


def _guessed(x: np.ndarray, where: str, in_unit: bool) -> tuple[np.ndarray, Layout]:
    if x.ndim == 4:
        return _image(x, where, in_unit)
    if x.ndim != 3:
        return x, Layout("values")
    _, first, second = x.shape
    if x.dtype.kind == "u":  # levels
        return x[:, None], Layout("image")
    if in_unit and min(first, second) >= 8 and max(first, second) <= 2 * min(first, second):
        note = f"read as grey images of {first}x{second}; series need --layout series"
        return x[:, None], Layout("image", note=note)
    raise TrainingError(
        f"{where} has shape {x.shape}: series of {first} steps of {second} value{'' if second == 1 else 's'}"
        f" (--layout series),\nor grey images of {first}x{second} (--layout image)? The shape does not tell, say which"
    )


def _series(x: np.ndarray, where: str) -> tuple[np.ndarray, Layout]:
    if x.ndim not in (2, 3):
        raise TrainingError(f"{where} has shape {x.shape}, --layout series expected (N, T) or (N, T, C)")
    return (x[:, None] if x.ndim == 2 else x.transpose(0, 2, 1)), Layout("series")


def _image(x: np.ndarray, where: str, in_unit: bool) -> tuple[np.ndarray, Layout]:
    _, first, middle, last = x.shape
    as_first, as_last = _rank(first, middle, last), _rank(last, first, middle)
    if as_first == as_last:
        raise TrainingError(
            f"{where} has shape {x.shape}: {first} channel{'s' * (first > 1)} of {middle}x{last} (--layout"
            f" channels-first),\nor {last} channel{'s' * (last > 1)} of {first}x{middle} (--layout channels-last)?"
            " The shape does not tell, say which"
        )
    images = x if as_first > as_last else x.transpose(0, 3, 1, 2)
    channels = images.shape[1]
    if channels != 4 or not in_unit:
        return images, Layout("image")
    place = "first" if as_first > as_last else "last"
    note = f"read as RGBA, laid on white; four other channels need --layout channels-{place}"
    return images, Layout("image", alpha=True, note=note)


def _rank(channels: int, *sides: int) -> int:
    """How well a size does as the number of channels beside these sides."""
    return 2 if channels in _USUAL_CHANNELS else 1 if channels < min(sides) else 0
