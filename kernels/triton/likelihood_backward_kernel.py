"""Backward of an element-wise likelihood. `likelihoods` and `tiles` explain its words."""

import triton
import triton.language as tl

from .likelihoods import load_data, slopes, within
from .tiles import (
    ELEMENTWISE,
    MEAN,
    SUMS,
    event_size,
    load_row_gradient,
    load_tile,
    mask_of,
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
    REDUCE_ROWS: tl.constexpr,
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
    begin, end = share(rows, event_units, tiles_a_program, REDUCE_ROWS, UNIT, WIDE, ROWS, COLUMNS, ONE_TILE)
    event = event_size(event_units, UNIT, WIDE)
    if GRAD == MEAN or (GRAD == SUMS and not REDUCE_ROWS):  # the same for all tiles
        rows_here = tile_at(begin, REDUCE_ROWS, WIDE, ROWS, COLUMNS)[0]
        grad = load_row_gradient(grad_ptr, grad_strides, rows_here, rows, MASK_ROWS, GRAD)
    second_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    third_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, 1 if REDUCE_ROWS else COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, REDUCE_ROWS, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < event) if MASK_COLUMNS else None
        inside = mask_of(row, rows, inside_event, MASK_ROWS)
        x, first, second, third = load_data(
            (x_ptr, first_ptr, second_ptr, third_ptr), (x_strides, first_strides, second_strides, third_strides),
            row, column, inner, inside, inside_event, KIND, SECOND, THIRD, UNIT, TWO_DIMS, PTX_LEVEL
        )  # fmt: skip
        if GRAD == ELEMENTWISE:
            grad = load_tile(grad_ptr, grad_strides, row, column, inner, inside, UNIT, TWO_DIMS, PTX_LEVEL)
        if GRAD == SUMS and REDUCE_ROWS:
            grad = load_row_gradient(grad_ptr, grad_strides, row, rows, MASK_ROWS, GRAD)
        of_first, of_second, of_third = slopes(x, first, second, third, low, high, KIND, CLAMP, PTX_LEVEL)
        store_gradient(
            grad_first_ptr, grad * of_first, 0.0, grad_first_strides, row, column, inner, inside, False, UNIT, TWO_DIMS
        )
        of_second = within(grad * of_second, second, low, high, CLAMP)
        second_sums = store_gradient(
            grad_second_ptr, of_second, second_sums, grad_second_strides, row, column, inner, inside,
            SUM_SECOND, UNIT, TWO_DIMS
        )  # fmt: skip
        third_sums = store_gradient(
            grad_third_ptr, grad * of_third, third_sums, grad_third_strides, row, column, inner, inside, SUM_THIRD,
            UNIT, TWO_DIMS
        )  # fmt: skip
    if SUM_SECOND:
        store_column_sums(grad_second_ptr, second_sums, event_units, UNIT, WIDE, COLUMNS)
    if SUM_THIRD:
        store_column_sums(grad_third_ptr, third_sums, event_units, UNIT, WIDE, COLUMNS)
