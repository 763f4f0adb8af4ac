"""Forward of a latent: draws, KL and log probabilities. `latents` and `tiles` explain its words.

z      mu + temperature std eps
kl     1/2 (m^2 + (exp(d) - 1 - d))
log_q  -1/2 (sum of (temperature eps)^2, plus the same for all draws: sum of logvar + log 2 pi)
log_p  -1/2 (sum of t^2, plus the same for all draws: sum of logvar_p + log 2 pi)
"""

import triton
import triton.language as tl

from .functions import kl_terms, multiply_add
from .latents import kl_of, resolve
from .parameterisation import adds_up, harmless, ratio_of
from .philox import noise_tile
from .tiles import (
    ABSENT,
    ELEMENTWISE,
    NOT_WANTED,
    SUMS,
    event_size,
    filled,
    load_shared,
    load_tile,
    place_at,
    share,
    store_column_sums,
    store_row_sums,
    store_tile,
    zero_outside,
)

LOG_2_PI: tl.constexpr = tl.constexpr(1.8378770664093453)


@triton.jit
def halves(tile):
    """The first and the last columns of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def add_both(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit(
    do_not_specialize=["row_offset", "rows", "draws", "draws_a_program", "tiles", "tiles_a_program", "z_draw"],
    do_not_specialize_on_alignment=["seed_ptr"],
)
def latent_forward_kernel(
    mu_ptr,  # (rows, event), strided
    scale_ptr,  # (rows, event), strided
    prior_mu_ptr,  # (rows, event), strided, or one row or one element of it; None without a prior
    prior_scale_ptr,  # likewise
    z_ptr,  # draws of (rows, event), strided; None without WITH_Z
    kl_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows, programs a row) for SUMS; else None
    kl_columns_ptr,  # (programs a column, event) for KL_MEAN, else None
    log_q_ptr,  # (draws, rows, tiles) for LOG_PROBS, else None
    log_p_ptr,  # likewise
    seed_ptr,  # one int64; None without WITH_Z
    row_offset: tl.int64,
    temperature: tl.float32,
    low: tl.float32,  # of the hard clamp
    high: tl.float32,  # of the hard clamp; the bound of a soft one
    floor: tl.float32,  # of softplus
    free_bits: tl.float32,
    rows,
    draws,
    draws_a_program,
    tiles,  # of a row
    tiles_a_program,
    event_units,
    inner,
    z_draw,  # from a draw to the next, divided by UNIT
    mu_strides,
    scale_strides,
    prior_mu_strides,
    prior_scale_strides,
    z_strides,
    kl_strides,
    WITH_Z: tl.constexpr,
    SEVERAL_DRAWS: tl.constexpr,
    KL: tl.constexpr,
    KL_MEAN: tl.constexpr,
    LOG_PROBS: tl.constexpr,
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
    # Sums of the KL alone need not be put together before they are added, if outside of the masks there is a KL of 0.
    ZERO_OUTSIDE: tl.constexpr = not (TILES.mask_rows or TILES.mask_columns) or (
        adds_up(SCALE) and CLAMP == "none" and not WITH_PRIOR
    )
    PLAIN_SUMS: tl.constexpr = KL == SUMS and ZERO_OUTSIDE and not (FREE_BITS or KL_MEAN or TILES.reduce_rows)
    # Half as many registers hold the sums if one half of a tile is added after the other. Only of tiles of which each
    # of a program's 128 threads has columns in both halves: nothing moves between threads then.
    IN_HALVES: tl.constexpr = PLAIN_SUMS and PTX_LEVEL > 0 and TILES.columns >= 2 * 128 * TILES.vec
    first_draw = tl.program_id(2) * draws_a_program if SEVERAL_DRAWS else 0
    end_of_draws = tl.minimum(first_draw + draws_a_program, draws) if SEVERAL_DRAWS else 1
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    event = event_size(event_units, TILES)
    seed = tl.load(seed_ptr) if WITH_Z else 0
    large = halves(filled(0.0, TILES))[0] if IN_HALVES else filled(0.0, TILES)
    small = large
    sums_of_columns = filled(0.0, TILES)
    for step in tl.range(begin, end, 1 if TILES.reduce_rows else TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, event, inner, TILES)
        tile = at.first // TILES.columns
        mu = load_tile(mu_ptr, mu_strides, at, TILES)
        raw = load_tile(scale_ptr, scale_strides, at, TILES, harmless(SCALE))
        prior_mu, prior_raw = 0.0, 0.0
        if WITH_PRIOR:
            prior_mu = load_shared(prior_mu_ptr, prior_mu_strides, at, PRIOR_MU, TILES)
            prior_raw = load_shared(prior_scale_ptr, prior_scale_strides, at, PRIOR_SCALE, TILES, harmless(SCALE))
        mean, _, _, std, logvar, difference, log_ratio, _, prior_logvar, inverse = resolve(
            mu, raw, prior_mu, prior_raw, low, high, floor, PRIOR_SCALE, SCALE, CLAMP, RESIDUAL, PTX_LEVEL
        )
        scaled = difference * inverse if WITH_PRIOR else difference
        if KL != NOT_WANTED or KL_MEAN:
            ratio, expm1 = ratio_of(std, log_ratio, inverse, SCALE, PTX_LEVEL)
        if IN_HALVES:
            mu_0, mu_1 = halves(scaled)
            logvar_0, logvar_1 = halves(log_ratio)
            ratio_0, ratio_1 = halves(ratio)
            expm1_0, expm1_1 = halves(expm1)
            large, small = kl_terms(large, small, mu_0, logvar_0, ratio_0, expm1_0, PTX_LEVEL)
            large, small = kl_terms(large, small, mu_1, logvar_1, ratio_1, expm1_1, PTX_LEVEL)
        elif PLAIN_SUMS:
            large, small = kl_terms(large, small, scaled, log_ratio, ratio, expm1, PTX_LEVEL)
        elif KL != NOT_WANTED or KL_MEAN:
            kl = kl_of(scaled, log_ratio, ratio, expm1, PTX_LEVEL)
            if KL_MEAN:
                sums_of_columns += zero_outside(kl, at, TILES)
            if FREE_BITS:
                kl = tl.where(kl < free_bits, free_bits, kl)
            if KL == ELEMENTWISE:
                store_tile(kl_ptr, kl, kl_strides, at, TILES)
            if KL == SUMS and TILES.reduce_rows:
                row_sums = tl.sum(zero_outside(kl, at, TILES), axis=1, keep_dims=True)
                tl.store(kl_ptr + at.row * tiles + tile, row_sums, mask=at.row < rows)
            if KL == SUMS and not TILES.reduce_rows:
                large += 2.0 * zero_outside(kl, at, TILES)
        if WITH_Z:
            if LOG_PROBS:
                ratio_to_prior = std * inverse if WITH_PRIOR else std
                scaled = zero_outside(scaled, at, TILES)
                term_q = zero_outside(logvar + LOG_2_PI, at, TILES)
                term_p = zero_outside(prior_logvar + filled(LOG_2_PI, TILES), at, TILES)
            for k in tl.range(first_draw, end_of_draws):
                eps = noise_tile(seed, at.row + row_offset, at.first, k, temperature, TILES)
                z = multiply_add(std, eps, mean, PTX_LEVEL)
                draw_ptr = z_ptr + tl.cast(k, tl.int64) * z_draw * TILES.unit
                store_tile(draw_ptr, z, z_strides, at, TILES)
                if LOG_PROBS:
                    eps = zero_outside(eps, at, TILES)
                    t = multiply_add(ratio_to_prior, eps, scaled, PTX_LEVEL)
                    # Products alone would be fused with the additions to come, in each thread with its own ones.
                    terms = multiply_add(eps, eps, term_q, PTX_LEVEL), multiply_add(t, t, term_p, PTX_LEVEL)
                    sum_q, sum_p = tl.reduce(terms, 1, add_both, keep_dims=True)
                    sum_at = (tl.cast(k, tl.int64) * rows + at.row) * tiles + tile
                    tl.store(log_q_ptr + sum_at, -0.5 * sum_q, mask=at.row < rows)
                    tl.store(log_p_ptr + sum_at, -0.5 * sum_p, mask=at.row < rows)
    if KL == SUMS and not TILES.reduce_rows:
        store_row_sums(kl_ptr, (large + 0.5 * small) * 0.5, rows, begin, TILES)
    if KL_MEAN:
        store_column_sums(kl_columns_ptr, sums_of_columns, event_units, TILES)
