"""How kernels see their tensors: rows of an event, in which a tensor that the batch shares is expanded."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Tiling, columns_loaded_at_once
from .tiles import ABSENT, FULL, ONE, SHARED


def expanded(tensor: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if tensor is None else tensor.expand(shape)


def is_one_a_row(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether there is one number for each of the rows, of which there is not just one, nor one coordinate."""
    return tensor.dim() == len(shape) and tensor.numel() == shape[0] == tensor.shape[0] != 1 and tensor.shape != shape


def extent_of(tensor: Tensor | None, shape: torch.Size) -> int:
    """How much there is of a tensor that the batch may share. One number a row is loaded as a row of equal ones."""
    if tensor is None:
        return ABSENT.value
    if tensor.shape == shape or is_one_a_row(tensor, shape):
        return FULL.value
    return (ONE if tensor.numel() == 1 else SHARED).value


def as_loaded(extent: int, tiling: Tiling, dtype: torch.dtype) -> int:
    """A row that a narrow tile's rows share is loaded for each of them."""
    return FULL.value if extent == SHARED.value and tiling.tile.columns < columns_loaded_at_once(dtype) else extent
