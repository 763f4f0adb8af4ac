"""The operators that PyTorch sees: noise, latent, likelihood and the backward of the last two; `head_op` adds a head.

Each is functional, takes its seed as a tensor and the requested backend as a string, and hands over to
`fastvae.kernels`. There is one implementation for all devices, because the choice of a backend looks at more than the
device. Gradients are not attached here: `fastvae.autograd` calls a forward and a backward op.

A spec travels as a string, so that graphs can be saved. Numbers travel as floats. One that is an input of a
graph of torch.compile travels as a tensor: for all its values there is one graph, where a float has one for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fast_path import are_direct
from .kernels.backend import implementation, kernels_for
from .kernels.latent_spec import (
    LatentGradients,
    LatentInputs,
    LatentOutputs,
    LatentScalars,
    LatentSpec,
    decode_latent_spec,
)
from .kernels.layout import empty_gradients, empty_kl, empty_outputs, likelihood_dtype
from .kernels.likelihood_spec import MIXTURE, Bounds, LikelihoodSpec, decode_likelihood_spec
from .kernels.reference.likelihoods import notice
from .torch_internals import is_compiling, is_static

__all__ = [
    "LatentRun", "LikelihoodRun", "latent", "latent_backward", "latent_run", "likelihood", "likelihood_backward",
    "likelihood_kernels", "noise",
]  # fmt: skip

_library = torch.library.Library("fastvae", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


class LatentRun(NamedTuple):
    """How a latent is computed, forward and backward."""

    spec: LatentSpec
    scalars: LatentScalars
    backend: str  # as requested
    kernels: ModuleType | None  # to be called directly (`fastvae.fast_path`); None: through the dispatcher


class LikelihoodRun(NamedTuple):
    """How a likelihood is computed, forward and backward."""

    spec: LikelihoodSpec
    bounds: Bounds
    backend: str
    kernels: ModuleType | None
    noticed: Tensor | None = None  # see `fastvae.kernels`


# The same from a tuple, in a third of the time.
latent_run = functools.partial(tuple.__new__, LatentRun)
likelihood_run = functools.partial(tuple.__new__, LikelihoodRun)


def latent(inputs: LatentInputs, run: LatentRun) -> LatentOutputs:
    """All that the spec asks for; of a packed latent ``inputs.mu`` holds mu and scale."""
    spec, scalars, backend, kernels = run
    if kernels is not None:
        return kernels.latent_forward(inputs, spec, scalars)
    outputs = torch.ops.fastvae.latent.default(*_packed(inputs), spec.encode(), *_numbers(scalars), backend)
    given = iter(outputs)
    wanted = (spec.sample, spec.kernel_reduction is not None, spec.kl_mean, spec.log_probs, spec.log_probs)
    return LatentOutputs(*[next(given) if want else None for want in wanted])


def latent_backward(
    grads: LatentOutputs, inputs: LatentInputs, run: LatentRun, wants_prior: bool, direct: bool
) -> LatentGradients:
    """Gradients of the inputs; ``direct``: the fast path is open to these gradients too."""
    spec, scalars, backend, kernels = run
    if direct and kernels is not None:
        return kernels.latent_backward(grads, inputs, spec, scalars, wants_prior)
    gradients = iter(
        torch.ops.fastvae.latent_backward.default(
            *_packed((*grads, *inputs)), wants_prior, spec.encode(), *_numbers(scalars), backend
        )
    )
    given = (inputs.mu is not None, spec.packed_dim is None, *[wants_prior and inputs.prior_mu is not None] * 2)
    return LatentGradients(*[next(gradients) if one else None for one in given])


def likelihood(x: Tensor, parameters: tuple[Tensor, ...], run: LikelihoodRun) -> Tensor:
    """log p(x|z), reduced, by the dispatcher."""
    if run.noticed is not None:
        notice(run.noticed, x, parameters, run.spec)
    floats, traced = _floats(run.bounds)
    return torch.ops.fastvae.likelihood.default(x, list(parameters), run.spec.encode(), floats, traced, run.backend)


def likelihood_backward(
    grad: Tensor, x: Tensor, parameters: tuple[Tensor, ...], run: LikelihoodRun, wants: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    """The gradient of each parameter, or None where it is not wanted, by the dispatcher."""
    floats, traced = _floats(run.bounds)
    gradients = iter(
        torch.ops.fastvae.likelihood_backward.default(
            grad, x, list(parameters), list(wants), run.spec.encode(), floats, traced, run.backend
        )
    )
    return [next(gradients) if wanted else None for wanted in wants]


def noise(like: Tensor, seed: Tensor, row_offset: int, dtype: torch.dtype, draw: int, backend: str) -> Tensor:
    """Standard normals of the noise stream, of the shape of ``like``: torch.jit.trace records no list of sizes."""
    if are_direct(seed, like):
        return _noise(like, seed, row_offset, dtype, draw, backend)
    return torch.ops.fastvae.noise.default(like.detach(), seed, row_offset, dtype, draw, backend)


def likelihood_kernels(backend: str, x: Tensor, parameters: Sequence[Tensor]) -> ModuleType:
    """float64 in any of the tensors is the reference's."""
    wide = likelihood_dtype(x, *parameters) == torch.float64
    return implementation(backend, x.device, torch.float64 if wide else parameters[0].dtype)


def _packed(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], int]:
    """Those that are there, and a bit for each. PyTorch does not look into lists of optional tensors everywhere."""
    return _present(tensors), sum([1 << i for i, tensor in enumerate(tensors) if tensor is not None])


