"""Sampling from torch's Normals and the KL between them by fused ops, as torch gives them: shapes, dtypes, devices.

Each function gives None where the fused ops do not fit, and the library's own code has to do it.

A draw that backward will go through is priced in the same pass: its KL to the standard normal is kept beside the
distribution. A KL to a prior that is one, the usual in a VAE, is then there already, and one backward serves both.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from .. import plain
from ..functional import gaussian_kl
from ..kernels.selection import has_kernels, reason_unavailable
from ..plain import PLAIN_TENSORS
from .draws import draw as drawn
from .draws import draw_and_kl
from .served import are_taken_apart, dtype_of_formulas, kernels_at_hand

_VALID, _STANDARD = 1, 2  # loc and scale are those of a Normal; of N(0, 1)


def _cannot_see(loc: Tensor, scale: Tensor) -> int:
    return -1


# Both of these at once, or -1 where it is not for the C extension to say.
_see = _cannot_see if reason_unavailable("cpu") else importlib.import_module("fastvae.kernels.cpu").look_at_normal


class _Known:
    """What was found out about a Normal, and the parameters that it is true of. Copies and pickles are without it."""

    __slots__ = ("kl", "loc", "scale", "standard", "versions")

    def __init__(self, normal: Normal, kl: Tensor | None = None, standard: bool = False) -> None:
        self.loc, self.scale = normal.loc, normal.scale
        self.versions = self.loc._version, self.scale._version
        self.kl = kl  # to N(0, 1), of each coordinate
        self.standard = standard

    def holds_of(self, normal: Normal) -> bool:
        loc, scale = normal.loc, normal.scale
        return self.loc is loc and self.scale is scale and self.versions == (loc._version, scale._version)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def begin(normal: Normal, loc: Tensor, scale: Tensor, validate: bool) -> bool:
    """What the constructor does, without a view and a graph node for each parameter; False if that is torch's to do.

    Where torch compares each number and looks at all answers, the bounds of a tensor tell: NaN is its own bound.
    """
    if not _fit(loc, scale):
        return False
    seen = 0
    if validate:
        if not loc.is_cpu:
            return False  # to look at bounds is to wait for them
        seen = _look_at(loc, scale)
        if not seen & _VALID:
            return False  # torch says what is wrong with them
    normal.loc, normal.scale = loc, scale
    if seen & _STANDARD and not (loc.is_inference() or scale.is_inference()):  # changes of those are not counted
        vars(normal)["_fastvae_known"] = _Known(normal, standard=True)
    return True


def draw(normal: Normal, sample_shape: Sequence[int]) -> Tensor | None:
    """loc + scale eps, (*sample_shape, *batch_shape), with gradients; eps is of `fastvae.noise`."""
    loc, scale = normal.loc, normal.scale
    kernels = kernels_at_hand(loc, scale)
    if kernels is None and not _fit(loc, scale):
        return None
    if type(sample_shape) is not torch.Size:
        sample_shape = torch.Size(sample_shape)
    if sample_shape:
        draws = math.prod(sample_shape)
        if not draws:
            return None
        z = drawn(loc, scale, kernels, draws)
        return z if len(sample_shape) == 1 else z.reshape(sample_shape + loc.shape)
    if loc.is_leaf and scale.is_leaf:
        return drawn(loc, scale, kernels)  # parameters, not what an encoder gave: hardly the posterior of a VAE
    z, elementwise = draw_and_kl(loc, scale, kernels)
    if elementwise is not None:
        vars(normal)["_fastvae_known"] = _Known(normal, kl=elementwise)
    return z


def kl(p: Normal, q: Normal) -> Tensor | None:
    """KL(p || q) of each coordinate, in nats."""
    priced = _priced(p)
    if priced is None or not (q.loc.dim() == 0 or _fit_prior(q.loc, p.loc)) or not _is_standard(q):
        return _kl_between(p, q, "none")
    # Given out once: whoever asks again gets a tensor of their own, as from torch.
    found, priced.kl = priced.kl, None
    assert found is not None
    return _in_dtype_of_formulas(found, p.loc)


def kl_of_independents(p: Independent, q: Independent) -> Tensor | None:
    """KL(p || q), summed over the dimensions that are one event, in nats; None unless both are of Normals."""
    dims = p.reinterpreted_batch_ndims
    ours, other = p.base_dist, q.base_dist
    if not (isinstance(ours, Normal) and isinstance(other, Normal) and dims == q.reinterpreted_batch_ndims):
        return None
    if dims == ours.loc.dim() - 1 and (_priced(ours) is None or not _is_standard(other)):
        return _kl_between(ours, other, "sample")
    elementwise = kl(ours, other)
    return elementwise if elementwise is None or not dims else elementwise.sum(tuple(range(-dims, 0)))


def _kl_between(p: Normal, q: Normal, reduction: str) -> Tensor | None:
    loc, scale = p.loc, p.scale
    if not (_fit(loc, scale) and _fit_prior(q.loc, loc) and _fit_prior(q.scale, loc)):
        return None
    found = gaussian_kl(loc, scale, q.loc, q.scale, scale="std", reduction=reduction)
    assert isinstance(found, Tensor)  # no KL per coordinate was asked for
    return _in_dtype_of_formulas(found, loc)


def _in_dtype_of_formulas(found: Tensor, loc: Tensor) -> Tensor:
    dtype = dtype_of_formulas(loc)
    return found if found.dtype is dtype else found.to(dtype)


def _fit(loc: Tensor, scale: Tensor) -> bool:
    if are_taken_apart():
        return False
    if plain.alike_on_cpu(loc, scale):
        return has_kernels(loc.device, loc.dtype)
    return (
        type(loc) in PLAIN_TENSORS
        and type(scale) in PLAIN_TENSORS
        and has_kernels(loc.device, loc.dtype)
        and loc.shape == scale.shape
        and loc.dtype == scale.dtype
        and loc.dim() > 0
        and loc.numel() > 0
        and loc.device == scale.device
    )


def _fit_prior(given: Tensor, loc: Tensor) -> bool:
    """One that broadcasts to loc, as the fused ops want it."""
    shape, fewer = given.shape, loc.dim() - given.dim()
    if fewer < 0:
        return False
    its_shape = loc.shape[fewer:]
    return (
        type(given) in PLAIN_TENSORS
        and given.dtype is loc.dtype
        and ((given.is_cpu and loc.is_cpu) or given.device == loc.device)
        and (shape == its_shape or all(mine in (1, its) for mine, its in zip(shape, its_shape, strict=True)))
    )


def _priced(normal: Normal) -> _Known | None:
    known = vars(normal).get("_fastvae_known")
    if known is None or known.kl is None or not torch.is_grad_enabled() or not known.holds_of(normal):
        return None
    return known


def _is_standard(normal: Normal) -> bool:
    """Whether it is N(0, 1) everywhere, as a constant. Other devices than the CPU would have to be waited for.

    What the constructor saw counts once: a prior that is kept may be changed in ways that no version tells of.
    """
    loc, scale = normal.loc, normal.scale
    if loc.requires_grad or scale.requires_grad:
        return False
    known = vars(normal).get("_fastvae_known")
    if known is not None and known.standard and known.holds_of(normal):
        known.standard = False
        return True
    return loc.is_cpu and bool(_look_at(loc, scale) & _STANDARD)


def _look_at(loc: Tensor, scale: Tensor) -> int:
    """_VALID, _STANDARD, both or 0. NaN is its own bound."""
    seen = _see(loc, scale)
    if seen >= 0:
        return seen
    (low, high), (least, most) = _bounds(loc), _bounds(scale)
    valid, standard = low == low and least > 0.0, low == high == 0.0 and least == most == 1.0
    return _VALID * valid | _STANDARD * standard


def _bounds(tensor: Tensor) -> tuple[float, float]:
    if tensor.numel() == 1 or (tensor.numel() and not any(tensor.stride())):  # one number, however often
        value = tensor[(0,) * tensor.dim()].item()
        return value, value
    low, high = torch.aminmax(tensor.detach())
    return low.item(), high.item()
