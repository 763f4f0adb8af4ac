"""The operators that PyTorch sees: schema, shape inference and dispatch of each, registered with torch.library.

Every op is functional, takes its seed as a tensor and the requested backend as a string, and hands over to
`fastvae.kernels`. There is one implementation for all devices, because the choice of a backend looks at more than the
device. Gradients are not attached here: `fastvae.autograd` calls a forward and a backward op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels.family import Options
from .kernels.layout import compute_dtype, draws_like, likelihood_dtype
from .kernels.likelihoods import MIXTURE, Density
from .kernels.selection import implementation, kernels_for
from .plain import are_plain

_library = torch.library.Library("fastvae", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _define(schema: str, run: Callable, fake: Callable) -> Callable:
    """Register an operator, and return the function that calls it.

    The way through PyTorch's dispatcher takes longer than the kernel of a small latent. Plain calls that nothing
    observes go straight to ``run``.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastvae::{name}", fake, lib=_library)
    operator = getattr(torch.ops.fastvae, name).default

    # The schemas begin with their tensors; the first of them is never missing.
    tensors = schema.partition("->")[0].count("Tensor")

    def call(*arguments: Any) -> Any:
        if not are_plain(tensors, *arguments):
            return operator(*arguments)
        try:
            return run(*arguments)
        except RuntimeError:  # tensors without memory of their own, batched ones for instance, are the dispatcher's
            return operator(*arguments)

    return call


def _fake_kl(mu: Tensor, reduction: str) -> Tensor:
    dtype = compute_dtype(mu.dtype)
    if reduction == "none":
        return torch.empty_like(mu, dtype=dtype)
    return mu.new_empty((mu.shape[0],) if reduction == "sample" else (), dtype=dtype)


def _fake_sample_and_kl_packed(moments, seed, dim, row_offset, reduction, backend):
    mu = moments.chunk(2, dim)[0]
    return torch.empty_like(mu), _fake_kl(mu, reduction)


def _noise(seed, shape, row_offset, dtype, draw, backend):
    return implementation(backend, seed.device, dtype).noise(seed, shape, row_offset, dtype, draw)


def _sample_and_kl(mu, logvar, seed, row_offset, reduction, backend):
    return kernels_for(backend, mu).forward(mu, logvar, seed, row_offset, reduction)


def _sample_and_kl_backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction, backend):
    kernels = kernels_for(backend, mu)
    return kernels.backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction)


def run_packed(kernels, moments, seed, dim, row_offset, reduction):
    """z and the KL by these kernels."""
    mu, logvar = moments.chunk(2, dim)
    return kernels.forward(mu, logvar, seed, row_offset, reduction)


def _sample_and_kl_packed(moments, seed, dim, row_offset, reduction, backend):
    return run_packed(kernels_for(backend, moments), moments, seed, dim, row_offset, reduction)


def run_packed_backward(kernels, moments, grad_z, grad_kl, seed, dim, row_offset, reduction):
    """The gradient of the moments by these kernels."""
    grad_moments = torch.empty_like(moments)
    mu, logvar = moments.chunk(2, dim)
    grad_mu, grad_logvar = grad_moments.chunk(2, dim)
    if grad_kl is None:  # d z / d mu is the identity
        grad_mu.copy_(grad_z)
        kernels.backward(grad_z, None, None, logvar, seed, row_offset, None, out=(None, grad_logvar))
    else:
        seed = None if grad_z is None else seed
        kernels.backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction, out=(grad_mu, grad_logvar))
    return grad_moments


def _sample_and_kl_packed_backward(moments, grad_z, grad_kl, seed, dim, row_offset, reduction, backend):
    kernels = kernels_for(backend, moments)
    return run_packed_backward(kernels, moments, grad_z, grad_kl, seed, dim, row_offset, reduction)


def _reparameterize(mu, logvar, seed, row_offset, backend):
    return kernels_for(backend, mu).forward(mu, logvar, seed, row_offset, None)[0]


def _reparameterize_backward(grad_z, logvar, seed, row_offset, backend):
    kernels = kernels_for(backend, logvar)
    return kernels.backward(grad_z, None, None, logvar, seed, row_offset, None)[1]


def _gaussian_kl(mu, logvar, reduction, backend):
    return kernels_for(backend, mu).forward(mu, logvar, None, 0, reduction)[1]


