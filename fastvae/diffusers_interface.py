"""What `DiagonalGaussian` has of diffusers' interface: a mode that can be called, draws from generators."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_generator, seed_tensor
from .divergences import Parameters
from .draw_options import Generator
from .functional import reparameterize
from .torch_internals import disabled_torch_function

__all__ = ["Generators", "Mode", "are_generators", "draw_each", "seed_from"]

Generators = torch.Generator | Sequence[torch.Generator] | None


class Mode(Tensor):
    """The mode: a tensor, as in torch.distributions, that can also be called, as diffusers' ``mode()``."""

    # Results of ops on it, copies and pickles are plain Tensors.
    __torch_function__ = disabled_torch_function

    def __call__(self) -> Tensor:
        return self.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict) -> Tensor:
        return copy.deepcopy(self(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self().__reduce_ex__(protocol)


def are_generators(given: object) -> bool:
    if given is None or isinstance(given, torch.Generator):
        return True
    return isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], torch.Generator)


def seed_from(generator: Generator, device: torch.device) -> Tensor:
    """A seed on the device, drawn from a generator on any device."""
    check_generator(generator, None)
    return seed_tensor(None, generator, device if generator is None else generator.device).to(device)


def draw_each(given: Parameters, generators: Sequence[Generator]) -> Tensor:
    """A draw whose noise depends, for each row, on its own generator only."""
    rows = [
        reparameterize(mu, scale, seed=seed_from(one, mu.device), **given.options)
        for mu, scale, one in zip(given.mu.split(1), given.scale.split(1), generators, strict=True)
    ]
    return torch.cat(rows)
