"""Whether what is about to be timed computes the latent op: z, KL and both gradients against float64 formulas.

    z = mu + exp(logvar/2) eps    kl = 1/2 sum(mu^2 + expm1(logvar) - logvar)
    d mu = g_z + g_kl mu          d logvar = 1/2 (g_z (z - mu) + g_kl expm1(logvar))

The last line needs no eps but z itself, and so holds for contenders that draw in their own way. Of these, eps is
(z - mu) exp(-logvar/2) and must look standard normal; of fastvae's it is the noise stream of the seed that it drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

import fastvae
from fastvae.arguments import seed_tensor

Op = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Allowed error, relative to the sum of the absolute terms: what plain PyTorch needs, which rounds after every step.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

# Rows are checked in blocks of so many elements, for float64 copies of everything would not fit.
BLOCK_ELEMENTS = 2**22


class Disagreement(RuntimeError):
    """A contender does not compute the latent op."""


class Tensors(NamedTuple):
    """What a step works on; all (batch, latent) but grad_kl, (batch,). mu and logvar want gradients."""

    mu: Tensor
    logvar: Tensor
    grad_z: Tensor
    grad_kl: Tensor

    def gradients(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        z, kl = outputs
        return torch.autograd.grad((z, kl), (self.mu, self.logvar), (self.grad_z, self.grad_kl.to(kl.dtype)))


def make_tensors(batch: int, latent: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    generator = torch.Generator(device=device).manual_seed(batch * 1_000_003 + latent)
    mu, logvar, grad_z = (
        (0.5 * torch.randn(batch, latent, device=device, generator=generator)).to(dtype) for _ in range(3)
    )
    grad_kl = torch.rand(batch, device=device, generator=generator)
    return Tensors(mu.requires_grad_(), logvar.requires_grad_(), grad_z, grad_kl)


def check(contenders: Mapping[str, Op], tensors: Tensors, *, seed: int = 0) -> None:
    """Raise Disagreement, naming contender and output, unless each computes the latent op and draws anew each time.

    "fastvae" must moreover use the noise stream, and the stream keep its contract. Torch's generator is left reseeded.
    """
    for name, op in contenders.items():
        torch.manual_seed(seed)
        drawn = seed_tensor(None, None, tensors.mu.device)
        torch.manual_seed(seed)
        outputs = op(tensors.mu, tensors.logvar)
        results = [output.detach() for output in (*outputs, *tensors.gradients(outputs))]
        _check_values(name, results, tensors, drawn if name == "fastvae" else None)
        if torch.equal(op(tensors.mu, tensors.logvar)[0], results[0]):
            raise Disagreement(f"{name}: a second call draws the same z")


def _check_values(name: str, results: list[Tensor], tensors: Tensors, seed: Tensor | None) -> None:
    z, kl, grad_mu, grad_logvar = results
    tolerance = TOLERANCE[tensors.mu.dtype]
    count, total, squares = z.numel(), 0.0, 0.0
    for first, rows in _blocks(tensors.mu):
        m, v, gz = (tensor.detach()[rows].double() for tensor in tensors[:3])
        g = tensors.grad_kl[rows].double().unsqueeze(1)
        std, expm1 = torch.exp(0.5 * v), torch.expm1(v)
        if seed is None:
            draw = z[rows].double()
            eps = (draw - m) / std
            total, squares = total + eps.sum().item(), squares + eps.square().sum().item()
        else:
            eps = _stream(seed, m, first)
            draw = m + std * eps
            _compare(name, "z", first, z[rows], draw, m.abs() + (std * eps).abs(), tolerance)
        terms = 0.5 * (m * m + expm1 + 1 + v.abs())
        _compare(name, "kl", first, kl[rows], 0.5 * (m * m + expm1 - v).sum(1), terms.sum(1), tolerance)
        _compare(name, "grad_mu", first, grad_mu[rows], gz + g * m, gz.abs() + (g * m).abs(), tolerance)
        exact = 0.5 * (gz * (draw - m) + g * expm1)
        scale = gz.abs() * (draw.abs() + m.abs()) + g * (expm1 + 1 + v.abs())
        _compare(name, "grad_logvar", first, grad_logvar[rows], exact, scale, tolerance)
    if seed is None:
        mean, variance = total / count, squares / count
        # Six standard errors, and what rounding z adds.
        if (
            not abs(mean) < 6 / math.sqrt(count) + tolerance
            or not abs(variance - 1) < 6 * math.sqrt(2 / count) + tolerance
        ):
            raise Disagreement(f"{name}: the noise in z has mean {mean:.4g} and variance {variance:.4g}, not 0 and 1")


def _blocks(tensor: Tensor) -> Iterator[tuple[int, slice]]:
    batch, latent = tensor.shape
    rows = max(1, BLOCK_ELEMENTS // latent)
    for first in range(0, batch, rows):
        yield first, slice(first, min(first + rows, batch))


def _stream(seed: Tensor, like: Tensor, first: int) -> Tensor:
    """The noise of some rows, in float64, after a look whether the float32 noise keeps the contract of the stream."""
    shape = tuple(like.shape)
    single = fastvae.noise(seed, shape, row_offset=first).double()
    with fastvae.use_backend("reference"):
        exact = fastvae.noise(seed, shape, row_offset=first, dtype=torch.float64)
    error = (single - exact).abs()
    far = (error > 1e-5).sum().item()
    if not error.max().item() <= 2e-4 or far > math.ceil(1e-4 * error.numel()):
        raise Disagreement(
            f"fastvae: the noise of rows from {first} on is off by {error.max().item():.3g}, by more than 1e-5 "
            f"in {far} of {error.numel()}"
        )
    return single


def _compare(name: str, output: str, first: int, got: Tensor, exact: Tensor, scale: Tensor, tolerance: float) -> None:
    # A NaN is neither less nor more than what is allowed: it must not pass.
    wrong = ~((got.double() - exact).abs() <= tolerance * scale.clamp_min(1e-3))
    if wrong.any():
        index = wrong.nonzero()[0].tolist()
        came, expected = got[tuple(index)].item(), exact[tuple(index)].item()
        index[0] += first
        raise Disagreement(
            f"{name}: {output}{index} is {came:.6g}, expected {expected:.6g}; {int(wrong.sum())} such values"
        )
