"""Sampling and KL of diagonal Gaussians against the standard normal: one kernel forward, one backward.

    z  = mu + exp(logvar/2) eps                  kl = 1/2 (mu^2 + expm1(logvar) - logvar)
    d mu = g_z + g_kl mu                         d logvar = 1/2 (g_z exp(logvar/2) eps + g_kl expm1(logvar))

A program works on ROWS rows and goes through its share of their columns in tiles of COLUMNS, UNROLL at a time.
Coordinate d of row b stands at  b * row_stride + (d // inner) * outer_stride + (d % inner) * inner_stride;
the row strides and the event come divided by UNIT, so that the compiler knows what they are multiples of and uses
wide accesses.
Tiles are MASKED unless rows and columns divide evenly among them. GROUP and HARDWARE are explained in `philox`.
"""

import triton
import triton.language as tl

from .functions import kl_terms, load, multiply_add, scale_of
from .philox import noise_tile

# What becomes of the KL.
NO_KL: tl.constexpr = tl.constexpr(0)
ELEMENTWISE: tl.constexpr = tl.constexpr(1)
SUMS: tl.constexpr = tl.constexpr(2)  # forward: a sum per row and program; backward: a gradient per row
MEAN: tl.constexpr = tl.constexpr(3)  # backward only: one gradient, divided by the rows


@triton.jit
def positions(
    row, column, row_units, outer_stride, inner_stride, inner, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr
):  # fmt: skip
    """Element offsets (int64) of a tile; TWO_DIMS where the event is not one run of evenly spaced coordinates."""
    if TWO_DIMS:
        outer = column // inner  # 32 bits: a long division would cost more than all the rest
        within = (column - outer * inner).to(tl.int64)
        return row * row_units * UNIT + outer.to(tl.int64) * outer_stride + within * inner_stride
    return row * row_units * UNIT + column.to(tl.int64) * inner_stride


