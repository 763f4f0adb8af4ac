"""Gradients that autograd records (``create_graph=True``): the ops once more in plain PyTorch, differentiated by it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import library
from .kernels.family import Latents, Options
from .kernels.layout import compute_dtype
from .kernels.reference.latents import kl_of, log_probabilities, reduce_kl, resolve


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
    """Of ``inputs``, mu, scale, prior_mu and prior_scale; or, where scale is None, of moments packed along ``dim``."""
    leaves = [None if given is None else given if given.requires_grad else _leaf(given) for given in inputs]
    outputs = _latents(leaves, seed, row_offset, num_samples, reduction, options, backend, dim, gradients)
    pairs = [(out, grad) for out, grad in zip(outputs, gradients, strict=True) if out is not None and grad is not None]
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        wanted,
        [gradient.to(output.dtype) for output, gradient in pairs],
        create_graph=True,
        materialize_grads=True,
    )
    remaining = iter(found)
    return [None if leaf is None else next(remaining) for leaf in leaves]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


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
            kl = reduce_kl(elementwise.clamp_min(options.free_bits), reduction)
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
