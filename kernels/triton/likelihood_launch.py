"""Launches of the likelihoods; those of mixtures are worked out in `mixture_launch`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..layout import contiguous, copy_all, empty_kl, rows_view
from ..likelihood_spec import KINDS, MIXTURE, NOTICING, Bounds, LikelihoodSpec
from .launch import (
    UNKNOWN,
    Buffer,
    Memory,
    Plan,
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
from .mixture_launch import plan_mixture_backward, plan_mixture_forward
from .sums import COLUMNS, buffer_of, finish_elementwise, finish_gradient, finish_rows, grad_view, is_left, way_of
from .tiles import ABSENT, ELEMENTWISE, SHARED, SUMS
from .views import as_loaded, expanded, extent_of

# Elements of a tile, at most: there may be three parameters, and their gradients.
TILE_ELEMENTS = 1024
# Parameters that a kernel takes, whatever the kind.
PARAMETERS = ("first", "second", "third")
# Of these a tile fills the registers: a second one at a time would spill them.
HEAVY = ("negative_binomial", "zero_inflated_negative_binomial")

# In place of the parameters that a kind does not have, in kernels for several kinds.
_ABSENT = {kind: (None,) * (len(PARAMETERS) - of.parameters) for kind, of in KINDS.items()} | {MIXTURE: ()}

Parameters = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


# None: the tensors must be copied first.
_forward_plans: Memory[Plan] = Memory()
_backward_plans: Memory[Plan] = Memory()


def likelihood_forward(
    x: Tensor, parameters: Parameters, spec: LikelihoodSpec, bounds: Bounds, noticed: Tensor | None = None
) -> Tensor:
    """As `fastvae.kernels` says."""
    if x.dtype is torch.bool:
        x = x.view(torch.uint8)
    if noticed is not None:
        noticed = noticed.view(torch.uint8) if spec.kind in NOTICING else None
    key = (spec, noticed is None, layouts_of(x, *parameters))
    plan = _forward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        work_out = plan_mixture_forward if spec.kind == MIXTURE else _plan_forward
        plan = _forward_plans.add(key, work_out, x, parameters, spec)
    if plan is None:
        found = likelihood_forward(x.contiguous(), contiguous(*parameters), spec, bounds, noticed)
        as_it_is = spec.reduction != "none" or spec.kind == MIXTURE
        return found if as_it_is else empty_kl(parameters[0], "none").copy_(found)
    (out,) = empty(plan.buffers, parameters[0])
    assert out is not None
    if plan.template is not None:
        plan.template.start((x, *parameters, *_ABSENT[spec.kind], out, noticed), bounds)
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
    key = (spec, wants, layouts_of(grad, x, *parameters))
    plan = _backward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        work_out = plan_mixture_backward if spec.kind == MIXTURE else _plan_backward
        plan = _backward_plans.add(key, work_out, grad, x, parameters, spec, wants)
    if plan is None:
        found = likelihood_backward(grad.contiguous(), x.contiguous(), contiguous(*parameters), spec, bounds, wants)
        gradients = tuple(
            [torch.empty_like(given) if want else None for given, want in zip(parameters, wants, strict=True)]
        )
        copy_all(found, gradients)
        return gradients
    buffers = empty(plan.buffers, parameters[0])
    if plan.template is not None:
        absent = _ABSENT[spec.kind]
        plan.template.start((grad, x, *parameters, *absent, *buffers, *absent), bounds)
    if not plan.finish:
        return tuple(buffers)
    return tuple([finish_gradient(*one) for one in zip(buffers, parameters, plan.ways, strict=True)])


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
    template = make_template(likelihood_forward_kernel, view, tiling, strides, constants, x.device)
    return plan._replace(template=template)


def _plan_backward(
    grad: Tensor, x: Tensor, parameters: Parameters, spec: LikelihoodSpec, wants: tuple[bool, ...]
) -> Plan:
    ways = tuple([way_of(given, wanted, x.shape) for given, wanted in zip(parameters, wants, strict=True)])
    tiling = _tiling(_work(x, parameters)._replace(reduce_rows=COLUMNS in ways), spec)
    buffers = [buffer_of(*one, tiling.grid[1], x.shape) for one in zip(parameters, ways, strict=True)]
    finish = any(is_left(*one) for one in zip(buffers, parameters, ways, strict=True))
    plan = Plan(None, tuple([Buffer.like(buffer) for buffer in buffers]), finish, ways)
    if x.numel() == 0:
        return plan
    elementwise, row_strides, kind = grad_view(grad, x.shape, spec.reduction)
    written = _padded([None if way == COLUMNS else buffer for buffer, way in zip(buffers, ways, strict=True)])
    view = rows_view(elementwise, x, *_expanded(parameters, x.shape), *written)
    names = ("grad", "x", *PARAMETERS, *(f"grad_{name}" for name in PARAMETERS))
    strides = dict(zip(names, view.strides, strict=True))
    if elementwise is None:
        strides["grad"] = row_strides
    _, second, third = _padded(ways)
    constants = {
        "GRAD": kind,
        "SUM_SECOND": second == COLUMNS,
        "SUM_THIRD": third == COLUMNS,
        **_constants(x, parameters, spec, tiling),
    }
    template = make_template(likelihood_backward_kernel, view, tiling, strides, constants, x.device)
    return plan._replace(template=template)


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
