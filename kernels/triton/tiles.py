"""How every kernel goes through its tensors: rows of an (outer, inner) event, in tiles of rows x columns elements.

Coordinate d of row b stands at  b * row_stride + (d // inner) * outer_stride + (d % inner) * inner_stride. A tensor's
three strides come as one tuple. Row strides and the size of the event come divided by `Tiles.unit`, so that the
compiler knows what they are multiples of and uses wide accesses.

A program works on the rows of a tile and goes through its share of their columns. With `Tiles.reduce_rows` it goes
through rows instead, on the columns of a tile: sums over the batch are sums over its tiles then. Sums that several
programs have a part in are finished after the kernel, in a fixed order.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .functions import to_float32


class Tiles(NamedTuple):
    """The constants of a kernel that say how it goes through its tensors: its argument TILES."""

    columns: int
    ptx_level: int  # see `philox`
    rows: int = 1
    reduce_rows: bool = False
    one_tile: bool = False  # a row has no more
    mask_rows: bool = False  # those past the last one: a tile has more than one row
    mask_columns: bool = False  # ``columns`` does not divide the event
    two_dims: bool = False  # the event is not one run of evenly spaced coordinates
    wide: bool = False  # columns are counted in 64 bits
    unit: int = 1
    unroll: int = 1  # tiles at a time
    vec: int = 4  # see `philox`


class Place(NamedTuple):
    """A tile's part of a tensor, within a kernel."""

    row: Any  # int64, (rows, 1)
    first: Any  # its first column
    column: Any  # (1, columns)
    inner: Any
    rows: Any  # of the tensor
    event: Any  # its columns


# How much there is of a tensor that the batch may share: none, one for every row, one row for all, one element for all.
ABSENT: tl.constexpr = tl.constexpr(0)
FULL: tl.constexpr = tl.constexpr(1)
SHARED: tl.constexpr = tl.constexpr(2)
ONE: tl.constexpr = tl.constexpr(3)

# What an output is, or the gradient that comes in.
NOT_WANTED: tl.constexpr = tl.constexpr(0)
ELEMENTWISE: tl.constexpr = tl.constexpr(1)
SUMS: tl.constexpr = tl.constexpr(2)  # forward: a sum per row and program; backward: a gradient per row
MEAN: tl.constexpr = tl.constexpr(3)  # backward only: one gradient, divided by the rows


@triton.jit
def event_size(event_units, TILES: tl.constexpr):
    return tl.cast(event_units, tl.int64) * TILES.unit if TILES.wide else event_units * TILES.unit


@triton.jit
def filled(value: tl.constexpr, TILES: tl.constexpr):
    """A tile of one value."""
    ROWS: tl.constexpr = TILES.rows  # in a shape, releases of Triton take no attribute
    COLUMNS: tl.constexpr = TILES.columns
    return tl.full((ROWS, COLUMNS), value, tl.float32)


@triton.jit
def share(rows, event_units, tiles_a_program, TILES: tl.constexpr):
    """Where the program's loop begins and ends: over columns, or with reduce_rows over tiles of rows."""
    program = tl.program_id(1)
    tiles = 1 if TILES.one_tile else tiles_a_program  # a constant, so that the compiler takes the loop away
    if TILES.reduce_rows:
        begin = program * tiles
        end = tl.minimum(begin + tiles, (rows + (TILES.rows - 1)) // TILES.rows)
    else:
        if TILES.wide:
            program = program.to(tl.int64)
        begin = program * tiles * TILES.columns
        end = tl.minimum((program + 1) * tiles * TILES.columns, event_size(event_units, TILES))
    return begin, end


@triton.jit
def tile_at(step, TILES: tl.constexpr):
    """Rows (int64, (rows, 1)) of the tile at a step of the loop, and its first column."""
    program = tl.program_id(0)
    if TILES.reduce_rows:
        first_row, first_column = tl.cast(step, tl.int64) * TILES.rows, _first_column(program, TILES)
    else:
        first_row, first_column = program.to(tl.int64) * TILES.rows, step
    return first_row + tl.arange(0, TILES.rows)[:, None], first_column


@triton.jit
def _first_column(tile, TILES: tl.constexpr):
    return (tile.to(tl.int64) if TILES.wide else tile) * TILES.columns


@triton.jit
def place_at(step, rows, event, inner, TILES: tl.constexpr):
    """The place of the tile at a step of the loop; ``event``: the size of the event, or where the loop ends."""
    row, first = tile_at(step, TILES)
    return Place(row, first, first + tl.arange(0, TILES.columns)[None, :], inner, rows, event)


@triton.jit
def columns_inside(at, TILES: tl.constexpr):
    """Which columns of a tile are within the event; None: all."""
    inside = (at.column < at.event) if TILES.mask_columns else None  # Triton 3.6 returns None from a variable alone
    return inside


@triton.jit
def mask_of(at, TILES: tl.constexpr):
    """Where a tile is within its tensor; None: everywhere."""
    inside = columns_inside(at, TILES)
    if TILES.mask_rows:
        inside = at.row < at.rows if inside is None else (at.row < at.rows) & inside
    return inside


@triton.jit
def positions(at, strides, TILES: tl.constexpr):
    """Element offsets (int64) of a tile."""
    offset = at.row * strides[0] * TILES.unit
    if TILES.two_dims:
        outer = at.column // at.inner  # 32 bits: a long division would cost more than all the rest
        within = (at.column - outer * at.inner).to(tl.int64)
        return offset + outer.to(tl.int64) * strides[1] + within * strides[2]
    return offset + at.column.to(tl.int64) * strides[2]


@triton.jit
def load_masked(pointers, inside, PTX_LEVEL: tl.constexpr, OUTSIDE: tl.constexpr = 0.0):
    """A tile as float32, OUTSIDE where the mask is off. A mask of None is on everywhere."""
    if inside is None:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=inside, other=OUTSIDE)
    return to_float32(values, PTX_LEVEL)


