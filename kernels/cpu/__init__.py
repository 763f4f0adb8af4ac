"""The CPU backend: C with SIMD (`_kernels`, built from the C files beside this one), float32, bfloat16 and float16.

This file packs what a call is for C, nothing else; where strides need a copy (`layout`), C writes nothing. Arithmetic
is float32; every array is read once and written once; threads follow ``torch.set_num_threads``, and the bits do not
depend on how many there are.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from ..head_spec import ACTIVATIONS, HeadResults, HeadSpec
from ..latent_spec import CLAMPS, SCALES, LatentGradients, LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from ..layout import contiguous, copy_all, empty_gradients, empty_kl, empty_outputs
from ..likelihood_spec import KINDS, MIXTURE, Bounds, LikelihoodSpec

try:
    # Not `from . import _kernels`, which reports a missing file as a circular import.
    import fastvae.kernels.cpu._kernels as _kernels
except ModuleNotFoundError as error:
    if error.name != "fastvae.kernels.cpu._kernels":
        raise
    raise ImportError(
        "the C extension was not built when fastvae was installed: no C compiler was found, or it failed."
        " Install a C compiler, then install fastvae again"
    ) from None
except ImportError as error:
    raise ImportError(f"the C extension does not load: {error}") from error

alike, look_at_normal, plain = _kernels.alike, _kernels.look_at_normal, _kernels.plain
launch_arguments, layouts = _kernels.launch_arguments, _kernels.layouts  # for kernels of a GPU

__all__ = [
    "alike",
    "describe",
    "device_types",
    "head",
    "latent_backward",
    "latent_forward",
    "launch_arguments",
    "layouts",
    "likelihood_backward",
    "likelihood_forward",
    "look_at_normal",
    "noise",
    "plain",
    "unavailable",
]

# The enumerations of call.h.
_REDUCTIONS = {None: 0, "none": 1, "sample": 2, "sum": 3, "batchmean": 4, "channel": 5}
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
_KINDS = {kind: number for number, kind in enumerate(KINDS)}
_kernels.use_exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None))
_kernels.use_torch(Tensor, torch.nn.Parameter, Tensor.is_neg, torch.get_num_threads, _DTYPES)


def device_types() -> tuple[str, ...]:
    return ("cpu",)


def unavailable() -> str:
    """Why this machine cannot run the extension; an empty string if it can."""
    if _kernels.instruction_set() is not None:
        return ""
    if asked := os.environ.get("FASTVAE_CPU_ISA"):
        return f"FASTVAE_CPU_ISA is {asked!r}, expected x86-64-v4, x86-64-v3 or aarch64, and a processor that has it"
    return "the processor has none of the instruction sets that the extension was compiled for"


def describe(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """What a latent op of this shape runs on, in words."""
    threads = torch.get_num_threads() if _kernels.threaded() else 1
    if math.prod(shape) < _kernels.elements_worth_threads:
        threads = 1
    return f"compiled C for {_kernels.instruction_set()}, on {threads} thread{'s' if threads > 1 else ''}"


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype, draw: int = 0) -> Tensor:
    eps = torch.empty(shape, dtype=dtype, device="cpu")
    _kernels.noise(eps, seed, row_offset, draw)
    return eps


@functools.lru_cache(maxsize=1024)
def _latent_code(spec: LatentSpec) -> bytes:
    """The struct `latent_code` of call.h."""
    return struct.pack(
        "6i",
        _REDUCTIONS[spec.kernel_reduction],
        SCALES.index(spec.scale),
        CLAMPS.index(spec.clamp),
        spec.residual,
        spec.kernel_free_bits,
        spec.packed_dim or 0,
    )


def latent_forward(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> LatentOutputs:
    mu = inputs.mu
    assert mu is not None
    outputs = empty_outputs(mu, spec, scalars.num_samples)
    if not _kernels.latent_forward(inputs, outputs, _latent_code(spec), scalars):
        copy_all(latent_forward(LatentInputs(*contiguous(*inputs)), spec, scalars), outputs)
    return outputs


def latent_backward(
    grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, wants_prior: bool
) -> LatentGradients:
    gradients = empty_gradients(inputs, wants_prior)
    if not _kernels.latent_backward(grads, inputs, gradients, _latent_code(spec), scalars):
        dense = LatentOutputs(*contiguous(*grads)), LatentInputs(*contiguous(*inputs))
        copy_all(latent_backward(*dense, spec, scalars, wants_prior), gradients)
    return gradients


@functools.lru_cache(maxsize=1024)
def _packed_likelihood(spec: LikelihoodSpec) -> bytes:
    """The struct `likelihood_code` of call.h."""
    bounded = spec.clamp or spec.kind == MIXTURE
    return struct.pack("4i", _KINDS[spec.kind], spec.components, _REDUCTIONS[spec.reduction], bounded)


def likelihood_forward(
    x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec, bounds: Bounds, noticed: Tensor | None = None
) -> Tensor:
    log_prob = empty_kl(x[:, 0] if spec.kind == MIXTURE else parameters[0], spec.reduction)
    if not _kernels.likelihood_forward(x, parameters, log_prob, _packed_likelihood(spec), bounds, noticed):
        log_prob.copy_(likelihood_forward(x.contiguous(), contiguous(*parameters), spec, bounds, noticed))
    return log_prob


def likelihood_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    spec: LikelihoodSpec,
    bounds: Bounds,
    wants: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    gradients = tuple(
        [torch.empty_like(given) if wanted else None for given, wanted in zip(parameters, wants, strict=True)]
    )
    if not _kernels.likelihood_backward(grad, x, parameters, gradients, _packed_likelihood(spec), bounds):
        dense = grad.contiguous(), x.contiguous(), contiguous(*parameters)
        copy_all(likelihood_backward(*dense, spec, bounds, wants), gradients)
    return gradients


@functools.lru_cache(maxsize=1024)
def _packed_head(spec: HeadSpec, with_gradients: bool) -> bytes:
    """The struct `head_code` of call.h."""
    activations = [ACTIVATIONS.index(one or "given") for one in (spec.first, spec.second, spec.third)]
    return _packed_likelihood(spec.likelihood) + struct.pack("4i", *activations, with_gradients)


def head(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    library: Tensor | None,
    grad: Tensor | None,
    spec: HeadSpec,
    bounds: Bounds,
    wants: tuple[bool, ...],
) -> HeadResults:
    with_gradients = any(wants)
    of_rows = x.new_empty(size=(parameters[0].shape[0],), dtype=torch.float32)
    of_library = torch.empty_like(library) if library is not None and with_gradients else None
    of_given = tuple(
        [
            torch.empty_like(one) if wanted and activation == "given" else None
            for one, activation, wanted in zip(parameters, spec.activations, wants, strict=False)
        ]
    )
    written, rows = of_given or (None,), (library, grad, of_rows, of_library)
    if not _kernels.head(x, parameters, written, rows, _packed_head(spec, with_gradients), bounds):
        return head(x.contiguous(), parameters, library, grad, spec, bounds, wants)
    return HeadResults(of_rows, of_given, of_library)
