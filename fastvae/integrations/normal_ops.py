"""Fused sampling from torch's Normal and the KL between Normals, with torch's shapes, dtypes and devices.

Each function returns None where no fused op supports the tensors; the caller then runs the library's own code.

A draw that requires grad computes its KL to N(0, 1) in the same pass and caches it on the distribution: a following
``kl_divergence`` with a standard normal prior, as in most VAEs, returns the cached KL, and one backward serves both.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..fast_path import PLAIN_TENSORS
from ..functional import gaussian_kl
from ..kernels.backend import reason_unavailable
from ..latent_options import Reduction
from .patching import setting_of
from .rsample import draw as drawn
from .support import are_supported, fast_path_kernels, formula_dtype

__all__ = ["draw_if_patched", "init", "kl", "kl_independent"]

# Flags: loc and scale are valid parameters; they are 0 and 1 everywhere.
_VALID, _STANDARD = 1, 2


# Both flags in one pass; -1 for tensors that the C extension does not read.
_inspect_fast: Callable[[Tensor, Tensor], int] = lambda loc, scale: -1  # noqa: E731
if not reason_unavailable("cpu"):
    _inspect_fast = importlib.import_module("fastvae.kernels.cpu").look_at_normal


class _Cache:
    """Facts about a Normal, and the parameters that they hold for. Dropped when the Normal is copied or pickled."""

    __slots__ = ("kl", "loc", "scale", "standard", "versions")

    def __init__(self, normal: Normal, kl: Tensor | None = None, standard: bool = False) -> None:
        self.loc, self.scale = normal.loc, normal.scale
        self.versions = self.loc._version, self.scale._version
        self.kl = kl  # to N(0, 1), element-wise
        self.standard = standard

    def is_current(self, normal: Normal) -> bool:
        loc, scale = normal.loc, normal.scale
        return self.loc is loc and self.scale is scale and self.versions == (loc._version, scale._version)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def init(normal: Normal, loc: Tensor, scale: Tensor, validate: bool) -> bool:
    """Set loc and scale as torch's constructor does, without its two views; False where torch's has to run.

    Validates by minimum and maximum in one pass, where torch makes a mask and reduces it; NaN propagates to both.
    """
    if not are_supported(loc, scale):
        return False
    flags = 0
    if validate:
        if not loc.is_cpu:
            return False  # reading the bounds would synchronise the device
        flags = _inspect(loc, scale)
        if not flags & _VALID:
            return False  # torch raises the error
    normal.loc, normal.scale = loc, scale
    if flags & _STANDARD and not (loc.is_inference() or scale.is_inference()):  # inference tensors have no _version
        vars(normal)["_fastvae_cache"] = _Cache(normal, standard=True)
    return True


def draw(normal: Normal, sample_shape: Sequence[int]) -> Tensor | None:
    """loc + scale eps, (*sample_shape, *batch_shape), differentiable; eps is the stream of `fastvae.noise`."""
    loc, scale = normal.loc, normal.scale
    kernels = fast_path_kernels(loc, scale)
    if kernels is None and not are_supported(loc, scale):
        return None
    if type(sample_shape) is not torch.Size:
        sample_shape = torch.Size(sample_shape)
    if sample_shape:
        draws = math.prod(sample_shape)
        if not draws:
            return None
        z, _ = drawn(loc, scale, kernels, draws)
        return z if len(sample_shape) == 1 else z.reshape(sample_shape + loc.shape)
    # Leaves are not an encoder's output, so a KL will hardly be asked for.
    z, elementwise = drawn(loc, scale, kernels, with_kl=not (loc.is_leaf and scale.is_leaf))
    if elementwise is not None:
        vars(normal)["_fastvae_cache"] = _Cache(normal, kl=elementwise)
    return z


def draw_if_patched(library: str, normal: Normal, sample_shape: Sequence[int]) -> Tensor | None:
    """`draw`, if the library is patched with fastvae's noise."""
    setting = setting_of(library)
    return draw(normal, sample_shape) if setting is not None and setting.noise == "fastvae" else None


def kl(p: Normal, q: Normal) -> Tensor | None:
    """KL(p || q), element-wise, in nats."""
    cache = _cache_with_kl(p)
    if cache is None or not (q.loc.dim() == 0 or _is_supported_prior(q.loc, p.loc)) or not _is_standard(q):
        return _kl_between(p, q, "none")
    # Returned once only: a second call computes a new tensor, as torch does.
    result, cache.kl = cache.kl, None
    assert result is not None
    return _to_formula_dtype(result, p.loc)


