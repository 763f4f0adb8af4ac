"""Sampling from torch's Normals and the KL between them by fused ops, as torch gives them: shapes, dtypes, devices.

Each function gives None where the fused ops do not fit, and the library's own code has to do it.

A draw that backward will go through is priced in the same pass: its KL to the standard normal is kept beside the
distribution. A KL to a prior that is one, the usual in a VAE, is then there already, and one backward serves both.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..functional import gaussian_kl, reparameterize, sample_and_kl
from .served import is_served

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


class Known(NamedTuple):
    """What was found out about a Normal, and the parameters that it is true of."""

    loc: Tensor
    scale: Tensor
    versions: tuple[int, int]
    kl: Tensor | None = None  # to N(0, 1), of each coordinate
    standard: bool = False

    def holds_of(self, normal: Normal) -> bool:
        loc, scale = normal.loc, normal.scale
        return self.loc is loc and self.scale is scale and self.versions == (loc._version, scale._version)


def begin(normal: Normal, loc: Tensor, scale: Tensor, validate: bool) -> bool:
    """What the constructor does, without a view and a graph node for each parameter; False if that is torch's to do.

    Where torch compares each number and looks at all answers, the bounds of a tensor tell: NaN is its own bound.
    """
    if not _fit(loc, scale):
        return False
    if validate:
        if loc.device.type != "cpu":
            return False  # to look at bounds is to wait for them
        (low, high), (least, most) = _bounds(loc), _bounds(scale)
        if low != low or not least > 0.0:
            return False  # torch says what is wrong with them
    normal.loc, normal.scale = loc, scale
    if validate and low == high == 0.0 and least == most == 1.0:
        _note(normal, standard=True)
    return True


def draw(normal: Normal, sample_shape: torch.Size) -> Tensor | None:
    """loc + scale eps, (*sample_shape, *batch_shape), with gradients; eps is of `fastvae.noise`."""
    loc, scale = normal.loc, normal.scale
    if not _fit(loc, scale):
        return None
    if sample_shape:
        draws = math.prod(sample_shape)
        if not draws:
            return None
        z = reparameterize(loc, scale, scale="std", num_samples=draws)
        return z if len(sample_shape) == 1 else z.reshape(sample_shape + loc.shape)
    if not _will_go_back(loc, scale):
        return reparameterize(loc, scale, scale="std")
    z, elementwise = sample_and_kl(loc, scale, scale="std", reduction="none")
    _note(normal, kl=elementwise)
    return z


def kl(p: Normal, q: Normal) -> Tensor | None:
    """KL(p || q) of each coordinate, in nats."""
    price = _price_of(p)
    if price is not None and (q.loc.dim() == 0 or _fit_prior(q.loc, p.loc)) and _is_standard(q):
        # Given out once: whoever asks again gets a tensor of their own, as from torch.
        vars(p)["_fastvae_known"] = vars(p)["_fastvae_known"]._replace(kl=None)
        return price.to(p.loc.dtype)
    return _kl_between(p, q, "none")


def kl_of_independents(p: Independent, q: Independent) -> Tensor | None:
    """KL(p || q), summed over the dimensions that are one event, in nats; None unless both are of Normals."""
    dims = p.reinterpreted_batch_ndims
    ours, other = p.base_dist, q.base_dist
    if not (isinstance(ours, Normal) and isinstance(other, Normal) and dims == q.reinterpreted_batch_ndims):
        return None
    if dims == ours.loc.dim() - 1 and (_price_of(ours) is None or not _is_standard(other)):
        return _kl_between(ours, other, "sample")
    elementwise = kl(ours, other)
    return elementwise if elementwise is None or not dims else elementwise.sum(tuple(range(-dims, 0)))


def _kl_between(p: Normal, q: Normal, reduction: str) -> Tensor | None:
    loc, scale = p.loc, p.scale
    if not (_fit(loc, scale) and _fit_prior(q.loc, loc) and _fit_prior(q.scale, loc)):
        return None
    found = gaussian_kl(loc, scale, q.loc, q.scale, scale="std", reduction=reduction)
    assert isinstance(found, Tensor)  # no KL per coordinate was asked for
    return found.to(loc.dtype)


def _fit(loc: Tensor, scale: Tensor) -> bool:
    return (
        type(loc) in _PLAIN_TYPES
        and type(scale) in _PLAIN_TYPES
        and loc.shape == scale.shape
        and loc.dtype == scale.dtype
        and loc.dim() > 0
        and loc.numel() > 0
        and loc.device == scale.device
        and is_served(loc)
    )


def _fit_prior(given: Tensor, loc: Tensor) -> bool:
    """One that broadcasts to loc, as the fused ops want it."""
    return (
        type(given) in _PLAIN_TYPES
        and given.dtype == loc.dtype
        and given.device == loc.device
        and given.dim() <= loc.dim()
        and all(mine in (1, its) for mine, its in zip(given.shape[::-1], loc.shape[::-1], strict=False))
    )


def _will_go_back(loc: Tensor, scale: Tensor) -> bool:
    """Whether backward will go through a draw and on to what its parameters came from.

    One node then serves the draw and its KL, and backward through both is to be one. Parameters that came from nothing
    may be gone back to from the draw first and from its KL later.
    """
    return (
        torch.is_grad_enabled()
        and (loc.grad_fn is not None or scale.grad_fn is not None)
        and not (loc.is_inference() or scale.is_inference())
    )


def _price_of(normal: Normal) -> Tensor | None:
    known = getattr(normal, "_fastvae_known", None)
    if known is None or known.kl is None or not torch.is_grad_enabled():
        return None
    return known.kl if known.holds_of(normal) else None


def _is_standard(normal: Normal) -> bool:
    """Whether it is N(0, 1) everywhere, as a constant. Other devices than the CPU would have to be waited for."""
    loc, scale = normal.loc, normal.scale
    if loc.requires_grad or scale.requires_grad:
        return False
    known = getattr(normal, "_fastvae_known", None)
    if known is not None and known.standard and known.holds_of(normal):
        return True
    if loc.device.type != "cpu" or _bounds(loc) != (0.0, 0.0) or _bounds(scale) != (1.0, 1.0):
        return False
    _note(normal, standard=True)
    return True


def _note(normal: Normal, **found: Any) -> None:
    loc, scale = normal.loc, normal.scale
    if not (loc.is_inference() or scale.is_inference()):  # their changes are not counted
        vars(normal)["_fastvae_known"] = Known(loc, scale, (loc._version, scale._version), **found)


def _bounds(tensor: Tensor) -> tuple[float, float]:
    if tensor.numel() == 1 or (tensor.numel() and not any(tensor.stride())):  # one number, however often
        value = tensor[(0,) * tensor.dim()].item()
        return value, value
    low, high = torch.aminmax(tensor.detach())
    return low.item(), high.item()
