"""How every kernel goes through its tensors: rows of an (outer, inner) event, in tiles of ROWS x COLUMNS elements.

Coordinate d of row b stands at  b * row_stride + (d // inner) * outer_stride + (d % inner) * inner_stride. A tensor's
three strides come as one tuple. Row strides and the size of the event come divided by UNIT, so that the compiler knows
what they are multiples of and uses wide accesses.

A program works on the ROWS rows of a tile and goes through its share of their columns, UNROLL tiles at a time. With
REDUCE_ROWS it goes through rows instead, on COLUMNS columns: sums over the batch are sums over its tiles then. Sums
that several programs have a part in are finished after the kernel, in a fixed order.

Rows past the last one are masked if MASK_ROWS (a tile has more than one row), columns if MASK_COLUMNS (COLUMNS does not
divide the event). ONE_TILE: a row has no more. TWO_DIMS: the event is not one run of evenly spaced coordinates. WIDE:
its columns are counted in 64 bits. VEC and PTX_LEVEL are explained in `philox`.
"""

import triton
import triton.language as tl

from .functions import to_float32

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
def event_size(event_units, UNIT: tl.constexpr, WIDE: tl.constexpr):
    return tl.cast(event_units, tl.int64) * UNIT if WIDE else event_units * UNIT


@triton.jit
def share(
    rows, event_units, tiles_a_program, REDUCE_ROWS: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """Where the program's loop begins and ends: over columns, or with REDUCE_ROWS over tiles of rows."""
    program = tl.program_id(1)
    tiles = 1 if ONE_TILE else tiles_a_program  # a constant, so that the compiler takes the loop away
    if REDUCE_ROWS:
        begin = program * tiles
        end = tl.minimum(begin + tiles, (rows + (ROWS - 1)) // ROWS)
    else:
        if WIDE:
            program = program.to(tl.int64)
        begin = program * tiles * COLUMNS
        end = tl.minimum((program + 1) * tiles * COLUMNS, event_size(event_units, UNIT, WIDE))
    return begin, end


@triton.jit
def tile_at(step, REDUCE_ROWS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (int64, (ROWS, 1)) of the tile at a step of the loop, and its first column."""
    program = tl.program_id(0)
    if REDUCE_ROWS:
        first_row, first_column = tl.cast(step, tl.int64) * ROWS, _first_column(program, WIDE, COLUMNS)
    else:
        first_row, first_column = program.to(tl.int64) * ROWS, step
    return first_row + tl.arange(0, ROWS)[:, None], first_column


@triton.jit
def _first_column(tile, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    return (tile.to(tl.int64) if WIDE else tile) * COLUMNS


@triton.jit
def positions(row, column, strides, inner, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr):
    """Element offsets (int64) of a tile."""
    at = row * strides[0] * UNIT
    if TWO_DIMS:
        outer = column // inner  # 32 bits: a long division would cost more than all the rest
        within = (column - outer * inner).to(tl.int64)
        return at + outer.to(tl.int64) * strides[1] + within * strides[2]
    return at + column.to(tl.int64) * strides[2]


@triton.jit
def mask_of(row, rows, inside_event, MASK_ROWS: tl.constexpr):
    """Where a tile is within its tensor; None if everywhere. ``inside_event``: which columns are, None if all."""
    if not MASK_ROWS:
        inside = inside_event
    elif inside_event is None:
        inside = row < rows
    else:
        inside = (row < rows) & inside_event
    return inside


@triton.jit
def load_masked(pointers, inside, PTX_LEVEL: tl.constexpr, OUTSIDE: tl.constexpr = 0.0):
    """A tile as float32, OUTSIDE where the mask is off. A mask of None is on everywhere."""
    if inside is None:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=inside, other=OUTSIDE)
    return to_float32(values, PTX_LEVEL)


@triton.jit
def load_tile(
    pointer, strides, row, column, inner, inside, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, PTX_LEVEL: tl.constexpr,
    OUTSIDE: tl.constexpr = 0.0,
):  # fmt: skip
    return load_masked(pointer + positions(row, column, strides, inner, UNIT, TWO_DIMS), inside, PTX_LEVEL, OUTSIDE)


@triton.jit
def load_shared(
    pointer, strides, row, column, inner, inside, inside_event, EXTENT: tl.constexpr, UNIT: tl.constexpr,
    TWO_DIMS: tl.constexpr, PTX_LEVEL: tl.constexpr, OUTSIDE: tl.constexpr = 0.0,
):  # fmt: skip
    """A tile of a tensor that the batch may share: of one row if it is SHARED, of one element if it is ONE."""
    if EXTENT == ONE:
        values = tl.load(pointer + tl.zeros((1, 1), tl.int32)).to(tl.float32)
    elif EXTENT == SHARED:
        first = tl.zeros((1, 1), tl.int64)
        values = load_tile(
            pointer, strides, first, column, inner, inside_event, UNIT, TWO_DIMS, PTX_LEVEL, OUTSIDE
        )  # fmt: skip
    else:
        values = load_tile(pointer, strides, row, column, inner, inside, UNIT, TWO_DIMS, PTX_LEVEL, OUTSIDE)
    return values


@triton.jit
def store_tile(
    pointer, values, strides, row, column, inner, inside, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr
):  # fmt: skip
    at = pointer + positions(row, column, strides, inner, UNIT, TWO_DIMS)
    tl.store(at, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def zero_outside(values, inside):
    return values if inside is None else tl.where(inside, values, 0.0)


@triton.jit
def load_row_gradient(pointer, strides, row, rows, MASK_ROWS: tl.constexpr, GRAD: tl.constexpr):
    """The gradient of each row's sum; with MEAN, of the mean of these sums."""
    if GRAD == MEAN:
        gradient = tl.load(pointer) / rows.to(tl.float32)
    elif MASK_ROWS:
        gradient = tl.load(pointer + row * strides[1], mask=row < rows, other=0.0)
    else:
        gradient = tl.load(pointer + row * strides[1])
    return gradient


@triton.jit
def store_row_sums(
    pointer, sums, rows, begin, MASK_ROWS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """The sum of each row over the program's columns, into (rows, programs a row)."""
    row, _ = tile_at(begin, False, WIDE, ROWS, COLUMNS)
    at = pointer + row * tl.num_programs(1) + tl.program_id(1)
    tl.store(at, tl.sum(sums, axis=1, keep_dims=True), mask=mask_of(row, rows, None, MASK_ROWS))


@triton.jit
def store_column_sums(pointer, sums, event_units, UNIT: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of each column over the program's rows, into (programs a column, event)."""
    column = _first_column(tl.program_id(0), WIDE, COLUMNS) + tl.arange(0, COLUMNS)[None, :]
    at = tl.program_id(1).to(tl.int64) * event_units * UNIT + column
    inside = column < event_size(event_units, UNIT, WIDE)
    tl.store(pointer + at, tl.sum(sums, axis=0, keep_dims=True), mask=inside)


@triton.jit
def store_gradient(
    pointer, gradient, sums, strides, row, column, inner, inside, SUM: tl.constexpr, UNIT: tl.constexpr,
    TWO_DIMS: tl.constexpr,
):  # fmt: skip
    """Write a gradient if it is wanted, or add it to the sums of its columns, which are given back."""
    if SUM:
        sums += zero_outside(gradient, inside)
    elif pointer is not None:
        store_tile(pointer, gradient, strides, row, column, inner, inside, UNIT, TWO_DIMS)
    return sums
