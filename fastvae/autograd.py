"""Gradients: each Function calls one forward and one backward op and keeps the inputs and the seed, nothing else.

A backward that is itself recorded (``create_graph=True``) is computed in plain PyTorch instead (`fastvae.recorded`), so
that second derivatives are right, and so is one of a batch of gradients (``is_grads_batched=True``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import library
from .kernels.family import PLAIN, Latents, Options
from .kernels.likelihoods import Density
from .kernels.reference.latents import grad_kl_elementwise
from .recorded import recorded_gradients, recorded_likelihood_gradients

# A tensor that got out of a transform that has ended; ``Function.apply`` looks for them too.
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead

# Tensors that stand for many, which PyTorch's own operators compute at once: of a batch of gradients, of torch.func.
_is_batch_of_gradients = torch._C._functorch.is_legacy_batchedtensor
_is_batch = torch._C._functorch.is_batchedtensor


def apply(function: type[Function], first: Tensor, second: Tensor | None, *rest: Any) -> Any:
    """``function.apply``, without its detour for torch.func's transforms while none is active."""
    if library.observed():
        return function.apply(first, second, *rest)
    second = second if second is None else _unwrap_if_dead(second)
    return _apply_directly[function](_unwrap_if_dead(first), second, *rest)


def computed_by_autograd(*grads: Tensor | None) -> bool:
    """Whether the backward of these gradients is for autograd to compute, from the formulas."""
    if torch.is_grad_enabled():
        return True
    if torch.compiler.is_compiling():
        return False
    return any(grad is not None and (_is_batch_of_gradients(grad) or _is_batch(grad)) for grad in grads)


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
        elif computed_by_autograd(grad_z, grad_kl):
            gradients = Latents(grad_z, grad_kl, None, None, None)
            grad_mu, grad_logvar, *_ = recorded_gradients(
                gradients, (mu, logvar, None, None), seed, row_offset, None, reduction, PLAIN, backend
            )
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
        elif computed_by_autograd(grad_z, grad_kl):
            row_offset, reduction, backend = arguments
            gradients = Latents(grad_z, grad_kl, None, None, None)
            grad_moments, *_ = recorded_gradients(
                gradients, (moments, None, None, None), seed, row_offset, None, reduction, PLAIN, backend, dim
            )
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
        if computed_by_autograd(grad_z):
            gradients = Latents(grad_z, None, None, None, None)
            mu = torch.zeros_like(logvar)  # was not kept: z differs by it, the gradient of logvar does not
            _, grad_logvar, *_ = recorded_gradients(
                gradients, (mu, logvar, None, None), seed, row_offset, None, None, PLAIN, backend
            )
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
        if computed_by_autograd(grad_kl):
            gradients = Latents(None, grad_kl, None, None, None)
            grad_mu, grad_logvar, *_ = recorded_gradients(
                gradients, (mu, logvar, None, None), None, 0, None, reduction, PLAIN, backend
            )
        else:
            grad_mu, grad_logvar = library.gaussian_kl_backward(grad_kl, mu, logvar, reduction, backend)
        return grad_mu, grad_logvar, None, None


