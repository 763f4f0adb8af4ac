"""Forward of the mixture of pixels. `mixture` and `tiles` explain its words; the event is the pixels."""

import triton
import triton.language as tl

from .mixture import load_levels, mix
from .parameterisation import log
from .tiles import ELEMENTWISE, SUMS, mask_of, positions, share, store_row_sums, store_tile, tile_at, zero_outside


@triton.jit(do_not_specialize=["rows", "tiles_a_program"])
def mixture_forward_kernel(
    x_ptr,  # (rows, CHANNELS, pixels), strided
    parameter_ptr,  # (rows, channels of it, pixels), strided
    out_ptr,  # (rows, pixels), strided, for ELEMENTWISE; (rows, programs a row) for SUMS
    low: tl.float32,  # of log scales
    rows,
    tiles_a_program,
    event_units,
    inner,
    components,
    x_channel,  # from a channel to the next, divided by UNIT
    parameter_channel,
    x_strides,
    parameter_strides,
    out_strides,
    OUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    UNROLL: tl.constexpr,
    PTX_LEVEL: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, False, UNIT, WIDE, ROWS, COLUMNS, ONE_TILE)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, False, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < end) if MASK_COLUMNS else None
        inside = mask_of(row, rows, inside_event, MASK_ROWS)
        x_at = x_ptr + positions(row, column, x_strides, inner, UNIT, TWO_DIMS)
        red, green, blue = load_levels(x_at, x_channel, inside, CHANNELS, UNIT, PTX_LEVEL)
        parameter_at = parameter_ptr + positions(row, column, parameter_strides, inner, UNIT, TWO_DIMS)
        _, sum_of_logits, largest, total = mix(
            parameter_at, components, parameter_channel, red, green, blue, low, inside, ROWS, COLUMNS, CHANNELS, UNIT,
            PTX_LEVEL
        )  # fmt: skip
        values = largest + (log(total, PTX_LEVEL) - log(sum_of_logits, PTX_LEVEL))
        if OUT == ELEMENTWISE:
            store_tile(out_ptr, values, out_strides, row, column, inner, inside, UNIT, TWO_DIMS)
        else:
            sums += zero_outside(values, inside)
    if OUT == SUMS:
        store_row_sums(out_ptr, sums, rows, begin, MASK_ROWS, WIDE, ROWS, COLUMNS)
