"""Launches: how a tensor is shared out among programs (heuristics of shape and dtype, no autotuning), and the start.

What a launch does not owe to pointers and run-time numbers is worked out once for tensors of given shapes, strides and
dtypes: a `Template`. It makes a `Launch`, which is data, so the roofline can compile it for an absent GPU.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime import driver as _driver

from ..layout import NeedsCopies, RowsView, Strides
from .noise import noise_kernel
from .started import Started, runs_as_known
from .tiles import Tiles

try:
    from ..cpu import launch_arguments, layouts  # in C; they look at tensors of any device
except ImportError:  # the same in Python then, below

    def _cannot_tell(*arguments: Any) -> Any:
        return None

    launch_arguments = layouts = _cannot_tell

# Decided when Triton is imported, so asked of the kernels themselves.
INTERPRETED = not isinstance(noise_kernel, triton.runtime.JITFunction)

# Elements of a tile: many, so that what is computed once a tile (addresses, constants) costs little; fewer where there
# would be too few tiles for a GPU's multiprocessors. Two sizes and no more: each is a kernel of its own.
TILE_ELEMENTS = 2048
SMALL_TILE_ELEMENTS = 512
ENOUGH_TILES = 512
# Programs beyond which splitting rows gains nothing on any GPU, and warps a program.
ENOUGH_PROGRAMS = 1024
NUM_WARPS = 4
# Rows that a program sums over the batch, at least: its sums are written once, for each column. A batch of few tiles is
# summed by one program, as adding up the sums of several would take a second kernel.
LEAST_ROWS_TO_REDUCE = 32
FEW_TILES_TO_REDUCE = 8
# Rows of a tile that share one row of a prior or parameter, which is loaded and computed with that much more seldom.
ROWS_OF_SHARED = 2
# Columns of the narrowest tiles that a channel is cut into.
LEAST_COLUMNS_OF_A_CHANNEL = 32
MOST_PROGRAMS_A_ROW = 65535  # of the second axis of a grid

# Events from here on have their columns counted in 64 bits: well before the last tile's end leaves 32.
WIDE_EVENT = 2**30


class Work(NamedTuple):
    """What the heuristics look at."""

    rows: int
    event: int
    dtype: torch.dtype
    tile_elements: int = TILE_ELEMENTS  # at most
    draws: int = 1  # that a program makes in turn; unrolling tiles gains nothing then
    shares_draws: bool = False  # programs may share them
    shares_row: bool = False  # a prior or parameter has one row for all
    reduce_rows: bool = False  # there are sums over the batch
    channel: int | None = None  # so many coordinates at a time are summed: no program may have its part in two of them


class Tile(NamedTuple):
    rows: int
    columns: int
    is_large: bool
    mask_rows: bool


class Tiling(NamedTuple):
    """How a (rows, event) array is shared out among programs; `tiles` explains it."""

    tile: Tile
    tiles_a_row: int
    tiles_a_program: int
    grid: tuple[int, ...]
    reduce_rows: bool
    unroll: int
    vec: int

    @property
    def programs_a_row(self) -> int:
        """That have a part in the sum of a row."""
        return self.tiles_a_row if self.reduce_rows else self.grid[1]


NOTHING_TO_DO = Tiling(Tile(1, 1, False, False), 0, 1, (0, 0), False, 1, 4)


def vec_of(dtype: torch.dtype) -> int:
    """Neighbouring coordinates a thread: what it loads and stores at once."""
    return 4 if dtype.itemsize == 4 else 8


def columns_loaded_at_once(dtype: torch.dtype) -> int:
    """By all threads of a program. A row of fewer would have to be moved to the threads that have its tile."""
    return 32 * NUM_WARPS * vec_of(dtype)


def tile_of(work: Work) -> Tile:
    """As much of a row as there is room for, and rows for the rest.

    There are at most two kinds of tiles for all numbers of rows, so that batches of all sizes take two kernels: large
    ones, without a mask of rows if the event needs no mask of columns; and small ones with it. Or, for rows that share
    one, those without a mask and with it.
    """
    at_once = columns_loaded_at_once(work.dtype)
    if work.shares_row and work.event > at_once // 2:
        return Tile(ROWS_OF_SHARED, _within_channel(at_once, work), True, work.rows % ROWS_OF_SHARED != 0)
    is_large = work.rows * work.event * (work.draws if work.shares_draws else 1) >= work.tile_elements * ENOUGH_TILES
    rows, columns = _rows_and_columns(work, work.tile_elements)
    mask_rows = rows > 1 and work.event % columns != 0
    if not is_large or (rows > 1 and not mask_rows and work.rows % rows != 0):
        rows, columns = _rows_and_columns(work, min(SMALL_TILE_ELEMENTS, work.tile_elements))
        is_large, mask_rows = False, rows > 1
    return Tile(rows, _within_channel(columns, work), is_large, mask_rows)


def _rows_and_columns(work: Work, elements: int) -> tuple[int, int]:
    columns = min(max(triton.next_power_of_2(work.event), vec_of(work.dtype)), elements)
    return elements // columns, columns


def _within_channel(columns: int, work: Work) -> int:
    if work.channel is None:
        return columns
    power_of_2 = work.channel & -work.channel
    return min(columns, power_of_2)


def tiling_of(work: Work) -> Tiling:
    """Short rows: several a program. Long rows: one a program, split over programs when there are too few of them.

    How a row is split depends on the shape and dtype alone, so that the same call gives the same bits.
    """
    rows, event = work.rows, work.event
    if rows * event == 0:
        return NOTHING_TO_DO
    tile = tile_of(work)
    row_tiles, tiles_a_row = -(-rows // tile.rows), -(-event // tile.columns)
    unroll = 1
    if work.reduce_rows:
        least = row_tiles if row_tiles <= FEW_TILES_TO_REDUCE else -(-LEAST_ROWS_TO_REDUCE // tile.rows)
        tiles_a_program = max(-(-row_tiles * tiles_a_row // ENOUGH_PROGRAMS), least)
        grid = tiles_a_row, -(-row_tiles // tiles_a_program)
    elif work.channel is not None:
        tiles_a_program, grid = 1, (row_tiles, tiles_a_row)
    else:
        programs_a_row = max(1, min(tiles_a_row, ENOUGH_PROGRAMS // row_tiles))
        tiles_a_program = -(-tiles_a_row // programs_a_row)
        grid = row_tiles, -(-tiles_a_row // tiles_a_program)
        unroll = 2 if tile.is_large and tiles_a_row > 1 and work.draws == 1 else 1
    return Tiling(tile, tiles_a_row, tiles_a_program, grid, work.reduce_rows, unroll, vec_of(work.dtype))


def channel_to_sum(shape: torch.Size, work: Work) -> int | None:
    """The coordinates of a channel, if the kernel can sum them: tiles must divide it, and not be too many."""
    channel = math.prod(shape[2:])
    if work.rows * work.event == 0:
        return None
    columns = tile_of(work._replace(channel=channel)).columns
    if columns < LEAST_COLUMNS_OF_A_CHANNEL or work.event // columns > MOST_PROGRAMS_A_ROW:
        return None
    return channel


def ptx_level(capability: int | None) -> int:
    """What kernels may use on an NVIDIA GPU of a compute capability (90 for sm_90), else None: see `philox`."""
    return 0 if capability is None else 2 if capability >= 100 else 1


@functools.cache
def ptx_level_of(device: torch.device) -> int:
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return ptx_level(10 * major + minor)


class Launch(NamedTuple):
    """One kernel start: arguments in the kernel's order, then its compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int = NUM_WARPS

    def run(self, device: torch.device) -> Any:
        """Start it by Triton's usual way; gives the compiled kernel, where this Triton tells."""
        # Launches go to the current GPU: make it the tensors' one.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return self.kernel[self.grid](*self.arguments, **self.constants, num_warps=self.num_warps)


