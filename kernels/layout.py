"""How tensors of any strides are seen by the kernels: rows of an (outer, inner) event.

A kernel addresses coordinate d of row b as  b * row_stride + (d // inner) * outer_stride + (d % inner) * inner_stride.
That covers, without a copy, whatever is contiguous within a sample, channels_last, the halves of a packed tensor in
either memory format, and expanded (stride 0) gradients. What it does not cover is copied first. The CPU backend does
the same in C (tensors.h).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .latent_spec import (
    LatentGradients,
    LatentInputs,
    LatentOutputs,
    LatentSpec,
    latent_gradients,
    latent_inputs,
    latent_outputs,
)

__all__ = [
    "RowsView", "Strides", "compute_dtype", "draws_like", "empty_gradients", "empty_kl", "empty_outputs",
    "likelihood_dtype", "rows_view", "split_latent", "split_packed",
]  # fmt: skip

Strides = tuple[int, int, int]  # of row, outer and inner index, in elements
_ABSENT: Strides = (0, 0, 0)


class NeedsCopies(Exception):
    """Rows of an (outer, inner) event do not describe the strides of these tensors."""


class RowsView(NamedTuple):
    """Tensors of one shape as rows of an (outer, inner) event."""

    rows: int
    outer: int
    inner: int
    strides: tuple[Strides, ...]  # of each tensor; zeros for one that is missing


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What tensors of a dtype are computed and summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def likelihood_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32: what a likelihood is computed and returned in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """x (B, ...) once for each draw of rows = K B."""
    return x if len(x) == rows else x.repeat(rows // max(len(x), 1), *[1] * (x.dim() - 1))


def draws_like(mu: Tensor, num_samples: int) -> Tensor:
    """An empty (num_samples, *mu.shape), each draw laid out in memory as ``torch.empty_like(mu)`` is."""
    if mu.is_contiguous():
        return mu.new_empty((num_samples, *mu.shape))
    strides = torch.empty_like(mu, device="meta").stride()
    return mu.new_empty(num_samples * mu.numel()).as_strided((num_samples, *mu.shape), (mu.numel(), *strides))


def empty_outputs(mu: Tensor, spec: LatentSpec, num_samples: int | None) -> LatentOutputs:
    """Empty tensors for what the spec asks for: z laid out in memory as ``torch.empty_like(mu)`` is."""
    wants_z, reduction, dtype, packed_dim, wants_more = _wanted(spec, mu.dtype)
    if packed_dim is not None:
        mu = mu.narrow(packed_dim, 0, mu.shape[packed_dim] // 2)
    z = kl = kl_mean = log_q = log_p = None
    if wants_z:
        z = torch.empty_like(mu) if num_samples is None else draws_like(mu, num_samples)
    if reduction is not None:
        kl = empty_kl(mu, reduction, dtype)
    if wants_more and spec.kl_mean:
        kl_mean = mu.new_empty(mu.shape[1:], dtype=dtype)
    if wants_more and spec.log_probs:
        of_rows = mu.shape[:1] if num_samples is None else (num_samples, mu.shape[0])
        log_q, log_p = mu.new_empty(of_rows, dtype=dtype), mu.new_empty(of_rows, dtype=dtype)
    return latent_outputs((z, kl, kl_mean, log_q, log_p))


@functools.lru_cache(maxsize=1024)
def _wanted(spec: LatentSpec, dtype: torch.dtype) -> tuple[bool, str | None, torch.dtype, int | None, bool]:
    wants_more = spec.kl_mean or spec.log_probs
    return spec.sample, spec.kernel_reduction, compute_dtype(dtype), spec.packed_dim, wants_more


def empty_kl(mu: Tensor, reduction: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """An empty tensor for a KL or a log-likelihood under ``reduction``. PyTorch parses ``size`` by name faster."""
    if reduction == "sample":
        return mu.new_empty(size=(mu.size(0),), dtype=dtype)
    if reduction == "none":
        return torch.empty_like(mu, dtype=dtype)
    return mu.new_empty(size=mu.shape[:2] if reduction == "channel" else (), dtype=dtype)


def empty_gradients(inputs: LatentInputs, wants_prior: bool) -> LatentGradients:
    """Empty tensors for the gradients of the inputs, the prior's only if they are wanted."""
    mu, scale, prior_mu, prior_scale, _ = inputs
    of_prior_mu = of_prior_scale = None
    if wants_prior and prior_mu is not None and prior_scale is not None:
        of_prior_mu, of_prior_scale = torch.empty_like(prior_mu), torch.empty_like(prior_scale)
    of_mu = None if mu is None else torch.empty_like(mu)
    return latent_gradients((of_mu, None if scale is None else torch.empty_like(scale), of_prior_mu, of_prior_scale))


def contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple([None if tensor is None else tensor.contiguous() for tensor in tensors])


def copy_all(computed: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> None:
    """Into those outputs that are there and were computed."""
    for one, output in zip(computed, outputs, strict=True):
        if one is not None and output is not None:
            output.copy_(one)


def split_packed(moments: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """mu and scale: the halves of a tensor along ``dim``."""
    mu, scale = moments.chunk(2, dim)
    return mu, scale


def split_latent(inputs: LatentInputs, spec: LatentSpec) -> tuple[LatentInputs, LatentSpec]:
    """A packed latent with mu and scale apart; others as they are."""
    if spec.packed_dim is None:
        return inputs, spec
    mu, _, *others = inputs
    assert mu is not None
    return latent_inputs((*split_packed(mu, spec.packed_dim), *others)), _unpacked_spec(spec)


@functools.lru_cache(maxsize=1024)
def _unpacked_spec(spec: LatentSpec) -> LatentSpec:
    return spec._replace(packed_dim=None)


def rows_view(*tensors: Tensor | None) -> RowsView:
    """See tensors of one shape (rank >= 1) as rows; None stands for one that is missing.

    Raises:
        NeedsCopies: two event indices do not do.
    """
    shape = next(tensor.shape for tensor in tensors if tensor is not None)
    if 0 in shape:
        return RowsView(shape[0], 1, math.prod(shape[1:]), (_ABSENT,) * len(tensors))
    present = [tensor.stride() for tensor in tensors if tensor is not None]
    dims = _merge(shape, present)
    if len(dims) > 2:
        raise NeedsCopies
    (outer, outer_strides), (inner, inner_strides) = [(1, (0,) * len(present))] * (2 - len(dims)) + dims
    found = iter(zip([given[0] for given in present], outer_strides, inner_strides, strict=True))
    return RowsView(shape[0], outer, inner, tuple([_ABSENT if one is None else next(found) for one in tensors]))


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