class Latent(Function):
    """The family of `fastvae.kernels.family`; ``second`` None: ``first`` holds mu and scale along ``dim``.

    Gives z, kl, kl_mean, log_q and log_p; None for what was not wanted.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor | None,
        prior_mu: Tensor | None,
        prior_scale: Tensor | None,
        seed: Tensor | None,
        dim: int,
        row_offset: int,
        num_samples: int | None,
        reduction: str | None,
        kl_mean: bool,
        log_probs: bool,
        backend: str,
        *options: Any,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(first, second, prior_mu, prior_scale, seed)
        ctx.arguments = (dim, row_offset, num_samples, reduction, backend, options)
        ctx.set_materialize_grads(False)
        outputs = library.latent(
            first, second, prior_mu, prior_scale, seed, dim, row_offset, num_samples, reduction, kl_mean, log_probs,
            backend, *options
        )  # fmt: skip
        remaining = iter(outputs)
        wanted = (seed is not None, reduction is not None, kl_mean, log_probs, log_probs)
        return tuple([next(remaining) if want else None for want in wanted])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        first, second, prior_mu, prior_scale, seed = ctx.saved_tensors
        dim, row_offset, num_samples, reduction, backend, options = ctx.arguments
        gradients = Latents(*grads)
        rest = (None,) * (8 + len(options))
        if all(gradient is None for gradient in gradients):
            return *(None,) * 4, *rest
        if computed_by_autograd(*grads):
            inputs = (first, second, prior_mu, prior_scale)
            found = recorded_gradients(
                gradients, inputs, seed, row_offset, num_samples, reduction, Options(*options), backend, dim
            )
            return *found, *rest
        grad_z, grad_kl, grad_kl_mean, grad_log_q, grad_log_p = gradients
        if grad_kl_mean is not None:
            grad_kl, reduction = _with_mean(grad_kl, grad_kl_mean, reduction, first, second, dim), "none"
        draws = grad_z is not None or grad_log_q is not None or grad_log_p is not None
        wants_prior = any(ctx.needs_input_grad[2:4])
        found = library.latent_backward(
            first, second, prior_mu, prior_scale, seed if draws else None, grad_z, grad_kl, grad_log_q, grad_log_p, dim,
            row_offset, num_samples, None if grad_kl is None else reduction, wants_prior, backend, *options
        )  # fmt: skip
        remaining = iter(found)
        given = (True, second is not None, wants_prior, wants_prior)
        return *[next(remaining) if one else None for one in given], *rest


def _with_mean(
    grad_kl: Tensor | None, grad_kl_mean: Tensor, reduction: str | None, first: Tensor, second: Tensor | None, dim: int
) -> Tensor:
    """The gradient of each coordinate's KL, from those of its reduction and of its mean over the batch.

    One of them is None, or zeros where a compiler makes gradients for outputs that are not used.
    """
    like = first if second is not None else first.chunk(2, dim)[0]
    from_mean = (grad_kl_mean / like.shape[0]).expand(like.shape)
    if grad_kl is None or reduction is None:
        return from_mean
    return from_mean + grad_kl_elementwise(grad_kl, like, reduction)


class LogLikelihood(Function):
    """log p(x|z), of the family of `fastvae.kernels.likelihoods`; parameters that the kind does not have are None.

    The kernels have no gradient of x, which is data in most models: where one is wanted, plain PyTorch computes all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        second: Tensor | None,
        third: Tensor | None,
        reduction: str,
        backend: str,
        *density: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, first, second, third)
        ctx.arguments = (reduction, backend, density)
        return library.likelihood(x, first, second, third, reduction, backend, *density)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *given = ctx.saved_tensors
        reduction, backend, density = ctx.arguments
        rest = (None,) * (2 + len(density))
        if ctx.needs_input_grad[0] or computed_by_autograd(grad):
            found = recorded_likelihood_gradients(
                grad, (x, *given), ctx.needs_input_grad[:4], reduction, Density(*density)
            )
            return *found, *rest
        wants = tuple([wanted for wanted, one in zip(ctx.needs_input_grad[1:4], given, strict=True) if one is not None])
        remaining = iter(library.likelihood_backward(grad, x, *given, wants, reduction, backend, *density))
        return None, *[next(remaining) if wanted else None for wanted in ctx.needs_input_grad[1:4]], *rest


def without_detour(function: type[Function]) -> Any:
    """``function.apply`` as it is beneath what it does for torch.func's transforms."""
    return super(Function, function).apply  # type: ignore[misc]


_apply_directly: dict[type[Function], Any] = {
    function: without_detour(function)
    for function in (SampleAndKL, SampleAndKLPacked, Reparameterize, GaussianKL, Latent, LogLikelihood)
}
