"""The launch of the noise kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import RowsView
from .launch import Memory, Template, Work, make_template, tiling_of
from .noise import noise_kernel

_templates: Memory[Template] = Memory()


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype, draw: int = 0) -> Tensor:
    """As `fastvae.kernels` says."""
    eps = torch.empty(shape, dtype=dtype, device=seed.device)
    if eps.numel() > 0:
        key = eps.shape, dtype, eps.device
        template = _templates.get(key) or _templates.add(key, _template, eps)
        assert template is not None
        template.start((eps, seed), (row_offset, draw))
    return eps


def _template(eps: Tensor) -> Template:
    rows, event = eps.shape[0], math.prod(eps.shape[1:])
    view = RowsView(rows, 1, event, ((event, 0, 1),))
    tiling = tiling_of(Work(rows, event, eps.dtype))
    return make_template(noise_kernel, view, tiling, {"eps": view.strides[0]}, {}, eps.device)
