"""Arrays on the disk that go to worker processes by path: pickling a memory map writes out all of its values."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["by_path", "opened"]


@dataclass(frozen=True)
class MappedArray:
    """A view of a memory-mapped file, by the place of its first value in the file."""

    path: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def open(self) -> np.ndarray:
        """The same view of the same file, mapped anew."""
        whole = np.memmap(self.path, dtype=np.uint8, mode="r")
        view: np.ndarray = np.ndarray(self.shape, np.dtype(self.dtype), whole, self.offset, self.strides)
        return view


def by_path(array: Any) -> Any:
    """A memory map, or a view of one, as `MappedArray`; anything else as it is."""
    if not isinstance(array, np.memmap) or array.filename is None or array.dtype.hasobject:
        return array
    mapped = getattr(array, "_mmap", None)
    if not isinstance(mapped, mmap.mmap):
        return array
    # numpy keeps the offset of the map that a view was made from, not that of the view.
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    before = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    offset = before + array.ctypes.data - start
    return MappedArray(str(array.filename), offset, array.shape, array.strides, array.dtype.str)


def opened(array: Any) -> Any:
    """What `by_path` was given."""
    return array.open() if isinstance(array, MappedArray) else array
