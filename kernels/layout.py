"""How tensors of any strides are seen by the kernels: rows of an (outer, inner) event.

A kernel addresses coordinate d of row b as  b * row_stride + (d // inner) * outer_stride + (d % inner) * inner_stride.
That covers, without a copy, whatever is contiguous within a sample, channels_last, the halves of a packed tensor in
either memory format, and expanded (stride 0) gradients. What it does not cover is copied, by `rows_view`. The CPU
backend does the same in C (tensors.h).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .latent_spec import LatentOutputs, LatentSpec

Strides = tuple[int, int, int]  # of row, outer and inner index, in elements
_ABSENT: Strides = (0, 0, 0)


class RowsView(NamedTuple):
    """Tensors of one shape as rows of an (outer, inner) event; a missing tensor (None) stays None."""

    rows: int
    outer: int
    inner: int
    tensors: tuple[Tensor | None, ...]
    strides: tuple[Strides, ...]

    def copy_back(self, index: int, output: Tensor | None) -> None:
        """Bring a written output home, if tensor ``index`` of the view had to be a copy of it."""
        written = self.tensors[index]
        if written is not None and output is not None and written is not output:
            output.copy_(written)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What tensors of a dtype are computed and summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def likelihood_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32: what a likelihood is computed and returned in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def draws_like(mu: Tensor, num_samples: int) -> Tensor:
    """An empty (num_samples, *mu.shape), each draw laid out in memory as ``torch.empty_like(mu)`` is."""
    if mu.is_contiguous():
        return mu.new_empty((num_samples, *mu.shape))
    strides = torch.empty_like(mu, device="meta").stride()
    return mu.new_empty(num_samples * mu.numel()).as_strided((num_samples, *mu.shape), (mu.numel(), *strides))


def empty_outputs(mu: Tensor, spec: LatentSpec, num_samples: int | None) -> LatentOutputs:
    """Empty tensors for what the spec asks for: z laid out in memory as ``torch.empty_like(mu)`` is."""
    single = compute_dtype(mu.dtype)
    z = kl = kl_mean = log_q = log_p = None
    if spec.sample:
        z = torch.empty_like(mu) if num_samples is None else draws_like(mu, num_samples)
    reduction = spec.kernel_reduction
    if reduction is not None:
        kl = empty_kl(mu, reduction)
    if spec.kl_mean:
        kl_mean = mu.new_empty(mu.shape[1:], dtype=single)
    if spec.log_probs:
        of_rows = mu.shape[:1] if num_samples is None else (num_samples, mu.shape[0])
        log_q, log_p = (mu.new_empty(of_rows, dtype=single) for _ in range(2))
    return LatentOutputs(z, kl, kl_mean, log_q, log_p)


def empty_kl(mu: Tensor, reduction: str, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor for a KL or a log-likelihood under ``reduction``, float32 unless mu is float64."""
    dtype = dtype or compute_dtype(mu.dtype)
    if reduction == "none":
        return torch.empty_like(mu, dtype=dtype)
    shape = {"sample": mu.shape[:1], "channel": mu.shape[:2]}.get(reduction, ())
    return mu.new_empty(shape, dtype=dtype)


def split_packed(moments: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """mu and scale: the halves of a tensor along ``dim``."""
    mu, scale = moments.chunk(2, dim)
    return mu, scale


def rows_view(*tensors: Tensor | None) -> RowsView:
    """See tensors of one shape (rank >= 1) as rows; where two event indices do not do, copy them all."""
    shape = next(tensor.shape for tensor in tensors if tensor is not None)
    plan = _plan(shape, tuple([None if tensor is None else tensor.stride() for tensor in tensors]))
    if plan is None:
        return rows_view(*(None if tensor is None else tensor.contiguous() for tensor in tensors))
    outer, inner, strides = plan
    return RowsView(shape[0], outer, inner, tensors, strides)


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], strides: tuple[tuple[int, ...] | None, ...]
) -> tuple[int, int, tuple[Strides, ...]] | None:
    """Outer and inner size of the event, and each tensor's strides; None if two event indices do not do.

    Remembered: a training loop asks for the same few shapes again and again, often for latents so small that working
    this out would take as long as the kernel.
    """
    if 0 in shape:
        return 1, math.prod(shape[1:]), (_ABSENT,) * len(strides)
    present = [given for given in strides if given is not None]
    dims = _merge(shape, present)
    if len(dims) > 2:
        return None
    (outer, outer_strides), (inner, inner_strides) = [(1, (0,) * len(present))] * (2 - len(dims)) + dims
    found = iter(
        (given[0], outer_stride, inner_stride)
        for given, outer_stride, inner_stride in zip(present, outer_strides, inner_strides, strict=True)
    )
    return outer, inner, tuple([_ABSENT if given is None else next(found) for given in strides])


def _merge(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """The event's dimensions as ``(size, strides)``, neighbours merged wherever every tensor allows it."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for dim in range(len(shape) - 1, 0, -1):
        if shape[dim] == 1:
            continue
        stride = tuple(tensor_strides[dim] for tensor_strides in strides)
        if merged and all(s == size * t for size, inner in merged[:1] for s, t in zip(stride, inner, strict=True)):
            merged[0] = (merged[0][0] * shape[dim], merged[0][1])
        else:
            merged.insert(0, (shape[dim], stride))
    return merged
