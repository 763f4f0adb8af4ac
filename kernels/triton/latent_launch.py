"""Launch shapes of the family of latents, its launches, and the sums that are finished after them.

As in `launch`, a launch is described before it is started: here together with what makes results of what it writes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..family import Gradients, Latents, Options
from ..layout import RowsView, draws_like, kl_like, rows_view
from ..reference.latents import grad_kl_elementwise, reduce_kl
from . import launch
from .gaussian import ELEMENTWISE, MEAN, NO_KL, SUMS
from .latents import FULL, NO_PRIOR, ONE, SHARED
from .latents_backward import latent_backward_kernel
from .latents_forward import latent_forward_kernel
from .launch import NUM_WARPS, Launch, Shares, finish_kl, group_of, make_launch, shares_across, tile_shape

# Fewer than a plain latent has: a tile's parameters, and backward their gradients, are kept while its draws are made.
TILE_ELEMENTS = 1024
# Draws that a program makes at least.
LEAST_DRAWS = 4
# Rows of a tile whose prior they share, so that it is loaded and computed with that much more seldom.
ROWS_WITH_SHARED_PRIOR = 2
# Rows that a program sums up over the batch, at least: its sums are written once, for each column.
ROWS_DOWN = 32
# Columns of the narrowest tiles that a channel is cut into. What does not divide into such is written one by one, and
# PyTorch sums each channel.
LEAST_COLUMNS_OF_A_CHANNEL = 32
MOST_PROGRAMS_A_ROW = 65535


Results = TypeVar("Results")


class Call(NamedTuple, Generic[Results]):
    """A call of the backend: what it starts, if there is anything to compute, and what makes its results of that."""

    launch: Launch | None
    device: torch.device
    results: Callable[[], Results]

    def run(self) -> Results:
        if self.launch is not None:
            self.launch.run(self.device)
        return self.results()


class Plan(NamedTuple):
    """How the work is shared out; ``down``: a program goes through rows, not columns."""

    shared: Shares
    down: bool
    tiles: int  # of a row

    @property
    def programs_a_row(self) -> int:
        return self.tiles if self.down else self.shared.grid[1]


NOTHING_TO_DO = Plan(Shares(1, 1, 1, 1, (0, 0)), False, 0)


@functools.lru_cache(maxsize=1024)
def plan_of(
    rows: int,
    event: int,
    dtype: torch.dtype,
    with_shared_prior: bool,
    down: bool,
    channel: int | None = None,
    draws_to_share: int = 1,
) -> Plan:
    """``channel``: so many coordinates at a time are summed, so that no program may have its part in two of them."""
    if rows * event == 0:
        return NOTHING_TO_DO
    rows_a_tile, columns = tile_shape(rows, event, dtype, TILE_ELEMENTS, draws_to_share)
    if with_shared_prior and columns >= wide_columns(dtype):
        rows_a_tile, columns = ROWS_WITH_SHARED_PRIOR, wide_columns(dtype)
    if channel is not None:
        columns = min(columns, _power_of_2_in(channel))
    tiles = -(-event // columns)
    if down:
        row_tiles = -(-rows // rows_a_tile)
        tiles_a_program = max(-(-row_tiles * tiles // launch.ENOUGH_PROGRAMS), -(-ROWS_DOWN // rows_a_tile))
        grid = (tiles, -(-row_tiles // tiles_a_program))
        return Plan(Shares(rows_a_tile, columns, tiles_a_program, group_of(dtype), grid), True, tiles)
    shared = shares_across(rows, event, dtype, (rows_a_tile, columns))
    if channel is not None:
        shared = shared._replace(tiles_a_program=1, grid=(shared.grid[0], tiles))
    return Plan(shared, False, tiles)


def programs_of_draws(plan: Plan, draws: int) -> int:
    """Among how many programs the draws of a tile are shared out: more than one only if there are too few others."""
    return max(1, min(draws // LEAST_DRAWS, launch.ENOUGH_PROGRAMS // math.prod(plan.shared.grid)))


def wide_columns(dtype: torch.dtype) -> int:
    """As many as all threads load at once. A row of fewer would have to be moved to the threads that have its tile."""
    return 32 * NUM_WARPS * group_of(dtype)


def _power_of_2_in(number: int) -> int:
    return number & -number


def channel_to_sum(mu: Tensor) -> int | None:
    """The coordinates of a channel, if the kernel can sum them: tiles must divide it, and not be too many."""
    channel, event = math.prod(mu.shape[2:]), math.prod(mu.shape[1:])
    columns = min(_power_of_2_in(channel), TILE_ELEMENTS)
    if mu.numel() == 0 or columns < LEAST_COLUMNS_OF_A_CHANNEL or event // columns > MOST_PROGRAMS_A_ROW:
        return None
    return channel


def kind_of_prior(prior: Tensor | None, shape: torch.Size) -> int:
    if prior is None:
        return NO_PRIOR.value
    if prior.shape == shape:
        return FULL.value
    return (ONE if prior.numel() == 1 else SHARED).value


def as_loaded(kind: int, plan: Plan, dtype: torch.dtype) -> int:
    """A row that a narrow tile's rows share is loaded for each of them."""
    return FULL.value if kind == SHARED.value and plan.shared.columns < wide_columns(dtype) else kind


