"""The Triton backend: GPUs of NVIDIA and AMD, and CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

`gaussian` has the two kernels of plain latents, `latents_forward` and `latents_backward` those of the family,
`likelihoods` those of log p(x|z) and `mixture` those of its mixtures; `philox`, `functions`, `parameterisation`,
`latents` and `special` have what they are made of. `launch`, `latent_launch` and `likelihood_launch` decide launch
shapes and start them.
"""

from __future__ import annotations

import math

import torch

# Triton itself is imported here, at the backend's first use and not before: an ImportError means it is not installed.
from .latent_launch import latent_backward, latent_forward
from .launch import INTERPRETED, NUM_WARPS, backward, forward, noise, shares
from .likelihood_launch import likelihood_backward, likelihood_forward

__all__ = [
    "backward",
    "describe",
    "device_types",
    "forward",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "noise",
    "unavailable",
]


def device_types() -> tuple[str, ...]:
    return ("cpu",) if INTERPRETED else ("cuda",)


def unavailable() -> str:
    """Why this machine cannot run the kernels; an empty string if it can."""
    if INTERPRETED or torch.cuda.is_available():
        return ""
    return "there is no GPU that PyTorch can use, and TRITON_INTERPRET is not set"


def describe(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """What a latent op of this shape is launched as, in words."""
    rows, event = shape[0], math.prod(shape[1:])
    shared = shares(rows, event, dtype)
    programs = "x".join(map(str, shared.grid))
    tiles = f"{shared.rows_a_program}x{shared.columns}"
    return (
        f"{programs} programs of {NUM_WARPS} warps, each with {shared.tiles_a_program} tile(s) of {tiles} elements"
        + (", in Triton's interpreter" if INTERPRETED else "")
    )