def kl_independent(p: Independent, q: Independent) -> Tensor | None:
    """KL(p || q), summed over the event dimensions, in nats; None unless both base distributions are Normals."""
    dims = p.reinterpreted_batch_ndims
    p_base, q_base = p.base_dist, q.base_dist
    if not (isinstance(p_base, Normal) and isinstance(q_base, Normal) and dims == q.reinterpreted_batch_ndims):
        return None
    rank = max(p_base.loc.dim(), q_base.loc.dim())
    if dims == rank - 1 and (_cache_with_kl(p_base) is None or not _is_standard(q_base)):
        return _kl_between(p_base, q_base, "sample")
    elementwise = kl(p_base, q_base)
    return elementwise if elementwise is None or not dims else elementwise.sum(tuple(range(-dims, 0)))


def _kl_between(p: Normal, q: Normal, reduction: Reduction) -> Tensor | None:
    loc, scale = _expanded_to_prior(p, q)
    if not (are_supported(loc, scale) and _is_supported_prior(q.loc, loc) and _is_supported_prior(q.scale, loc)):
        return None
    result = gaussian_kl(loc, scale, q.loc, q.scale, scale="std", reduction=reduction)
    assert isinstance(result, Tensor)  # per_coordinate is False
    return _to_formula_dtype(result, loc)


def _expanded_to_prior(p: Normal, q: Normal) -> tuple[Tensor, Tensor]:
    """The posterior's parameters, repeated without a copy where the prior is larger in some dimension."""
    loc, scale, prior = p.loc, p.scale, q.loc
    if not prior.dim() or prior.shape == loc.shape:
        return loc, scale
    try:
        shape = torch.broadcast_shapes(loc.shape, prior.shape)
    except RuntimeError:
        return loc, scale  # torch raises the error
    return (loc, scale) if shape == loc.shape else (loc.expand(shape), scale.expand(shape))


def _to_formula_dtype(result: Tensor, loc: Tensor) -> Tensor:
    dtype = formula_dtype(loc)
    return result if result.dtype is dtype else result.to(dtype)


def _is_supported_prior(parameter: Tensor, loc: Tensor) -> bool:
    """Whether the fused ops take it as a parameter of the prior: of loc's dtype and device, broadcastable to loc."""
    shape, missing_dims = parameter.shape, loc.dim() - parameter.dim()
    if missing_dims < 0:
        return False
    target = loc.shape[missing_dims:]
    return (
        type(parameter) in PLAIN_TENSORS
        and parameter.dtype is loc.dtype
        and ((parameter.is_cpu and loc.is_cpu) or parameter.device == loc.device)
        and (shape == target or all(size in (1, wanted) for size, wanted in zip(shape, target, strict=True)))
    )


def _cache_with_kl(normal: Normal) -> _Cache | None:
    cache = vars(normal).get("_fastvae_cache")
    if cache is None or cache.kl is None or not torch.is_grad_enabled() or not cache.is_current(normal):
        return None
    return cache


def _is_standard(normal: Normal) -> bool:
    """Whether it is the constant N(0, 1). False on GPUs, where reading the values would synchronise the device.

    The constructor's finding is used once: a long-lived prior can be changed without a new ``_version`` (``.data``).
    """
    loc, scale = normal.loc, normal.scale
    if loc.requires_grad or scale.requires_grad:
        return False
    cache = vars(normal).get("_fastvae_cache")
    if cache is not None and cache.standard and cache.is_current(normal):
        cache.standard = False
        return True
    return loc.is_cpu and bool(_inspect(loc, scale) & _STANDARD)


def _inspect(loc: Tensor, scale: Tensor) -> int:
    """_VALID, _STANDARD, both or 0. A NaN makes the minimum and maximum NaN."""
    flags = _inspect_fast(loc, scale)
    if flags >= 0:
        return flags
    (low, high), (least, most) = _bounds(loc), _bounds(scale)
    valid, standard = low == low and least > 0.0, low == high == 0.0 and least == most == 1.0
    return _VALID * valid | _STANDARD * standard


def _bounds(tensor: Tensor) -> tuple[float, float]:
    if tensor.numel() == 1 or (tensor.numel() and not any(tensor.stride())):  # one number, possibly expanded
        value = tensor[(0,) * tensor.dim()].item()
        return value, value
    low, high = torch.aminmax(tensor.detach())
    return low.item(), high.item()
