"""Launch shapes, in one place, from heuristics of shape and dtype (no autotuning), and the launches themselves.

A launch is described before it is started, so that whoever compiles the kernels for a GPU that is not there compiles
exactly what would run.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..layout import RowsView, Strides, kl_like, rows_view
from .gaussian import ELEMENTWISE, MEAN, NO_KL, SUMS, backward_kernel, forward_kernel

# Decided when Triton is imported, so asked of the kernels themselves.
INTERPRETED = not isinstance(forward_kernel, triton.runtime.JITFunction)

# Elements a program holds at a time: many, so that what is computed once a tile (addresses, constants) costs little;
# fewer where the tiles would be too few for a GPU's multiprocessors.
TILE_ELEMENTS = 2048
SMALLEST_TILE_ELEMENTS = 512
ENOUGH_TILES = 512
# Programs beyond which splitting rows gains nothing on any GPU, and warps a program.
ENOUGH_PROGRAMS = 1024
NUM_WARPS = 4

# Events from here on have their columns counted in 64 bits: well before the last tile's end leaves 32.
WIDE_EVENT = 2**30

_UNUSED: Strides = (0, 0, 0)


class Shares(NamedTuple):
    """How a (rows, event) array is shared out among programs; see the kernels' first lines for the words."""

    rows_a_program: int
    columns: int
    tiles_a_program: int
    group: int
    grid: tuple[int, ...]


