"""Gradients of the ops by autograd: the ops once more in plain PyTorch, differentiated by it.

Recorded themselves where autograd is recording (``create_graph=True``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import library
from .kernels.family import Latents, Options
from .kernels.layout import compute_dtype, likelihood_dtype
from .kernels.likelihoods import Density
from .kernels.reference.bounds import at_least
from .kernels.reference.latents import kl_of, log_probabilities, reduce_kl, resolve
from .kernels.reference.likelihoods import log_prob_elementwise


def recorded_gradients(
    gradients: Latents,
    inputs: tuple[Tensor | None, ...],
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    options: Options,
    backend: str,
    dim: int = 1,
) -> list[Tensor | None]:
    """Of ``inputs``, mu, scale, prior_mu and prior_scale; or, where scale is None, of moments packed along ``dim``.

    None of those that have none: missing ones, and constants.
    """
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [None if given is None else _own(given) for given in inputs]
        outputs = _latents(own, seed, row_offset, num_samples, reduction, options, backend, dim, gradients)
    pairs = [
        (output, gradient.to(output.dtype))
        for output, gradient in zip(outputs, gradients, strict=True)
        if output is not None and gradient is not None and output.requires_grad
    ]
    wanted = [one for one in own if one is not None and one.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        wanted,
        [gradient for _, gradient in pairs],
        create_graph=record,
        materialize_grads=True,
    )
    remaining = iter(found)
    return [next(remaining) if one is not None and one.requires_grad else None for one in own]


def _own(tensor: Tensor) -> Tensor:
    """The same numbers in the same graph, without the hooks that somebody put on the tensor."""
    return tensor.view_as(tensor)


def _latents(
    inputs: list[Tensor | None],
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    options: Options,
    backend: str,
    dim: int,
    wanted: Latents,
) -> Latents:
    """The outputs that have a gradient in ``wanted``."""
    mu, scale, prior_mu, prior_scale = inputs
    assert mu is not None
    dtype, compute = mu.dtype, compute_dtype(mu.dtype)
    if scale is None:
        mu, scale = mu.chunk(2, dim)
    resolved = resolve(
        mu.to(compute),
        scale.to(compute),
        None if prior_mu is None else prior_mu.to(compute),
        None if prior_scale is None else prior_scale.to(compute),
        options,
    )
    z = kl = kl_mean = log_q = log_p = None
    if wanted.kl is not None or wanted.kl_mean is not None:
        elementwise = kl_of(resolved)
        kl_mean = elementwise.mean(0)
        if reduction is not None:
            kl = reduce_kl(at_least(elementwise, options.free_bits), reduction)
    if seed is not None and (wanted.z is not None or wanted.log_q is not None or wanted.log_p is not None):
        drawn, log_qs, log_ps = [], [], []
        for k in range(num_samples or 1):
            eps = options.temperature * library.noise(seed, tuple(mu.shape), row_offset, compute, k, backend)
            drawn.append(resolved.mu + resolved.scale.std * eps)
            if wanted.log_q is not None or wanted.log_p is not None:
                log_q, log_p = log_probabilities(resolved, drawn[-1], eps)
                log_qs.append(log_q)
                log_ps.append(log_p)

        def together(draws: list[Tensor]) -> Tensor:
            return draws[0] if num_samples is None else torch.stack(draws)

        z = together(drawn).to(dtype)
        log_q, log_p = (together(log_qs), together(log_ps)) if log_qs else (None, None)
    return Latents(z, kl, kl_mean, log_q, log_p)


def recorded_likelihood_gradients(
    grad: Tensor,
    inputs: tuple[Tensor | None, ...],
    wanted: tuple[bool, ...],
    reduction: str,
    density: Density,
) -> list[Tensor | None]:
    """Of ``inputs``, x and the parameters, those wanted; recorded only if autograd is recording."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        x, *given = [one if one is None or not want else _own(one) for one, want in zip(inputs, wanted, strict=True)]
        assert x is not None
        parameters = [one for one in given if one is not None]
        compute = likelihood_dtype(x, *parameters)
        each = log_prob_elementwise(x, tuple([one.to(compute) for one in parameters]), density)
        log_prob = reduce_kl(each, reduction)
    own = [one for one, want in zip((x, *given), wanted, strict=True) if want and one is not None]
    remaining = iter(torch.autograd.grad(log_prob, own, grad.to(log_prob.dtype), create_graph=record))
    return [next(remaining) if want else None for want in wanted]
