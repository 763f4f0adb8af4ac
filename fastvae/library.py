"""The operators that PyTorch sees: schema, shape inference and dispatch of each, registered with torch.library.

Every op is functional, takes its seed as a tensor and the requested backend as a string, and hands over to
`fastvae.kernels`. There is one implementation for all devices, because the choice of a backend looks at more than the
device. Gradients are not attached here: `fastvae.autograd` calls a forward and a backward op.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .kernels.selection import implementation

_library = torch.library.Library("fastvae", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _define(schema: str, run: Callable, fake: Callable) -> Callable:
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastvae::{name}", fake, lib=_library)
    return getattr(torch.ops.fastvae, name).default


def _fake_kl(mu: Tensor, reduction: str) -> Tensor:
    dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    if reduction == "none":
        return torch.empty_like(mu, dtype=dtype)
    return mu.new_empty((mu.shape[0],) if reduction == "sample" else (), dtype=dtype)


def _noise(seed, shape, row_offset, dtype, backend):
    return implementation(backend, seed.device.type, dtype).noise(seed, shape, row_offset, dtype)


def _sample_and_kl(mu, logvar, seed, row_offset, reduction, backend):
    return implementation(backend, mu.device.type, mu.dtype).forward(mu, logvar, seed, row_offset, reduction)


def _sample_and_kl_backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction, backend):
    kernels = implementation(backend, mu.device.type, mu.dtype)
    return kernels.backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction)


def _reparameterize(mu, logvar, seed, row_offset, backend):
    return implementation(backend, mu.device.type, mu.dtype).forward(mu, logvar, seed, row_offset, None)[0]


def _reparameterize_backward(grad_z, logvar, seed, row_offset, backend):
    kernels = implementation(backend, logvar.device.type, logvar.dtype)
    return kernels.backward(grad_z, None, None, logvar, seed, row_offset, None)[1]


def _gaussian_kl(mu, logvar, reduction, backend):
    return implementation(backend, mu.device.type, mu.dtype).forward(mu, logvar, None, 0, reduction)[1]


def _gaussian_kl_backward(grad_kl, mu, logvar, reduction, backend):
    kernels = implementation(backend, mu.device.type, mu.dtype)
    return kernels.backward(None, grad_kl, mu, logvar, None, 0, reduction)


noise = _define(
    "noise(Tensor seed, SymInt[] shape, SymInt row_offset, ScalarType dtype, str backend) -> Tensor",
    _noise,
    lambda seed, shape, row_offset, dtype, backend: seed.new_empty(shape, dtype=dtype),
)
sample_and_kl = _define(
    "sample_and_kl(Tensor mu, Tensor logvar, Tensor seed, SymInt row_offset, str reduction, str backend)"
    " -> (Tensor, Tensor)",
    _sample_and_kl,
    lambda mu, logvar, seed, row_offset, reduction, backend: (torch.empty_like(mu), _fake_kl(mu, reduction)),
)
sample_and_kl_backward = _define(
    "sample_and_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed, SymInt row_offset,"
    " str reduction, str backend) -> (Tensor, Tensor)",
    _sample_and_kl_backward,
    lambda grad_z, grad_kl, mu, logvar, *rest: (torch.empty_like(mu), torch.empty_like(logvar)),
)
reparameterize = _define(
    "reparameterize(Tensor mu, Tensor logvar, Tensor seed, SymInt row_offset, str backend) -> Tensor",
    _reparameterize,
    lambda mu, *rest: torch.empty_like(mu),
)
reparameterize_backward = _define(
    "reparameterize_backward(Tensor grad_z, Tensor logvar, Tensor seed, SymInt row_offset, str backend) -> Tensor",
    _reparameterize_backward,
    lambda grad_z, logvar, *rest: torch.empty_like(logvar),
)
gaussian_kl = _define(
    "gaussian_kl(Tensor mu, Tensor logvar, str reduction, str backend) -> Tensor",
    _gaussian_kl,
    lambda mu, logvar, reduction, backend: _fake_kl(mu, reduction),
)
gaussian_kl_backward = _define(
    "gaussian_kl_backward(Tensor grad_kl, Tensor mu, Tensor logvar, str reduction, str backend) -> (Tensor, Tensor)",
    _gaussian_kl_backward,
    lambda grad_kl, mu, logvar, *rest: (torch.empty_like(mu), torch.empty_like(logvar)),
)
