"""Launches of the mixture of pixels: the event is the pixels of an image, each with channels of data and parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import rows_view
from ..likelihood_spec import LikelihoodSpec
from .launch import Buffer, Plan, Tiling, Work, make_template, tiling_of
from .mixture_backward_kernel import mixture_backward_kernel
from .mixture_forward_kernel import mixture_forward_kernel
from .sums import grad_view
from .tiles import ELEMENTWISE, SUMS

# Pixels that a program holds at a time.
TILE_PIXELS = 256


def _tiling(x: Tensor, parameter: Tensor) -> Tiling:
    tiling = tiling_of(Work(x.shape[0], math.prod(x.shape[2:]), parameter.dtype, TILE_PIXELS))
    return tiling._replace(unroll=1)


def plan_mixture_forward(x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec) -> Plan:
    (parameter,) = parameters
    tiling, by_element = _tiling(x, parameter), spec.reduction == "none"
    shape = (x.shape[0], *x.shape[2:]) if by_element else (x.shape[0], tiling.grid[1])
    out = parameter.new_empty(shape, dtype=torch.float32)
    plan = Plan(None, (Buffer.like(out),), not by_element)
    if x.numel() == 0:
        return plan
    view = rows_view(x.select(1, 0), parameter.select(1, 0), out if by_element else None)
    strides = dict(zip(("x", "parameter", "out"), view.strides, strict=True))
    slices = {"x_channel": x.stride(1), "parameter_channel": parameter.stride(1)}
    constants = {"OUT": (ELEMENTWISE if by_element else SUMS).value, "CHANNELS": x.shape[1]}
    sizes = slices, {"components": spec.components}
    template = make_template(mixture_forward_kernel, view, tiling, strides, constants, x.device, *sizes)
    return plan._replace(template=template)


def plan_mixture_backward(
    grad: Tensor, x: Tensor, parameters: tuple[Tensor, ...], spec: LikelihoodSpec, wants: tuple[bool, ...]
) -> Plan:
    (parameter,) = parameters
    wholes = {"x": x, "parameter": parameter, "grad_parameter": torch.empty_like(parameter)}
    plan = Plan(None, (Buffer.like(wholes["grad_parameter"]),))
    if x.numel() == 0:
        return plan
    elementwise, row_strides, kind = grad_view(grad, torch.Size((x.shape[0], *x.shape[2:])), spec.reduction)
    view = rows_view(elementwise, *[whole.select(1, 0) for whole in wholes.values()])
    strides = dict(zip(("grad", *wholes), view.strides, strict=True))
    if elementwise is None:
        strides["grad"] = row_strides
    slices = {f"{name}_channel": whole.stride(1) for name, whole in wholes.items()}
    constants = {"GRAD": kind, "CHANNELS": x.shape[1]}
    tiling, sizes = _tiling(x, parameter), (slices, {"components": spec.components})
    template = make_template(mixture_backward_kernel, view, tiling, strides, constants, x.device, *sizes)
    return plan._replace(template=template)
