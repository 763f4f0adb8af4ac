"""Backward of the family of latents: `latents_forward` differentiated, with the words of `latents`.

With g the gradients that come in, and the sums over draws,

    d mu        g_kl m / std_p                      + sum of (g_z - g_log_p t / std_p)
    d std                                             sum of (g_z - g_log_p t / std_p) temperature eps
    d logvar    1/2 g_kl (exp(d) - 1)               - sum of 1/2 g_log_q
    d mu_p      -g_kl m / std_p                     + sum of g_log_p t / std_p
    d logvar_p  -1/2 g_kl (exp(d) - 1 + m^2)        + sum of 1/2 g_log_p (t^2 - 1)

and from std and logvar on by the chain rule, in `parameterisation`. Of a residual, mu_p and scale_p get what mu and
scale get as well.
"""

import triton
import triton.language as tl

from .functions import load, multiply_add
from .gaussian import ELEMENTWISE, MEAN, NO_KL, SUMS, positions
from .latents import (
    NO_PRIOR,
    event_of,
    kl_of,
    load_parameters,
    resolve,
    share,
    store_columns,
    store_tile,
    tile_at,
)
from .parameterisation import (
    gradient_of_raw,
    gradient_through_logvar,
    gradient_through_std,
    inverse_std_of,
    is_linear,
    ratio_of,
)
from .philox import noise_tile


