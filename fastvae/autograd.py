"""Gradients: each Function calls one forward and one backward op and keeps the inputs and the seed, nothing else.

A backward that is itself recorded (``create_graph=True``) is computed in plain PyTorch instead (`fastvae.recorded`), so
that second derivatives are right, and so is one of a batch of gradients (``is_grads_batched=True``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import library
from .arguments import requested_backend
from .kernels.family import PLAIN, Latents, Options
from .kernels.likelihoods import Density
from .kernels.reference.latents import grad_kl_elementwise
from .kernels.selection import kernels_for
from .plain import is_compiling, may_go_directly
from .recorded import recorded_gradients, recorded_likelihood_gradients

# A tensor that got out of a transform that has ended; ``Function.apply`` looks for them too.
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead

# Each call asks these, so they are looked up once.
_is_grad_enabled = torch.is_grad_enabled
_transforms_are_active = torch._C._are_functorch_transforms_active

# Tensors that stand for many, which PyTorch's own operators compute at once: of a batch of gradients, of torch.func.
_is_batch_of_gradients = torch._C._functorch.is_legacy_batchedtensor
_is_batch = torch._C._functorch.is_batchedtensor


def apply(function: type[Function], first: Tensor, second: Tensor | None, *rest: Any) -> Any:
    """``function.apply``, without its detour for torch.func's transforms while none is active."""
    if is_compiling() or _transforms_are_active():
        return function.apply(first, second, *rest)
    second = second if second is None else _unwrap_if_dead(second)
    return _apply_directly[function](_unwrap_if_dead(first), second, *rest)


def computed_by_autograd(*grads: Tensor | None) -> bool:
    """Whether the backward of these gradients is for autograd to compute, from the formulas."""
    if _is_grad_enabled():
        return True
    if is_compiling():
        return False
    for grad in grads:  # noqa: SIM110 - a generator would take as long as all else here
        if grad is not None and (_is_batch_of_gradients(grad) or _is_batch(grad)):
            return True
    return False


