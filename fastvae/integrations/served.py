"""When a library's call may go to the fused ops at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.selection import has_kernels


def is_served(tensor: Tensor) -> bool:
    """Whether there are kernels for its device and dtype, and neither a compiler nor torch.func takes it apart."""
    return (
        has_kernels(tensor.device, tensor.dtype)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
