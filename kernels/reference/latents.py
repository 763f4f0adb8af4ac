"""Gaussian latents (`fastvae.kernels.latent_spec` has the formulas) in plain PyTorch, a block of rows at a time.

Blocks keep the temporaries small. Arithmetic is float64 for float64 tensors, else float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..latent_spec import LatentGradients, LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from ..layout import compute_dtype, empty_gradients, empty_outputs, split_latent, split_packed
from .functions import at_least, between, sigmoid, softplus, tanh, tanh_slope
from .philox import NoiseBlocks
from .sums import batch_sum, event_sum, sum_last, sum_to_size

LOG_2_PI = math.log(2.0 * math.pi)
# Added to std and to its derivative under softplus, whose quotient without a floor goes to 1 where both are 0.
SMALL_STD = 2.0**-100


class Scale(NamedTuple):
    """A scale parameter, resolved."""

    std: Tensor
    logvar: Tensor
    raw: Tensor  # as given, before the clamp
    x: Tensor  # after it


class Resolved(NamedTuple):
    """Posterior and prior, and what of them enters the KL; all in the dtype of the arithmetic."""

    mu: Tensor
    scale: Scale
    prior_mu: Tensor | None  # None: 0
    prior: Scale | None  # None: 1
    difference: Tensor  # mu - mu_p
    log_ratio: Tensor  # logvar - logvar_p


def resolve_scale(raw: Tensor, spec: LatentSpec, scalars: LatentScalars) -> Scale:
    x = raw
    if spec.clamp == "hard":
        x = between(raw, scalars.low, scalars.high)
    elif spec.clamp == "soft":
        x = scalars.high * tanh(raw / scalars.high)
    if spec.scale == "logvar":
        return Scale(torch.exp(0.5 * x), x, raw, x)
    if spec.scale == "logstd":
        return Scale(torch.exp(x), 2.0 * x, raw, x)
    if spec.scale == "var":
        return Scale(torch.sqrt(x), torch.log(x), raw, x)
    std = x if spec.scale == "std" else softplus(x) + scalars.floor
    return Scale(std, 2.0 * torch.log(std), raw, x)


def resolve(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> Resolved:
    """``inputs`` in the dtype of the arithmetic."""
    mu, scale, prior_mu, prior_scale, _ = inputs
    assert mu is not None
    assert scale is not None
    if prior_mu is None or prior_scale is None:
        posterior = resolve_scale(scale, spec, scalars)
        return Resolved(mu, posterior, None, None, mu, posterior.logvar)
    prior = resolve_scale(prior_scale, spec, scalars)
    if not spec.residual:
        posterior = resolve_scale(scale, spec, scalars)
        return Resolved(mu, posterior, prior_mu, prior, mu - prior_mu, posterior.logvar - prior.logvar)
    posterior = resolve_scale(prior_scale + scale, spec, scalars)
    if spec.clamp == "none":  # what was given is the difference; subtracting would lose what adding has rounded
        log_ratio = scale if spec.scale == "logvar" else 2.0 * scale
    else:
        log_ratio = posterior.logvar - prior.logvar
    return Resolved(prior_mu + mu, posterior, prior_mu, prior, mu, log_ratio)


def kl_of(resolved: Resolved) -> Tensor:
    """The KL of each coordinate."""
    squared = resolved.difference.square()
    if resolved.prior is not None:
        squared = squared * torch.exp(-resolved.prior.logvar)
    # expm1(d) >= d holds for exact values; the bound keeps it so when expm1 is rounded down.
    return 0.5 * (squared + at_least(torch.expm1(resolved.log_ratio) - resolved.log_ratio, 0.0))


def reduce_kl(kl: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return kl
    if reduction == "channel":
        return sum_last(kl.flatten(2)) if kl.dim() > 2 else kl
    per_row = event_sum(kl)
    if reduction == "sample":
        return per_row
    return sum_last(per_row) if reduction == "sum" else sum_last(per_row) / kl.shape[0]


def log_probabilities(resolved: Resolved, z: Tensor, scaled_eps: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z|x) and log p(z) of one draw, summed over the event."""
    log_q = -0.5 * event_sum(scaled_eps.square() + resolved.scale.logvar + LOG_2_PI)
    if resolved.prior is None or resolved.prior_mu is None:
        return log_q, -0.5 * event_sum(z.square() + LOG_2_PI)
    distance = (z - resolved.prior_mu).square() * torch.exp(-resolved.prior.logvar)
    return log_q, -0.5 * event_sum(distance + resolved.prior.logvar + LOG_2_PI)


