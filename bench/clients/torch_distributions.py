"""torch.distributions: a posterior, a sample of it and its KL to the standard normal, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.distributions import Normal, kl_divergence


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


STEPS = {
    f"Normal.rsample and kl_divergence, {rows} x {coordinates}, and back": functools.partial(
        make_step, rows, coordinates
    )
    for rows, coordinates in ((128, 10), (4096, 256))
}
