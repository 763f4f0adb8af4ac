"""The CPU backend: C with SIMD (`_kernels`, built from the C files beside this one), float32, bfloat16 and float16.

This file allocates, describes the tensors' memory to C, and nothing else. Arithmetic is float32; every array is read
once and written once; threads follow ``torch.set_num_threads``, and the bits do not depend on how many there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import kl_like

try:
    from . import _kernels
except ImportError as error:
    raise ImportError(f"the C extension was not built when fastvae was installed, or does not load: {error}") from error

_kernels.use_exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None))

__all__ = ["backward", "device_types", "forward", "noise", "unavailable"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_REDUCTIONS = {None: 0, "none": 1, "sample": 2, "sum": 3, "batchmean": 4}


def device_types() -> tuple[str, ...]:
    return ("cpu",)


def unavailable() -> str:
    """Why this machine cannot run the extension; an empty string if it can."""
    if _kernels.instruction_set() is None:
        return "the processor has none of the instruction sets that the extension was compiled for"
    return ""


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype) -> Tensor:
    eps = torch.empty(shape, dtype=dtype, device="cpu")
    _kernels.forward(None, None, eps, None, seed, _DTYPES[dtype], row_offset, 0, torch.get_num_threads())
    return eps


def forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, row_offset: int, reduction: str | None
) -> tuple[Tensor | None, Tensor | None]:
    z = None if seed is None else torch.empty_like(mu)
    kl = None if reduction is None else kl_like(mu, reduction)
    dtype, threads = _DTYPES[mu.dtype], torch.get_num_threads()
    if not _kernels.forward(mu, logvar, z, kl, seed, dtype, row_offset, _REDUCTIONS[reduction], threads):
        # Two event indices do not do for these strides.
        dense = forward(mu.contiguous(), logvar.contiguous(), seed, row_offset, reduction)
        _copy_all(dense, (z, kl))
    return z, kl


def backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    seed: Tensor | None,
    row_offset: int,
    reduction: str | None,
    out: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:
    grad_mu, grad_logvar = out or (None if mu is None else torch.empty_like(mu), torch.empty_like(logvar))
    dtype, threads, kind = _DTYPES[logvar.dtype], torch.get_num_threads(), _REDUCTIONS[reduction]
    if not _kernels.backward(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, seed, dtype, row_offset, kind, threads):
        grad_z, grad_kl, mu = (None if tensor is None else tensor.contiguous() for tensor in (grad_z, grad_kl, mu))
        dense = backward(grad_z, grad_kl, mu, logvar.contiguous(), seed, row_offset, reduction)
        _copy_all(dense, (grad_mu, grad_logvar))
    return grad_mu, grad_logvar


def _copy_all(computed: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
    for one, output in zip(computed, outputs, strict=True):
        if one is not None and output is not None:
            output.copy_(one)
