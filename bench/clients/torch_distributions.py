"""torch.distributions: a posterior, its draw and its KL to the standard normal, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.distributions import Normal, kl_divergence

from .case import Case

SHAPES = ((128, 10), (4096, 256))


def make_step(rows: int, coordinates: int) -> Callable[[], torch.Tensor]:
    mu, std = torch.randn(rows, coordinates), 0.5 + torch.rand(rows, coordinates)
    given = (mu.requires_grad_(), std.requires_grad_())
    gradients = (torch.randn(rows, coordinates), torch.randn(rows))
    prior = Normal(torch.zeros(coordinates), torch.ones(coordinates))

    def step() -> torch.Tensor:
        loc, scale = (tensor.view_as(tensor) for tensor in given)  # as an encoder's output, not leaves
        posterior = Normal(loc, scale)
        z, kl = posterior.rsample(), kl_divergence(posterior, prior).sum(-1)
        return torch.autograd.grad((z, kl), given, gradients)[0]

    return step


def cases() -> list[Case]:
    return [
        Case("torch", f"Normal.rsample and kl_divergence, {rows} x {coordinates}, and back",
             functools.partial(make_step, rows, coordinates))
        for rows, coordinates in SHAPES
    ]  # fmt: skip
