"""The noise stream by itself: one kernel. `tiles` and `philox` explain its words."""

import triton
import triton.language as tl

from .philox import noise_tile
from .tiles import place_at, share, store_tile


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
    TILES: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    seed = tl.load(seed_ptr)
    for step in tl.range(begin, end, TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, end, inner, TILES)
        eps = noise_tile(seed, at.row + row_offset, at.first, draw, 1.0, TILES)
        store_tile(eps_ptr, eps, eps_strides, at, TILES)
