"""Sampling and KL of diagonal Gaussians against the standard normal: one kernel forward, one backward.

    z  = mu + exp(logvar/2) eps                  kl = 1/2 (mu^2 + expm1(logvar) - logvar)
    d mu = g_z + g_kl mu                         d logvar = 1/2 (g_z exp(logvar/2) eps + g_kl expm1(logvar))

A program works on ROWS rows; it goes through its share of the columns (`columns_a_program`), COLUMNS at a time.
Coordinate d of row b stands at  b * row_stride + (d // inner) * outer_stride + (d % inner) * inner_stride.
"""

import triton
import triton.language as tl

from .philox import noise_tile

# What becomes of the KL.
NO_KL: tl.constexpr = tl.constexpr(0)
ELEMENTWISE: tl.constexpr = tl.constexpr(1)
SUMS: tl.constexpr = tl.constexpr(2)  # forward: a sum per row and program; backward: a gradient per row
MEAN: tl.constexpr = tl.constexpr(3)  # backward only: one gradient, divided by the rows

HALF_LOG2_E: tl.constexpr = tl.constexpr(0.5 * 1.4426950408889634)


@triton.jit
def scale_of(logvar):
    """exp(logvar/2), exp(logvar) - 1, exp(logvar) - 1 - logvar; the last two by a polynomial where they would cancel.

    exp(x) - 1 - x = x^2 T(x) for |x| < 1/2, T a minimax polynomial of relative error 2.4e-8.
    """
    std = tl.exp2(logvar * HALF_LOG2_E)
    variance_minus_1 = std * std - 1.0
    t = 0.0013981998 + logvar * 0.00019875629
    t = 0.008333452 + logvar * t
    t = 0.041665796 + logvar * t
    t = 0.16666666 + logvar * t
    t = 0.5 + logvar * t
    excess = logvar * logvar * t
    small = tl.abs(logvar) < 0.5
    return std, tl.where(small, excess + logvar, variance_minus_1), tl.where(small, excess, variance_minus_1 - logvar)


