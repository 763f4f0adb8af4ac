"""Gradients: one autograd Function for latents, one for likelihoods. Each keeps its inputs and the seed, nothing else.

A backward that is itself differentiated (``create_graph=True``), or is one of a batch of gradients
(``is_grads_batched=True``), is recomputed in plain PyTorch (`fastvae.double_backward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import ops
from .double_backward import gradients_of_latent, gradients_of_likelihood
from .fast_path import are_direct, direct_kernels
from .kernels import backend as selected
from .kernels.backend import kernels_for
from .kernels.latent_spec import LatentInputs, LatentOutputs, LatentSpec, latent_inputs, latent_outputs
from .kernels.layout import split_packed
from .kernels.likelihood_spec import Bounds, LikelihoodSpec
from .kernels.reference.latents import grad_kl_elementwise
from .latent_options import DescribedLatent
from .ops import LatentRun, LikelihoodRun, latent_run, likelihood_run
from .torch_internals import any_is_batched, fast_apply, is_compiling, is_in_forward_mode, needs_formula
from .transforms import transformed_latent, transformed_likelihood

__all__ = ["backward_of_latent", "is_differentiated", "run_latent", "run_likelihood"]

_is_grad_enabled = torch.is_grad_enabled
_NO_PRIOR = (None, None)


def run_latent(
    mu: Tensor,
    scale: Tensor | None,
    prior: tuple[Tensor, ...],
    seed: Tensor | None,
    described: DescribedLatent,
    row_offset: int = 0,
    alike: bool = False,
) -> tuple[Tensor | None, ...]:
    """Any latent, with gradients: the five `LatentOutputs`, or the first one or two where the others are not wanted.

    Args:
        mu: of a packed latent, mu and scale in one tensor; ``scale`` is then None.
        prior: its two parameters, or none.
        alike: mu and scale passed `fast_path.are_alike`.
    """
    spec, scalars = described[0], described[1]
    if row_offset:
        scalars = scalars._replace(row_offset=row_offset)
    backend = selected.requested
    if alike and not prior:
        kernels: ModuleType | None = kernels_for(backend, mu)
    else:
        kernels = direct_kernels(backend, mu, scale, seed, *prior)
    run = latent_run((spec, scalars, backend, kernels))
    if kernels is not None:
        return _apply_latent(run, seed, mu, scale, *prior)
    if needs_formula():
        return transformed_latent(latent_inputs((mu, scale, *(prior or _NO_PRIOR), seed)), run, backward_of_latent)
    return Latent.apply(run, seed, mu, scale, *prior)


def run_likelihood(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    spec: LikelihoodSpec,
    bounds: Bounds,
    noticed: Tensor | None = None,
    alike: bool = False,
) -> Tensor:
    """log p(x|z), reduced, with gradients.

    Args:
        noticed: as in `fastvae.kernels`.
        alike: x and the parameters passed `fast_path.are_alike`.
    """
    backend = selected.requested
    kernels: ModuleType | None = None
    if alike:
        kernels = kernels_for(backend, x)
    elif are_direct(x, *parameters):
        kernels = ops.likelihood_kernels(backend, x, parameters)
    run = likelihood_run((spec, bounds, backend, kernels, noticed))
    if kernels is not None:
        return _apply_likelihood(run, x, *parameters)
    if needs_formula():
        return transformed_likelihood(x, parameters, run)
    return Likelihood.apply(run, x, *parameters)


def is_differentiated(grads: Sequence[Tensor | None]) -> bool:
    """Whether the backward of these gradients is to be recomputed in plain PyTorch."""
    return _is_grad_enabled() or (not is_compiling() and (any_is_batched(grads) or is_in_forward_mode()))


class Latent(Function):
    """The `LatentOutputs`; of a packed latent ``scale`` is None and ``mu`` holds both."""

    @staticmethod
    def forward(
        ctx: Any,
        run: LatentRun,
        seed: Tensor | None,
        mu: Tensor,
        scale: Tensor | None,
        prior_mu: Tensor | None = None,
        prior_scale: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        spec, scalars, _, kernels = run
        inputs = latent_inputs((mu, scale, prior_mu, prior_scale, seed))
        # The gradient of z, by scale, does not depend on mu: then mu need not be kept.
        keeps_mu = spec.reduction is not None or not _has_z_alone(run)
        ctx.save_for_backward(mu if keeps_mu else None, scale, prior_mu, prior_scale, seed)
        ctx.run = run
        ctx.set_materialize_grads(False)
        if kernels is not None:
            outputs = kernels.latent_forward(inputs, spec, scalars)
        else:
            outputs = ops.latent(inputs, run)
        # Each output costs time, also one that is None.
        if outputs[2] is not None or outputs[3] is not None:
            return outputs
        return outputs[:2] if outputs[1] is not None else outputs[:1]

    @staticmethod
    def backward(
        ctx: Any,
        grad_z: Tensor | None,
        grad_kl: Tensor | None = None,
        grad_kl_mean: Tensor | None = None,
        grad_log_q: Tensor | None = None,
        grad_log_p: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        grads = latent_outputs((grad_z, grad_kl, grad_kl_mean, grad_log_q, grad_log_p))
        inputs = latent_inputs(ctx.saved_tensors)
        if inputs[2] is None:
            of_mu, of_scale, *_ = backward_of_latent(grads, inputs, ctx.run, False)
            return None, None, of_mu, of_scale
        wants_prior = any(ctx.needs_input_grad[4:])
        return None, None, *backward_of_latent(grads, inputs, ctx.run, wants_prior)


def backward_of_latent(
    grads: LatentOutputs, inputs: LatentInputs, run: LatentRun, wants_prior: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of mu, scale, prior_mu and prior_scale."""
    grad_z, grad_kl, grad_kl_mean, grad_log_q, grad_log_p = grads
    of_draws = grad_z is not None or grad_log_q is not None or grad_log_p is not None
    if not of_draws and grad_kl is None and grad_kl_mean is None:
        return None, None, None, None
    spec, scalars, _, kernels = run
    direct = kernels is not None and not _is_grad_enabled() and are_direct(*grads)
    if not direct and is_differentiated(grads):
        return tuple(gradients_of_latent(grads, inputs, run))
    if grad_kl_mean is not None:
        grads = grads._replace(kl=_with_mean(grads, inputs, spec), kl_mean=None)
        free_bits = "coordinate" if spec.kernel_free_bits else "none"  # as the kernel has them
        spec = spec._replace(reduction="none", free_bits=free_bits, free_bits_over_batch=False)
        run = run._replace(spec=spec)
    elif grad_kl is None and grad_log_q is None and grad_log_p is None and _has_z_alone(run):
        return _backward_of_z(grads, inputs, run, wants_prior, direct)
    if not of_draws and inputs[4] is not None:
        inputs = latent_inputs((*inputs[:4], None))
    if direct:
        return kernels.latent_backward(grads, inputs, spec, scalars, wants_prior)  # type: ignore[union-attr]
    return ops.latent_backward(grads, inputs, run, wants_prior, direct)