def _gaussian_kl_backward(grad_kl, mu, logvar, reduction, backend):
    kernels = kernels_for(backend, mu)
    return kernels.backward(None, grad_kl, mu, logvar, None, 0, reduction)


def _halves(first: Tensor, second: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """mu and scale: two tensors, or the halves of one along ``dim``."""
    if second is not None:
        return first, second
    mu, scale = first.chunk(2, dim)
    return mu, scale


def run_latent(
    kernels, first, second, prior_mu, prior_scale, seed, dim, row_offset, num_samples, reduction, kl_mean, log_probs,
    options,
):  # fmt: skip
    """`Latents` by these kernels."""
    mu, scale = _halves(first, second, dim)
    return kernels.latent_forward(
        mu, scale, prior_mu, prior_scale, seed, row_offset, num_samples, reduction, kl_mean, log_probs, options
    )


def _latent(
    first, second, prior_mu, prior_scale, seed, dim, row_offset, num_samples, reduction, kl_mean, log_probs, backend,
    *options,
):  # fmt: skip
    kernels = kernels_for(backend, first)
    latents = run_latent(
        kernels, first, second, prior_mu, prior_scale, seed, dim, row_offset, num_samples, reduction, kl_mean,
        log_probs, Options(*options)
    )  # fmt: skip
    return [output for output in latents if output is not None]


def _fake_latent(
    first, second, prior_mu, prior_scale, seed, dim, row_offset, num_samples, reduction, kl_mean, log_probs, backend,
    *options,
):  # fmt: skip
    mu, _scale = _halves(first, second, dim)
    dtype = compute_dtype(mu.dtype)
    outputs = []
    if seed is not None:
        outputs.append(torch.empty_like(mu) if num_samples is None else draws_like(mu, num_samples))
    if reduction == "channel":
        outputs.append(mu.new_empty(mu.shape[:2], dtype=dtype))
    elif reduction is not None:
        outputs.append(_fake_kl(mu, reduction))
    if kl_mean:
        outputs.append(mu.new_empty(mu.shape[1:], dtype=dtype))
    if log_probs:
        draws = () if num_samples is None else (num_samples,)
        outputs += [mu.new_empty((*draws, mu.shape[0]), dtype=dtype) for _ in range(2)]
    return outputs


def run_latent_backward(
    kernels, first, second, prior_mu, prior_scale, seed, grad_z, grad_kl, grad_log_q, grad_log_p, dim, row_offset,
    num_samples, reduction, wants_prior, options,
):  # fmt: skip
    """The gradients of first, second, prior_mu and prior_scale by these kernels; None where there is none."""
    mu, scale, out, packed = first, second, None, None
    if second is None:
        packed = torch.empty_like(first)
        mu, scale = first.chunk(2, dim)
        out = packed.chunk(2, dim)
    gradients = kernels.latent_backward(
        grad_z, grad_kl, grad_log_q, grad_log_p, mu, scale, prior_mu, prior_scale, seed, row_offset, num_samples,
        reduction, options, wants_prior, out
    )  # fmt: skip
    return gradients if packed is None else (packed, None, gradients.prior_mu, gradients.prior_scale)


def _latent_backward(
    first, second, prior_mu, prior_scale, seed, grad_z, grad_kl, grad_log_q, grad_log_p, dim, row_offset, num_samples,
    reduction, wants_prior, backend, *options,
):  # fmt: skip
    kernels = kernels_for(backend, first)
    gradients = run_latent_backward(
        kernels, first, second, prior_mu, prior_scale, seed, grad_z, grad_kl, grad_log_q, grad_log_p, dim, row_offset,
        num_samples, reduction, wants_prior, Options(*options)
    )  # fmt: skip
    return [gradient for gradient in gradients if gradient is not None]


def _fake_latent_backward(
    first, second, prior_mu, prior_scale, seed, grad_z, grad_kl, grad_log_q, grad_log_p, dim, row_offset, num_samples,
    reduction, wants_prior, backend, *options,
):  # fmt: skip
    given = [first, second, *((prior_mu, prior_scale) if wants_prior else ())]
    return [torch.empty_like(tensor) for tensor in given if tensor is not None]


def likelihood_kernels(backend: str, x: Tensor, parameters: Sequence[Tensor]) -> Any:
    """float64 anywhere is the reference's."""
    wide = likelihood_dtype(x, *parameters) == torch.float64
    return implementation(backend, x.device, torch.float64 if wide else parameters[0].dtype)


def given(*parameters: Tensor | None) -> tuple[Tensor, ...]:
    """Those that are there."""
    return tuple([parameter for parameter in parameters if parameter is not None])


def _likelihood(x, first, second, third, reduction, backend, *density):
    parameters = given(first, second, third)
    kernels = likelihood_kernels(backend, x, parameters)
    return kernels.likelihood_forward(x, parameters, reduction, Density(*density))


def _fake_likelihood(x, first, second, third, reduction, backend, *density):
    like = first if Density(*density).kind != MIXTURE else first[:, 0]
    dtype = likelihood_dtype(x, *given(first, second, third))
    if reduction == "none":
        return torch.empty_like(like, dtype=dtype)
    shape = {"sample": like.shape[:1], "channel": like.shape[:2]}.get(reduction, ())
    return first.new_empty(shape, dtype=dtype)


def _likelihood_backward(grad, x, first, second, third, wants, reduction, backend, *density):
    parameters = given(first, second, third)
    kernels = likelihood_kernels(backend, x, parameters)
    gradients = kernels.likelihood_backward(grad, x, parameters, reduction, Density(*density), wants)
    return [gradient for gradient in gradients if gradient is not None]


def _fake_likelihood_backward(grad, x, first, second, third, wants, *rest):
    parameters = given(first, second, third)
    return [torch.empty_like(given) for given, wanted in zip(parameters, wants, strict=True) if wanted]


noise = _define(
    "noise(Tensor seed, SymInt[] shape, SymInt row_offset, ScalarType dtype, SymInt draw, str backend) -> Tensor",
    _noise,
    lambda seed, shape, row_offset, dtype, draw, backend: seed.new_empty(shape, dtype=dtype),
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
sample_and_kl_packed = _define(
    "sample_and_kl_packed(Tensor moments, Tensor seed, int dim, SymInt row_offset, str reduction, str backend)"
    " -> (Tensor, Tensor)",
    _sample_and_kl_packed,
    _fake_sample_and_kl_packed,
)
sample_and_kl_packed_backward = _define(
    "sample_and_kl_packed_backward(Tensor moments, Tensor? grad_z, Tensor? grad_kl, Tensor seed, int dim,"
    " SymInt row_offset, str reduction, str backend) -> Tensor",
    _sample_and_kl_packed_backward,
    lambda moments, *rest: torch.empty_like(moments),
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

# The fields of kernels.family.Options, in their order.
_OPTIONS = "str scale, str clamp, float low, float high, float floor, bool residual, float temperature, float free_bits"
latent = _define(
    "latent(Tensor first, Tensor? second, Tensor? prior_mu, Tensor? prior_scale, Tensor? seed, int dim,"
    " SymInt row_offset, SymInt? num_samples, str? reduction, bool kl_mean, bool log_probs, str backend,"
    f" {_OPTIONS}) -> Tensor[]",
    _latent,
    _fake_latent,
)
latent_backward = _define(
    "latent_backward(Tensor first, Tensor? second, Tensor? prior_mu, Tensor? prior_scale, Tensor? seed, Tensor? grad_z,"
    " Tensor? grad_kl, Tensor? grad_log_q, Tensor? grad_log_p, int dim, SymInt row_offset, SymInt? num_samples,"
    f" str? reduction, bool wants_prior, str backend, {_OPTIONS}) -> Tensor[]",
    _latent_backward,
    _fake_latent_backward,
)

# The fields of kernels.likelihoods.Density, in their order.
_DENSITY = "str kind, float low, float high, int components"
likelihood = _define(
    "likelihood(Tensor x, Tensor first, Tensor? second, Tensor? third, str reduction, str backend,"
    f" {_DENSITY}) -> Tensor",
    _likelihood,
    _fake_likelihood,
)
likelihood_backward = _define(
    "likelihood_backward(Tensor grad, Tensor x, Tensor first, Tensor? second, Tensor? third, bool[] wants,"
    f" str reduction, str backend, {_DENSITY}) -> Tensor[]",
    _likelihood_backward,
    _fake_likelihood_backward,
)
