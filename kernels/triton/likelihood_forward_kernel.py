"""Forward of an element-wise likelihood. `likelihoods` and `tiles` explain its words."""

import triton
import triton.language as tl

from .likelihoods import is_outside, load_data, log_prob
from .tiles import ELEMENTWISE, SUMS, event_size, filled, place_at, share, store_row_sums, store_tile, zero_outside


@triton.jit(do_not_specialize=["rows", "tiles_a_program"])
def likelihood_forward_kernel(
    x_ptr,  # (rows, event), strided, of any dtype
    first_ptr,  # (rows, event), strided
    second_ptr,  # (rows, event), strided, or one row or one element of it; None if the kind has but one parameter
    third_ptr,  # likewise
    out_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows, programs a row) for SUMS
    noticed_ptr,  # one uint8, set to 1 if a value is outside the domain; None: nobody asks
    low: tl.float32,  # of the clamp
    high: tl.float32,
    rows,
    tiles_a_program,
    event_units,
    inner,
    x_strides,
    first_strides,
    second_strides,
    third_strides,
    out_strides,
    OUT: tl.constexpr,
    KIND: tl.constexpr,
    CLAMP: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    TILES: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    event = event_size(event_units, TILES)
    sums = filled(0.0, TILES)
    for step in tl.range(begin, end, TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, event, inner, TILES)
        pointers = x_ptr, first_ptr, second_ptr, third_ptr
        strides = x_strides, first_strides, second_strides, third_strides
        x, first, second, third = load_data(pointers, strides, at, KIND, SECOND, THIRD, TILES)
        if noticed_ptr is not None:
            outside = zero_outside(is_outside(x, first, second, third, KIND), at, TILES)
            tl.store(noticed_ptr + (at.row + at.column) * 0, 1, mask=outside != 0)
        values = log_prob(x, first, second, third, low, high, KIND, CLAMP, TILES.ptx_level)
        if OUT == ELEMENTWISE:
            store_tile(out_ptr, values, out_strides, at, TILES)
        else:
            sums += zero_outside(values, at, TILES)
    if OUT == SUMS:
        store_row_sums(out_ptr, sums, rows, begin, TILES)
