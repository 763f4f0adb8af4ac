"""Gradients: each Function calls one forward and one backward op and keeps the inputs and the seed, nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import library


def differentiable_once(backward: Callable) -> Callable:
    """`once_differentiable`, which turns a second derivative into an error, without its cost where none is recorded."""
    recorded = once_differentiable(backward)

    @functools.wraps(backward)
    def choose(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return recorded(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return choose


class SampleAndKL(Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, seed: Tensor, row_offset: int, reduction: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar, seed)
        ctx.arguments = (row_offset, reduction, backend)
        ctx.set_materialize_grads(False)
        return library.sample_and_kl(mu, logvar, seed, row_offset, reduction, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        mu, logvar, seed = ctx.saved_tensors
        row_offset, reduction, backend = ctx.arguments
        grad_mu: Tensor | None
        grad_logvar: Tensor | None
        if grad_z is None and grad_kl is None:
            grad_mu = grad_logvar = None
        elif grad_z is None:
            grad_mu, grad_logvar = library.gaussian_kl_backward(grad_kl, mu, logvar, reduction, backend)
        elif grad_kl is None:
            grad_mu, grad_logvar = (
                grad_z,
                library.reparameterize_backward(grad_z, logvar, seed, row_offset, backend),
            )
        else:
            grad_mu, grad_logvar = library.sample_and_kl_backward(grad_z, grad_kl, mu, logvar, seed, *ctx.arguments)
        return grad_mu, grad_logvar, None, None, None, None


class Reparameterize(Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, seed: Tensor, row_offset: int, backend: str) -> Tensor:
        ctx.save_for_backward(logvar, seed)
        ctx.arguments = (row_offset, backend)
        return library.reparameterize(mu, logvar, seed, row_offset, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        logvar, seed = ctx.saved_tensors
        # d z / d mu is the identity: the gradient passes through as it came.
        return grad_z, library.reparameterize_backward(grad_z, logvar, seed, *ctx.arguments), None, None, None


class GaussianKL(Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, reduction: str, backend: str) -> Tensor:
        ctx.save_for_backward(mu, logvar)
        ctx.arguments = (reduction, backend)
        return library.gaussian_kl(mu, logvar, reduction, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        return *library.gaussian_kl_backward(grad_kl, *ctx.saved_tensors, *ctx.arguments), None, None
