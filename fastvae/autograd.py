"""Gradients: each Function calls one forward and one backward op and keeps the inputs and the seed, nothing else.

A backward that is itself recorded (``create_graph=True``) is computed in plain PyTorch instead, by
`recorded_gradients`, so that second derivatives are right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import library

# A tensor that got out of a transform that has ended; ``Function.apply`` looks for them too.
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead


def apply(function: type[Function], first: Tensor, second: Tensor, *rest: Any) -> Any:
    """``function.apply``, without its detour for torch.func's transforms while none is active."""
    if library.observed():
        return function.apply(first, second, *rest)
    return _apply_directly[function](_unwrap_if_dead(first), _unwrap_if_dead(second), *rest)


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
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        mu, logvar, seed = ctx.saved_tensors
        row_offset, reduction, backend = ctx.arguments
        grad_mu: Tensor | None
        grad_logvar: Tensor | None
        if grad_z is None and grad_kl is None:
            grad_mu = grad_logvar = None
        elif torch.is_grad_enabled():
            grad_mu, grad_logvar = recorded_gradients(grad_z, grad_kl, mu, logvar, seed, *ctx.arguments)
        elif grad_z is None:
            grad_mu, grad_logvar = library.gaussian_kl_backward(grad_kl, mu, logvar, reduction, backend)
        elif grad_kl is None:
            # d z / d mu is the identity: the gradient passes through as it came.
            grad_mu = grad_z
            grad_logvar = library.reparameterize_backward(grad_z, logvar, seed, row_offset, backend)
        else:
            grad_mu, grad_logvar = library.sample_and_kl_backward(grad_z, grad_kl, mu, logvar, seed, *ctx.arguments)
        return grad_mu, grad_logvar, None, None, None, None


class SampleAndKLPacked(Function):
    @staticmethod
    def forward(
        ctx: Any, moments: Tensor, seed: Tensor, dim: int, row_offset: int, reduction: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(moments, seed)
        ctx.arguments = (dim, row_offset, reduction, backend)
        ctx.set_materialize_grads(False)
        return library.sample_and_kl_packed(moments, seed, dim, row_offset, reduction, backend)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        moments, seed = ctx.saved_tensors
        dim, *arguments = ctx.arguments
        grad_moments: Tensor | None
        if grad_z is None and grad_kl is None:
            grad_moments = None
        elif torch.is_grad_enabled():
            mu, logvar = moments.chunk(2, dim)
            grad_mu, grad_logvar = recorded_gradients(grad_z, grad_kl, mu, logvar, seed, *arguments)
            assert grad_mu is not None  # mu was given
            grad_moments = torch.cat([grad_mu, grad_logvar], dim)
        else:
            grad_moments = library.sample_and_kl_packed_backward(moments, grad_z, grad_kl, seed, dim, *arguments)
        return grad_moments, None, None, None, None, None


class Reparameterize(Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, seed: Tensor, row_offset: int, backend: str) -> Tensor:
        ctx.save_for_backward(logvar, seed)
        ctx.arguments = (row_offset, backend)
        return library.reparameterize(mu, logvar, seed, row_offset, backend)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        logvar, seed = ctx.saved_tensors
        row_offset, backend = ctx.arguments
        if torch.is_grad_enabled():
            _, grad_logvar = recorded_gradients(grad_z, None, None, logvar, seed, row_offset, None, backend)
        else:
            grad_logvar = library.reparameterize_backward(grad_z, logvar, seed, row_offset, backend)
        return grad_z, grad_logvar, None, None, None


class GaussianKL(Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, reduction: str, backend: str) -> Tensor:
        ctx.save_for_backward(mu, logvar)
        ctx.arguments = (reduction, backend)
        return library.gaussian_kl(mu, logvar, reduction, backend)

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        mu, logvar = ctx.saved_tensors
        reduction, backend = ctx.arguments
        if torch.is_grad_enabled():
            gradients = recorded_gradients(None, grad_kl, mu, logvar, None, 0, reduction, backend)
        else:
            gradients = library.gaussian_kl_backward(grad_kl, mu, logvar, reduction, backend)
        return *gradients, None, None


_apply_directly: dict[type[Function], Any] = {
    function: super(Function, function).apply  # type: ignore[misc]
    for function in (SampleAndKL, SampleAndKLPacked, Reparameterize, GaussianKL)
}


def recorded_gradients(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    seed: Tensor | None,
    row_offset: int,
    reduction: str | None,
    backend: str,
) -> tuple[Tensor | None, Tensor]:
    """What the backward ops compute, in operations that autograd follows:

    d mu = g_z + g_kl mu            d logvar = 1/2 (g_z exp(logvar/2) eps + g_kl expm1(logvar))
    """
    compute = torch.float64 if logvar.dtype == torch.float64 else torch.float32
    wide_logvar = logvar.to(compute)
    grad_mu, grad_logvar = torch.zeros((), dtype=compute, device=logvar.device), torch.zeros_like(wide_logvar)
    if grad_z is not None and seed is not None:
        eps = library.noise(seed, logvar.shape, row_offset, compute, backend)
        grad_mu = grad_z.to(compute)
        grad_logvar = grad_mu * torch.exp(0.5 * wide_logvar) * eps
    if grad_kl is not None and mu is not None:
        if reduction == "sample":
            grad_kl = grad_kl.reshape(-1, *[1] * (logvar.dim() - 1))
        elif reduction == "batchmean":
            grad_kl = grad_kl / logvar.shape[0]
        grad_mu = grad_mu + grad_kl * mu.to(compute)
        grad_logvar = grad_logvar + grad_kl * torch.expm1(wide_logvar)
    return (None if mu is None else grad_mu.to(logvar.dtype)), (0.5 * grad_logvar).to(logvar.dtype)