def _unpacked(tensors: Sequence[Tensor], bits: int, count: int) -> list[Any]:
    given = iter(tensors)
    return [next(given) if bits >> i & 1 else None for i in range(count)]


def _numbers(scalars: LatentScalars) -> tuple[list[int], list[float], Tensor | None]:
    """row_offset and num_samples (0: None), and the floats as `_floats` gives them."""
    row_offset, num_samples, *floats = scalars
    return [row_offset, num_samples or 0], *_floats(floats)


def _floats(numbers: Sequence[float]) -> tuple[list[float], Tensor | None]:
    """As a list; or as a tensor, if torch.compile traces one that is an input of the graph."""
    if not is_compiling() or all(is_static(number) for number in numbers):
        return list(numbers), None
    # A product with a tensor is what the compiler turns into an input that may vary.
    return [], torch.stack([torch.ones((), dtype=torch.float64) * number for number in numbers])


def _scalars(counts: Sequence[int], floats: Sequence[float], traced: Tensor | None) -> LatentScalars:
    row_offset, num_samples = counts
    return LatentScalars(row_offset, num_samples or None, *(floats if traced is None else traced.tolist()))


def _bounds(floats: Sequence[float], traced: Tensor | None) -> Bounds:
    return Bounds(*(floats if traced is None else traced.tolist()))


def _present(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]


def _define(schema: str, run: Callable, fake: Callable) -> None:
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastvae::{name}", fake, lib=_library)


def _noise(like, seed, row_offset, dtype, draw, backend):
    return implementation(backend, seed.device, dtype).noise(seed, tuple(like.shape), row_offset, dtype, draw)


def _latent(tensors, bits, spec, counts, floats, traced, backend):
    inputs, scalars = LatentInputs(*_unpacked(tensors, bits, 5)), _scalars(counts, floats, traced)
    return _present(kernels_for(backend, tensors[0]).latent_forward(inputs, decode_latent_spec(spec), scalars))


def _fake_latent(tensors, bits, spec, counts, floats, traced, backend):
    return _present(empty_outputs(tensors[0], decode_latent_spec(spec), counts[1] or None))


def _latent_backward(tensors, bits, wants_prior, spec, counts, floats, traced, backend):
    given = _unpacked(tensors, bits, 10)
    grads, inputs, scalars = LatentOutputs(*given[:5]), LatentInputs(*given[5:]), _scalars(counts, floats, traced)
    like = inputs.scale if inputs.mu is None else inputs.mu
    assert like is not None
    kernels = kernels_for(backend, like)
    return _present(kernels.latent_backward(grads, inputs, decode_latent_spec(spec), scalars, wants_prior))


def _fake_latent_backward(tensors, bits, wants_prior, spec, counts, floats, traced, backend):
    return _present(empty_gradients(LatentInputs(*_unpacked(tensors, bits, 10)[5:]), wants_prior))


def _likelihood(x, parameters, spec, floats, traced, backend):
    kernels = likelihood_kernels(backend, x, parameters)
    return kernels.likelihood_forward(x, tuple(parameters), decode_likelihood_spec(spec), _bounds(floats, traced))


def _fake_likelihood(x, parameters, spec, floats, traced, backend):
    spec = decode_likelihood_spec(spec)
    like = parameters[0][:, 0] if spec.kind == MIXTURE else parameters[0]
    return empty_kl(like, spec.reduction, likelihood_dtype(x, *parameters))


def _likelihood_backward(grad, x, parameters, wants, spec, floats, traced, backend):
    kernels = likelihood_kernels(backend, x, parameters)
    bounds, parameters = _bounds(floats, traced), tuple(parameters)
    return _present(
        kernels.likelihood_backward(grad, x, parameters, decode_likelihood_spec(spec), bounds, tuple(wants))
    )


def _fake_likelihood_backward(grad, x, parameters, wants, spec, floats, traced, backend):
    return [torch.empty_like(given) for given, wanted in zip(parameters, wants, strict=True) if wanted]


def _noise_of_seeds(info, in_dims, like, seed, *arguments):
    """The rule of torch.func.vmap: each of several seeds draws what it draws alone, and one seed draws once for all."""
    of_like, of_seed, *_ = in_dims
    if of_like is not None:
        like = like.select(of_like, 0)
    op = torch.ops.fastvae.noise.default
    if of_seed is None:
        return op(like, seed, *arguments), None
    return torch.stack([op(like, one, *arguments) for one in seed.unbind(of_seed)]), 0


_NUMBERS = "float[] floats, Tensor? traced, str backend"
_define(
    "noise(Tensor like, Tensor seed, SymInt row_offset, ScalarType dtype, SymInt draw, str backend) -> Tensor",
    _noise,
    lambda like, seed, row_offset, dtype, draw, backend: seed.new_empty(like.shape, dtype=dtype),
)
torch.library.register_vmap("fastvae::noise", _noise_of_seeds, lib=_library)
_LATENT = f"str spec, SymInt[] counts, {_NUMBERS}"
_define(f"latent(Tensor[] tensors, int bits, {_LATENT}) -> Tensor[]", _latent, _fake_latent)
_define(
    f"latent_backward(Tensor[] tensors, int bits, bool wants_prior, {_LATENT}) -> Tensor[]",
    _latent_backward,
    _fake_latent_backward,
)
_define(f"likelihood(Tensor x, Tensor[] parameters, str spec, {_NUMBERS}) -> Tensor", _likelihood, _fake_likelihood)
_define(
    f"likelihood_backward(Tensor grad, Tensor x, Tensor[] parameters, bool[] wants, str spec, {_NUMBERS}) -> Tensor[]",
    _likelihood_backward,
    _fake_likelihood_backward,
)
