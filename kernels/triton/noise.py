"""The noise stream by itself: one kernel. `tiles` and `philox` explain its words."""

import triton
import triton.language as tl

from .philox import noise_tile
from .tiles import mask_of, share, store_tile, tile_at


@triton.jit(
    do_not_specialize=["row_offset", "draw", "rows", "tiles_a_program"], do_not_specialize_on_alignment=["seed_ptr"]
)
def noise_kernel(
    eps_ptr,  # (rows, event), strided
    seed_ptr,  # one int64
    row_offset: tl.int64,
    draw: tl.int64,
    rows,
    tiles_a_program,
    event_units,
    inner,
    eps_strides,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    UNROLL: tl.constexpr,
    VEC: tl.constexpr,
    PTX_LEVEL: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, False, UNIT, WIDE, ROWS, COLUMNS, ONE_TILE)
    seed = tl.load(seed_ptr)
    for step in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        row, first = tile_at(step, False, WIDE, ROWS, COLUMNS)
        column = first + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < end) if MASK_COLUMNS else None
        inside = mask_of(row, rows, inside_event, MASK_ROWS)
        eps = noise_tile(seed, row + row_offset, first, draw, 1.0, ROWS, COLUMNS, VEC, PTX_LEVEL)
        store_tile(eps_ptr, eps, eps_strides, row, column, inner, inside, UNIT, TWO_DIMS)