@triton.jit
def load_tile(pointer, strides, at, TILES: tl.constexpr, OUTSIDE: tl.constexpr = 0.0):
    return load_masked(pointer + positions(at, strides, TILES), mask_of(at, TILES), TILES.ptx_level, OUTSIDE)


@triton.jit
def load_shared(pointer, strides, at, EXTENT: tl.constexpr, TILES: tl.constexpr, OUTSIDE: tl.constexpr = 0.0):
    """A tile of a tensor that the batch may share: of one row if it is SHARED, of one element if it is ONE."""
    if EXTENT == ONE:
        values = tl.load(pointer + tl.zeros((1, 1), tl.int32)).to(tl.float32)
    elif EXTENT == SHARED:
        in_row = Place(tl.zeros((1, 1), tl.int64), at.first, at.column, at.inner, 1, at.event)
        pointers = pointer + positions(in_row, strides, TILES)
        values = load_masked(pointers, columns_inside(at, TILES), TILES.ptx_level, OUTSIDE)
    else:
        values = load_tile(pointer, strides, at, TILES, OUTSIDE)
    return values


@triton.jit
def store_tile(pointer, values, strides, at, TILES: tl.constexpr):
    tl.store(pointer + positions(at, strides, TILES), values.to(pointer.dtype.element_ty), mask=mask_of(at, TILES))


@triton.jit
def zero_outside(values, at, TILES: tl.constexpr):
    inside = mask_of(at, TILES)
    return values if inside is None else tl.where(inside, values, 0.0)


@triton.jit
def load_row_gradient(pointer, strides, row, rows, GRAD: tl.constexpr, TILES: tl.constexpr):
    """The gradient of each row's sum; with MEAN, of the mean of these sums."""
    if GRAD == MEAN:
        gradient = tl.load(pointer) / rows.to(tl.float32)
    elif TILES.mask_rows:
        gradient = tl.load(pointer + row * strides[1], mask=row < rows, other=0.0)
    else:
        gradient = tl.load(pointer + row * strides[1])
    return gradient


@triton.jit
def store_row_sums(pointer, sums, rows, begin, TILES: tl.constexpr):
    """The sum of each row over the program's columns, into (rows, programs a row)."""
    row, _ = tile_at(begin, TILES)
    at = pointer + row * tl.num_programs(1) + tl.program_id(1)
    inside = (row < rows) if TILES.mask_rows else None
    tl.store(at, tl.sum(sums, axis=1, keep_dims=True), mask=inside)


@triton.jit
def store_column_sums(pointer, sums, event_units, TILES: tl.constexpr):
    """The sum of each column over the program's rows, into (programs a column, event)."""
    column = _first_column(tl.program_id(0), TILES) + tl.arange(0, TILES.columns)[None, :]
    at = tl.program_id(1).to(tl.int64) * event_units * TILES.unit + column
    inside = column < event_size(event_units, TILES)
    tl.store(pointer + at, tl.sum(sums, axis=0, keep_dims=True), mask=inside)


@triton.jit
def store_gradient(pointer, gradient, sums, strides, at, SUM: tl.constexpr, TILES: tl.constexpr):
    """Write a gradient if it is wanted, or add it to the sums of its columns, which are given back."""
    if SUM:
        sums += zero_outside(gradient, at, TILES)
    elif pointer is not None:
        store_tile(pointer, gradient, strides, at, TILES)
    return sums