Pointers = tuple[Tensor | None, ...]
Numbers = tuple[float, ...]


class Template:
    """A launch without its pointers and run-time numbers, which are the first arguments of every kernel.

    Once Triton has started it, it starts the compiled kernel itself, which takes a fifth of the time. A compiled kernel
    holds for one combination of pointers that are multiples of 16 bytes; what else Triton specialises it on is fixed by
    the template (numbers have types of their own in every kernel).
    """

    __slots__ = (
        "_aligned", "_device_now", "_started", "_stream_now", "arguments", "constants", "device", "fixed", "grid",
        "kernel", "num_warps",
    )  # fmt: skip

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        fixed: tuple[Any, ...],
        constants: dict[str, Any],
        device: torch.device,
        num_warps: int = NUM_WARPS,
    ) -> None:
        self.device, self.num_warps = device, num_warps
        self.kernel, self.grid, self.fixed, self.constants = kernel, (*grid, 1, 1)[:3], fixed, constants
        names = kernel.arg_names
        self.arguments = (*fixed, *[constants[name] for name in names[len(names) - len(constants) :]])
        self._started: dict[tuple[bool, ...], Started] = {}  # by which pointers are not multiples of 16
        self._aligned: Started | None = None  # for none

    def launch(self, pointers: Pointers, numbers: Numbers) -> Launch:
        return Launch(self.kernel, self.grid, (*pointers, *numbers, *self.fixed), self.constants, self.num_warps)

    def start(self, pointers: Pointers, numbers: Numbers) -> None:
        started = self._aligned
        arguments = None if started is None else launch_arguments(pointers, numbers, self.arguments)
        if started is None or arguments is None:
            addresses = [None if pointer is None else pointer.data_ptr() for pointer in pointers]
            unaligned = tuple([(address or 0) % 16 != 0 for address in addresses])
            started = self._started.get(unaligned)
            if started is None or _collected is not None:
                self._start_by_triton(pointers, numbers, unaligned)
                return
            arguments = (*addresses, *numbers, *self.arguments)
        current, index = self._device_now(), self.device.index
        if index is None or index == current:
            started.again(self._stream_now(current), arguments)
        else:
            with torch.cuda.device(self.device):
                started.again(self._stream_now(index), arguments)

    def _start_by_triton(self, pointers: Pointers, numbers: Numbers, unaligned: tuple[bool, ...]) -> None:
        launch = self.launch(pointers, numbers)
        if _collected is not None:
            _collected.append(launch)
            return
        compiled = launch.run(self.device)
        if runs_as_known(compiled):
            active = _driver.active
            self._device_now, self._stream_now = active.get_current_device, active.get_current_stream
            self._started[unaligned] = started = Started(compiled, self.grid)
            if not any(unaligned):
                self._aligned = started


