"""Memory for temporaries, kept from call to call.

Fresh memory costs a page fault every 4 KiB, more than the arithmetic on it. Temporaries of a block on the CPU are
therefore kept, up to about 40 MiB for each dtype and each thread that uses the reference; other devices have caching
allocators.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple[str, torch.dtype], Tensor] = {}


_kept = _Kept()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """An uninitialised contiguous tensor, valid until this thread asks for ``name`` again."""
    if torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape)
    tensor = _kept.tensors.get((name, dtype))
    if tensor is None or tensor.numel() < size:
        with torch.inference_mode(False):  # a tensor of inference mode could not be written outside of it
            tensor = _kept.tensors[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return tensor[:size].view(shape)


def release() -> None:
    """Give back what this thread has kept."""
    _kept.tensors.clear()
