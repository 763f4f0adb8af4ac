"""Backward of an element-wise likelihood. `likelihoods` and `tiles` explain its words."""

import triton
import triton.language as tl

from .likelihoods import load_data, slopes, within
from .tiles import (
    ELEMENTWISE,
    MEAN,
    SUMS,
    event_size,
    filled,
    load_row_gradient,
    load_tile,
    place_at,
    share,
    store_column_sums,
    store_gradient,
    tile_at,
)


@triton.jit(do_not_specialize=["rows", "tiles_a_program"])
def likelihood_backward_kernel(
    grad_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows,) for SUMS, of an outer stride; () for MEAN
    x_ptr,  # (rows, event), strided, of any dtype
    first_ptr,  # (rows, event), strided
    second_ptr,  # (rows, event), strided, or one row or one element of it; None if the kind has but one parameter
    third_ptr,  # likewise
    grad_first_ptr,  # (rows, event), strided; None if not wanted
    grad_second_ptr,  # (rows, event), strided, or for SUM_SECOND (programs a column, event); None if not wanted
    grad_third_ptr,  # likewise
    low: tl.float32,  # of the clamp
    high: tl.float32,
    rows,
    tiles_a_program,
    event_units,
    inner,
    grad_strides,
    x_strides,
    first_strides,
    second_strides,
    third_strides,
    grad_first_strides,
    grad_second_strides,
    grad_third_strides,
    GRAD: tl.constexpr,
    SUM_SECOND: tl.constexpr,
    SUM_THIRD: tl.constexpr,
    KIND: tl.constexpr,
    CLAMP: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    TILES: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    event = event_size(event_units, TILES)
    if GRAD == MEAN or (GRAD == SUMS and not TILES.reduce_rows):  # the same for all tiles
        rows_here = tile_at(begin, TILES)[0]
        grad = load_row_gradient(grad_ptr, grad_strides, rows_here, rows, GRAD, TILES)
    second_sums = filled(0.0, TILES)
    third_sums = filled(0.0, TILES)
    for step in tl.range(begin, end, 1 if TILES.reduce_rows else TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, event, inner, TILES)
        pointers = x_ptr, first_ptr, second_ptr, third_ptr
        strides = x_strides, first_strides, second_strides, third_strides
        x, first, second, third = load_data(pointers, strides, at, KIND, SECOND, THIRD, TILES)
        if GRAD == ELEMENTWISE:
            grad = load_tile(grad_ptr, grad_strides, at, TILES)
        if GRAD == SUMS and TILES.reduce_rows:
            grad = load_row_gradient(grad_ptr, grad_strides, at.row, rows, GRAD, TILES)
        of_first, of_second, of_third = slopes(x, first, second, third, low, high, KIND, CLAMP, TILES.ptx_level)
        store_gradient(grad_first_ptr, grad * of_first, 0.0, grad_first_strides, at, False, TILES)
        of_second = within(grad * of_second, second, low, high, CLAMP)
        second_sums = store_gradient(
            grad_second_ptr, of_second, second_sums, grad_second_strides, at, SUM_SECOND, TILES
        )
        third_sums = store_gradient(
            grad_third_ptr, grad * of_third, third_sums, grad_third_strides, at, SUM_THIRD, TILES
        )
    if SUM_SECOND:
        store_column_sums(grad_second_ptr, second_sums, event_units, TILES)
    if SUM_THIRD:
        store_column_sums(grad_third_ptr, third_sums, event_units, TILES)
