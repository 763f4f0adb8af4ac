"""The CPU backend: C with SIMD (`_kernels`, built from the C files beside this one), float32, bfloat16 and float16.

This file allocates, describes the tensors' memory to C, and nothing else. Arithmetic is float32; every array is read
once and written once; threads follow ``torch.set_num_threads``, and the bits do not depend on how many there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import Strides, kl_like, rows_view

try:
    from . import _kernels
except ImportError as error:
    raise ImportError(f"the C extension was not built when fastvae was installed, or does not load: {error}") from error

__all__ = ["backward", "device_types", "forward", "noise", "unavailable"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_REDUCTIONS = {None: 0, "none": 1, "sample": 2, "sum": 3, "batchmean": 4}
_ABSENT = (0, 0, 0, 0)


def device_types() -> tuple[str, ...]:
    return ("cpu",)


def unavailable() -> str:
    """Why this machine cannot run the extension; an empty string if it can."""
    if _kernels.instruction_set() is None:
        return "the processor has none of the instruction sets that the extension was compiled for"
    return ""


def _memory(tensor: Tensor | None, strides: Strides) -> tuple[int, int, int, int]:
    return _ABSENT if tensor is None else (tensor.data_ptr(), *strides)


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype) -> Tensor:
    eps = torch.empty(shape, dtype=dtype)
    event = eps[:1].numel()
    _kernels.forward(
        *(_DTYPES[dtype], shape[0], 1, event, row_offset, seed.data_ptr(), 0, torch.get_num_threads()),
        *_ABSENT,
        *_ABSENT,
        *(eps.data_ptr(), event, event, 1),
        *_ABSENT,
    )
    return eps


def forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, row_offset: int, reduction: str | None
) -> tuple[Tensor | None, Tensor | None]:
    z = None if seed is None else torch.empty_like(mu)
    kl = None if reduction is None else kl_like(mu, reduction)
    view = rows_view(mu, logvar, z, kl if reduction == "none" else None)
    kl_memory = _ABSENT if kl is None else (kl.data_ptr(), 0, 0, 0)
    if reduction == "none":
        kl_memory = _memory(view.tensors[3], view.strides[3])
    _kernels.forward(
        *(_DTYPES[mu.dtype], view.rows, view.outer, view.inner, row_offset),
        *(0 if seed is None else seed.data_ptr(), _REDUCTIONS[reduction], torch.get_num_threads()),
        *_memory(view.tensors[0], view.strides[0]),
        *_memory(view.tensors[1], view.strides[1]),
        *_memory(view.tensors[2], view.strides[2]),
        *kl_memory,
    )
    view.copy_back(2, z)
    if reduction == "none":
        view.copy_back(3, kl)
    return z, kl


def backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    seed: Tensor | None,
    row_offset: int,
    reduction: str | None,
) -> tuple[Tensor | None, Tensor]:
    grad_mu = None if mu is None else torch.empty_like(mu)
    grad_logvar = torch.empty_like(logvar)
    view = rows_view(logvar, mu, grad_z, grad_mu, grad_logvar, grad_kl if reduction == "none" else None)
    grad_kl_memory = _ABSENT
    if grad_kl is not None:
        if reduction == "none":
            grad_kl_memory = _memory(view.tensors[5], view.strides[5])
        else:
            grad_kl_memory = (grad_kl.data_ptr(), grad_kl.stride(0) if reduction == "sample" else 0, 0, 0)
    _kernels.backward(
        *(_DTYPES[logvar.dtype], view.rows, view.outer, view.inner, row_offset),
        *(0 if seed is None else seed.data_ptr(), _REDUCTIONS[reduction], torch.get_num_threads()),
        *_memory(view.tensors[2], view.strides[2]),
        *grad_kl_memory,
        *_memory(view.tensors[1], view.strides[1]),
        *_memory(view.tensors[0], view.strides[0]),
        *_memory(view.tensors[3], view.strides[3]),
        *_memory(view.tensors[4], view.strides[4]),
    )
    view.copy_back(3, grad_mu)
    view.copy_back(4, grad_logvar)
    return grad_mu, grad_logvar
