"""What the ops should compute: plain formulas for a given eps, differentiable by autograd, in their inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_and_kl(mu: Tensor, logvar: Tensor, eps: Tensor, reduction: str = "sample") -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * eps
    return z, reduce(0.5 * (mu**2 + torch.expm1(logvar) - logvar), reduction)


def eager(mu: Tensor, logvar: Tensor, eps: Tensor, reduction: str = "sample") -> tuple[Tensor, Tensor]:
    """The same as people write it, rounding errors included: what the ops' errors are measured against."""
    z = mu + torch.exp(0.5 * logvar) * eps
    return z, reduce((-0.5 * (1 + logvar - mu**2 - logvar.exp())).float(), reduction)


def reduce(kl: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return kl
    if reduction == "sample":
        return kl.reshape(kl.shape[0], -1).sum(1)
    return kl.sum() if reduction == "sum" else kl.sum() / kl.shape[0]


def assert_no_worse_than_eager(got: Tensor, exact: Tensor, eager: Tensor, floor: float) -> None:
    """The error is at most twice that of eager, plus ``floor`` relative to the larger of 1 and the value."""
    assert got.shape == exact.shape
    assert not got.isnan().any(), "an output was not written"
    allowed = 2 * (eager.double() - exact).abs().max() + floor * exact.abs().clamp_min(1.0)
    excess = (got.double() - exact).abs() - allowed
    worst = excess.argmax() if excess.numel() else None
    assert worst is None or excess.flatten()[worst] <= 0, (
        f"got {got.flatten()[worst].item()}, exact {exact.flatten()[worst].item()}, "
        f"eager {eager.flatten()[worst].item()}"
    )
