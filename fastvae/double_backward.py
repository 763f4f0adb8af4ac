"""The ops recomputed in plain PyTorch and differentiated by autograd: for second derivatives and batches of gradients.

The gradients are themselves part of a graph where autograd records (``create_graph=True``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .kernels.latent_spec import LatentInputs, LatentOutputs, latent_inputs
from .kernels.layout import compute_dtype, likelihood_dtype, split_packed
from .kernels.likelihood_spec import Bounds, LikelihoodSpec
from .kernels.reference.bounds import at_least
from .kernels.reference.latents import kl_of, log_probabilities, reduce_kl, resolve
from .kernels.reference.likelihoods import log_prob_elementwise
from .ops import LatentRun


def latent_gradients(grads: LatentOutputs, inputs: LatentInputs, run: LatentRun) -> list[Tensor | None]:
    """Of mu, scale, prior_mu and prior_scale; None for those that are missing or constant."""
    record = torch.is_grad_enabled()
    if inputs.mu is None:  # was not kept: z differs by it, its gradients do not
        assert inputs.scale is not None
        _, *others = latent_gradients(grads, inputs._replace(mu=torch.zeros_like(inputs.scale)), run)
        return [grads.z, *others]
    with torch.enable_grad():
        own = [None if given is None else _without_hooks(given) for given in inputs[:4]]
        outputs = _outputs(latent_inputs((*own, inputs.seed)), run, grads)
    pairs = [
        (output, grad.to(output.dtype))
        for output, grad in zip(outputs, grads, strict=True)
        if output is not None and grad is not None and output.requires_grad
    ]
    wanted = [one for one in own if one is not None and one.requires_grad]
    if not pairs:
        return [None] * len(own)
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        wanted,
        [grad for _, grad in pairs],
        create_graph=record,
        materialize_grads=True,
    )
    remaining = iter(found)
    return [next(remaining) if one is not None and one.requires_grad else None for one in own]


def _without_hooks(tensor: Tensor) -> Tensor:
    """The same numbers in the same graph, without the hooks that a user put on the tensor."""
    return tensor.view_as(tensor)


def _outputs(inputs: LatentInputs, run: LatentRun, wanted: LatentOutputs) -> LatentOutputs:
    """The outputs that have a gradient in ``wanted``."""
    spec, scalars, backend, _ = run
    mu, scale, prior_mu, prior_scale, seed = inputs
    assert mu is not None
    dtype, compute = mu.dtype, compute_dtype(mu.dtype)
    if spec.packed_dim is not None:
        mu, scale = split_packed(mu, spec.packed_dim)
    parameters = [None if one is None else one.to(compute) for one in (mu, scale, prior_mu, prior_scale)]
    resolved = resolve(LatentInputs(*parameters), spec, scalars)
    z = kl = kl_mean = log_q = log_p = None
    if wanted.kl is not None or wanted.kl_mean is not None:
        elementwise = kl_of(resolved)
        kl_mean = elementwise.mean(0)
        if spec.kernel_free_bits:
            elementwise = at_least(elementwise, scalars.free_bits)
        if spec.kernel_reduction is not None:
            kl = reduce_kl(elementwise, spec.kernel_reduction)
    if seed is not None and (wanted.z is not None or wanted.log_q is not None or wanted.log_p is not None):
        drawn, log_qs, log_ps = [], [], []
        for k in range(scalars.num_samples or 1):
            eps = ops.noise(seed, tuple(mu.shape), scalars.row_offset, compute, k, backend)
            eps = scalars.temperature * eps
            drawn.append(resolved.mu + resolved.scale.std * eps)
            if wanted.log_q is not None or wanted.log_p is not None:
                log_q, log_p = log_probabilities(resolved, drawn[-1], eps)
                log_qs.append(log_q)
                log_ps.append(log_p)

        def together(draws: list[Tensor]) -> Tensor:
            return draws[0] if scalars.num_samples is None else torch.stack(draws)

        z = together(drawn).to(dtype)
        log_q, log_p = (together(log_qs), together(log_ps)) if log_qs else (None, None)
    return LatentOutputs(z, kl, kl_mean, log_q, log_p)


def likelihood_gradients(
    grad: Tensor, inputs: tuple[Tensor, ...], wanted: tuple[bool, ...], spec: LikelihoodSpec, bounds: Bounds
) -> list[Tensor | None]:
    """Of ``inputs``, x and the parameters, those wanted."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        x, *parameters = [_without_hooks(one) if want else one for one, want in zip(inputs, wanted, strict=True)]
        compute = likelihood_dtype(x, *parameters)
        each = log_prob_elementwise(x, tuple([one.to(compute) for one in parameters]), spec, bounds)
        log_prob = reduce_kl(each, spec.reduction)
    own = [one for one, want in zip((x, *parameters), wanted, strict=True) if want]
    remaining = iter(torch.autograd.grad(log_prob, own, grad.to(log_prob.dtype), create_graph=record))
    return [next(remaining) if want else None for want in wanted]