@triton.jit
def positions(row, column, row_stride, outer_stride, inner_stride, inner, TWO_DIMS: tl.constexpr):
    """Element offsets (int64) of a tile; TWO_DIMS where the event is not one run of evenly spaced coordinates."""
    if TWO_DIMS:
        wide = column.to(tl.int64)
        return row * row_stride + (wide // inner) * outer_stride + (wide % inner) * inner_stride
    return row * row_stride + column.to(tl.int64) * inner_stride


@triton.jit
def forward_kernel(
    mu_ptr,  # (rows, event), strided; None to write the noise itself to z
    logvar_ptr,  # (rows, event), strided
    z_ptr,  # (rows, event), strided; None without WITH_Z
    kl_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows, programs a row) for SUMS; else None
    seed_ptr,  # one int64; None without WITH_Z
    rows,
    event,
    inner,
    row_offset,
    columns_a_program,
    mu_row, mu_outer, mu_inner,
    logvar_row, logvar_outer, logvar_inner,
    z_row, z_outer, z_inner,
    kl_row, kl_outer, kl_inner,
    WITH_POSTERIOR: tl.constexpr,  # False: noise alone
    WITH_Z: tl.constexpr,
    KL: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    begin = tl.program_id(1) * columns_a_program
    end = tl.minimum(begin + columns_a_program, event)
    if WITH_Z:
        seed = tl.load(seed_ptr)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (column < end)
        if WITH_POSTERIOR:
            mu_at = mu_ptr + positions(row, column, mu_row, mu_outer, mu_inner, inner, TWO_DIMS)
            logvar_at = logvar_ptr + positions(row, column, logvar_row, logvar_outer, logvar_inner, inner, TWO_DIMS)
            mu = tl.load(mu_at, mask=inside, other=0.0).to(tl.float32)
            logvar = tl.load(logvar_at, mask=inside, other=0.0).to(tl.float32)
            std, _, excess = scale_of(logvar)
        if WITH_Z:
            eps = noise_tile(seed, row + row_offset, first, ROWS, COLUMNS, GROUP)
            z = mu + std * eps if WITH_POSTERIOR else eps
            z_at = z_ptr + positions(row, column, z_row, z_outer, z_inner, inner, TWO_DIMS)
            tl.store(z_at, z.to(z_ptr.dtype.element_ty), mask=inside)
        if KL == ELEMENTWISE:
            kl_at = kl_ptr + positions(row, column, kl_row, kl_outer, kl_inner, inner, TWO_DIMS)
            tl.store(kl_at, (mu * mu + excess) * 0.5, mask=inside)
        if KL == SUMS:
            total += mu * mu + excess  # 0 outside, where mu and logvar are 0
    if KL == SUMS:
        row_sum = tl.sum(total, axis=1, keep_dims=True) * 0.5
        tl.store(kl_ptr + row * tl.num_programs(1) + tl.program_id(1), row_sum, mask=row < rows)


@triton.jit
def backward_kernel(
    grad_z_ptr,  # (rows, event), strided; None without WITH_Z
    grad_kl_ptr,  # (rows, event), strided, for ELEMENTWISE; strided by row for SUMS; one element for MEAN
    mu_ptr,  # (rows, event), strided; None for NO_KL
    logvar_ptr,  # (rows, event), strided
    grad_mu_ptr,  # (rows, event), strided; None for NO_KL
    grad_logvar_ptr,  # (rows, event), strided
    seed_ptr,  # one int64; None without WITH_Z
    rows,
    event,
    inner,
    row_offset,
    columns_a_program,
    grad_z_row, grad_z_outer, grad_z_inner,
    grad_kl_row, grad_kl_outer, grad_kl_inner,
    mu_row, mu_outer, mu_inner,
    logvar_row, logvar_outer, logvar_inner,
    grad_mu_row, grad_mu_outer, grad_mu_inner,
    grad_logvar_row, grad_logvar_outer, grad_logvar_inner,
    WITH_Z: tl.constexpr,
    KL: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    begin = tl.program_id(1) * columns_a_program
    end = tl.minimum(begin + columns_a_program, event)
    if WITH_Z:
        seed = tl.load(seed_ptr)
    if KL == SUMS:
        grad_kl = tl.load(grad_kl_ptr + row * grad_kl_row, mask=row < rows, other=0.0)
    if KL == MEAN:
        grad_kl = tl.load(grad_kl_ptr) / rows.to(tl.float32)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (column < end)
        logvar_at = logvar_ptr + positions(row, column, logvar_row, logvar_outer, logvar_inner, inner, TWO_DIMS)
        logvar = tl.load(logvar_at, mask=inside, other=0.0).to(tl.float32)
        std, expm1, _ = scale_of(logvar)
        if WITH_Z:
            grad_z_at = grad_z_ptr + positions(row, column, grad_z_row, grad_z_outer, grad_z_inner, inner, TWO_DIMS)
            grad_z = tl.load(grad_z_at, mask=inside, other=0.0).to(tl.float32)
            eps = noise_tile(seed, row + row_offset, first, ROWS, COLUMNS, GROUP)
            grad_logvar = grad_z * std * eps
        if KL != NO_KL:
            mu_at = mu_ptr + positions(row, column, mu_row, mu_outer, mu_inner, inner, TWO_DIMS)
            mu = tl.load(mu_at, mask=inside, other=0.0).to(tl.float32)
            if KL == ELEMENTWISE:
                grad_kl_at = positions(row, column, grad_kl_row, grad_kl_outer, grad_kl_inner, inner, TWO_DIMS)
                grad_kl = tl.load(grad_kl_ptr + grad_kl_at, mask=inside, other=0.0)
            if WITH_Z:
                grad_mu = grad_z + grad_kl * mu
                grad_logvar += grad_kl * expm1
            else:
                grad_mu = grad_kl * mu
                grad_logvar = grad_kl * expm1
            grad_mu_at = positions(row, column, grad_mu_row, grad_mu_outer, grad_mu_inner, inner, TWO_DIMS)
            tl.store(grad_mu_ptr + grad_mu_at, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=inside)
        grad_logvar_at = positions(row, column, grad_logvar_row, grad_logvar_outer, grad_logvar_inner, inner, TWO_DIMS)
        tl.store(
            grad_logvar_ptr + grad_logvar_at, (grad_logvar * 0.5).to(grad_logvar_ptr.dtype.element_ty), mask=inside
        )
