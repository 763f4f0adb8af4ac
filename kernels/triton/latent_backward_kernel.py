"""Backward of a latent: `latent_forward_kernel` differentiated. `latents` and `tiles` explain its words.

With g the gradients that come in, and the sums over draws,

    d mu        g_kl m / std_p                      + sum of (g_z - g_log_p t / std_p)
    d std                                             sum of (g_z - g_log_p t / std_p) temperature eps
    d logvar    1/2 g_kl (exp(d) - 1)               - sum of 1/2 g_log_q
    d mu_p      -g_kl m / std_p                     + sum of g_log_p t / std_p
    d logvar_p  -1/2 g_kl (exp(d) - 1 + m^2)        + sum of 1/2 g_log_p (t^2 - 1)

and from std and logvar on by the chain rule, in `parameterisation`. Of a residual, mu_p and scale_p get what mu and
scale get as well. Where only g_z is given, d mu is g_z: mu is not read then, nor its gradient written.
"""

import triton
import triton.language as tl

from .functions import multiply_add
from .latents import kl_of, resolve
from .parameterisation import (
    gradient_of_raw,
    gradient_through_logvar,
    gradient_through_std,
    harmless,
    inverse_std_of,
    is_linear,
    ratio_of,
)
from .philox import noise_tile
from .tiles import (
    ABSENT,
    ELEMENTWISE,
    MEAN,
    NOT_WANTED,
    SUMS,
    event_size,
    filled,
    load_row_gradient,
    load_shared,
    load_tile,
    place_at,
    share,
    store_column_sums,
    store_gradient,
    store_tile,
    tile_at,
)


