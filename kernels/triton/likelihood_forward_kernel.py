"""Forward of an element-wise likelihood. `likelihoods` and `tiles` explain its words."""

import triton
import triton.language as tl

from .likelihoods import is_outside, load_data, log_prob
from .tiles import ELEMENTWISE, SUMS, event_size, mask_of, share, store_row_sums, store_tile, tile_at, zero_outside


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
    event = event_size(event_units, UNIT, WIDE)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, False, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < event) if MASK_COLUMNS else None
        inside = mask_of(row, rows, inside_event, MASK_ROWS)
        x, first, second, third = load_data(
            (x_ptr, first_ptr, second_ptr, third_ptr), (x_strides, first_strides, second_strides, third_strides),
            row, column, inner, inside, inside_event, KIND, SECOND, THIRD, UNIT, TWO_DIMS, PTX_LEVEL
        )  # fmt: skip
        if noticed_ptr is not None:
            outside = zero_outside(is_outside(x, first, second, third, KIND), inside)
            tl.store(noticed_ptr + (row + column) * 0, 1, mask=outside != 0)
        values = log_prob(x, first, second, third, low, high, KIND, CLAMP, PTX_LEVEL)
        if OUT == ELEMENTWISE:
            store_tile(out_ptr, values, out_strides, row, column, inner, inside, UNIT, TWO_DIMS)
        else:
            sums += zero_outside(values, inside)
    if OUT == SUMS:
        store_row_sums(out_ptr, sums, rows, begin, MASK_ROWS, WIDE, ROWS, COLUMNS)
