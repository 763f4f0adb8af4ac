"""What all likelihoods are, and what their modules share."""

from __future__ import annotations

import math
import numbers
from typing import Protocol

import torch
from torch import Tensor, nn

from ..arguments import check_flag, check_generator, check_tensor
from ..kernels.layout import compute_dtype

Parameters = Tensor | tuple[Tensor, ...]


class Likelihood(Protocol):
    """What `fastvae.nn.VAE` asks of a likelihood; any module with these methods will do.

    A module whose attribute ``takes_draws`` is true understands parameters with a leading dimension of draws,
    (K, B, *event), for x of shape (B, *event), and gives (K, B); for others x is repeated.
    """

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor: ...

    def mean(self, parameters: Parameters) -> Tensor: ...

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor: ...


def check_parts(parameters: Parameters, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The decoder's output as so many tensors: a tuple of them, or the one tensor itself if there is one name."""
    parts = tuple(parameters) if isinstance(parameters, (tuple, list)) else (parameters,)
    if len(parts) != len(names):
        came = f"{len(parts)} tensors" if isinstance(parameters, (tuple, list)) else type(parameters).__name__
        raise TypeError(f"parameters is {came}, expected the tensors ({', '.join(names)})")
    for name, part in zip(names, parts, strict=True):
        check_tensor(name, part)
    return parts


def check_sampling(parameter: Tensor, generator: torch.Generator | None) -> torch.dtype:
    """The dtype to draw in: bfloat16 would round a probability of 0.999 to 1."""
    check_generator(generator, parameter.device)
    return compute_dtype(parameter.dtype)


def check_positive(name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, expected a positive finite number")
    return float(value)


def register(module: nn.Module, name: str, value: Tensor, learned: bool) -> None:
    """A Parameter if it is learned, else a buffer."""
    if check_flag("learned", learned):
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
