"""`Samples`: rows of data, read from memory or from the disk as they are needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .layouts import Layout
from .memory_maps import by_path, opened

__all__ = ["Images", "Read", "Rows", "Samples"]


class Rows(Protocol):
    """What `Samples` reads from: a NumPy array, or a matrix on the disk with these four."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class Read(NamedTuple):
    """All that a file or a folder holds, before some rows are held out."""

    x: Rows
    """Channels in front."""
    labels: np.ndarray | None
    layout: Layout
    value_range: tuple[float, float]
    """Of all values, scaled, NaN left out."""
    conditions: np.ndarray | None = None
    scale: float | None = None
    """As of `Samples`."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it was read."""


@dataclass(frozen=True)
class Images:
    """How rows (n, C, H, W) become the images that a model sees."""

    alpha: bool = False
    """The fourth channel is how opaque the others are: they are laid on white."""
    size: int | None = None
    """Crop to the middle square and scale it to this side."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, *sides = shape
        return (channels - self.alpha, *(sides if self.size is None else (self.size, self.size)))

    def __call__(self, x: Tensor) -> Tensor:
        if self.alpha:
            x = x[:, :3] * x[:, 3:] + (1.0 - x[:, 3:])
        if self.size is None:
            return x
        side = min(x.shape[2:])
        top, left = ((length - side) // 2 for length in x.shape[2:])
        square = x[:, :, top : top + side, left : left + side]
        size = (self.size, self.size)
        return F.interpolate(square, size, mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class Samples:
    """Rows of data.

    Args:
        x: (N, *event): uint8 are levels of images, given as x / 255; all others are given as they are, in float32.
            Images are (N, C, H, W). May be a memory map, of which only the rows that are asked for are read, and which
            goes to worker processes by its path.
        index: which rows of x these are, and in which order; all if None.
        labels: int64 from 0 to K - 1, one for each of these rows, or None.
        scale: what values are multiplied by; 1 / 255 for uint8, else 1, if None.
        conditions: int64 from 0 to K - 1, one for each of these rows: what a conditional model is given; the labels if
            None.
        images: what is done to images as they are read.

    >>> import numpy as np
    >>> from fastvae.training import Samples
    >>> samples = Samples(np.array([[0, 51], [255, 0]], dtype=np.uint8))
    >>> samples.rows(np.array([1, 0]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.2000]])
    """

    x: Rows
    labels: np.ndarray | None = None
    index: np.ndarray | None = None
    scale: float | None = None
    conditions: np.ndarray | None = None
    images: Images | None = None

    def __len__(self) -> int:
        return len(self.x) if self.index is None else len(self.index)

    @property
    def event_shape(self) -> tuple[int, ...]:
        shape = tuple(self.x.shape[1:])
        return shape if self.images is None else self.images.shape(shape)

    @property
    def given(self) -> np.ndarray | None:
        """What a conditional model is given: the conditions, or the labels."""
        return self.labels if self.conditions is None else self.conditions

    def rows(self, numbers: np.ndarray) -> Tensor:
        """These rows, (len(numbers), *event), float32."""
        picked = self.x[numbers if self.index is None else self.index[numbers]]
        scale = self.scale if self.scale is not None else 1 / 255 if self.x.dtype == np.uint8 else 1.0
        values = torch.from_numpy(np.ascontiguousarray(picked, dtype=np.float32))
        values = values if scale == 1.0 else values.mul_(scale)
        return values if self.images is None else self.images(values)

    def first(self, count: int) -> Samples:
        """The first so many of these rows."""
        index = np.arange(len(self)) if self.index is None else self.index
        labels, conditions = (
            None if of_rows is None else of_rows[:count] for of_rows in (self.labels, self.conditions)
        )
        return dataclasses.replace(self, index=index[:count], labels=labels, conditions=conditions)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"x": by_path(self.x)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"x": opened(state["x"])})