@triton.jit
def share_of_columns(
    event_units, tiles_a_program, UNIT: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Where the program's columns begin and end; WIDE (64 bits) for events that do not fit into 32."""
    program = tl.program_id(1)
    event = event_units * UNIT
    if WIDE:
        program = program.to(tl.int64)
        event = tl.cast(event_units, tl.int64) * UNIT
    return program * tiles_a_program * COLUMNS, tl.minimum((program + 1) * tiles_a_program * COLUMNS, event)


@triton.jit
def forward_kernel(
    mu_ptr,  # (rows, event), strided; None to write the noise itself to z
    logvar_ptr,  # (rows, event), strided
    z_ptr,  # (rows, event), strided; None without WITH_Z
    kl_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows, programs a row) for SUMS; else None
    seed_ptr,  # one int64; None without WITH_Z
    rows,
    event_units,
    inner,
    row_offset,
    tiles_a_program,
    draw,  # None for the first one
    mu_row, mu_outer, mu_inner,
    logvar_row, logvar_outer, logvar_inner,
    z_row, z_outer, z_inner,
    kl_row, kl_outer, kl_inner,
    WITH_POSTERIOR: tl.constexpr,  # False: noise alone
    WITH_Z: tl.constexpr,
    KL: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    UNROLL: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    begin, end = share_of_columns(event_units, tiles_a_program, UNIT, COLUMNS, WIDE)
    seed = tl.load(seed_ptr) if WITH_Z else 0
    large = tl.zeros((ROWS, COLUMNS), tl.float32)
    small = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside = ((row < rows) & (column < end)) if MASKED else None
        if WITH_POSTERIOR:
            mu_at = mu_ptr + positions(row, column, mu_row, mu_outer, mu_inner, inner, UNIT, TWO_DIMS)
            logvar_at = logvar_ptr + positions(
                row, column, logvar_row, logvar_outer, logvar_inner, inner, UNIT, TWO_DIMS
            )
            mu = load(mu_at, inside, MASKED, HARDWARE)
            logvar = load(logvar_at, inside, MASKED, HARDWARE)
            std, expm1 = scale_of(logvar, HARDWARE)
        if WITH_Z:
            eps = noise_tile(seed, row + row_offset, first, draw, ROWS, COLUMNS, GROUP, HARDWARE)
            z = multiply_add(std, eps, mu, HARDWARE) if WITH_POSTERIOR else eps
            z_at = z_ptr + positions(row, column, z_row, z_outer, z_inner, inner, UNIT, TWO_DIMS)
            tl.store(z_at, z.to(z_ptr.dtype.element_ty), mask=inside)
        if KL == ELEMENTWISE:
            zero = mu * 0.0  # not a constant: NaN in mu is NaN in the KL
            terms, small_terms = kl_terms(zero, zero, mu, logvar, std, expm1, HARDWARE)
            kl_at = kl_ptr + positions(row, column, kl_row, kl_outer, kl_inner, inner, UNIT, TWO_DIMS)
            tl.store(kl_at, (terms + 0.5 * small_terms) * 0.5, mask=inside)
        if KL == SUMS:  # nothing is added outside, where mu and logvar are 0
            large, small = kl_terms(large, small, mu, logvar, std, expm1, HARDWARE)
    if KL == SUMS:
        row_sum = tl.sum(large + 0.5 * small, axis=1, keep_dims=True) * 0.5
        tl.store(kl_ptr + row * tl.num_programs(1) + tl.program_id(1), row_sum, mask=row < rows)


@triton.jit
def backward_kernel(
    grad_z_ptr,  # (rows, event), strided; None without WITH_Z
    grad_kl_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows,) with stride grad_kl_outer for SUMS; () for MEAN
    mu_ptr,  # (rows, event), strided; None for NO_KL
    logvar_ptr,  # (rows, event), strided
    grad_mu_ptr,  # (rows, event), strided; None for NO_KL
    grad_logvar_ptr,  # (rows, event), strided
    seed_ptr,  # one int64; None without WITH_Z
    rows,
    event_units,
    inner,
    row_offset,
    tiles_a_program,
    grad_z_row, grad_z_outer, grad_z_inner,
    grad_kl_row, grad_kl_outer, grad_kl_inner,
    mu_row, mu_outer, mu_inner,
    logvar_row, logvar_outer, logvar_inner,
    grad_mu_row, grad_mu_outer, grad_mu_inner,
    grad_logvar_row, grad_logvar_outer, grad_logvar_inner,
    WITH_Z: tl.constexpr,
    KL: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    UNROLL: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    begin, end = share_of_columns(event_units, tiles_a_program, UNIT, COLUMNS, WIDE)
    seed = tl.load(seed_ptr) if WITH_Z else 0
    if KL == SUMS:
        grad_kl = tl.load(grad_kl_ptr + row * grad_kl_outer, mask=row < rows, other=0.0)
    if KL == MEAN:
        grad_kl = tl.load(grad_kl_ptr) / (rows * 1.0)  # a single row comes as a constant, which has no .to()
    for first in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside = ((row < rows) & (column < end)) if MASKED else None
        logvar_at = logvar_ptr + positions(row, column, logvar_row, logvar_outer, logvar_inner, inner, UNIT, TWO_DIMS)
        logvar = load(logvar_at, inside, MASKED, HARDWARE)
        std, expm1 = scale_of(logvar, HARDWARE)
        if WITH_Z:
            grad_z_at = grad_z_ptr + positions(
                row, column, grad_z_row, grad_z_outer, grad_z_inner, inner, UNIT, TWO_DIMS
            )
            grad_z = load(grad_z_at, inside, MASKED, HARDWARE)
            eps = noise_tile(seed, row + row_offset, first, None, ROWS, COLUMNS, GROUP, HARDWARE)
            grad_logvar = grad_z * std * eps
        if KL != NO_KL:
            mu_at = mu_ptr + positions(row, column, mu_row, mu_outer, mu_inner, inner, UNIT, TWO_DIMS)
            mu = load(mu_at, inside, MASKED, HARDWARE)
            if KL == ELEMENTWISE:
                grad_kl_at = positions(row, column, grad_kl_row, grad_kl_outer, grad_kl_inner, inner, UNIT, TWO_DIMS)
                grad_kl = load(grad_kl_ptr + grad_kl_at, inside, MASKED, HARDWARE)
            if WITH_Z:
                grad_mu = grad_z + grad_kl * mu
                grad_logvar += grad_kl * expm1
            else:
                grad_mu = grad_kl * mu
                grad_logvar = grad_kl * expm1
            grad_mu_at = positions(row, column, grad_mu_row, grad_mu_outer, grad_mu_inner, inner, UNIT, TWO_DIMS)
            tl.store(grad_mu_ptr + grad_mu_at, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=inside)
        grad_logvar_at = positions(
            row, column, grad_logvar_row, grad_logvar_outer, grad_logvar_inner, inner, UNIT, TWO_DIMS
        )
        grad_logvar = (grad_logvar * 0.5).to(grad_logvar_ptr.dtype.element_ty)
        tl.store(grad_logvar_ptr + grad_logvar_at, grad_logvar, mask=inside)
