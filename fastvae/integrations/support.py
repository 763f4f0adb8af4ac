"""Whether a library's call may be replaced by a fused op, and the dtype that its result must have."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..fast_path import PLAIN_TENSORS, are_alike
from ..kernels import backend
from ..kernels.backend import has_kernels, kernels_for
from ..torch_internals import is_transformed

__all__ = ["are_supported", "fast_path_kernels", "formula_dtype", "is_supported"]


def is_supported(tensor: Tensor) -> bool:
    """Whether its device and dtype have kernels, and no compiler, transform, tracer or forward-mode AD is active."""
    return has_kernels(tensor.device, tensor.dtype) and not is_transformed()


def are_supported(loc: Tensor, scale: Tensor) -> bool:
    """Whether a fused op takes these parameters of a Gaussian: plain, alike, with a dimension and not empty."""
    if is_transformed():
        return False
    if are_alike(loc, scale):
        return has_kernels(loc.device, loc.dtype)
    return (
        type(loc) in PLAIN_TENSORS
        and type(scale) in PLAIN_TENSORS
        and has_kernels(loc.device, loc.dtype)
        and loc.shape == scale.shape
        and loc.dtype == scale.dtype
        and loc.dim() > 0
        and loc.numel() > 0
        and loc.device == scale.device
    )


def fast_path_kernels(loc: Tensor, scale: Tensor) -> ModuleType | None:
    """The kernels for plain parameters of equal shape and dtype that no mode or tracer observes; else None."""
    if not are_alike(loc, scale) or is_transformed():
        return None
    return kernels_for(backend.requested, loc) if has_kernels(loc.device, loc.dtype) else None


def formula_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that exp and pow of it have: the tensor's, or a wider one under autocast."""
    if tensor.dtype == torch.float32 or not torch.is_autocast_enabled(tensor.device.type):
        return tensor.dtype
    return tensor.detach().new_empty(0).exp().dtype
