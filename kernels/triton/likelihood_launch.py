"""Launches of the element-wise likelihoods; those of mixtures are in `mixture_launch`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import contiguous, copy_all, empty_kl, rows_view
from ..likelihood_spec import MIXTURE, NOTICING, Bounds, LikelihoodSpec
from . import mixture_launch
from .launch import (
    UNKNOWN,
    Buffer,
    Memory,
    Sizes,
    Template,
    Tiling,
    Work,
    channel_to_sum,
    empty,
    layouts_of,
    make_template,
    tiling_of,
)
from .likelihood_backward_kernel import likelihood_backward_kernel
from .likelihood_forward_kernel import likelihood_forward_kernel
from .sums import are_finished, finish_columns, finish_elementwise, finish_rows, grad_view, sum_of_rows, sums_of_columns
from .tiles import ABSENT, ELEMENTWISE, FULL, SHARED, SUMS
from .views import as_loaded, expanded, extent_of, is_one_a_row, without_copies

# Elements of a tile, at most: there may be three parameters, and their gradients.
TILE_ELEMENTS = 1024
# Parameters that a kernel takes, whatever the kind.
PARAMETERS = ("first", "second", "third")
# Of these a tile fills the registers: a second one at a time would spill them.
HEAVY = ("negative_binomial", "zero_inflated_negative_binomial")

# In place of the parameters that a kind does not have.
_ABSENT = [(None,) * (len(PARAMETERS) - count) for count in range(len(PARAMETERS) + 1)]

Parameters = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


class Plan(NamedTuple):
    """A call worked out for tensors of given shapes, strides and dtypes."""

    template: Template | None  # None: there is nothing to compute
    buffers: tuple[Buffer | None, ...]  # what the kernel writes
    finish: bool  # something is left to do after it
    summed: tuple[bool, ...] = ()  # backward: the kernel gives sums of columns for the gradient of this parameter
    by_row: tuple[bool, ...] = ()  # backward: the gradient of this parameter is to be summed over the event


# None: the tensors must be copied first.
_forward_plans: Memory[Plan | None] = Memory()
_backward_plans: Memory[Plan | None] = Memory()


def likelihood_forward(
    x: Tensor, parameters: Parameters, spec: LikelihoodSpec, bounds: Bounds, noticed: Tensor | None = None
) -> Tensor:
    """As `fastvae.kernels` says."""
    if x.dtype is torch.bool:
        x = x.view(torch.uint8)
    if spec.kind == MIXTURE:
        return mixture_launch.forward(x, parameters[0], spec, bounds)
    if noticed is not None:
        noticed = noticed.view(torch.uint8) if spec.kind in NOTICING else None
    key = (spec, noticed is None, layouts_of(x, *parameters))
    plan = _forward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        plan = _forward_plans.add(key, without_copies(_plan_forward, x, parameters, spec))
    if plan is None:
        found = likelihood_forward(x.contiguous(), contiguous(*parameters), spec, bounds, noticed)
        return empty_kl(parameters[0], "none").copy_(found) if spec.reduction == "none" else found
    (out,) = empty(plan.buffers, parameters[0])
    assert out is not None
    if plan.template is not None:
        plan.template.start((x, *parameters, *_ABSENT[len(parameters)], out, noticed), bounds)
    if not plan.finish:
        return out
    if out.shape == x.shape and spec.reduction == "channel":
        return finish_elementwise(out, spec.reduction)
    return finish_rows(out, x.shape, spec.reduction)


def likelihood_backward(
    grad: Tensor, x: Tensor, parameters: Parameters, spec: LikelihoodSpec, bounds: Bounds, wants: tuple[bool, ...]
) -> Gradients:
    """As `fastvae.kernels` says."""
    if not any(wants):
        return (None,) * len(parameters)
    if x.dtype is torch.bool:
        x = x.view(torch.uint8)
    if spec.kind == MIXTURE:
        return (mixture_launch.backward(grad, x, parameters[0], spec, bounds),)
    key = (spec, wants, layouts_of(grad, x, *parameters))
    plan = _backward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        plan = _backward_plans.add(key, without_copies(_plan_backward, grad, x, parameters, spec, wants))
    if plan is None:
        found = likelihood_backward(grad.contiguous(), x.contiguous(), contiguous(*parameters), spec, bounds, wants)
        gradients = tuple(
            [torch.empty_like(given) if want else None for given, want in zip(parameters, wants, strict=True)]
        )
        copy_all(found, gradients)
        return gradients
    buffers = empty(plan.buffers, parameters[0])
    if plan.template is not None:
        absent = _ABSENT[len(parameters)]
        plan.template.start((grad, x, *parameters, *absent, *buffers, *absent), bounds)
    if not plan.finish:
        return tuple(buffers)
    finished = []
    for buffer, given, is_sum, is_by_row in zip(buffers, parameters, plan.summed, plan.by_row, strict=True):
        if buffer is not None and is_sum:
            buffer = finish_columns(buffer, given)
        elif buffer is not None and is_by_row:
            buffer = sum_of_rows(buffer, given)
        finished.append(buffer)
    return tuple(finished)


def _plan_forward(x: Tensor, parameters: Parameters, spec: LikelihoodSpec) -> Plan:
    work = _work(x, parameters)
    by_element = spec.reduction == "none"
    if spec.reduction == "channel":
        work = work._replace(channel=channel_to_sum(x.shape, work))
        by_element = work.channel is None
    tiling = _tiling(work, spec)
    whole = spec.reduction == "sample" and tiling.programs_a_row == 1
    sums_shape = (x.shape[0],) if whole else (x.shape[0], tiling.programs_a_row)
    first = parameters[0]
    out = empty_kl(first, "none") if by_element else first.new_empty(sums_shape, dtype=torch.float32)
    plan = Plan(None, (Buffer.like(out),), not (whole or spec.reduction == "none"))
    if x.numel() == 0:
        return plan
    view = rows_view(x, *_expanded(parameters, x.shape), out if by_element else None)
    strides = dict(zip(("x", *PARAMETERS, "out"), view.strides, strict=True))
    constants = {"OUT": (ELEMENTWISE if by_element else SUMS).value, **_constants(x, parameters, spec, tiling)}
    sizes = Sizes(view, tiling, strides, {}, {})
    return plan._replace(template=make_template(likelihood_forward_kernel, sizes, constants, x.device))


def _plan_backward(
    grad: Tensor, x: Tensor, parameters: Parameters, spec: LikelihoodSpec, wants: tuple[bool, ...]
) -> Plan:
    extents = [extent_of(given, x.shape) for given in parameters]
    summed = tuple([wanted and extent != FULL.value for wanted, extent in zip(wants, extents, strict=True)])
    by_row = tuple([wanted and is_one_a_row(given, x.shape) for wanted, given in zip(wants, parameters, strict=True)])
    tiling = _tiling(_work(x, parameters)._replace(reduce_rows=any(summed)), spec)
    buffers = _gradient_buffers(x, parameters, tiling, wants, summed, by_row)
    finish = [
        is_by_row or (is_sum and buffer is not None and not are_finished(buffer, given))
        for is_sum, is_by_row, buffer, given in zip(summed, by_row, buffers, parameters, strict=True)
    ]
    plan = Plan(None, tuple([Buffer.like(buffer) for buffer in buffers]), any(finish), summed, by_row)
    if x.numel() == 0:
        return plan
    elementwise, row_strides, kind = grad_view(grad, x.shape, spec.reduction)
    written = _padded([None if is_sum else buffer for buffer, is_sum in zip(buffers, summed, strict=True)])
    view = rows_view(elementwise, x, *_expanded(parameters, x.shape), *written)
    names = ("grad", "x", *PARAMETERS, *(f"grad_{name}" for name in PARAMETERS))
    strides = dict(zip(names, view.strides, strict=True))
    if elementwise is None:
        strides["grad"] = row_strides
    _, sum_second, sum_third = _padded(summed)
    constants = {
        "GRAD": kind,
        "SUM_SECOND": bool(sum_second),
        "SUM_THIRD": bool(sum_third),
        **_constants(x, parameters, spec, tiling),
    }
    sizes = Sizes(view, tiling, strides, {}, {})
    return plan._replace(template=make_template(likelihood_backward_kernel, sizes, constants, x.device))


def _work(x: Tensor, parameters: Parameters) -> Work:
    shares_row = SHARED.value in [extent_of(given, x.shape) for given in parameters]
    event = math.prod(x.shape[1:])
    return Work(x.shape[0], event, parameters[0].dtype, TILE_ELEMENTS, shares_row=shares_row)


def _tiling(work: Work, spec: LikelihoodSpec) -> Tiling:
    tiling = tiling_of(work)
    return tiling._replace(unroll=1) if spec.kind in HEAVY else tiling


def _constants(x: Tensor, parameters: Parameters, spec: LikelihoodSpec, tiling: Tiling) -> dict[str, Any]:
    """The constants that both kernels have."""
    dtype = parameters[0].dtype
    extents = [as_loaded(extent_of(given, x.shape), tiling, dtype) for given in parameters]
    extents += [ABSENT.value] * (len(PARAMETERS) - len(extents))
    return {"KIND": spec.kind, "CLAMP": "hard" if spec.clamp else "none", "SECOND": extents[1], "THIRD": extents[2]}


def _padded(values: Any) -> tuple[Any, ...]:
    """With None for the parameters that the kind does not have."""
    return (*values, *[None] * (len(PARAMETERS) - len(values)))


def _expanded(parameters: Parameters, shape: torch.Size) -> tuple[Tensor | None, ...]:
    return _padded([expanded(given, shape) for given in parameters])


def _gradient_buffers(
    x: Tensor,
    parameters: Parameters,
    tiling: Tiling,
    wants: tuple[bool, ...],
    summed: tuple[bool, ...],
    by_row: tuple[bool, ...],
) -> list[Tensor | None]:
    """For each gradient that is wanted, or for what it is a sum of."""
    buffers: list[Tensor | None] = []
    for given, wanted, is_sum, is_by_row in zip(parameters, wants, summed, by_row, strict=True):
        if not wanted:
            buffers.append(None)
        elif is_sum:
            buffers.append(sums_of_columns(given, tiling.grid[1], math.prod(x.shape[1:])))
        elif is_by_row:
            buffers.append(given.new_empty(x.shape, dtype=torch.float32))
        else:
            buffers.append(torch.empty_like(given))
    return buffers
