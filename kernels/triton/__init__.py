"""The Triton backend: GPUs of NVIDIA and AMD, and CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

a kernel a file         noise, latent_forward_kernel, latent_backward_kernel, likelihood_forward_kernel, head_kernel...
what they are made of   tiles (loads, stores, sums), philox (noise), functions, parameterisation, latents, likelihoods,
                        mixture, special (formulas)
what starts them        noise_launch, latent_launch, likelihood_launch, mixture_launch, head_launch; launch (tiles,
                        the start)
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import triton

# Triton itself is imported here, at the backend's first use and not before: an ImportError means it is not installed.
from .head_launch import head
from .latent_launch import latent_backward, latent_forward
from .launch import INTERPRETED, NUM_WARPS, Work, tiling_of
from .likelihood_launch import likelihood_backward, likelihood_forward
from .noise_launch import noise

__all__ = [
    "describe",
    "device_types",
    "head",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "noise",
    "unavailable",
]


def device_types() -> tuple[str, ...]:
    return ("cpu",) if INTERPRETED else ("cuda",)


@functools.cache
def unavailable() -> str:
    """Why this machine cannot run the kernels; an empty string if it can. Found out once, by trying."""
    if INTERPRETED:
        return _interpreter_failure()
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use, and TRITON_INTERPRET is not set"
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # of a compiler, the dynamic linker or Triton: whatever it says is the reason
        return (
            f"Triton cannot build its GPU driver, for which it needs a C compiler and Python.h: "
            f"{type(error).__name__}: {error}"
        )
    return ""


def _interpreter_failure() -> str:
    """Not every Triton's interpreter runs under every NumPy."""
    try:
        noise(torch.zeros(1, dtype=torch.int64), (1, 4), 0, torch.float32, 0)
    except Exception as error:
        return (
            f"the interpreter of Triton {triton.__version__} fails with NumPy {np.__version__}: "
            f"{type(error).__name__}: {error}"
        )
    return ""


def describe(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """What a latent op of this shape is launched as, in words."""
    tiling = tiling_of(Work(shape[0], math.prod(shape[1:]), dtype))
    programs = "x".join(map(str, tiling.grid))
    tiles = f"{tiling.tile.rows}x{tiling.tile.columns}"
    return (
        f"{programs} programs of {NUM_WARPS} warps, each with {tiling.tiles_a_program} tile(s) of {tiles} elements"
        + (", in Triton's interpreter" if INTERPRETED else "")
    )
