"""The family of Gaussian latents (`fastvae.kernels.family` has the formulas): what its two kernels share.

Parameters are loaded once a tile, the draws are a loop inside. A program's tiles stand beside each other in its rows;
with DOWN they stand below each other in its columns, which makes sums over the batch sums over its tiles. Those, as all
sums that more than one program has a part in, are finished outside, in a fixed order. All other words are explained in
`gaussian`.

The prior's mu and scale may each be there for every row (FULL), once for all of them (SHARED), or as ONE element: a
tile of it then has one row, or one element. The kernels compute with s = std / std_p, d = log s^2 and
m = (mu - mu_p) / std_p, and for each draw with t = (z - mu_p) / std_p = m + temperature s eps.
"""

import triton
import triton.language as tl

from .functions import kl_terms, load
from .gaussian import positions, share_of_columns
from .parameterisation import clamped, harmless, inverse_std_of, is_linear, logvar_of, std_of

# How much there is of a prior's parameter.
NO_PRIOR: tl.constexpr = tl.constexpr(0)
FULL: tl.constexpr = tl.constexpr(1)
SHARED: tl.constexpr = tl.constexpr(2)
ONE: tl.constexpr = tl.constexpr(3)


@triton.jit
def share(
    rows, event_units, tiles_a_program, DOWN: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Where the program's loop begins and ends: over columns, or with DOWN over tiles of rows."""
    if DOWN:
        begin = tl.program_id(1) * tiles_a_program
        end = tl.minimum(begin + tiles_a_program, (rows + (ROWS - 1)) // ROWS)
    else:
        begin, end = share_of_columns(event_units, tiles_a_program, UNIT, COLUMNS, WIDE)
    return begin, end


@triton.jit
def event_of(event_units, UNIT: tl.constexpr, WIDE: tl.constexpr):
    return tl.cast(event_units, tl.int64) * UNIT if WIDE else event_units * UNIT


@triton.jit
def first_column_of(tile, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    return (tile.to(tl.int64) if WIDE else tile) * COLUMNS


@triton.jit
def tile_at(step, DOWN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (int64) of the tile at a step of the loop, and its first column."""
    if DOWN:
        first_row, first_column = tl.cast(step, tl.int64) * ROWS, first_column_of(tl.program_id(0), WIDE, COLUMNS)
    else:
        first_row, first_column = tl.program_id(0).to(tl.int64) * ROWS, step
    return first_row + tl.arange(0, ROWS)[:, None], first_column


@triton.jit
def load_prior(
    pointer, row, column, row_units, outer_stride, inner_stride, inner, inside, inside_event,
    OUTSIDE: tl.constexpr, KIND: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, MASKED: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    if KIND == ONE:
        values = tl.load(pointer + tl.zeros((1, 1), tl.int32)).to(tl.float32)
    else:
        if KIND == SHARED:
            row, inside = tl.zeros((1, 1), tl.int64), inside_event
        at = pointer + positions(row, column, row_units, outer_stride, inner_stride, inner, UNIT, TWO_DIMS)
        values = load(at, inside, MASKED, HARDWARE, OUTSIDE)
    return values


@triton.jit
def load_parameters(
    mu_ptr, scale_ptr, prior_mu_ptr, prior_scale_ptr, row, column,
    mu_row, mu_outer, mu_inner, scale_row, scale_outer, scale_inner,
    prior_mu_row, prior_mu_outer, prior_mu_inner, prior_scale_row, prior_scale_outer, prior_scale_inner,
    inner, inside, inside_event,
    PRIOR_MU: tl.constexpr, PRIOR_SCALE: tl.constexpr, SCALE: tl.constexpr,
    UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, MASKED: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """A tile of mu, of the raw scale, and of the prior's two: 0 without a prior."""
    mu_at = mu_ptr + positions(row, column, mu_row, mu_outer, mu_inner, inner, UNIT, TWO_DIMS)
    scale_at = scale_ptr + positions(row, column, scale_row, scale_outer, scale_inner, inner, UNIT, TWO_DIMS)
    mu = load(mu_at, inside, MASKED, HARDWARE)
    raw = load(scale_at, inside, MASKED, HARDWARE, harmless(SCALE))
    prior_mu, prior_raw = 0.0, 0.0
    if PRIOR_MU != NO_PRIOR:
        prior_mu = load_prior(
            prior_mu_ptr, row, column, prior_mu_row, prior_mu_outer, prior_mu_inner, inner, inside, inside_event,
            0.0, PRIOR_MU, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
        prior_raw = load_prior(
            prior_scale_ptr, row, column, prior_scale_row, prior_scale_outer, prior_scale_inner, inner, inside,
            inside_event, harmless(SCALE), PRIOR_SCALE, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
    return mu, raw, prior_mu, prior_raw


@triton.jit
def resolve(
    mu, raw, prior_mu, prior_raw,
    PRIOR_SCALE: tl.constexpr, SCALE: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    FLOOR: tl.constexpr, RESIDUAL: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Posterior and prior from their parameters, and what of them enters the KL.

    Gives: mu; the raw scale and what the clamp makes of it; std and logvar; mu - mu_p and logvar - logvar_p; and of the
    prior the clamped scale, logvar and 1 / std, which are 0, 0 and 1 if there is none.
    """
    WITH_PRIOR: tl.constexpr = PRIOR_SCALE != NO_PRIOR
    # Instructions for two coordinates at once do not take one.
    SINGLY: tl.constexpr = 1 if HARDWARE == 2 and PRIOR_SCALE == ONE else HARDWARE
    prior_x, prior_logvar, inverse = 0.0, 0.0, 1.0
    difference = mu
    if WITH_PRIOR:
        prior_x = clamped(prior_raw, CLAMP, LOW, HIGH, SINGLY)
        prior_std = std_of(prior_x, SCALE, FLOOR, SINGLY) if is_linear(SCALE) else prior_x
        prior_logvar = logvar_of(prior_x, prior_std, SCALE, SINGLY)
        inverse = inverse_std_of(prior_std, prior_logvar, SCALE, SINGLY)
        if RESIDUAL:
            given = raw
            mu = prior_mu + mu
            raw = prior_raw + raw
        else:
            difference = mu - prior_mu
    x = clamped(raw, CLAMP, LOW, HIGH, HARDWARE)
    std = std_of(x, SCALE, FLOOR, HARDWARE)
    logvar = logvar_of(x, std, SCALE, HARDWARE)
    if RESIDUAL and CLAMP == "none":  # adding has rounded, subtracting would not bring it back
        log_ratio = logvar_of(given, std, SCALE, HARDWARE)
    elif WITH_PRIOR:
        log_ratio = logvar - prior_logvar
    else:
        log_ratio = logvar
    return mu, raw, x, std, logvar, difference, log_ratio, prior_x, prior_logvar, inverse


@triton.jit
def kl_of(scaled, log_ratio, ratio, expm1, HARDWARE: tl.constexpr):
    """The KL of each coordinate."""
    zero = tl.zeros_like(scaled)
    large, small = kl_terms(zero, zero, scaled, log_ratio, ratio, expm1, HARDWARE)
    return (large + 0.5 * small) * 0.5


@triton.jit
def row_sums(values, inside, MASKED: tl.constexpr):
    if MASKED:
        values = tl.where(inside, values, 0.0)
    return tl.sum(values, axis=1, keep_dims=True)


@triton.jit
def store_columns(pointer, sums, event_units, UNIT: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """What the program's rows add up to, into its row of (programs a column, event)."""
    column = first_column_of(tl.program_id(0), WIDE, COLUMNS) + tl.arange(0, COLUMNS)[None, :]
    at = tl.program_id(1).to(tl.int64) * event_units * UNIT + column
    inside = column < event_of(event_units, UNIT, WIDE)
    tl.store(pointer + at, tl.sum(sums, axis=0, keep_dims=True), mask=inside)


@triton.jit
def store_tile(
    pointer, values, row, column, row_units, outer_stride, inner_stride, inner, inside,
    UNIT: tl.constexpr, TWO_DIMS: tl.constexpr,
):  # fmt: skip
    at = pointer + positions(row, column, row_units, outer_stride, inner_stride, inner, UNIT, TWO_DIMS)
    tl.store(at, values.to(pointer.dtype.element_ty), mask=inside)
