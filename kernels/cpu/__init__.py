"""The CPU backend: C with SIMD (`_kernels`, built from the C files beside this one), float32, bfloat16 and float16.

This file allocates, describes the tensors' memory to C, and nothing else. Arithmetic is float32; every array is read
once and written once; threads follow ``torch.set_num_threads``, and the bits do not depend on how many there are.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..family import CLAMPS, SCALES, Gradients, Latents, Options
from ..layout import draws_like, kl_like
from ..likelihoods import KINDS, MIXTURE, Density

try:
    from . import _kernels
except ImportError as error:
    raise ImportError(f"the C extension was not built when fastvae was installed, or does not load: {error}") from error

_kernels.use_exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None))
_kernels.use_plain(Tensor, torch.nn.Parameter, Tensor.is_neg)
alike_on_cpu, look_at_normal, plain_on_cpu = _kernels.alike, _kernels.look_at_normal, _kernels.plain

__all__ = [
    "alike_on_cpu",
    "backward",
    "describe",
    "device_types",
    "forward",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "look_at_normal",
    "noise",
    "plain_on_cpu",
    "unavailable",
]

_DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.uint8: 3,
    torch.bool: 3,
    torch.int8: 4,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
}
_REDUCTIONS = {None: 0, "none": 1, "sample": 2, "sum": 3, "batchmean": 4, "channel": 5}


def device_types() -> tuple[str, ...]:
    return ("cpu",)


def unavailable() -> str:
    """Why this machine cannot run the extension; an empty string if it can."""
    if _kernels.instruction_set() is None:
        return "the processor has none of the instruction sets that the extension was compiled for"
    return ""


def describe(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """What a latent op of this shape runs on, in words."""
    threads = torch.get_num_threads() if _kernels.threaded() else 1
    if math.prod(shape) < _kernels.elements_worth_threads:
        threads = 1
    return f"compiled C for {_kernels.instruction_set()}, on {threads} thread{'s' if threads > 1 else ''}"


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype, draw: int = 0) -> Tensor:
    eps = torch.empty(shape, dtype=dtype, device="cpu")
    _kernels.noise(eps, draw, seed, _DTYPES[dtype], row_offset, 0, torch.get_num_threads())
    return eps


def forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, row_offset: int, reduction: str | None
) -> tuple[Tensor | None, Tensor | None]:
    z = None if seed is None else torch.empty_like(mu)
    kl = None if reduction is None else kl_like(mu, reduction)
    dtype, threads = _DTYPES[mu.dtype], torch.get_num_threads()
    if not _kernels.forward(mu, logvar, z, kl, seed, dtype, row_offset, _REDUCTIONS[reduction], threads):
        # Two event indices do not do for these strides.
        dense = forward(mu.contiguous(), logvar.contiguous(), seed, row_offset, reduction)
        _copy_all(dense, (z, kl))
    return z, kl


def backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    seed: Tensor | None,
    row_offset: int,
    reduction: str | None,
    out: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:
    grad_mu, grad_logvar = out or (None if mu is None else torch.empty_like(mu), torch.empty_like(logvar))
    dtype, threads, kind = _DTYPES[logvar.dtype], torch.get_num_threads(), _REDUCTIONS[reduction]
    if not _kernels.backward(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, seed, dtype, row_offset, kind, threads):
        grad_z, grad_kl, mu, logvar = _contiguous(grad_z, grad_kl, mu, logvar)
        dense = backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction)
        _copy_all(dense, (grad_mu, grad_logvar))
    return grad_mu, grad_logvar


@functools.lru_cache(maxsize=256)
def _packed(options: Options) -> bytes:
    """The struct `options` of call.h."""
    scale, clamp = SCALES.index(options.scale), CLAMPS.index(options.clamp)
    return struct.pack(
        "3i5f", scale, clamp, options.residual, options.low, options.high, options.floor, options.temperature,
        options.free_bits,
    )  # fmt: skip


def _reduction_over(mu: Tensor, reduction: str | None) -> int:
    """The code of a reduction; a channel without dimensions behind it is one coordinate."""
    return _REDUCTIONS["none" if reduction == "channel" and mu.dim() <= 2 else reduction]


def latent_forward(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    kl_mean: bool,
    log_probs: bool,
    options: Options,
) -> Latents:
    z = log_q = log_p = kl = None
    if seed is not None:
        z = torch.empty_like(mu) if num_samples is None else draws_like(mu, num_samples)
        if log_probs:
            of_rows = mu.shape[:1] if num_samples is None else (num_samples, mu.shape[0])
            log_q, log_p = (mu.new_empty(of_rows, dtype=torch.float32) for _ in range(2))
    if reduction == "channel":
        kl = mu.new_empty(mu.shape[:2], dtype=torch.float32)
    elif reduction is not None:
        kl = kl_like(mu, reduction)
    mean = mu.new_empty(mu.shape[1:], dtype=torch.float32) if kl_mean else None
    if not _kernels.latent_forward(
        mu, scale, prior_mu, prior_scale, z, kl, mean, log_q, log_p, _packed(options), num_samples or 0, seed,
        _DTYPES[mu.dtype], row_offset, _reduction_over(mu, reduction), torch.get_num_threads(),
    ):  # fmt: skip
        mu, scale, prior_mu, prior_scale = _contiguous(mu, scale, prior_mu, prior_scale)
        dense = latent_forward(
            mu, scale, prior_mu, prior_scale, seed, row_offset, num_samples, reduction, kl_mean, log_probs, options
        )
        _copy_all(dense, (z, kl, mean, log_q, log_p))
    return Latents(z, kl, mean, log_q, log_p)


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    grad_log_q: Tensor | None,
    grad_log_p: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    options: Options,
    wants_prior: bool,
    out: tuple[Tensor, Tensor] | None = None,
) -> Gradients:
    if seed is None:
        grad_z = grad_log_q = grad_log_p = None
    if reduction is None:
        grad_kl = None
    grad_mu, grad_scale = out or (torch.empty_like(mu), torch.empty_like(scale))
    grad_prior_mu = grad_prior_scale = None
    if wants_prior and prior_mu is not None and prior_scale is not None:
        grad_prior_mu, grad_prior_scale = torch.empty_like(prior_mu), torch.empty_like(prior_scale)
    if not _kernels.latent_backward(
        grad_z, grad_kl, grad_log_q, grad_log_p, mu, scale, prior_mu, prior_scale, grad_mu, grad_scale, grad_prior_mu,
        grad_prior_scale, _packed(options), num_samples or 0, seed, _DTYPES[mu.dtype], row_offset,
        _reduction_over(mu, reduction), torch.get_num_threads(),
    ):  # fmt: skip
        grad_z, grad_kl, grad_log_q, grad_log_p = _contiguous(grad_z, grad_kl, grad_log_q, grad_log_p)
        mu, scale, prior_mu, prior_scale = _contiguous(mu, scale, prior_mu, prior_scale)
        dense = latent_backward(
            grad_z, grad_kl, grad_log_q, grad_log_p, mu, scale, prior_mu, prior_scale, seed, row_offset, num_samples,
            reduction, options, wants_prior,
        )  # fmt: skip
        _copy_all(dense, (grad_mu, grad_scale, grad_prior_mu, grad_prior_scale))
    return Gradients(grad_mu, grad_scale, grad_prior_mu, grad_prior_scale)


@functools.lru_cache(maxsize=256)
def _packed_density(density: Density, *dtypes: torch.dtype) -> bytes:
    """The struct `density` of call.h, and the dtypes of x and of three parameters."""
    codes = [_DTYPES[dtype] for dtype in dtypes] + [0] * (4 - len(dtypes))
    return struct.pack("i2fi4i", KINDS.index(density.kind), density.low, density.high, density.components, *codes)


def _others(of_parameters: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """The second and the third; None where there are fewer."""
    second, third = [*of_parameters[1:], None, None][:2]
    return second, third


def likelihood_forward(x: Tensor, parameters: tuple[Tensor, ...], reduction: str, density: Density) -> Tensor:
    pixels = x[:, 0] if density.kind == MIXTURE else parameters[0]
    if reduction == "channel":
        log_prob = x.new_empty(x.shape[:2], dtype=torch.float32)
    elif reduction == "none":
        log_prob = torch.empty_like(pixels, dtype=torch.float32)
    else:
        log_prob = x.new_empty(x.shape[:1] if reduction == "sample" else (), dtype=torch.float32)
    packed = _packed_density(density, x.dtype, *[given.dtype for given in parameters])
    if not _kernels.likelihood_forward(
        x, parameters[0], *_others(parameters), log_prob, packed, None, _DTYPES[parameters[0].dtype], 0,
        _reduction_over(pixels, reduction), torch.get_num_threads(),
    ):  # fmt: skip
        dense = likelihood_forward(x.contiguous(), tuple(_contiguous(*parameters)), reduction, density)
        log_prob.copy_(dense)
    return log_prob


def likelihood_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    reduction: str,
    density: Density,
    wants: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    gradients = tuple(
        [torch.empty_like(given) if wanted else None for given, wanted in zip(parameters, wants, strict=True)]
    )
    pixels = x[:, 0] if density.kind == MIXTURE else parameters[0]
    packed = _packed_density(density, x.dtype, *[given.dtype for given in parameters])
    if not _kernels.likelihood_backward(
        grad, x, parameters[0], *_others(parameters), gradients[0], *_others(gradients), packed, None,
        _DTYPES[parameters[0].dtype], 0, _reduction_over(pixels, reduction), torch.get_num_threads(),
    ):  # fmt: skip
        grad, x, *dense_parameters = _contiguous(grad, x, *parameters)
        dense = likelihood_backward(grad, x, tuple(dense_parameters), reduction, density, wants)
        _copy_all(dense, gradients)
    return gradients


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _copy_all(computed: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
    for one, output in zip(computed, outputs, strict=True):
        if one is not None and output is not None:
            output.copy_(one)
