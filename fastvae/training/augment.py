"""Images (B, C, H, W) mirrored, turned and moved, for `VAEModule` in training and for the start of a model.

``drawn`` are numbers between 0 and 1, one for each row, (B,): what happens to a row depends on its own number alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["in_all_orientations", "mirrored", "moved", "turned"]


def mirrored(x: Tensor, drawn: Tensor) -> Tensor:
    """Left to right, one half of the rows."""
    return torch.where(_of_rows(drawn > 0.5), x.flip(-1), x)


def turned(x: Tensor, drawn: Tensor) -> Tensor:
    """Square images by 0, 90, 180 or 270 degrees, a fourth of the rows each."""
    quarters = _whole(drawn, 4)
    x = torch.where(_of_rows(quarters >= 2), x.flip(-2, -1), x)
    return torch.where(_of_rows(quarters % 2 == 1), x.transpose(-2, -1).flip(-2), x)


def moved(x: Tensor, down: Tensor, right: Tensor, pixels: int) -> Tensor:
    """By up to so many pixels either way, as ``down`` and ``right`` were drawn; border pixels are repeated."""
    rows, columns = (
        (torch.arange(side, device=x.device) + (_whole(drawn, 2 * pixels + 1) - pixels)[:, None]).clamp(0, side - 1)
        for side, drawn in zip(x.shape[2:], (down, right), strict=True)
    )
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def in_all_orientations(x: Tensor, flip: bool, rotate: bool) -> Tensor:
    """The rows in turns as they are, mirrored and turned, as far as training shows them so."""
    places = torch.arange(len(x), device=x.device)
    if rotate:
        x = turned(x, (places % 4 + 0.5) / 4)
        places = places // 4
    return mirrored(x, (places % 2).float()) if flip else x


def _whole(drawn: Tensor, count: int) -> Tensor:
    """Whole numbers 0, ..., count - 1, equally often; an input may be rounded to 1."""
    return (drawn * count).long().clamp(max=count - 1)


def _of_rows(chosen: Tensor) -> Tensor:
    return chosen[:, None, None, None]
