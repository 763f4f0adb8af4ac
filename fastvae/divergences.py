"""KL between diagonal Gaussians of any parameterisation: converted to one dtype, scale and shape, then one fused op."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, register_kl

from .functional import NO_DRAW, latent_op
from .kernels.layout import compute_dtype
from .kernels.reference.latents import Scale, resolve_scale
from .latent_options import ScaleOptions, described_latent

__all__ = [
    "Diagonal", "Parameters", "align", "compute_tensor", "in_rows", "kl_to_standard", "parameters_of", "scale_of",
]  # fmt: skip


class Parameters(NamedTuple):
    """The parameters of a diagonal Gaussian; ``mu`` and ``scale`` have one shape, (*batch, *event)."""

    mu: Tensor
    scale: Tensor
    options: ScaleOptions  # the keywords of the ops for the parameterisation
    event_shape: torch.Size | None  # None for a Normal, whose event dimensions follow from the other distribution
    moments: Tensor | None = None  # the tensor that packs mu and scale along ``dim``
    dim: int = -1  # negative, so that it is valid for any batch shape

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, int | None]:
        """As `latent_op` takes them: mu, scale and None; or the moments, None and their dimension."""
        return (self.mu, self.scale, None) if self.moments is None else (self.moments, None, self.dim)


class Diagonal(Distribution):
    """Base class of `fastvae.DiagonalGaussian`, for ``register_kl``."""

    deterministic: bool

    def _parameters(self) -> Parameters:
        raise NotImplementedError


def parameters_of(given: Distribution) -> Parameters:
    if isinstance(given, Diagonal):
        if given.deterministic:
            raise ValueError("a deterministic DiagonalGaussian is a point mass, expected one with a variance")
        return given._parameters()
    if isinstance(given, Normal):
        return Parameters(given.loc, given.scale, {"scale": "std"}, None)
    if isinstance(given, Independent):  # without moments: they are packed along the base distribution's event
        return parameters_of(given.base_dist)._replace(event_shape=given.event_shape, moments=None)
    raise NotImplementedError(f"{given} was given, expected a DiagonalGaussian, a Normal or an Independent of these")


def scale_of(given: Parameters) -> Scale:
    """std and logvar, in float32, unless they are float64."""
    described = described_latent("gaussian_kl", 2, given.options)
    return resolve_scale(compute_tensor(given.scale), described.spec, described.scalars)


def compute_tensor(tensor: Tensor) -> Tensor:
    return tensor.to(compute_dtype(tensor.dtype))


def in_rows(given: Parameters, event_dims: int) -> Parameters:
    """Flatten the batch dimensions: (rows, *event)."""
    if given.mu.dim() - event_dims == 1:
        return given
    moments = None if given.moments is None else _as_rows(given.moments, event_dims)
    return given._replace(mu=_as_rows(given.mu, event_dims), scale=_as_rows(given.scale, event_dims), moments=moments)


def _as_rows(tensor: Tensor, event_dims: int) -> Tensor:
    batch_dims = tensor.dim() - event_dims
    return tensor.reshape(math.prod(tensor.shape[:batch_dims]), *tensor.shape[batch_dims:])


def align(q: Parameters, p: Parameters) -> tuple[Parameters, Tensor, Tensor, torch.Size]:
    """q and the mu and scale of p as the fused ops take them, (rows, *event) in one dtype and parameterisation.

    And their batch shape. A Normal takes the other's event shape.
    """
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
    if q.options != p.options:  # also for clamps: the fused ops apply q's to p as well
        q, p = _as_logvar(q), _as_logvar(p)
    if q.mu.shape != shape:
        q = q._replace(mu=q.mu.expand(shape), scale=q.scale.expand(shape), moments=None)
    prior_mu, prior_scale = (_prior_rows(tensor, shape, event) for tensor in (p.mu, p.scale))
    return in_rows(q, len(event)), prior_mu, prior_scale, shape[: len(shape) - len(event)]


@register_kl(Diagonal, Diagonal)
@register_kl(Diagonal, Normal)
@register_kl(Diagonal, Independent)
@register_kl(Normal, Diagonal)
@register_kl(Independent, Diagonal)
def _kl_between(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) in nats, of the broadcast batch shape."""
    posterior, prior_mu, prior_scale, batch_shape = align(parameters_of(q), parameters_of(p))
    return _kl_of_rows(posterior, prior_mu, prior_scale).reshape(batch_shape)


def kl_to_standard(q: Parameters) -> Tensor:
    """KL(q || N(0, I)) in nats, of q's batch shape."""
    assert q.event_shape is not None
    event_dims = len(q.event_shape)
    return _kl_of_rows(in_rows(q, event_dims), None, None).reshape(q.mu.shape[: q.mu.dim() - event_dims])


def _kl_of_rows(q: Parameters, prior_mu: Tensor | None, prior_scale: Tensor | None) -> Tensor:
    mu, scale, packed_dim = q.tensors
    kl: Tensor = latent_op("gaussian_kl", mu, scale, (prior_mu, prior_scale), NO_DRAW, q.options, packed_dim)[1]
    return kl


def _common_event(q: Parameters, p: Parameters) -> torch.Size:
    if q.event_shape is None or p.event_shape is None:
        return q.event_shape or p.event_shape or torch.Size()
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"Gaussians of event_shape {tuple(q.event_shape)} and {tuple(p.event_shape)} were given, expected the same"
        )
    return q.event_shape


def _in_one_dtype(q: Parameters, p: Parameters) -> tuple[Parameters, Parameters]:
    """torch's type promotion: 0-d parameters take the other's dtype and device."""
    if p.mu.dim() == 0:
        dtype = q.mu.dtype
    elif q.mu.dim() == 0:
        dtype = p.mu.dtype
    else:
        dtype = torch.promote_types(q.mu.dtype, p.mu.dtype)
    if dtype.itemsize == 2 and not (q.mu.dtype == p.mu.dtype and q.options == p.options):
        dtype = torch.float32  # a conversion to half precision would round
    device = q.mu.device if q.mu.dim() else p.mu.device
    return _to(q, dtype, device), _to(p, dtype, device)


def _to(given: Parameters, dtype: torch.dtype, device: torch.device) -> Parameters:
    if given.mu.dtype == given.scale.dtype == dtype and given.mu.device == device:
        return given
    if given.mu.dim():
        device = given.mu.device  # only 0-d parameters change device
    if given.moments is not None:
        moments = given.moments.to(device, dtype)
        mu, scale = moments.chunk(2, given.dim)
        return given._replace(mu=mu, scale=scale, moments=moments)
    return given._replace(mu=given.mu.to(device, dtype), scale=given.scale.to(device, dtype))


def _as_logvar(given: Parameters) -> Parameters:
    if not given.options:
        return given
    described = described_latent("gaussian_kl", 2, given.options)
    logvar = resolve_scale(given.scale, described.spec, described.scalars).logvar
    return given._replace(scale=logvar, options={}, moments=None)


def _prior_rows(tensor: Tensor, shape: torch.Size, event: torch.Size) -> Tensor:
    """A prior's parameter as the fused ops take it; one that the batch shares stays without a batch dimension."""
    batch_dims = tensor.dim() - len(event)
    if batch_dims <= 0:
        return tensor
    if math.prod(tensor.shape[:batch_dims]) == 1:
        return tensor.reshape(tensor.shape[batch_dims:])
    return _as_rows(tensor.expand(shape), len(event))