def _constants(options: Options, kinds: tuple[int, int], plan: Plan, dtype: torch.dtype) -> dict[str, Any]:
    """The constants that both kernels have."""
    constants = {name.upper(): value for name, value in options._asdict().items()}
    prior_mu, prior_scale = (as_loaded(kind, plan, dtype) for kind in kinds)
    return {**constants, "PRIOR_MU": prior_mu, "PRIOR_SCALE": prior_scale, "DOWN": plan.down}


def _expanded(prior: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if prior is None else prior.expand(shape)


def _first_draw(draws: Tensor | None, num_samples: int | None) -> Tensor | None:
    return draws if draws is None or num_samples is None else draws.select(0, 0)


def _all_draws(view: RowsView, index: int, draws: Tensor | None, num_samples: int | None) -> tuple[Tensor | None, int]:
    """All draws, laid out as the view has the first one (a copy, if that had to be one), and how far they are apart."""
    shown = view.tensors[index]
    if draws is None or num_samples is None:
        return shown, 0
    if shown is not None and shown.stride() != draws.stride()[1:]:
        draws = draws.contiguous()
    return draws, draws.stride(0)


def describe_forward(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    kl_mean: bool,
    log_probs: bool,
    options: Options,
) -> Call[Latents]:
    rows, event, draws = mu.shape[0], math.prod(mu.shape[1:]), num_samples or 1
    kinds = kind_of_prior(prior_mu, mu.shape), kind_of_prior(prior_scale, mu.shape)
    channel = channel_to_sum(mu) if reduction == "channel" else None
    by_element = reduction == "none" or (reduction == "channel" and channel is None)
    # A KL has no part in the draws: a program that computes one makes them all.
    draws_to_share = draws if reduction is None and not kl_mean else 1
    plan = plan_of(rows, event, mu.dtype, SHARED.value in kinds, kl_mean, channel, draws_to_share)

    single = functools.partial(mu.new_empty, dtype=torch.float32)
    z = None if seed is None else torch.empty_like(mu) if num_samples is None else draws_like(mu, draws)
    elementwise = kl_like(mu, "none") if by_element else None
    sums = None if by_element or reduction is None else single((rows, plan.programs_a_row))
    columns = single((plan.shared.grid[1], event)) if kl_mean else None
    log_q, log_p = (single((draws, rows, plan.tiles)) if log_probs else None for _ in range(2))
    started = None
    if mu.numel() > 0:
        priors = _expanded(prior_mu, mu.shape), _expanded(prior_scale, mu.shape)
        view = rows_view(mu, scale, *priors, _first_draw(z, num_samples), elementwise)
        all_z, z_draw = _all_draws(view, 4, z, num_samples)
        draw_programs = programs_of_draws(plan, draws_to_share)
        started = make_launch(
            latent_forward_kernel,
            (*view.tensors[:4], all_z, view.tensors[5] if sums is None else sums, columns, log_q, log_p, seed),
            view,
            view.strides,
            row_offset,
            plan.shared._replace(grid=(*plan.shared.grid, draw_programs)),
            more=(plan.tiles, draws, -(-draws // draw_programs)),
            slice_strides=(z_draw,),
            unroll=2 if draws == 1 and not plan.down else 1,
            WITH_Z=z is not None,
            KL=(SUMS if sums is not None else NO_KL if elementwise is None else ELEMENTWISE).value,
            KL_MEAN=kl_mean,
            LOG_PROBS=log_probs,
            SHARE_DRAWS=draw_programs > 1,
            **_constants(options, kinds, plan, mu.dtype),
        )

    def results() -> Latents:
        if started is not None:
            view.copy_back(5, elementwise)
            if z is not None and all_z is not None and all_z is not z:
                z.copy_(all_z)
        kl = elementwise
        if reduction == "channel" and elementwise is not None:
            kl = reduce_kl(elementwise, reduction)
        elif reduction == "channel" and sums is not None:
            kl = sums.view(*mu.shape[:2], -1).sum(2)
        elif sums is not None:
            kl = sums.view(rows) if reduction == "sample" and sums.shape[1] == 1 else finish_kl(sums, reduction)
        mean = None if columns is None else columns.sum(0).div_(rows).view(mu.shape[1:])
        shape = (rows,) if num_samples is None else (draws, rows)
        log_q_and_p = [
            None if log is None else log.view(shape) if plan.tiles == 1 else log.sum(2).view(shape)
            for log in (log_q, log_p)
        ]
        return Latents(z, kl, mean, *log_q_and_p)

    return Call(started, mu.device, results)


def describe_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    grad_log_q: Tensor | None,
    grad_log_p: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str | None,
    options: Options,
    wants_prior: bool,
    out: tuple[Tensor, Tensor] | None = None,
) -> Call[Gradients]:
    rows, event, draws = mu.shape[0], math.prod(mu.shape[1:]), num_samples or 1
    given = prior_mu, prior_scale
    kinds = kind_of_prior(prior_mu, mu.shape), kind_of_prior(prior_scale, mu.shape)
    wanted = [prior if wants_prior else None for prior in given]
    down = wants_prior and bool({SHARED.value, ONE.value} & set(kinds))
    plan = plan_of(rows, event, mu.dtype, SHARED.value in kinds, down)

    grad_mu, grad_scale = out or (torch.empty_like(mu), torch.empty_like(scale))
    of_full = [
        torch.empty_like(prior) if prior is not None and kind == FULL.value else None
        for prior, kind in zip(wanted, kinds, strict=True)
    ]
    columns = [
        mu.new_empty((plan.shared.grid[1], event), dtype=torch.float32)
        if prior is not None and kind != FULL.value
        else None
        for prior, kind in zip(wanted, kinds, strict=True)
    ]
    started = None
    if mu.numel() > 0:
        elementwise = None
        if grad_kl is not None and reduction in ("none", "channel"):
            elementwise = grad_kl_elementwise(grad_kl, mu, reduction)
        priors = _expanded(prior_mu, mu.shape), _expanded(prior_scale, mu.shape)
        view = rows_view(
            _first_draw(grad_z, num_samples), elementwise, mu, scale, *priors, grad_mu, grad_scale, *of_full
        )
        all_grad_z, grad_z_draw = _all_draws(view, 0, grad_z, num_samples)
        strides = list(view.strides)
        kl = NO_KL
        if elementwise is not None:
            kl = ELEMENTWISE
        elif grad_kl is not None:
            kl = MEAN if reduction == "batchmean" else SUMS
            strides[1] = (0, grad_kl.stride(0) if reduction == "sample" else 0, 0)
        started = make_launch(
            latent_backward_kernel,
            (
                all_grad_z,
                grad_kl if elementwise is None else view.tensors[1],
                grad_log_q,
                grad_log_p,
                *view.tensors[2:8],
                *(full if sums is None else sums for full, sums in zip(view.tensors[8:], columns, strict=True)),
                None if grad_z is None and grad_log_p is None else seed,
            ),
            view,
            tuple(strides),
            row_offset,
            plan.shared,
            more=(draws, *_draw_and_row(grad_log_q), *_draw_and_row(grad_log_p)),
            slice_strides=(grad_z_draw,),
            unroll=2 if draws == 1 and not plan.down else 1,
            WITH_Z=grad_z is not None,
            KL=kl.value,
            WITH_LOG_Q=grad_log_q is not None,
            WITH_LOG_P=grad_log_p is not None,
            WANTS_PRIOR=wants_prior and prior_mu is not None,
            SUM_PRIOR_MU=columns[0] is not None,
            SUM_PRIOR_SCALE=columns[1] is not None,
            **_constants(options, kinds, plan, mu.dtype),
        )

    def results() -> Gradients:
        if started is not None:
            for index, output in enumerate((grad_mu, grad_scale, *of_full)):
                view.copy_back(6 + index, output)
        of_prior = []
        for prior, full, sums in zip(wanted, of_full, columns, strict=True):
            if prior is not None and sums is not None:
                total = sums.sum() if prior.numel() == 1 else sums.sum(0)
                full = torch.empty_like(prior).copy_(total.view(prior.shape))
            of_prior.append(full)
        return Gradients(grad_mu, grad_scale, *of_prior)

    return Call(started, mu.device, results)


def _draw_and_row(gradient: Tensor | None) -> tuple[int, int]:
    """Strides of the gradient of log probabilities: (draws, rows), or (rows,) of a single draw."""
    if gradient is None:
        return 0, 0
    return 0 if gradient.dim() == 1 else gradient.stride(0), gradient.stride(-1)


def latent_forward(*arguments: Any, **named: Any) -> Latents:
    """As `fastvae.kernels` says."""
    return describe_forward(*arguments, **named).run()


def latent_backward(*arguments: Any, **named: Any) -> Gradients:
    """As `fastvae.kernels` says."""
    return describe_backward(*arguments, **named).run()
