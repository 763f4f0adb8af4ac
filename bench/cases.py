"""What is timed on the CPU: ops, shapes and dtypes; and the tensors that a case works on.

An op is timed in up to three directions:

    forward    the call, with the graph that autograd records
    backward   the gradients alone, on a graph made beforehand and retained
    both       the two in turn: a training step's share
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import eager
from .gpu_checks import Op as LatentOp
from .gpu_checks import Tensors, make_tensors

Function = Callable[..., Tensor | tuple[Tensor, ...]]

DIRECTIONS = ("forward", "backward", "both")
DTYPES = ("float32", "bfloat16", "float16")


class Op(NamedTuple):
    """How an op that is timed relates to the latent op, (mu, logvar) -> (z, kl).

    ``arguments`` makes what the op takes from mu and logvar; ``completed`` makes the whole latent op of a function that
    computes this op, the other half in plain PyTorch, so that one check fits all (`bench.agreement`).
    """

    arguments: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    completed: Callable[[Function], LatentOp]
    draws: bool = True
    directions: tuple[str, ...] = DIRECTIONS


def _packed(mu: Tensor, logvar: Tensor) -> Tensor:
    """What an encoder's last layer gives: mu and logvar side by side in dimension 1."""
    return torch.cat([mu, logvar], dim=1)


OPS = {
    "sample_and_kl": Op(lambda mu, logvar: (mu, logvar), lambda function: function),
    "sample_and_kl_packed": Op(
        lambda mu, logvar: (_packed(mu, logvar),), lambda function: lambda mu, logvar: function(_packed(mu, logvar))
    ),
    "reparameterize": Op(
        lambda mu, logvar: (mu, logvar),
        lambda function: lambda mu, logvar: (function(mu, logvar), eager.gaussian_kl(mu, logvar)),
    ),
    "gaussian_kl": Op(
        lambda mu, logvar: (mu, logvar),
        lambda function: lambda mu, logvar: (eager.reparameterize(mu, logvar), function(mu, logvar)),
        draws=False,
    ),
    # The noise takes a shape and a dtype: those of a tensor.
    "noise": Op(
        lambda mu, logvar: (mu,),
        lambda function: (
            lambda mu, logvar: (
                mu + torch.exp(0.5 * logvar) * function(mu),
                eager.gaussian_kl(mu, logvar),
            )
        ),
        directions=("forward",),
    ),
}


class Case(NamedTuple):
    op: str
    shape: tuple[int, ...]
    """Of z, (B, *event); a packed tensor has twice as many channels."""
    dtype: str

    @property
    def directions(self) -> tuple[str, ...]:
        return OPS[self.op].directions

    @property
    def array_bytes(self) -> int:
        """Bytes of an array of the size of z."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @property
    def shape_name(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.op} {self.shape_name} {self.dtype}"

    def tensors(self, device: torch.device) -> Tensors:
        """mu, logvar and gradients, the event flattened."""
        batch, *event = self.shape
        return make_tensors(batch, math.prod(event), getattr(torch, self.dtype), device)

    def arguments(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """What the op takes, leaves that want gradients."""
        mu, logvar = (tensor.detach().view(self.shape) for tensor in tensors[:2])
        return tuple(argument.detach().requires_grad_() for argument in OPS[self.op].arguments(mu, logvar))


# Small and large latents of vectors, and those of images. `make bench` has ten minutes on two cores for everything.
SMALL, MEDIUM, IMAGE, LARGE = (128, 10), (4096, 256), (16, 4, 64, 64), (65536, 256)

SUITE = (
    *(Case("sample_and_kl", shape, "float32") for shape in (SMALL, MEDIUM, IMAGE, LARGE)),
    *(Case("sample_and_kl", shape, "bfloat16") for shape in (SMALL, MEDIUM, IMAGE, LARGE)),
    Case("sample_and_kl", MEDIUM, "float16"),
    *(Case("sample_and_kl_packed", shape, "float32") for shape in (SMALL, MEDIUM, IMAGE)),
    *(Case("sample_and_kl_packed", shape, "bfloat16") for shape in (MEDIUM, IMAGE)),
    *(Case(op, shape, "float32") for op in ("reparameterize", "gaussian_kl") for shape in (SMALL, MEDIUM)),
    *(Case(op, MEDIUM, "bfloat16") for op in ("reparameterize", "gaussian_kl")),
    *(Case("noise", shape, "float32") for shape in (SMALL, MEDIUM)),
    Case("noise", MEDIUM, "bfloat16"),
)


def parse_shape(text: str) -> tuple[int, ...]:
    """(4096, 256) of "4096x256"; raises ValueError."""
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split("x"))
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"shape is {text!r}, expected a batch and sizes of the latent such as 4096x256 or 16x4x64x64")
    return sizes


def parse_device(text: str) -> torch.device:
    """Of a command line: cpu, cuda or cuda:1."""
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a device such as cpu or cuda") from None
