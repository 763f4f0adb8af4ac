"""When a library's call may go to the fused ops at all, and what dtype it would have come out in."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import plain
from ..kernels import selection
from ..kernels.selection import has_kernels, kernels_for
from ..plain import is_compiling, observed

_transforms_are_active = torch._C._are_functorch_transforms_active


def is_served(tensor: Tensor) -> bool:
    """Whether there are kernels for its device and dtype, and nobody takes operations on it apart."""
    return has_kernels(tensor.device, tensor.dtype) and not are_taken_apart()


def are_taken_apart() -> bool:
    """Whether a compiler, torch.func or forward-mode differentiation takes operations apart."""
    return is_compiling() or _transforms_are_active() or forward_ad._current_level >= 0


def kernels_at_hand(loc: Tensor, scale: Tensor) -> ModuleType | None:
    """The kernels for parameters on the CPU that need no further check and that nobody observes; None of any other."""
    if observed() or forward_ad._current_level >= 0 or not plain.alike_on_cpu(loc, scale):
        return None
    return kernels_for(selection.requested, loc) if has_kernels(loc.device, loc.dtype) else None


def dtype_of_formulas(tensor: Tensor) -> torch.dtype:
    """What a library's exponentials and powers of it come out in: where autocast says so, wider than the tensor."""
    if tensor.dtype == torch.float32 or not torch.is_autocast_enabled(tensor.device.type):
        return tensor.dtype
    return tensor.detach().new_empty(0).exp().dtype
