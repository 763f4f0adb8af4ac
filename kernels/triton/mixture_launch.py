"""Launches of the mixture of pixels: the event is the pixels of an image, each with channels of data and parameters."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import rows_view
from ..likelihood_spec import Bounds, LikelihoodSpec
from .launch import UNKNOWN, Memory, Sizes, Template, Tiling, Work, make_template, tiling_of
from .mixture_backward_kernel import mixture_backward_kernel
from .mixture_forward_kernel import mixture_forward_kernel
from .sums import finish_rows, grad_view
from .tiles import ELEMENTWISE, SUMS
from .views import without_copies

# Pixels that a program holds at a time.
TILE_PIXELS = 256


class Plan(NamedTuple):
    """A call worked out for tensors of given shapes, strides and dtypes."""

    template: Template | None  # None: there is nothing to compute
    shape: torch.Size  # of log p by pixel
    out_shape: tuple[int, ...]


# None: the tensors must be copied first.
_forward_plans: Memory[Plan | None] = Memory()
_backward_plans: Memory[Plan | None] = Memory()


def forward(x: Tensor, parameter: Tensor, spec: LikelihoodSpec, bounds: Bounds) -> Tensor:
    key = (spec, x.device, x.dtype, x.shape, x.stride(), parameter.dtype, parameter.shape, parameter.stride())
    plan = _forward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        plan = _forward_plans.add(key, without_copies(_plan_forward, x, parameter, spec))
    if plan is None:
        return forward(x.contiguous(), parameter.contiguous(), spec, bounds)
    out = parameter.new_empty(plan.out_shape, dtype=torch.float32)
    if plan.template is not None:
        plan.template.start((x, parameter, out), bounds[:1])
    return out if spec.reduction == "none" else finish_rows(out, plan.shape, spec.reduction)


def backward(grad: Tensor, x: Tensor, parameter: Tensor, spec: LikelihoodSpec, bounds: Bounds) -> Tensor:
    of_parameter = parameter.dtype, parameter.shape, parameter.stride()
    key = (spec, x.device, x.dtype, x.shape, x.stride(), of_parameter, grad.dtype, grad.stride())
    plan = _backward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        plan = _backward_plans.add(key, without_copies(_plan_backward, grad, x, parameter, spec))
    grad_parameter = torch.empty_like(parameter)
    if plan is None:
        return grad_parameter.copy_(backward(grad.contiguous(), x.contiguous(), parameter.contiguous(), spec, bounds))
    if plan.template is not None:
        plan.template.start((grad, x, parameter, grad_parameter), bounds[:1])
    return grad_parameter


def _tiling(x: Tensor, parameter: Tensor) -> Tiling:
    tiling = tiling_of(Work(x.shape[0], math.prod(x.shape[2:]), parameter.dtype, TILE_PIXELS))
    return tiling._replace(unroll=1)


def _plan_forward(x: Tensor, parameter: Tensor, spec: LikelihoodSpec) -> Plan:
    tiling, by_element = _tiling(x, parameter), spec.reduction == "none"
    shape = torch.Size((x.shape[0], *x.shape[2:]))
    plan = Plan(None, shape, shape if by_element else (shape[0], tiling.grid[1]))
    if x.numel() == 0:
        return plan
    out = parameter.new_empty(shape, dtype=torch.float32) if by_element else None
    view = rows_view(x.select(1, 0), parameter.select(1, 0), out)
    strides = dict(zip(("x", "parameter", "out"), view.strides, strict=True))
    slices = {"x_channel": x.stride(1), "parameter_channel": parameter.stride(1)}
    constants = {"OUT": (ELEMENTWISE if by_element else SUMS).value, "CHANNELS": x.shape[1]}
    sizes = Sizes(view, tiling, strides, slices, {"components": spec.components})
    return plan._replace(template=make_template(mixture_forward_kernel, sizes, constants, x.device))


def _plan_backward(grad: Tensor, x: Tensor, parameter: Tensor, spec: LikelihoodSpec) -> Plan:
    shape = torch.Size((x.shape[0], *x.shape[2:]))
    plan = Plan(None, shape, ())
    if x.numel() == 0:
        return plan
    elementwise, row_strides, kind = grad_view(grad, shape, spec.reduction)
    wholes = {"x": x, "parameter": parameter, "grad_parameter": torch.empty_like(parameter)}
    view = rows_view(elementwise, *[whole.select(1, 0) for whole in wholes.values()])
    strides = dict(zip(("grad", *wholes), view.strides, strict=True))
    if elementwise is None:
        strides["grad"] = row_strides
    slices = {f"{name}_channel": whole.stride(1) for name, whole in wholes.items()}
    constants = {"GRAD": kind, "CHANNELS": x.shape[1]}
    sizes = Sizes(view, _tiling(x, parameter), strides, slices, {"components": spec.components})
    return plan._replace(template=make_template(mixture_backward_kernel, sizes, constants, x.device))