class SampleAndKL(Function):
    """``kernels``, where they are given, may be called past PyTorch's dispatcher (`fastvae.plain`)."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        seed: Tensor,
        row_offset: int,
        reduction: str,
        backend: str,
        kernels: ModuleType | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar, seed)
        ctx.arguments = (row_offset, reduction, backend)
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        if kernels is not None:
            return kernels.forward(mu, logvar, seed, row_offset, reduction)
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
        elif ctx.kernels is not None and may_go_directly(4, grad_z, grad_kl, mu, logvar):
            grad_mu, grad_logvar = ctx.kernels.backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction)
        else:
            grad_mu, grad_logvar = library.sample_and_kl_backward(grad_z, grad_kl, mu, logvar, seed, *ctx.arguments)
        return grad_mu, grad_logvar, None, None, None, None, None


class SampleAndKLPacked(Function):
    """The same of two halves along ``dim``."""

    @staticmethod
    def forward(
        ctx: Any,
        moments: Tensor,
        seed: Tensor,
        dim: int,
        row_offset: int,
        reduction: str,
        backend: str,
        kernels: ModuleType | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(moments, seed)
        ctx.arguments = (dim, row_offset, reduction, backend)
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        if kernels is not None:
            return library.run_packed(kernels, moments, seed, dim, row_offset, reduction)
        return library.sample_and_kl_packed(moments, seed, dim, row_offset, reduction, backend)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        moments, seed = ctx.saved_tensors
        dim, row_offset, reduction, backend = ctx.arguments
        grad_moments: Tensor | None
        if grad_z is None and grad_kl is None:
            grad_moments = None
        elif computed_by_autograd(grad_z, grad_kl):
            gradients = Latents(grad_z, grad_kl, None, None, None)
            grad_moments, *_ = recorded_gradients(
                gradients, (moments, None, None, None), seed, row_offset, None, reduction, PLAIN, backend, dim
            )
        elif ctx.kernels is not None and may_go_directly(3, moments, grad_z, grad_kl):
            grad_moments = library.run_packed_backward(
                ctx.kernels, moments, grad_z, grad_kl, seed, dim, row_offset, reduction
            )
        else:
            grad_moments = library.sample_and_kl_packed_backward(moments, grad_z, grad_kl, seed, *ctx.arguments)
        return grad_moments, None, None, None, None, None, None


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

    Gives z, kl, kl_mean, log_q and log_p; None for what was not wanted. `latent` calls it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor | None,
        prior_mu: Tensor | None,
        prior_scale: Tensor | None,
        seed: Tensor | None,
        how: tuple[Any, ...],
    ) -> tuple[Tensor | None, ...]:
        dim, row_offset, num_samples, reduction, kl_mean, log_probs, backend, options, kernels = how
        ctx.save_for_backward(first, second, prior_mu, prior_scale, seed)
        ctx.how = how
        ctx.set_materialize_grads(False)
        if kernels is not None:
            return library.run_latent(
                kernels, first, second, prior_mu, prior_scale, seed, dim, row_offset, num_samples, reduction, kl_mean,
                log_probs, options
            )  # fmt: skip
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
        dim, row_offset, num_samples, reduction, _, _, backend, options, kernels = ctx.how
        gradients = Latents(*grads)
        if all(gradient is None for gradient in gradients):
            return (None,) * 6
        if computed_by_autograd(*grads):
            inputs = (first, second, prior_mu, prior_scale)
            found = recorded_gradients(
                gradients, inputs, seed, row_offset, num_samples, reduction, options, backend, dim
            )
            return *found, None, None
        grad_z, grad_kl, grad_kl_mean, grad_log_q, grad_log_p = gradients
        if grad_kl_mean is not None:
            grad_kl, reduction = _with_mean(grad_kl, grad_kl_mean, reduction, first, second, dim), "none"
        if grad_z is None and grad_log_q is None and grad_log_p is None:
            seed = None
        if grad_kl is None:
            reduction = None
        wants_prior = any(ctx.needs_input_grad[2:4])
        arguments = (
            first, second, prior_mu, prior_scale, seed, grad_z, grad_kl, grad_log_q, grad_log_p, dim, row_offset,
            num_samples, reduction, wants_prior,
        )  # fmt: skip
        if kernels is not None and may_go_directly(9, *arguments):
            return *library.run_latent_backward(kernels, *arguments, options), None, None
        remaining = iter(library.latent_backward(*arguments, backend, *options))
        given = (True, second is not None, wants_prior, wants_prior)
        return *[next(remaining) if one else None for one in given], None, None


def latent(
    first: Tensor,
    second: Tensor | None,
    prior: tuple[Tensor | None, Tensor | None],
    seed: Tensor | None,
    dim: int,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    options: Options,
    *,
    kl_mean: bool = False,
    log_probs: bool = False,
) -> Any:
    """z, kl, kl_mean, log_q and log_p of any latent, with gradients; None for what was not wanted."""
    backend = requested_backend()
    kernels = kernels_for(backend, first) if may_go_directly(5, first, second, *prior, seed) else None
    how = (dim, row_offset, num_samples, reduction, kl_mean, log_probs, backend, options, kernels)
    return apply(Latent, first, second, *prior, seed, how)


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
        ctx: Any, x: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None, how: tuple[Any, ...]
    ) -> Tensor:
        reduction, backend, density, kernels = how
        ctx.save_for_backward(x, first, second, third)
        ctx.how = how
        if kernels is not None:
            return kernels.likelihood_forward(x, library.given(first, second, third), reduction, density)
        return library.likelihood(x, first, second, third, reduction, backend, *density)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *given = ctx.saved_tensors
        reduction, backend, density, kernels = ctx.how
        if ctx.needs_input_grad[0] or computed_by_autograd(grad):
            found = recorded_likelihood_gradients(grad, (x, *given), ctx.needs_input_grad[:4], reduction, density)
            return *found, None
        wants = tuple([wanted for wanted, one in zip(ctx.needs_input_grad[1:4], given, strict=True) if one is not None])
        if kernels is not None and may_go_directly(5, grad, x, *given):
            gradients = kernels.likelihood_backward(grad, x, library.given(*given), reduction, density, wants)
            remaining = iter(gradients)
            return None, *[None if one is None else next(remaining) for one in given], None
        remaining = iter(library.likelihood_backward(grad, x, *given, wants, reduction, backend, *density))
        return None, *[next(remaining) if wanted else None for wanted in ctx.needs_input_grad[1:4]], None


def log_likelihood(x: Tensor, parameters: list[Tensor], reduction: str, density: Density) -> Tensor:
    """log p(x|z), reduced, with gradients."""
    first, second, third = [*parameters, None, None][:3]
    backend = requested_backend()
    kernels = None
    if may_go_directly(4, x, first, second, third):
        kernels = library.likelihood_kernels(backend, x, parameters)
    return apply(LogLikelihood, x, first, second, third, (reduction, backend, density, kernels))


def without_detour(function: type[Function]) -> Any:
    """``function.apply`` as it is beneath what it does for torch.func's transforms."""
    return super(Function, function).apply  # type: ignore[misc]


_apply_directly: dict[type[Function], Any] = {
    function: without_detour(function)
    for function in (SampleAndKL, SampleAndKLPacked, Reparameterize, GaussianKL, Latent, LogLikelihood)
}
