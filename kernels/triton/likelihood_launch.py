"""Launch shapes of the likelihoods, their launches, and the sums that are finished after them.

As in `latent_launch`, whose sums over the batch and over channels these are too, a launch is described before it is
started.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..layout import RowsView, Strides, kl_like, rows_view
from ..likelihoods import MIXTURE, Density
from ..reference.latents import grad_kl_elementwise, reduce_kl
from .gaussian import ELEMENTWISE, MEAN, SUMS
from .latent_launch import NOTHING_TO_DO, Call, Plan, as_loaded, channel_to_sum, kind_of_prior, plan_of
from .latents import FULL, NO_PRIOR, SHARED
from .launch import Shares, finish_kl, make_launch, shares_across, tile_shape
from .likelihoods import likelihood_backward_kernel, likelihood_forward_kernel
from .mixture import mixture_backward_kernel, mixture_forward_kernel

# Parameters that a kernel takes, whatever the kind.
MOST_PARAMETERS = 3
# Of these a tile fills the registers: a second one at a time would spill them.
HEAVY = ("negative_binomial", "zero_inflated_negative_binomial")
# Pixels of a mixture that a program holds at a time.
TILE_PIXELS = 256

Gradients = tuple[Tensor | None, ...]


def describe_forward(x: Tensor, parameters: tuple[Tensor, ...], reduction: str, density: Density) -> Call[Tensor]:
    describe = _mixture_forward if density.kind == MIXTURE else _elementwise_forward
    return describe(_numbers(x), parameters, reduction, density)


def describe_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    reduction: str,
    density: Density,
    wants: tuple[bool, ...],
) -> Call[Gradients]:
    if not any(wants):
        return Call(None, x.device, lambda: (None,) * len(parameters))
    describe = _mixture_backward if density.kind == MIXTURE else _elementwise_backward
    return describe(grad, _numbers(x), parameters, reduction, density, wants)


def _numbers(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def _kinds(parameters: tuple[Tensor, ...], shape: torch.Size) -> list[int]:
    """How much there is of each parameter that a kernel takes."""
    kinds = [kind_of_prior(given, shape) for given in parameters]
    return kinds + [NO_PRIOR.value] * (MOST_PARAMETERS - len(kinds))


def _padded(tensors: list[Tensor] | list[Tensor | None]) -> list[Tensor | None]:
    return [*tensors, *[None] * (MOST_PARAMETERS - len(tensors))]


def _constants(density: Density, kinds: list[int], plan: Plan, dtype: torch.dtype) -> dict[str, Any]:
    """The constants that both kernels of the element-wise kinds have."""
    _, second, third = (as_loaded(kind, plan, dtype) for kind in kinds)
    clamps = density.low > -math.inf or density.high < math.inf
    return {
        "KIND": density.kind,
        "CLAMP": "hard" if clamps else "none",
        "LOW": density.low,
        "HIGH": density.high,
        "SECOND": second,
        "THIRD": third,
    }


def _tiles_at_a_time(density: Density, plan: Plan) -> int:
    return 1 if plan.down or density.kind in HEAVY else 2


def _gradient_as_read(
    grad: Tensor, elementwise: Tensor | None, reduction: str, strides: Strides
) -> tuple[Tensor, Strides, int]:
    """The gradient, how it is addressed, and what of ELEMENTWISE, SUMS and MEAN it is."""
    if elementwise is not None:
        return elementwise, strides, ELEMENTWISE.value
    row_stride = grad.stride(0) if reduction == "sample" else 0
    return grad, (0, row_stride, 0), (MEAN if reduction == "batchmean" else SUMS).value


def _elementwise_forward(x: Tensor, parameters: tuple[Tensor, ...], reduction: str, density: Density) -> Call[Tensor]:
    first = parameters[0]
    rows, event = x.shape[0], math.prod(x.shape[1:])
    kinds = _kinds(parameters, x.shape)
    channel = channel_to_sum(first) if reduction == "channel" else None
    by_element = reduction == "none" or (reduction == "channel" and channel is None)
    plan = plan_of(rows, event, first.dtype, SHARED.value in kinds, False, channel)

    elementwise = kl_like(first, "none") if by_element else None
    sums = None if by_element else first.new_empty((rows, plan.programs_a_row), dtype=torch.float32)
    started = None
    if x.numel() > 0:
        view = rows_view(x, *_padded([given.expand(x.shape) for given in parameters]), elementwise)
        started = make_launch(
            likelihood_forward_kernel,
            (*view.tensors[:4], view.tensors[4] if sums is None else sums),
            view,
            view.strides,
            None,
            plan.shared,
            unroll=_tiles_at_a_time(density, plan),
            OUT=(ELEMENTWISE if sums is None else SUMS).value,
            **_constants(density, kinds, plan, first.dtype),
        )

    def results() -> Tensor:
        if elementwise is not None:
            if started is not None:
                view.copy_back(4, elementwise)
            return reduce_kl(elementwise, reduction)
        assert sums is not None
        return sums.view(*x.shape[:2], -1).sum(2) if reduction == "channel" else _finished(sums, reduction)

    return Call(started, x.device, results)


def _finished(sums: Tensor, reduction: str) -> Tensor:
    """From the sums of the programs of each row."""
    return sums.view(-1) if reduction == "sample" and sums.shape[1] == 1 else finish_kl(sums, reduction)


def _elementwise_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    reduction: str,
    density: Density,
    wants: tuple[bool, ...],
) -> Call[Gradients]:
    first = parameters[0]
    rows, event = x.shape[0], math.prod(x.shape[1:])
    kinds = _kinds(parameters, x.shape)
    summed = [wanted and kind != FULL.value for wanted, kind in zip(wants, kinds, strict=False)]
    plan = plan_of(rows, event, first.dtype, SHARED.value in kinds, any(summed))

    of_full = [
        torch.empty_like(given) if wanted and not down else None
        for given, wanted, down in zip(parameters, wants, summed, strict=True)
    ]
    columns = [first.new_empty((plan.shared.grid[1], event), dtype=torch.float32) if down else None for down in summed]
    started = None
    if x.numel() > 0:
        elementwise = grad_kl_elementwise(grad, x, reduction) if reduction in ("none", "channel") else None
        expanded = [given.expand(x.shape) for given in parameters]
        view = rows_view(elementwise, x, *_padded(expanded), *_padded(of_full))
        grad, of_grad, kind = _gradient_as_read(grad, view.tensors[0], reduction, view.strides[0])
        _, sum_second, sum_third = _padded(columns)
        outputs = [
            full if sums is None else sums for full, sums in zip(view.tensors[5:], _padded(columns), strict=True)
        ]
        started = make_launch(
            likelihood_backward_kernel,
            (grad, *view.tensors[1:5], *outputs),
            view,
            (of_grad, *view.strides[1:]),
            None,
            plan.shared,
            unroll=_tiles_at_a_time(density, plan),
            GRAD=kind,
            SUM_SECOND=sum_second is not None,
            SUM_THIRD=sum_third is not None,
            DOWN=plan.down,
            **_constants(density, kinds, plan, first.dtype),
        )

    def results() -> Gradients:
        gradients = []
        for index, (given, full, sums) in enumerate(zip(parameters, of_full, columns, strict=True)):
            if started is not None:
                view.copy_back(5 + index, full)
            if sums is not None:
                total = sums.sum() if given.numel() == 1 else sums.sum(0)
                full = torch.empty_like(given).copy_(total.view(given.shape))
            gradients.append(full)
        return tuple(gradients)

    return Call(started, x.device, results)


def _mixture_plan(rows: int, pixels: int, dtype: torch.dtype) -> Shares:
    if rows * pixels == 0:
        return NOTHING_TO_DO.shared
    return shares_across(rows, pixels, dtype, tile_shape(rows, pixels, dtype, TILE_PIXELS))


def _pixels(wholes: list[Tensor], others: list[Tensor | None]) -> tuple[list[Tensor], RowsView]:
    """The first channel of each tensor (B, channels, ...), and the others, (B, ...), as rows of pixels.

    With the whole tensors that they are of: copies, if two pixel indices do not do.
    """
    firsts = [whole.select(1, 0) for whole in wholes]
    view = rows_view(*firsts, *others)
    if view.tensors[0] is firsts[0]:
        return wholes, view
    copies = [None if other is None else other.contiguous() for other in others]
    return _pixels([whole.contiguous() for whole in wholes], copies)


def _mixture_constants(x: Tensor, density: Density) -> dict[str, Any]:
    return {"CHANNELS": x.shape[1], "LOW": density.low}


def _mixture_forward(x: Tensor, parameters: tuple[Tensor, ...], reduction: str, density: Density) -> Call[Tensor]:
    (parameter,) = parameters
    shape = (x.shape[0], *x.shape[2:])
    shared = _mixture_plan(shape[0], math.prod(shape[1:]), parameter.dtype)
    single = functools.partial(parameter.new_empty, dtype=torch.float32)
    elementwise = single(shape) if reduction == "none" else None
    sums = None if reduction == "none" else single((shape[0], shared.grid[1]))
    started = None
    if x.numel() > 0:
        wholes, view = _pixels([x, parameter], [elementwise])
        started = make_launch(
            mixture_forward_kernel,
            (*wholes, elementwise if sums is None else sums),
            view,
            view.strides,
            None,
            shared,
            more=(density.components,),
            slice_strides=tuple(whole.stride(1) for whole in wholes),
            unroll=1,
            OUT=(ELEMENTWISE if sums is None else SUMS).value,
            **_mixture_constants(x, density),
        )

    def results() -> Tensor:
        if sums is not None:
            return _finished(sums, reduction)
        assert elementwise is not None
        return elementwise

    return Call(started, x.device, results)


def _mixture_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    reduction: str,
    density: Density,
    wants: tuple[bool, ...],
) -> Call[Gradients]:
    (parameter,) = parameters
    shared = _mixture_plan(x.shape[0], math.prod(x.shape[2:]), parameter.dtype)
    wholes = [x, parameter, torch.empty_like(parameter)]
    started = None
    if x.numel() > 0:
        wholes, view = _pixels(wholes, [grad if reduction == "none" else None])
        *strides, of_grad = view.strides
        grad, of_grad, kind = _gradient_as_read(grad, view.tensors[3], reduction, of_grad)
        started = make_launch(
            mixture_backward_kernel,
            (grad, *wholes),
            view,
            (of_grad, *strides),
            None,
            shared,
            more=(density.components,),
            slice_strides=tuple(whole.stride(1) for whole in wholes),
            unroll=1,
            GRAD=kind,
            **_mixture_constants(x, density),
        )
    return Call(started, x.device, lambda: (wholes[2],))


def likelihood_forward(*arguments: Any, **named: Any) -> Tensor:
    """As `fastvae.kernels` says."""
    return describe_forward(*arguments, **named).run()


def likelihood_backward(*arguments: Any, **named: Any) -> Gradients:
    """As `fastvae.kernels` says."""
    return describe_backward(*arguments, **named).run()