def _has_z_alone(run: LatentRun) -> bool:
    """Whether the gradient of mu is that of z, if nothing else has one."""
    spec, scalars = run.spec, run.scalars
    return not spec.residual and not spec.log_probs and spec.packed_dim is None and scalars.num_samples is None


def _backward_of_z(
    grads: LatentOutputs, inputs: LatentInputs, run: LatentRun, wants_prior: bool, direct: bool
) -> tuple[Tensor | None, ...]:
    """d z / d mu = 1, and the prior has no part in z."""
    _, scale, prior_mu, prior_scale, seed = inputs
    own = latent_inputs((None, scale, None, None, seed))
    of_scale = ops.latent_backward(grads, own, run, False, direct).scale
    if not wants_prior or prior_mu is None or prior_scale is None:
        return grads.z, of_scale, None, None
    return grads.z, of_scale, torch.zeros_like(prior_mu), torch.zeros_like(prior_scale)


def _with_mean(grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec) -> Tensor:
    """The gradient of each coordinate's KL, from those of its reduction and of its mean over the batch."""
    mu = inputs.mu
    assert mu is not None
    assert grads.kl_mean is not None
    like = mu if spec.packed_dim is None else split_packed(mu, spec.packed_dim)[0]
    from_mean = (grads.kl_mean / like.shape[0]).expand(like.shape)
    if grads.kl is None or spec.kernel_reduction is None:
        return from_mean
    return from_mean + grad_kl_elementwise(grads.kl, like, spec.kernel_reduction)


class Likelihood(Function):
    """log p(x|z). The kernels have no gradient of x, which is data in most models: plain PyTorch computes it."""

    @staticmethod
    def forward(ctx: Any, run: LikelihoodRun, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.run = run
        spec, bounds, _, kernels, noticed = run
        if kernels is None:
            return ops.likelihood(x, parameters, run)
        return kernels.likelihood_forward(x, parameters, spec, bounds, noticed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, wants = ctx.saved_tensors, ctx.needs_input_grad[1:]
        spec, bounds, _, kernels, _ = run = ctx.run
        direct = kernels is not None and not _is_grad_enabled() and are_direct(grad)
        if wants[0] or (not direct and is_differentiated((grad,))):
            return None, *gradients_of_likelihood(grad, saved, wants, spec, bounds)
        if direct:
            return None, None, *kernels.likelihood_backward(grad, saved[0], saved[1:], spec, bounds, wants[1:])
        return None, None, *ops.likelihood_backward(grad, saved[0], saved[1:], run, wants[1:])


# For plain tensors, which `direct_kernels` has found to be in no transform.
_apply_latent, _apply_likelihood = fast_apply(Latent), fast_apply(Likelihood)
