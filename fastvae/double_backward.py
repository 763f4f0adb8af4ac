"""The ops in plain PyTorch, and their gradients by autograd: for second derivatives and batches of gradients.

The gradients are themselves part of a graph where autograd records (``create_graph=True``). `fastvae.transforms` says
when a call runs on these formulas from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import ops
from .kernels.latent_spec import LatentInputs, LatentOutputs, latent_inputs
from .kernels.layout import compute_dtype, likelihood_dtype, split_packed
from .kernels.likelihood_spec import Bounds, LikelihoodSpec
from .kernels.reference.functions import at_least
from .kernels.reference.latents import kl_of, log_probabilities, reduce_kl, resolve
from .kernels.reference.likelihoods import log_prob_elementwise
from .ops import LatentRun

__all__ = ["gradients_of", "gradients_of_latent", "gradients_of_likelihood", "latent_formula", "likelihood_formula"]


def gradients_of(
    formula: Callable[[list], Sequence[Tensor | None]],
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Of those ``tensors`` that are wanted, from the gradients of what ``formula`` makes of all; of others None."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        # The same numbers in the same graph, without the hooks that a user put on the tensors.
        own = [one.view_as(one) if want and one is not None else one for one, want in zip(tensors, wanted, strict=True)]
        outputs = formula(own)
    pairs = [
        (output, grad.to(output.dtype))
        for output, grad in zip(outputs, grads, strict=True)
        if output is not None and grad is not None and output.requires_grad
    ]
    if not pairs:
        return [None] * len(own)
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        [one for one, want in zip(own, wanted, strict=True) if want and one is not None],
        [grad for _, grad in pairs],
        create_graph=record,
        materialize_grads=True,
    )
    remaining = iter(found)
    return [next(remaining) if want else None for want in wanted]


def gradients_of_latent(grads: LatentOutputs, inputs: LatentInputs, run: LatentRun) -> list[Tensor | None]:
    """Of mu, scale, prior_mu and prior_scale; None for those that are missing or constant."""
    if inputs.mu is None:  # was not kept: z differs by it, its gradients do not
        assert inputs.scale is not None
        _, *others = gradients_of_latent(grads, inputs._replace(mu=torch.zeros_like(inputs.scale)), run)
        return [grads.z, *others]
    own, seed = inputs[:4], inputs.seed
    wanted = [one is not None and one.requires_grad for one in own]
    return gradients_of(lambda own: latent_formula(latent_inputs((*own, seed)), run, grads), own, wanted, grads)


def latent_formula(inputs: LatentInputs, run: LatentRun, wanted: Sequence[object]) -> LatentOutputs:
    """Those of the five `LatentOutputs` for which ``wanted``, in the same order, has something else than None."""
    wants_z, wants_kl, wants_kl_mean, wants_log_q, wants_log_p = [one is not None for one in wanted]
    spec, scalars, backend, _ = run
    mu, scale, prior_mu, prior_scale, seed = inputs
    assert mu is not None
    dtype, compute = mu.dtype, compute_dtype(mu.dtype)
    if spec.packed_dim is not None:
        mu, scale = split_packed(mu, spec.packed_dim)
    parameters = [None if one is None else one.to(compute) for one in (mu, scale, prior_mu, prior_scale)]
    resolved = resolve(LatentInputs(*parameters), spec, scalars)
    z = kl = kl_mean = log_q = log_p = None
    if wants_kl or wants_kl_mean:
        elementwise = kl_of(resolved)
        kl_mean = elementwise.mean(0) if wants_kl_mean else None
        if spec.kernel_free_bits:
            elementwise = at_least(elementwise, scalars.free_bits)
        if wants_kl and spec.kernel_reduction is not None:
            kl = reduce_kl(elementwise, spec.kernel_reduction)
    if seed is not None and (wants_z or wants_log_q or wants_log_p):
        drawn, log_qs, log_ps = [], [], []
        for k in range(scalars.num_samples or 1):
            eps = ops.noise(mu, seed, scalars.row_offset, compute, k, backend)
            eps = scalars.temperature * eps
            drawn.append(resolved.mu + resolved.scale.std * eps)
            if wants_log_q or wants_log_p:
                log_q, log_p = log_probabilities(resolved, drawn[-1], eps)
                log_qs.append(log_q)
                log_ps.append(log_p)

        def together(draws: list[Tensor]) -> Tensor:
            return draws[0] if scalars.num_samples is None else torch.stack(draws)

        z = together(drawn).to(dtype)
        log_q, log_p = (together(log_qs), together(log_ps)) if log_qs else (None, None)
    return LatentOutputs(z, kl, kl_mean, log_q, log_p)


def likelihood_formula(x: Tensor, parameters: Sequence[Tensor], spec: LikelihoodSpec, bounds: Bounds) -> Tensor:
    """log p(x|z), reduced."""
    compute = likelihood_dtype(x, *parameters)
    each = log_prob_elementwise(x, tuple([one.to(compute) for one in parameters]), spec, bounds)
    return reduce_kl(each, spec.reduction)


def gradients_of_likelihood(
    grad: Tensor, inputs: tuple[Tensor, ...], wanted: tuple[bool, ...], spec: LikelihoodSpec, bounds: Bounds
) -> list[Tensor | None]:
    """Of ``inputs``, x and the parameters, those wanted."""
    return gradients_of(lambda own: [likelihood_formula(own[0], own[1:], spec, bounds)], inputs, wanted, (grad,))
