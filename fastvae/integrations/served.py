"""When a library's call may go to the fused ops at all, and what dtype it would have come out in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels.selection import has_kernels
from ..plain import is_compiling

_transforms_are_active = torch._C._are_functorch_transforms_active


def is_served(tensor: Tensor) -> bool:
    """Whether there are kernels for its device and dtype, and nobody takes operations on it apart."""
    return has_kernels(tensor.device, tensor.dtype) and not are_taken_apart()


def are_taken_apart() -> bool:
    """Whether a compiler, torch.func or forward-mode differentiation takes operations apart."""
    return is_compiling() or _transforms_are_active() or forward_ad._current_level >= 0


def dtype_of_formulas(tensor: Tensor) -> torch.dtype:
    """What a library's exponentials and powers of it come out in: where autocast says so, wider than the tensor."""
    if tensor.dtype == torch.float32 or not torch.is_autocast_enabled(tensor.device.type):
        return tensor.dtype
    return tensor.detach().new_empty(0).exp().dtype
