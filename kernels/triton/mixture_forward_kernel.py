"""Forward of the mixture of pixels. `mixture` and `tiles` explain its words; the event is the pixels."""

import triton
import triton.language as tl

from .mixture import Channels, load_levels, mix
from .parameterisation import log
from .tiles import ELEMENTWISE, SUMS, filled, place_at, positions, share, store_row_sums, store_tile, zero_outside


@triton.jit(do_not_specialize=["rows", "tiles_a_program"])
def mixture_forward_kernel(
    x_ptr,  # (rows, CHANNELS, pixels), strided
    parameter_ptr,  # (rows, channels of it, pixels), strided
    out_ptr,  # (rows, pixels), strided, for ELEMENTWISE; (rows, programs a row) for SUMS
    noticed_ptr,  # None, as a mixture has no values outside its domain
    low: tl.float32,  # of log scales
    high: tl.float32,  # of no use
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
    TILES: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    sums = filled(0.0, TILES)
    for step in tl.range(begin, end, TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, end, inner, TILES)
        levels = load_levels(x_ptr + positions(at, x_strides, TILES), x_channel, at, CHANNELS, TILES)
        pointer = parameter_ptr + positions(at, parameter_strides, TILES)
        parameter = Channels(pointer, parameter_channel, components, at)
        _, sum_of_logits, largest, total = mix(parameter, levels, low, CHANNELS, TILES)
        values = largest + (log(total, TILES.ptx_level) - log(sum_of_logits, TILES.ptx_level))
        if OUT == ELEMENTWISE:
            store_tile(out_ptr, values, out_strides, at, TILES)
        else:
            sums += zero_outside(values, at, TILES)
    if OUT == SUMS:
        store_row_sums(out_ptr, sums, rows, begin, TILES)