class Launch(NamedTuple):
    """One kernel start: arguments in the kernel's order, then its compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int = NUM_WARPS

    def run(self, device: torch.device) -> None:
        # Launches go to the current GPU: make it the tensors' one.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](*self.arguments, **self.constants, num_warps=self.num_warps)


def hardware(capability: int | None) -> int:
    """What kernels may use beyond plain arithmetic, on an NVIDIA GPU of a compute capability (90 for sm_90), else None.

    0: nothing. 1: NVIDIA's approximate functions, in PTX. 2: and arithmetic on two float32 at once (sm_100 and later).
    """
    return 0 if capability is None else 2 if capability >= 100 else 1


@functools.cache
def _hardware_of(device: torch.device) -> int:
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return hardware(10 * major + minor)


def group_of(dtype: torch.dtype) -> int:
    """Neighbouring coordinates a thread: what it loads and stores at once."""
    return 4 if dtype.itemsize == 4 else 8


def tile_shape(
    rows: int, event: int, dtype: torch.dtype, elements: int = TILE_ELEMENTS, times: int = 1
) -> tuple[int, int]:
    """Rows and columns of a tile of at most so many elements: as much of a row as there is room for.

    ``times``: among so many programs the work on a tile can be shared out.
    """
    while elements > SMALLEST_TILE_ELEMENTS and times * rows * event < elements * ENOUGH_TILES:
        elements //= 2
    columns = min(max(triton.next_power_of_2(event), group_of(dtype)), elements)
    return max(1, min(elements // columns, triton.next_power_of_2(rows))), columns


def shares(rows: int, event: int, dtype: torch.dtype) -> Shares:
    """Short rows: several a program. Long rows: one a program, split over programs when there are too few of them.

    How a row is split depends on the shape and dtype alone, so that the same call gives the same bits.
    """
    return shares_across(rows, event, dtype, tile_shape(rows, event, dtype))


def shares_across(rows: int, event: int, dtype: torch.dtype, tile: tuple[int, int]) -> Shares:
    rows_a_program, columns = tile
    row_programs = -(-rows // rows_a_program)
    tiles_a_row = -(-event // columns)
    programs_a_row = max(1, min(tiles_a_row, ENOUGH_PROGRAMS // row_programs))
    tiles_a_program = -(-tiles_a_row // programs_a_row)
    return Shares(
        rows_a_program, columns, tiles_a_program, group_of(dtype), (row_programs, -(-tiles_a_row // tiles_a_program))
    )


def make_launch(
    kernel: Any,
    tensors: tuple[Tensor | None, ...],
    view: RowsView,
    strides: tuple[Strides, ...],
    row_offset: int | None,
    shared: Shares,
    more: tuple[int | None, ...] = (),
    slice_strides: tuple[int, ...] = (),
    unroll: int = 2,
    **constants: Any,
) -> Launch:
    """A start of one of the kernels: what they all take, and ``more`` that one of them takes.

    ``row_offset``: None for kernels that draw no noise. ``slice_strides``: from a draw to the next, or a channel.
    """
    event = view.outer * view.inner
    unit = math.gcd(shared.group, event, *[row for row, _, _ in strides], *slice_strides)
    scalars = [view.rows, event // unit, view.inner, shared.tiles_a_program]
    if row_offset is not None:
        scalars.insert(3, row_offset)
        constants["GROUP"] = shared.group
    flat_strides = [stride for row, outer, inner in strides for stride in (row // unit, outer, inner)]
    flat_strides = [*(stride // unit for stride in slice_strides), *flat_strides]
    constants.update(
        UNIT=unit,
        WIDE=event >= WIDE_EVENT,
        TWO_DIMS=view.outer > 1,
        MASKED=view.rows % shared.rows_a_program != 0 or event % shared.columns != 0,
        ROWS=shared.rows_a_program,
        COLUMNS=shared.columns,
        UNROLL=min(unroll, shared.tiles_a_program),
        HARDWARE=_hardware_of(next(tensor.device for tensor in tensors if tensor is not None)),
    )
    return Launch(kernel, shared.grid, (*tensors, *scalars, *more, *flat_strides), constants)


def forward_launch(
    view: RowsView, sums: Tensor | None, seed: Tensor | None, row_offset: int, shared: Shares, draw: int = 0
) -> Launch:
    """``view`` holds mu, logvar, z and the element-wise kl, whichever take part; ``sums`` is (rows, programs a row)."""
    mu, logvar, z, elementwise = view.tensors
    return make_launch(
        forward_kernel,
        (mu, logvar, z, elementwise if sums is None else sums, seed),
        view,
        view.strides,
        row_offset,
        shared,
        (draw or None,),
        WITH_POSTERIOR=mu is not None,
        WITH_Z=seed is not None,
        KL=(SUMS if sums is not None else NO_KL if elementwise is None else ELEMENTWISE).value,
    )


def backward_launch(
    view: RowsView, grad_kl: Tensor | None, reduction: str | None, seed: Tensor | None, row_offset: int, shared: Shares
) -> Launch:
    """``view`` holds grad_z, the element-wise grad_kl, mu, logvar, grad_mu, grad_logvar; ``grad_kl`` any other one."""
    grad_z, elementwise, *others = view.tensors
    strides = list(view.strides)
    if elementwise is not None:
        kl = ELEMENTWISE
    elif grad_kl is not None:
        kl = MEAN if reduction == "batchmean" else SUMS
        strides[1] = (0, grad_kl.stride(0) if reduction == "sample" else 0, 0)
    else:
        kl = NO_KL
    return make_launch(
        backward_kernel,
        (grad_z, grad_kl if elementwise is None else elementwise, *others, seed),
        view,
        tuple(strides),
        row_offset,
        shared,
        WITH_Z=grad_z is not None,
        KL=kl.value,
    )


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype, draw: int = 0) -> Tensor:
    eps = torch.empty(shape, dtype=dtype, device=seed.device)
    if eps.numel() > 0:
        event = math.prod(shape[1:])
        view = RowsView(shape[0], 1, event, (None, None, eps, None), (_UNUSED, _UNUSED, (event, event, 1), _UNUSED))
        forward_launch(view, None, seed, row_offset, shares(shape[0], event, dtype), draw).run(eps.device)
    return eps


def forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, row_offset: int, reduction: str | None
) -> tuple[Tensor | None, Tensor | None]:
    z = None if seed is None else torch.empty_like(mu)
    kl = kl_like(mu, reduction) if reduction in ("none", "sample") else None
    sums = None
    if mu.numel() == 0:
        sums = None if reduction in (None, "none") else mu.new_zeros((mu.shape[0], 0), dtype=torch.float32)
    else:
        elementwise = kl if reduction == "none" else None
        view = rows_view(mu, logvar, z, elementwise)
        shared = shares(view.rows, view.outer * view.inner, mu.dtype)
        if reduction == "sample" and shared.grid[1] == 1:
            sums = kl
        elif reduction not in (None, "none"):
            sums = mu.new_empty((view.rows, shared.grid[1]), dtype=torch.float32)
        forward_launch(view, sums, seed, row_offset, shared).run(mu.device)
        view.copy_back(2, z)
        view.copy_back(3, elementwise)
    if sums is not None and sums is not kl:
        kl = finish_kl(sums, reduction)
    return z, kl


def finish_kl(sums: Tensor, reduction: str | None) -> Tensor:
    """The second, fixed-order step of a KL: over the programs of a row, and over rows if that is asked for."""
    if reduction == "sample":
        return sums.sum(1)
    return sums.sum() if reduction == "sum" else sums.sum() / sums.shape[0]


def backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    seed: Tensor | None,
    row_offset: int,
    reduction: str | None,
    out: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:
    grad_mu, grad_logvar = out or (None if mu is None else torch.empty_like(mu), torch.empty_like(logvar))
    if logvar.numel() > 0:
        elementwise = grad_kl if reduction == "none" else None
        view = rows_view(grad_z, elementwise, mu, logvar, grad_mu, grad_logvar)
        shared = shares(view.rows, view.outer * view.inner, logvar.dtype)
        backward_launch(view, grad_kl, reduction, seed, row_offset, shared).run(logvar.device)
        view.copy_back(4, grad_mu)
        view.copy_back(5, grad_logvar)
    return grad_mu, grad_logvar
