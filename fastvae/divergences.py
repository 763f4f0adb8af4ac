"""KL between diagonal Gaussians however they are given: brought to one parameterisation and one shape, then fused."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, register_kl

from .functional import gaussian_kl
from .kernels.family import PLAIN, Options
from .kernels.reference.latents import resolve_scale
from .options import check_prior
from .shaping import KLShape, shaped_latent


class Parameters(NamedTuple):
    """A diagonal Gaussian as it was given; ``mu`` and ``scale`` are of one shape, (*batch, *event)."""

    mu: Tensor
    scale: Tensor
    options: Options
    event_shape: torch.Size | None  # None: of independent numbers, for which any event will do
    moments: Tensor | None = None  # mu and scale are its halves along ``dim``
    dim: int = -1  # counted from the end, so that it stays true whatever the batch


class Aligned(NamedTuple):
    """Posterior and prior as the fused ops take them: rows of events, in one parameterisation."""

    posterior: Parameters
    prior_mu: Tensor
    prior_scale: Tensor
    batch_shape: torch.Size


class Diagonal(Distribution):
    """A distribution that these are the parameters of: `fastvae.DiagonalGaussian`, and what is made of it."""

    deterministic: bool

    def _parameters(self) -> Parameters:
        raise NotImplementedError


def parameters_of(given: Distribution) -> Parameters:
    if isinstance(given, Diagonal):
        if given.deterministic:
            raise ValueError("a deterministic DiagonalGaussian is a point mass, expected one that has a variance")
        return given._parameters()
    if isinstance(given, Normal):
        return Parameters(given.loc, given.scale, Options(scale="std"), None)
    if isinstance(given, Independent):  # moments are packed along the event as it was
        return parameters_of(given.base_dist)._replace(event_shape=given.event_shape, moments=None)
    raise NotImplementedError(f"{given} was given, expected a DiagonalGaussian, a Normal or an Independent of these")


def keywords_of(options: Options) -> dict[str, Any]:
    """The arguments of the ops that say what ``options`` says."""
    return {
        "scale": options.scale,
        "floor": options.floor,
        "clamp": (options.low, options.high) if options.clamp == "hard" else None,
        "soft_clamp": options.high if options.clamp == "soft" else None,
    }


def in_rows(given: Parameters, event_dims: int) -> Parameters:
    """Of shape (rows, *event): the batch dimensions as one."""
    if given.mu.dim() - event_dims == 1:
        return given
    moments = None if given.moments is None else _as_rows(given.moments, event_dims)
    return given._replace(mu=_as_rows(given.mu, event_dims), scale=_as_rows(given.scale, event_dims), moments=moments)


def _as_rows(tensor: Tensor, event_dims: int) -> Tensor:
    batch_dims = tensor.dim() - event_dims
    return tensor.reshape(math.prod(tensor.shape[:batch_dims]), *tensor.shape[batch_dims:])


def align(q: Parameters, p: Parameters) -> Aligned:
    """In one shape, dtype and parameterisation; the event of a bare Normal is that of the other."""
    event = _common_event(q, p)
    try:
        shape = torch.broadcast_shapes(q.mu.shape, p.mu.shape, event)
    except RuntimeError:
        shape = None
    if shape is None or shape[len(shape) - len(event) :] != event:
        raise ValueError(
            f"Gaussians of shapes {tuple(q.mu.shape)} and {tuple(p.mu.shape)} were given, expected shapes that "
            f"broadcast to events of shape {tuple(event)}"
        )
    q, p = _in_one_dtype(q, p)
    if q.options != p.options:  # the clamp of one says nothing about the other
        q, p = _as_logvar(q), _as_logvar(p)
    if q.mu.shape != shape:
        q = q._replace(mu=q.mu.expand(shape), scale=q.scale.expand(shape), moments=None)
    prior_mu, prior_scale = (_prior_rows(tensor, shape, event) for tensor in (p.mu, p.scale))
    return Aligned(in_rows(q, len(event)), prior_mu, prior_scale, shape[: len(shape) - len(event)])


@register_kl(Diagonal, Diagonal)
@register_kl(Diagonal, Normal)
@register_kl(Diagonal, Independent)
@register_kl(Normal, Diagonal)
@register_kl(Independent, Diagonal)
def _kl_between(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) in nats, of the batch shape that both broadcast to."""
    aligned = align(parameters_of(q), parameters_of(p))
    return _kl_of_rows(aligned.posterior, aligned.prior_mu, aligned.prior_scale).reshape(aligned.batch_shape)