@triton.jit(
    do_not_specialize=[
        "row_offset", "rows", "draws", "tiles_a_program", "grad_z_draw", "grad_log_q_draw", "grad_log_p_draw"
    ],
    do_not_specialize_on_alignment=["seed_ptr"],
)  # fmt: skip
def latent_backward_kernel(
    grad_z_ptr,  # draws of (rows, event), strided; None without WITH_Z
    grad_kl_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows,) for SUMS, of an outer stride; () for MEAN
    grad_log_q_ptr,  # (draws, rows), strided; None without WITH_LOG_Q
    grad_log_p_ptr,  # (draws, rows), strided; None without WITH_LOG_P
    mu_ptr,  # (rows, event), strided; None if its gradient is grad_z
    scale_ptr,  # (rows, event), strided
    prior_mu_ptr,  # (rows, event), strided, or one row or one element of it; None without a prior
    prior_scale_ptr,  # likewise
    grad_mu_ptr,  # (rows, event), strided; None if it is grad_z
    grad_scale_ptr,  # (rows, event), strided
    grad_prior_mu_ptr,  # (rows, event), strided, or for SUM_PRIOR_MU (programs a column, event); None if not wanted
    grad_prior_scale_ptr,  # likewise
    seed_ptr,  # one int64; None without noise
    row_offset: tl.int64,
    temperature: tl.float32,
    low: tl.float32,  # of the hard clamp
    high: tl.float32,  # of the hard clamp; the bound of a soft one
    floor: tl.float32,  # of softplus
    free_bits: tl.float32,
    rows,
    draws,
    tiles_a_program,
    event_units,
    inner,
    grad_log_q_draw,  # from a draw to the next
    grad_log_p_draw,
    grad_z_draw,  # likewise, divided by UNIT
    grad_log_q_row,
    grad_log_p_row,
    grad_z_strides,
    grad_kl_strides,
    mu_strides,
    scale_strides,
    prior_mu_strides,
    prior_scale_strides,
    grad_mu_strides,
    grad_scale_strides,
    grad_prior_mu_strides,
    grad_prior_scale_strides,
    WITH_Z: tl.constexpr,
    SEVERAL_DRAWS: tl.constexpr,
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
    RESIDUAL: tl.constexpr,
    FREE_BITS: tl.constexpr,
    TILES: tl.constexpr,
):
    PTX_LEVEL: tl.constexpr = TILES.ptx_level
    WITH_PRIOR: tl.constexpr = PRIOR_MU != ABSENT
    NOISE: tl.constexpr = WITH_Z or WITH_LOG_P
    WITH_LOGVAR: tl.constexpr = KL != NOT_WANTED or WITH_LOG_Q
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    event = event_size(event_units, TILES)
    seed = tl.load(seed_ptr) if NOISE else 0
    if KL == MEAN or (KL == SUMS and not TILES.reduce_rows):  # the same for all tiles
        rows_here = tile_at(begin, TILES)[0]
        grad_kl = load_row_gradient(grad_kl_ptr, grad_kl_strides, rows_here, rows, KL, TILES)
    mu_columns = filled(0.0, TILES)
    scale_columns = filled(0.0, TILES)
    for step in tl.range(begin, end, 1 if TILES.reduce_rows else TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, event, inner, TILES)
        mu, prior_mu, prior_raw = 0.0, 0.0, 0.0
        if mu_ptr is not None:
            mu = load_tile(mu_ptr, mu_strides, at, TILES)
        raw = load_tile(scale_ptr, scale_strides, at, TILES, harmless(SCALE))
        if WITH_PRIOR:
            prior_mu = load_shared(prior_mu_ptr, prior_mu_strides, at, PRIOR_MU, TILES)
            prior_raw = load_shared(prior_scale_ptr, prior_scale_strides, at, PRIOR_SCALE, TILES, harmless(SCALE))
        _, raw, x, std, _, difference, log_ratio, prior_x, _, inverse = resolve(
            mu, raw, prior_mu, prior_raw, low, high, floor, PRIOR_SCALE, SCALE, CLAMP, RESIDUAL, PTX_LEVEL
        )
        scaled = difference * inverse if WITH_PRIOR else difference
        # What reaches mu; std; logvar; the prior's mu times its std; and its logvar, less and more what is alike there.
        # Of -0: adding to that changes nothing, so that the compiler leaves it out.
        nothing = filled(-0.0, TILES)
        of_mu, of_std, of_logvar, toward, toward_logvar = nothing, nothing, nothing, nothing, nothing
        if KL != NOT_WANTED:
            if KL == ELEMENTWISE:
                grad_kl = load_tile(grad_kl_ptr, grad_kl_strides, at, TILES)
            if KL == SUMS and TILES.reduce_rows:
                grad_kl = load_row_gradient(grad_kl_ptr, grad_kl_strides, at.row, rows, KL, TILES)
            ratio, expm1 = ratio_of(std, log_ratio, inverse, SCALE, PTX_LEVEL)
            of_kl = grad_kl
            if FREE_BITS:
                of_kl = tl.where(kl_of(scaled, log_ratio, ratio, expm1, PTX_LEVEL) >= free_bits, of_kl, 0.0)
            of_scaled = of_kl * scaled
            of_mu = of_scaled * inverse if WITH_PRIOR else of_scaled
            of_logvar = 0.5 * (of_kl * expm1)
            if WANTS_PRIOR:
                toward = -of_scaled
                toward_logvar = -of_logvar - 0.5 * (of_scaled * scaled)
        ratio_to_prior = std * inverse if WITH_PRIOR else std
        for k in tl.range(0, (draws if SEVERAL_DRAWS else 1) if NOISE or WITH_LOG_Q else 0):
            if WITH_LOG_Q:
                row_at = tl.cast(k, tl.int64) * grad_log_q_draw + at.row * grad_log_q_row
                of_logvar -= 0.5 * tl.load(grad_log_q_ptr + row_at, mask=at.row < rows, other=0.0)
            if NOISE:
                eps = noise_tile(seed, at.row + row_offset, at.first, k, temperature, TILES)
            if WITH_Z:
                draw_ptr = grad_z_ptr + tl.cast(k, tl.int64) * grad_z_draw * TILES.unit
                of_z = load_tile(draw_ptr, grad_z_strides, at, TILES)
            if WITH_LOG_P:
                row_at = tl.cast(k, tl.int64) * grad_log_p_draw + at.row * grad_log_p_row
                weight = tl.load(grad_log_p_ptr + row_at, mask=at.row < rows, other=0.0)
                t = multiply_add(ratio_to_prior, eps, scaled, PTX_LEVEL)
                of_t = weight * t
                of_log_p = of_t * inverse if WITH_PRIOR else of_t
                of_z = of_z - of_log_p if WITH_Z else -of_log_p
                if WANTS_PRIOR:
                    toward += of_t
                    toward_logvar += 0.5 * (of_t * t - weight)
            if NOISE:
                of_mu += of_z
                of_std = multiply_add(of_z, eps, of_std, PTX_LEVEL)
        inverse_std = inverse_std_of(std, 0.0, SCALE, PTX_LEVEL) if is_linear(SCALE) else 1.0
        grad_x = nothing
        if NOISE:
            grad_x += gradient_through_std(of_std, std, inverse_std, x, SCALE, PTX_LEVEL)
        if WITH_LOGVAR:
            grad_x += gradient_through_logvar(of_logvar, inverse_std, x, SCALE, PTX_LEVEL)
        grad_scale = gradient_of_raw(grad_x, raw, low, high, CLAMP, PTX_LEVEL)
        if grad_mu_ptr is not None:
            store_tile(grad_mu_ptr, of_mu, grad_mu_strides, at, TILES)
        store_tile(grad_scale_ptr, grad_scale, grad_scale_strides, at, TILES)
        if WANTS_PRIOR:
            grad_prior_mu, grad_prior_scale = nothing, nothing
            if KL != NOT_WANTED or WITH_LOG_P:
                grad_prior_mu = toward * inverse
                grad_prior_x = gradient_through_logvar(toward_logvar, inverse, prior_x, SCALE, PTX_LEVEL)
                grad_prior_scale = gradient_of_raw(grad_prior_x, prior_raw, low, high, CLAMP, PTX_LEVEL)
            if RESIDUAL:
                grad_prior_mu += of_mu
                grad_prior_scale += grad_scale
            mu_columns = store_gradient(
                grad_prior_mu_ptr, grad_prior_mu, mu_columns, grad_prior_mu_strides, at, SUM_PRIOR_MU, TILES
            )
            scale_columns = store_gradient(
                grad_prior_scale_ptr, grad_prior_scale, scale_columns, grad_prior_scale_strides, at, SUM_PRIOR_SCALE,
                TILES
            )  # fmt: skip
    if SUM_PRIOR_MU:
        store_column_sums(grad_prior_mu_ptr, mu_columns, event_units, TILES)
    if SUM_PRIOR_SCALE:
        store_column_sums(grad_prior_scale_ptr, scale_columns, event_units, TILES)