@triton.jit
def latent_backward_kernel(
    grad_z_ptr,  # draws of (rows, event), strided; None without WITH_Z
    grad_kl_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows,) with stride grad_kl_outer for SUMS; () for MEAN
    grad_log_q_ptr,  # (draws, rows), strided; None without WITH_LOG_Q
    grad_log_p_ptr,  # (draws, rows), strided; None without WITH_LOG_P
    mu_ptr,  # (rows, event), strided
    scale_ptr,  # (rows, event), strided
    prior_mu_ptr,  # (rows, event), strided, or one row or one element of it; None without a prior
    prior_scale_ptr,  # likewise
    grad_mu_ptr,  # (rows, event), strided
    grad_scale_ptr,  # (rows, event), strided
    grad_prior_mu_ptr,  # (rows, event), strided, or for SUM_PRIOR_MU (programs a column, event); None if not wanted
    grad_prior_scale_ptr,  # likewise
    seed_ptr,  # one int64; None without noise
    rows,
    event_units,
    inner,
    row_offset,
    tiles_a_program,
    draws,
    grad_log_q_draw, grad_log_q_row,
    grad_log_p_draw, grad_log_p_row,
    grad_z_draw,  # from a draw to the next, divided by UNIT
    grad_z_row, grad_z_outer, grad_z_inner,
    grad_kl_row, grad_kl_outer, grad_kl_inner,
    mu_row, mu_outer, mu_inner,
    scale_row, scale_outer, scale_inner,
    prior_mu_row, prior_mu_outer, prior_mu_inner,
    prior_scale_row, prior_scale_outer, prior_scale_inner,
    grad_mu_row, grad_mu_outer, grad_mu_inner,
    grad_scale_row, grad_scale_outer, grad_scale_inner,
    grad_prior_mu_row, grad_prior_mu_outer, grad_prior_mu_inner,
    grad_prior_scale_row, grad_prior_scale_outer, grad_prior_scale_inner,
    WITH_Z: tl.constexpr,
    KL: tl.constexpr,
    WITH_LOG_Q: tl.constexpr,
    WITH_LOG_P: tl.constexpr,
    WANTS_PRIOR: tl.constexpr,
    SUM_PRIOR_MU: tl.constexpr,
    SUM_PRIOR_SCALE: tl.constexpr,
    PRIOR_MU: tl.constexpr,
    PRIOR_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    CLAMP: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    FLOOR: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    FREE_BITS: tl.constexpr,
    DOWN: tl.constexpr,
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
    WITH_PRIOR: tl.constexpr = PRIOR_MU != NO_PRIOR
    NOISE: tl.constexpr = WITH_Z or WITH_LOG_P
    WITH_LOGVAR: tl.constexpr = KL != NO_KL or WITH_LOG_Q
    begin, end = share(rows, event_units, tiles_a_program, DOWN, UNIT, WIDE, ROWS, COLUMNS)
    event = event_of(event_units, UNIT, WIDE)
    seed = tl.load(seed_ptr) if NOISE else 0
    if KL == MEAN:
        grad_kl = tl.load(grad_kl_ptr) / (rows * 1.0)  # a single row comes as a constant, which has no .to()
    mu_columns = tl.zeros((ROWS, COLUMNS), tl.float32)
    scale_columns = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, 1 if DOWN else COLUMNS, loop_unroll_factor=UNROLL):
        row, first = tile_at(step, DOWN, WIDE, ROWS, COLUMNS)
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < event) if MASKED else None
        inside = ((row < rows) & inside_event) if MASKED else None
        mu, raw, prior_mu, prior_raw = load_parameters(
            mu_ptr, scale_ptr, prior_mu_ptr, prior_scale_ptr, row, column,
            mu_row, mu_outer, mu_inner, scale_row, scale_outer, scale_inner,
            prior_mu_row, prior_mu_outer, prior_mu_inner, prior_scale_row, prior_scale_outer, prior_scale_inner,
            inner, inside, inside_event, PRIOR_MU, PRIOR_SCALE, SCALE, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
        _, raw, x, std, _, difference, log_ratio, prior_x, _, inverse = resolve(
            mu, raw, prior_mu, prior_raw, PRIOR_SCALE, SCALE, CLAMP, LOW, HIGH, FLOOR, RESIDUAL, HARDWARE
        )
        scaled = difference * inverse if WITH_PRIOR else difference
        # What reaches mu; std; logvar; the prior's mu times its std; and its logvar, less and more what is alike there.
        # Of -0: adding to that changes nothing, so that the compiler leaves it out.
        nothing = tl.full((ROWS, COLUMNS), -0.0, tl.float32)
        of_mu, of_std, of_logvar, toward, toward_logvar = nothing, nothing, nothing, nothing, nothing
        if KL != NO_KL:
            if KL == ELEMENTWISE:
                grad_kl_at = positions(row, column, grad_kl_row, grad_kl_outer, grad_kl_inner, inner, UNIT, TWO_DIMS)
                grad_kl = load(grad_kl_ptr + grad_kl_at, inside, MASKED, HARDWARE)
            if KL == SUMS:
                grad_kl = tl.load(grad_kl_ptr + row * grad_kl_outer, mask=row < rows, other=0.0)
            ratio, expm1 = ratio_of(std, log_ratio, inverse, SCALE, HARDWARE)
            of_kl = grad_kl
            if FREE_BITS > 0.0:
                of_kl = tl.where(kl_of(scaled, log_ratio, ratio, expm1, HARDWARE) >= FREE_BITS, of_kl, 0.0)
            of_scaled = of_kl * scaled
            of_mu = of_scaled * inverse if WITH_PRIOR else of_scaled
            of_logvar = 0.5 * (of_kl * expm1)
            if WANTS_PRIOR:
                toward = -of_scaled
                toward_logvar = -of_logvar - 0.5 * (of_scaled * scaled)
        ratio_to_prior = std * inverse if WITH_PRIOR else std
        for k in tl.range(0, draws if NOISE or WITH_LOG_Q else 0):
            if WITH_LOG_Q:
                at = tl.cast(k, tl.int64) * grad_log_q_draw + row * grad_log_q_row
                of_logvar -= 0.5 * tl.load(grad_log_q_ptr + at, mask=row < rows, other=0.0)
            if NOISE:
                eps = noise_tile(seed, row + row_offset, first, k, ROWS, COLUMNS, GROUP, HARDWARE)
                eps = eps * TEMPERATURE if TEMPERATURE != 1.0 else eps
            if WITH_Z:
                grad_z_at = positions(row, column, grad_z_row, grad_z_outer, grad_z_inner, inner, UNIT, TWO_DIMS)
                grad_z_at += tl.cast(k, tl.int64) * grad_z_draw * UNIT
                of_z = load(grad_z_ptr + grad_z_at, inside, MASKED, HARDWARE)
            if WITH_LOG_P:
                at = tl.cast(k, tl.int64) * grad_log_p_draw + row * grad_log_p_row
                weight = tl.load(grad_log_p_ptr + at, mask=row < rows, other=0.0)
                t = multiply_add(ratio_to_prior, eps, scaled, HARDWARE)
                of_t = weight * t
                of_log_p = of_t * inverse if WITH_PRIOR else of_t
                of_z = of_z - of_log_p if WITH_Z else -of_log_p
                if WANTS_PRIOR:
                    toward += of_t
                    toward_logvar += 0.5 * (of_t * t - weight)
            if NOISE:
                of_mu += of_z
                of_std = multiply_add(of_z, eps, of_std, HARDWARE)
        inverse_std = inverse_std_of(std, 0.0, SCALE, HARDWARE) if is_linear(SCALE) else 1.0
        grad_x = nothing
        if NOISE:
            grad_x += gradient_through_std(of_std, std, inverse_std, SCALE)
        if WITH_LOGVAR:
            grad_x += gradient_through_logvar(of_logvar, inverse_std, SCALE)
        grad_scale = gradient_of_raw(grad_x, raw, x, SCALE, CLAMP, LOW, HIGH, HARDWARE)
        store_tile(
            grad_mu_ptr, of_mu, row, column, grad_mu_row, grad_mu_outer, grad_mu_inner, inner, inside, UNIT, TWO_DIMS
        )
        store_tile(
            grad_scale_ptr, grad_scale, row, column, grad_scale_row, grad_scale_outer, grad_scale_inner, inner, inside,
            UNIT, TWO_DIMS
        )  # fmt: skip
        if WANTS_PRIOR:
            grad_prior_mu = toward * inverse
            grad_prior_x = gradient_through_logvar(toward_logvar, inverse, SCALE)
            grad_prior_scale = gradient_of_raw(grad_prior_x, prior_raw, prior_x, SCALE, CLAMP, LOW, HIGH, HARDWARE)
            if RESIDUAL:
                grad_prior_mu += of_mu
                grad_prior_scale += grad_scale
            if SUM_PRIOR_MU:
                mu_columns += tl.where(inside, grad_prior_mu, 0.0) if MASKED else grad_prior_mu
            else:
                store_tile(
                    grad_prior_mu_ptr, grad_prior_mu, row, column, grad_prior_mu_row, grad_prior_mu_outer,
                    grad_prior_mu_inner, inner, inside, UNIT, TWO_DIMS
                )  # fmt: skip
            if SUM_PRIOR_SCALE:
                scale_columns += tl.where(inside, grad_prior_scale, 0.0) if MASKED else grad_prior_scale
            else:
                store_tile(
                    grad_prior_scale_ptr, grad_prior_scale, row, column, grad_prior_scale_row, grad_prior_scale_outer,
                    grad_prior_scale_inner, inner, inside, UNIT, TWO_DIMS
                )  # fmt: skip
    if SUM_PRIOR_MU:
        store_columns(grad_prior_mu_ptr, mu_columns, event_units, UNIT, WIDE, COLUMNS)
    if SUM_PRIOR_SCALE:
        store_columns(grad_prior_scale_ptr, scale_columns, event_units, UNIT, WIDE, COLUMNS)