def kl_to_standard(q: Parameters) -> Tensor:
    """KL(q || N(0, I)) in nats, of q's batch shape."""
    assert q.event_shape is not None
    event_dims = len(q.event_shape)
    return _kl_of_rows(in_rows(q, event_dims), None, None).reshape(q.mu.shape[: q.mu.dim() - event_dims])


def _kl_of_rows(q: Parameters, prior_mu: Tensor | None, prior_scale: Tensor | None) -> Tensor:
    if q.moments is None and prior_mu is None:
        kl = gaussian_kl(q.mu, q.scale, **keywords_of(q.options))
        assert isinstance(kl, Tensor)  # no KL per coordinate was asked for
        return kl
    first, second = (q.mu, q.scale) if q.moments is None else (q.moments, None)
    prior = check_prior(prior_mu, prior_scale, q.mu, q.options)
    return shaped_latent(
        first, second, q.dim, q.mu, prior, None, 0, None, "sample", KLShape(), q.options, per_coordinate=False
    )[1]


def _common_event(q: Parameters, p: Parameters) -> torch.Size:
    if q.event_shape is None or p.event_shape is None:
        return q.event_shape or p.event_shape or torch.Size()
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"Gaussians of event_shape {tuple(q.event_shape)} and {tuple(p.event_shape)} were given, expected the same"
        )
    return q.event_shape


def _in_one_dtype(q: Parameters, p: Parameters) -> tuple[Parameters, Parameters]:
    """As torch promotes: numbers take the dtype and device of the tensors that they meet."""
    if p.mu.dim() == 0:
        dtype = q.mu.dtype
    elif q.mu.dim() == 0:
        dtype = p.mu.dtype
    else:
        dtype = torch.promote_types(q.mu.dtype, p.mu.dtype)
    if dtype.itemsize == 2 and not (q.mu.dtype == p.mu.dtype and q.options == p.options):
        dtype = torch.float32  # half precision holds what was given in it, not what is converted to it
    device = q.mu.device if q.mu.dim() else p.mu.device
    return _to(q, dtype, device), _to(p, dtype, device)


def _to(given: Parameters, dtype: torch.dtype, device: torch.device) -> Parameters:
    if given.mu.dtype == given.scale.dtype == dtype and given.mu.device == device:
        return given
    if given.mu.dim():
        device = given.mu.device  # only numbers change device by themselves
    if given.moments is not None:
        moments = given.moments.to(device, dtype)
        mu, scale = moments.chunk(2, given.dim)
        return given._replace(mu=mu, scale=scale, moments=moments)
    return given._replace(mu=given.mu.to(device, dtype), scale=given.scale.to(device, dtype))


def _as_logvar(given: Parameters) -> Parameters:
    if given.options == PLAIN:
        return given
    logvar = resolve_scale(given.scale, given.options).logvar
    return given._replace(scale=logvar, options=PLAIN, moments=None)


def _prior_rows(tensor: Tensor, shape: torch.Size, event: torch.Size) -> Tensor:
    """A prior that the batch shares keeps its own shape, so that nothing is repeated for each row."""
    batch_dims = tensor.dim() - len(event)
    if batch_dims <= 0:
        return tensor
    if math.prod(tensor.shape[:batch_dims]) == 1:
        return tensor.reshape(tensor.shape[batch_dims:])
    return _as_rows(tensor.expand(shape), len(event))