def latent_forward(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> LatentOutputs:
    inputs, spec = split_latent(inputs, spec)
    mu = inputs.mu
    assert mu is not None
    compute, reduction = compute_dtype(mu.dtype), spec.kernel_reduction
    outputs = empty_outputs(mu, spec, scalars.num_samples)
    # The KL of each row, or finer; what is left of the reduction is done at the end.
    rowwise = reduction if reduction in ("none", "channel") else "sample"
    kl = outputs.kl if rowwise == reduction else mu.new_empty(mu.shape[:1], dtype=compute)
    kl_mean = torch.zeros(mu.shape[1:], dtype=compute, device=mu.device) if spec.kl_mean else None
    stream = NoiseBlocks(inputs.seed, mu.shape, scalars.row_offset, compute, mu.device)
    for rows in stream.row_blocks():
        resolved = resolve(_block(inputs, rows, compute), spec, scalars)
        if reduction is not None or spec.kl_mean:
            elementwise = kl_of(resolved)
            if kl_mean is not None:
                kl_mean += batch_sum(elementwise)
            if spec.kernel_free_bits:
                elementwise = at_least(elementwise, scalars.free_bits)
            if kl is not None and reduction is not None:
                kl[rows] = reduce_kl(elementwise, rowwise)
        for k in range(scalars.num_samples or 1) if outputs.z is not None else ():
            z, log_q, log_p = (
                None if output is None else (output if scalars.num_samples is None else output[k])[rows]
                for output in (outputs.z, outputs.log_q, outputs.log_p)
            )
            eps = stream.noise(rows, k)
            if scalars.temperature != 1.0:
                eps = eps * scalars.temperature
            drawn = torch.addcmul(resolved.mu, resolved.scale.std, eps)
            assert z is not None
            z.copy_(drawn)
            if log_q is not None and log_p is not None:
                for output, found in zip((log_q, log_p), log_probabilities(resolved, drawn, eps), strict=True):
                    output.copy_(found)
    if kl is not None and rowwise != reduction:
        total = sum_last(kl)
        kl = total if reduction == "sum" else total / mu.shape[0]
    return outputs._replace(kl=kl if reduction else None, kl_mean=None if kl_mean is None else kl_mean / mu.shape[0])


def _block(inputs: LatentInputs, rows: slice, dtype: torch.dtype) -> LatentInputs:
    """Some rows of all parameters, those that the batch shares as they are."""
    assert inputs.mu is not None
    whole = inputs.mu.shape

    def part(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return (tensor[rows] if tensor.shape == whole else tensor).to(dtype)

    mu, scale, prior_mu, prior_scale = (part(tensor) for tensor in inputs[:4])
    assert scale is not None
    return LatentInputs(mu, scale, prior_mu, prior_scale)


def _scale_gradient(
    scale: Scale, grad_std: Tensor | None, grad_logvar: Tensor | None, spec: LatentSpec, scalars: LatentScalars
) -> Tensor:
    """The chain rule from std and logvar to the parameter as given.

    A gradient that is None takes no part: at std = 0 its factor may be infinite.
    """
    parts = []
    smallest = 0.0 if scalars.floor > 0.0 else SMALL_STD
    if grad_std is not None:
        factors = {
            "logvar": lambda: 0.5 * scale.std,
            "logstd": lambda: scale.std,
            "var": lambda: 0.5 / scale.std,
            "softplus": lambda: sigmoid(scale.x),
        }
        parts.append(grad_std * factors[spec.scale]() if spec.scale in factors else grad_std)
    if grad_logvar is not None:
        by_x = {
            "logvar": lambda: grad_logvar,
            "logstd": lambda: 2.0 * grad_logvar,
            "std": lambda: _unless_0(grad_logvar, 2.0 * grad_logvar / scale.x),
            "var": lambda: _unless_0(grad_logvar, grad_logvar / scale.x),
            "softplus": lambda: 2.0 * grad_logvar / (scale.std + smallest) * (sigmoid(scale.x) + smallest),
        }
        parts.append(by_x[spec.scale]())
    grad = parts[0] if len(parts) == 1 else parts[0] + parts[1] if parts else torch.zeros_like(scale.x)
    if spec.clamp == "hard":
        return torch.where((scale.raw >= scalars.low) & (scale.raw <= scalars.high), grad, 0.0)
    if spec.clamp == "soft":
        return grad * tanh_slope(scale.raw / scalars.high)
    return grad


def _unless_0(gradient: Tensor, product: Tensor) -> Tensor:
    """A gradient of 0 takes no part, also where its factor is infinite."""
    return torch.where(gradient == 0.0, 0.0, product)


def grad_kl_elementwise(grad_kl: Tensor, mu: Tensor, reduction: str) -> Tensor:
    """The gradient of each coordinate's KL, expanded from that of its sum."""
    if reduction == "none":
        return grad_kl
    if reduction == "batchmean":
        grad_kl = grad_kl / mu.shape[0]
    if reduction in ("sum", "batchmean"):
        return grad_kl.expand(mu.shape)
    return grad_kl.reshape(*grad_kl.shape, *[1] * (mu.dim() - grad_kl.dim())).expand(mu.shape)


def latent_backward(
    grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, wants_prior: bool
) -> LatentGradients:
    gradients = empty_gradients(inputs, wants_prior=False)
    grad_mu, grad_scale = gradients[:2]
    if spec.packed_dim is not None and grad_mu is not None:
        grad_mu, grad_scale = split_packed(grad_mu, spec.packed_dim)
    inputs, spec = split_latent(inputs, spec)
    if inputs.mu is None:  # of z alone, whose gradient of logvar does not depend on mu
        inputs = inputs._replace(mu=inputs.scale)
    mu = inputs.mu
    assert mu is not None
    assert grad_scale is not None
    compute = compute_dtype(mu.dtype)
    # Sums over the blocks for a prior that the batch shares, or the gradient of each row; of its mu, then its scale.
    of_prior: list[Tensor] = []
    if wants_prior and inputs.prior_mu is not None and inputs.prior_scale is not None:
        of_prior = [mu.new_zeros(prior.shape, dtype=compute) for prior in (inputs.prior_mu, inputs.prior_scale)]
    of_kl = None
    if grads.kl is not None and spec.kernel_reduction is not None:
        of_kl = grad_kl_elementwise(grads.kl, mu, spec.kernel_reduction)
    drawn = grads.z is not None or grads.log_q is not None or grads.log_p is not None
    seed = inputs.seed if drawn else None
    stream = NoiseBlocks(seed, mu.shape, scalars.row_offset, compute, mu.device)
    for rows in stream.row_blocks():
        resolved = resolve(_block(inputs, rows, compute), spec, scalars)
        chain = _Chain(resolved, spec, scalars)
        if of_kl is not None:
            chain.add_kl(of_kl[rows])
        for k in range(scalars.num_samples or 1) if drawn else ():
            of_z, of_log_q, of_log_p = (
                None if grad is None else (grad if scalars.num_samples is None else grad[k])[rows].to(compute)
                for grad in (grads.z, grads.log_q, grads.log_p)
            )
            noise = stream.noise(rows, k) if seed is not None else None
            chain.add_draw(of_z, of_log_q, of_log_p, noise)
        if grad_mu is not None:
            grad_mu[rows] = chain.mu
        block_scale = chain.scale_gradient()
        grad_scale[rows] = block_scale
        if of_prior:
            for total, gradient in zip(of_prior, chain.prior_gradients(block_scale), strict=True):
                if total.shape == mu.shape:
                    total[rows] = gradient
                else:
                    total += sum_to_size(gradient, total.shape)
    if not of_prior:
        return gradients
    prior_mu, prior_scale = [total.to(mu.dtype) for total in of_prior]
    return gradients._replace(prior_mu=prior_mu, prior_scale=prior_scale)


class _Chain:
    """Gradients of one block: of mu, std, logvar and the prior, each None until something has reached it."""

    def __init__(self, resolved: Resolved, spec: LatentSpec, scalars: LatentScalars):
        self.resolved, self.spec, self.scalars = resolved, spec, scalars
        self.inverse = None if resolved.prior is None else torch.exp(-resolved.prior.logvar)
        self.mu: Tensor = torch.zeros_like(resolved.mu)
        self.std: Tensor | None = None
        self.logvar: Tensor | None = None
        self.prior_mu: Tensor = torch.zeros_like(resolved.mu)
        self.prior_logvar: Tensor | None = None

    def add_kl(self, grad: Tensor) -> None:
        resolved = self.resolved
        if self.spec.kernel_free_bits:
            grad = torch.where(kl_of(resolved) >= self.scalars.free_bits, grad, 0.0)
        of_difference = self._over_prior_var(grad * resolved.difference)
        of_ratio = 0.5 * grad * torch.expm1(resolved.log_ratio)
        self.mu = self.mu + of_difference
        self.logvar = _sum(self.logvar, of_ratio)
        self.prior_mu = self.prior_mu - of_difference
        self.prior_logvar = _sum(self.prior_logvar, -of_ratio - 0.5 * of_difference * resolved.difference)

    def add_draw(
        self, of_z: Tensor | None, of_log_q: Tensor | None, of_log_p: Tensor | None, eps: Tensor | None
    ) -> None:
        resolved = self.resolved
        if of_log_q is not None:
            self.logvar = _sum(self.logvar, -0.5 * _of_rows(of_log_q, resolved.mu))
        if eps is None or (of_z is None and of_log_p is None):
            return
        if self.scalars.temperature != 1.0:
            eps = eps * self.scalars.temperature
        of_drawn = of_z
        if of_log_p is not None:
            distance = resolved.mu + resolved.scale.std * eps
            if resolved.prior_mu is not None:
                distance = distance - resolved.prior_mu
            weight = _of_rows(of_log_p, resolved.mu)
            toward_prior = self._over_prior_var(weight * distance)
            of_drawn = -toward_prior if of_z is None else of_z - toward_prior
            self.prior_mu = self.prior_mu + toward_prior
            self.prior_logvar = _sum(self.prior_logvar, 0.5 * (toward_prior * distance - weight))
        assert of_drawn is not None
        self.mu = self.mu + of_drawn
        self.std = _sum(self.std, of_drawn * eps)

    def _over_prior_var(self, values: Tensor) -> Tensor:
        return values if self.inverse is None else values * self.inverse

    def scale_gradient(self) -> Tensor:
        gradient = _scale_gradient(self.resolved.scale, self.std, self.logvar, self.spec, self.scalars)
        return gradient.expand_as(self.resolved.mu)

    def prior_gradients(self, grad_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Of prior_mu and prior_scale; a residual adds what reaches mu and scale, as they are sums of both."""
        assert self.resolved.prior is not None
        of_scale = _scale_gradient(self.resolved.prior, None, self.prior_logvar, self.spec, self.scalars)
        of_scale = of_scale.expand_as(grad_scale)
        if self.spec.residual:
            return self.prior_mu + self.mu, of_scale + grad_scale
        return self.prior_mu, of_scale


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


def _of_rows(per_row: Tensor, like: Tensor) -> Tensor:
    return per_row.reshape(-1, *[1] * (like.dim() - 1))
