"""The fast path: kernels called without PyTorch's dispatcher, which takes longer than the kernel of a small latent.

It is for plain tensors while no compiler, mode, transform, profiler or tracer is active. Each op asks once a call, by
`direct_kernels`; all other calls go through the registered operators of `fastvae.ops`, which are right for all.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .kernels.backend import kernels_for, reason_unavailable
from .torch_internals import any_is_batched, is_observed

__all__ = ["PLAIN_TENSORS", "are_alike", "are_direct", "direct_kernels"]

# A subclass of Tensor may define what an operator does.
PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


def _cannot_tell(*arguments: object) -> bool:
    return False


def _plain(*tensors: Tensor | None) -> bool:
    _load()
    return _plain(*tensors)


def _alike(*tensors: object) -> bool:
    _load()
    return _alike(*tensors)


def _load() -> None:
    """At the first call, as importing fastvae loads no backend: C functions take the place of the two above."""
    global _plain, _alike
    if reason_unavailable("cpu"):
        _plain = _alike = _cannot_tell
    else:
        from .kernels import cpu

        _plain, _alike = cpu.plain, cpu.alike


def are_alike(*tensors: object) -> bool:
    """Whether all are plain tensors on one device, of one shape, neither () nor empty, and of one dtype that there are
    kernels for, and nothing observes: such arguments need no further check."""
    return not is_observed() and (_alike(*tensors) or _alike_elsewhere(tensors))


def _alike_elsewhere(tensors: tuple[Any, ...]) -> bool:
    first = tensors[0]
    return (
        not any(one is None for one in tensors)
        and _plain_elsewhere(tensors)
        and first.dim() > 0
        and first.numel() > 0
        and first.dtype in FLOATS
        and all(
            one.shape == first.shape
            and one.dtype is first.dtype
            and one.device == first.device
            and one.layout is torch.strided
            and not one.is_nested
            for one in tensors
        )
    )


def direct_kernels(backend: str, first: Tensor, *others: Tensor | None) -> ModuleType | None:
    """Kernels that may be called directly with these tensors; None: the call is the dispatcher's."""
    return kernels_for(backend, first) if are_direct(first, *others) else None


def are_direct(*tensors: Tensor | None) -> bool:
    """Whether kernels may be called directly with these tensors: nothing observes, and they are plain.

    That is, no subclasses and no batches, and memory holds their values as they are, signs included. Of CPU tensors the
    extension has the last word: some have no memory and look like any other.
    """
    return not is_observed() and (_plain(*tensors) or _plain_elsewhere(tensors))


def _plain_elsewhere(tensors: tuple[Tensor | None, ...]) -> bool:
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN_TENSORS or tensor.is_cpu or tensor.is_meta or tensor.is_neg():
            return False
    return not any_is_batched(tensors)
