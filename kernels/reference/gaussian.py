"""Sampling and KL of diagonal Gaussians against the standard normal, in plain PyTorch, block by block.

    z  = mu + exp(logvar/2) eps                       kl = 1/2 (mu^2 + expm1(logvar) - logvar)        (per coordinate)
    d mu = g_z + g_kl mu                              d logvar = 1/2 (g_z exp(logvar/2) eps + g_kl expm1(logvar))

Kingma & Welling, arXiv 1312.6114, equation 10 and appendix B. Arithmetic is float64 for float64 tensors, else float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import Blocks
from .scratch import scratch


def forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, row_offset: int, reduction: str | None
) -> tuple[Tensor | None, Tensor | None]:
    mu_rows, logvar_rows = _matrix(mu), _matrix(logvar)
    rows, event = mu_rows.shape
    stream = Blocks(seed, rows, event, row_offset, mu.dtype, mu.device)
    z = None if seed is None else torch.empty_like(mu)
    elementwise = torch.empty_like(mu, dtype=stream.dtype) if reduction == "none" else None
    z_rows = None if z is None else _matrix_to_write(z)
    elementwise_rows = None if elementwise is None else _matrix_to_write(elementwise)
    sums = torch.zeros(mu.shape[0], dtype=stream.dtype, device=mu.device)
    for block in stream:
        block_mu, block_logvar = mu_rows[block].to(stream.dtype), logvar_rows[block].to(stream.dtype)
        result = scratch("result", block_mu.shape, stream.dtype, mu.device)
        if z_rows is not None:
            std = torch.mul(block_logvar, 0.5, out=result).exp_()
            torch.addcmul(block_mu, std, stream.noise(*block), out=z_rows[block])
        if reduction is not None:
            # expm1(x) >= x holds for exact values; the clamp keeps it so when expm1 is rounded down.
            kl = torch.expm1(block_logvar, out=result).sub_(block_logvar).clamp_min_(0.0)
            kl.addcmul_(block_mu, block_mu)
            if elementwise_rows is not None:
                torch.mul(kl, 0.5, out=elementwise_rows[block])
            else:
                sums[block[0]] += kl.sum(1)
    if z is not None and z_rows is not None:
        _bring_home(z, z_rows)
    if elementwise is not None and elementwise_rows is not None:
        _bring_home(elementwise, elementwise_rows)
    return z, elementwise if reduction == "none" else _reduced(sums.mul_(0.5), reduction)


def backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    seed: Tensor | None,
    row_offset: int,
    reduction: str | None,
    out: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:
    logvar_rows = _matrix(logvar)
    rows, event = logvar_rows.shape
    stream = Blocks(seed, rows, event, row_offset, logvar.dtype, logvar.device)
    grad_mu, grad_logvar = out or (None if mu is None else torch.empty_like(mu), torch.empty_like(logvar))
    grad_logvar_rows = _matrix_to_write(grad_logvar)
    if grad_z is not None:
        grad_z_rows = _matrix(grad_z)
    if grad_kl is not None and mu is not None and grad_mu is not None:
        grad_mu_rows = _matrix_to_write(grad_mu)
        grad_kl_rows, mu_rows = _grad_kl_matrix(grad_kl, logvar_rows, reduction), _matrix(mu)
    for block in reversed(stream):
        block_logvar = logvar_rows[block].to(stream.dtype)
        from_z, from_kl = (scratch(name, block_logvar.shape, stream.dtype, logvar.device) for name in ("z", "kl"))
        if grad_z is not None:
            block_grad_z = grad_z_rows[block].to(stream.dtype)
            std = torch.mul(block_logvar, 0.5, out=from_kl).exp_()
            torch.mul(std, stream.noise(*block), out=from_z).mul_(block_grad_z)
            if grad_kl is None:
                torch.mul(from_z, 0.5, out=grad_logvar_rows[block])
        if grad_kl is not None:
            block_grad_kl = grad_kl_rows[block].to(stream.dtype)
            block_mu = mu_rows[block].to(stream.dtype)
            if grad_z is None:
                expm1 = torch.expm1(block_logvar, out=from_kl)
                torch.mul(expm1.mul_(block_grad_kl), 0.5, out=grad_logvar_rows[block])
                torch.mul(block_mu, block_grad_kl, out=grad_mu_rows[block])
            else:
                expm1 = std.square_().sub_(1.0)  # as good as the rest of this sum, and cheaper than expm1 itself
                torch.mul(from_z.addcmul_(expm1, block_grad_kl), 0.5, out=grad_logvar_rows[block])
                torch.addcmul(block_grad_z, block_mu, block_grad_kl, out=grad_mu_rows[block])
    if grad_kl is not None and grad_mu is not None:
        _bring_home(grad_mu, grad_mu_rows)
    _bring_home(grad_logvar, grad_logvar_rows)
    return grad_mu, grad_logvar


def _reduced(sums: Tensor, reduction: str | None) -> Tensor | None:
    if reduction is None:
        return None
    if reduction == "sum":
        return sums.sum()
    return sums.mean() if reduction == "batchmean" else sums


def _matrix(tensor: Tensor) -> Tensor:
    """(rows, event); a copy where the strides demand one."""
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def _grad_kl_matrix(grad_kl: Tensor, logvar_rows: Tensor, reduction: str | None) -> Tensor:
    """The gradient of each coordinate's KL: that of its sum, wherever it was summed into."""
    if reduction == "none":
        return _matrix(grad_kl)
    if reduction == "batchmean":
        grad_kl = grad_kl / logvar_rows.shape[0]
    return grad_kl.reshape(-1, 1).expand(logvar_rows.shape)


def _matrix_to_write(tensor: Tensor) -> Tensor:
    """(rows, event) to write ``tensor`` through: a view of it, or memory of its own where the strides allow none."""
    shape = tensor.shape[0], math.prod(tensor.shape[1:])
    try:
        return tensor.view(shape)
    except RuntimeError:
        return tensor.new_empty(shape)


def _bring_home(tensor: Tensor, matrix: Tensor) -> None:
    if matrix.data_ptr() != tensor.data_ptr():
        tensor.copy_(matrix.view(tensor.shape))
