"""Forward of the family of latents: draws, KL and log probabilities, with the words of `latents`.

z      mu + temperature std eps
kl     1/2 (m^2 + (exp(d) - 1 - d))
log_q  -1/2 (sum of (temperature eps)^2, plus the same for all draws: sum of logvar + log 2 pi)
log_p  -1/2 (sum of t^2, plus the same for all draws: sum of logvar_p + log 2 pi)
"""

import triton
import triton.language as tl

from .functions import kl_terms, multiply_add
from .gaussian import ELEMENTWISE, NO_KL, SUMS, positions
from .latents import (
    NO_PRIOR,
    event_of,
    kl_of,
    load_parameters,
    resolve,
    row_sums,
    share,
    store_columns,
    tile_at,
)
from .parameterisation import ratio_of
from .philox import noise_tile

LOG_2_PI: tl.constexpr = tl.constexpr(1.8378770664093453)


@triton.jit
def add_both(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
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
    rows,
    event_units,
    inner,
    row_offset,
    tiles_a_program,
    tiles,  # of a row
    draws,
    draws_a_program,
    z_draw,  # from a draw to the next, divided by UNIT
    mu_row, mu_outer, mu_inner,
    scale_row, scale_outer, scale_inner,
    prior_mu_row, prior_mu_outer, prior_mu_inner,
    prior_scale_row, prior_scale_outer, prior_scale_inner,
    z_row, z_outer, z_inner,
    kl_row, kl_outer, kl_inner,
    WITH_Z: tl.constexpr,
    KL: tl.constexpr,
    KL_MEAN: tl.constexpr,
    LOG_PROBS: tl.constexpr,
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
    SHARE_DRAWS: tl.constexpr,  # among programs; else each makes them all
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
    first_draw = tl.program_id(2) * draws_a_program if SHARE_DRAWS else 0
    end_of_draws = tl.minimum(first_draw + draws_a_program, draws) if SHARE_DRAWS else draws
    begin, end = share(rows, event_units, tiles_a_program, DOWN, UNIT, WIDE, ROWS, COLUMNS)
    event = event_of(event_units, UNIT, WIDE)
    seed = tl.load(seed_ptr) if WITH_Z else 0
    # Sums of the KL alone need not be put together before they are added.
    PLAIN_SUMS: tl.constexpr = KL == SUMS and FREE_BITS == 0.0 and not (KL_MEAN or DOWN or MASKED)
    large = tl.zeros((ROWS, COLUMNS), tl.float32)
    small = tl.zeros((ROWS, COLUMNS), tl.float32)
    sums_of_columns = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, 1 if DOWN else COLUMNS, loop_unroll_factor=UNROLL):
        row, first = tile_at(step, DOWN, WIDE, ROWS, COLUMNS)
        tile = first // COLUMNS
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < event) if MASKED else None
        inside = ((row < rows) & inside_event) if MASKED else None
        mu, raw, prior_mu, prior_raw = load_parameters(
            mu_ptr, scale_ptr, prior_mu_ptr, prior_scale_ptr, row, column,
            mu_row, mu_outer, mu_inner, scale_row, scale_outer, scale_inner,
            prior_mu_row, prior_mu_outer, prior_mu_inner, prior_scale_row, prior_scale_outer, prior_scale_inner,
            inner, inside, inside_event, PRIOR_MU, PRIOR_SCALE, SCALE, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
        mean, _, _, std, logvar, difference, log_ratio, _, prior_logvar, inverse = resolve(
            mu, raw, prior_mu, prior_raw, PRIOR_SCALE, SCALE, CLAMP, LOW, HIGH, FLOOR, RESIDUAL, HARDWARE
        )
        scaled = difference * inverse if WITH_PRIOR else difference
        if KL != NO_KL or KL_MEAN:
            ratio, expm1 = ratio_of(std, log_ratio, inverse, SCALE, HARDWARE)
        if PLAIN_SUMS:
            large, small = kl_terms(large, small, scaled, log_ratio, ratio, expm1, HARDWARE)
        elif KL != NO_KL or KL_MEAN:
            kl = kl_of(scaled, log_ratio, ratio, expm1, HARDWARE)
            if KL_MEAN:
                sums_of_columns += tl.where(inside, kl, 0.0) if MASKED else kl
            if FREE_BITS > 0.0:
                kl = tl.where(kl < FREE_BITS, FREE_BITS, kl)
            if KL == ELEMENTWISE:
                kl_at = kl_ptr + positions(row, column, kl_row, kl_outer, kl_inner, inner, UNIT, TWO_DIMS)
                tl.store(kl_at, kl, mask=inside)
            if KL == SUMS and DOWN:
                tl.store(kl_ptr + row * tiles + tile, row_sums(kl, inside, MASKED), mask=row < rows)
            if KL == SUMS and not DOWN:
                large += 2.0 * (tl.where(inside, kl, 0.0) if MASKED else kl)
        if WITH_Z:
            z_at = z_ptr + positions(row, column, z_row, z_outer, z_inner, inner, UNIT, TWO_DIMS)
            if LOG_PROBS:
                ratio_to_prior = std * inverse if WITH_PRIOR else std
                term_q = logvar + LOG_2_PI
                term_p = prior_logvar + tl.full((ROWS, COLUMNS), LOG_2_PI, tl.float32)
                if MASKED:
                    scaled = tl.where(inside, scaled, 0.0)
                    term_q, term_p = tl.where(inside, term_q, 0.0), tl.where(inside, term_p, 0.0)
            for k in tl.range(first_draw, end_of_draws):
                eps = noise_tile(seed, row + row_offset, first, k, ROWS, COLUMNS, GROUP, HARDWARE)
                eps = eps * TEMPERATURE if TEMPERATURE != 1.0 else eps
                z = multiply_add(std, eps, mean, HARDWARE)
                tl.store(z_at + tl.cast(k, tl.int64) * z_draw * UNIT, z.to(z_ptr.dtype.element_ty), mask=inside)
                if LOG_PROBS:
                    eps = tl.where(inside, eps, 0.0) if MASKED else eps
                    t = multiply_add(ratio_to_prior, eps, scaled, HARDWARE)
                    # Products alone would be fused with the additions to come, in each thread with its own ones.
                    terms = multiply_add(eps, eps, term_q, HARDWARE), multiply_add(t, t, term_p, HARDWARE)
                    sum_q, sum_p = tl.reduce(terms, 1, add_both, keep_dims=True)
                    sum_at = (tl.cast(k, tl.int64) * rows + row) * tiles + tile
                    tl.store(log_q_ptr + sum_at, -0.5 * sum_q, mask=row < rows)
                    tl.store(log_p_ptr + sum_at, -0.5 * sum_p, mask=row < rows)
    if KL == SUMS and not DOWN:
        row_sum = tl.sum(large + 0.5 * small, axis=1, keep_dims=True) * 0.5
        row, _ = tile_at(begin, DOWN, WIDE, ROWS, COLUMNS)
        tl.store(kl_ptr + row * tl.num_programs(1) + tl.program_id(1), row_sum, mask=row < rows)
    if KL_MEAN:
        store_columns(kl_columns_ptr, sums_of_columns, event_units, UNIT, WIDE, COLUMNS)