_collected: list[Launch] | None = None  # see `collected_launches`


@contextlib.contextmanager
def collected_launches() -> Iterator[list[Launch]]:
    """Within, launches are collected and not started: what they would have written stays as it is."""
    global _collected
    forget()
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before
        forget()


class Buffer(NamedTuple):
    """A tensor to be written by a kernel."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def like(cls, tensor: Tensor | None) -> Buffer | None:
        return None if tensor is None else cls(tensor.shape, tensor.stride(), tensor.dtype)


def empty(buffers: Iterable[Buffer | None], beside: Tensor) -> list[Tensor | None]:
    """On the device of ``beside``. Of its dtype, in two thirds of the time that PyTorch's other ways take."""
    dtype, new = beside.dtype, beside.new_empty_strided
    return [
        None if made is None else new(made[0], made[1]) if made[2] is dtype else new(made[0], made[1], dtype=made[2])
        for made in buffers
    ]


def layouts_of(*tensors: Tensor | None) -> Hashable:
    """Equal for tensors of equal devices, dtypes, shapes and strides."""
    return layouts(*tensors) or tuple(
        [None if one is None else (one.device, one.dtype, one.shape, one.stride()) for one in tensors]
    )


Remembered = TypeVar("Remembered")


class Memory(Generic[Remembered]):
    """What was worked out for calls with tensors of the same shapes, strides, dtypes and so on."""

    MOST = 1024

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Remembered | None] = {}
        self.get = self._found.get
        _memories.append(self._found)

    def add(self, key: tuple[Any, ...], work_out: Callable[..., Remembered], *arguments: Any) -> Remembered | None:
        """``work_out(*arguments)``, or None if a tensor must be copied before a kernel can read it."""
        try:
            found = work_out(*arguments)
        except NeedsCopies:
            found = None
        if len(self._found) >= self.MOST:
            self._found.clear()
        self._found[key] = found
        return found


# What `Memory.get` is to give for a call that was not worked out yet: None may have been.
UNKNOWN: Any = object()

_memories: list[dict[tuple[Any, ...], Any]] = []


def forget() -> None:
    """All calls are worked out anew: for whoever changes the heuristics above."""
    for found in _memories:
        found.clear()


class Plan(NamedTuple):
    """A call worked out for tensors of given shapes, strides and dtypes."""

    template: Template | None  # None: there is nothing to compute
    buffers: tuple[Buffer | None, ...]  # what the kernel writes
    finish: bool = False  # something is left to do after it
    ways: tuple[str, ...] = ()  # backward: what the buffers are to the gradients, see `sums`


def make_template(
    kernel: Any,
    view: RowsView,
    tiling: Tiling,
    strides: dict[str, Strides],
    constants: dict[str, Any],
    device: torch.device,
    slices: dict[str, int] | None = None,
    others: dict[str, int] | None = None,
) -> Template:
    """Dicts are by name in the kernel: strides of tensors, slices from a draw or channel to the next, and others."""
    slices = slices or {}
    event = view.outer * view.inner
    unit = math.gcd(tiling.vec, event, *[row for row, _, _ in strides.values()], *slices.values())
    values: dict[str, Any] = {
        "rows": view.rows,
        "event_units": event // unit,
        "inner": view.inner,
        "tiles_a_program": tiling.tiles_a_program,
        **(others or {}),
        **{name: stride // unit for name, stride in slices.items()},
        **{f"{name}_strides": (row // unit, outer, inner) for name, (row, outer, inner) in strides.items()},
    }
    tiles = Tiles(
        tiling.tile.columns,
        ptx_level_of(device),
        tiling.tile.rows,
        reduce_rows=tiling.reduce_rows,
        one_tile=tiling.tiles_a_row == 1 and not tiling.reduce_rows,
        mask_rows=tiling.tile.mask_rows,
        mask_columns=event % tiling.tile.columns != 0,
        two_dims=view.outer > 1,
        wide=event >= WIDE_EVENT,
        unit=unit,
        unroll=tiling.unroll,
        vec=tiling.vec,
    )
    fixed = tuple([values[name] for name in kernel.arg_names if name in values])
    return Template(kernel, tiling.grid, fixed, constants | {"TILES": tiles}, device)
