"""Launches of heads: a program a row. Of mixtures, whose kernels have no sums over a row, forward and backward."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..head_spec import HeadResults, HeadSpec
from ..layout import repeat_rows
from ..likelihood_spec import MIXTURE, Bounds
from .head_kernel import head_kernel
from .launch import NUM_WARPS, Memory, Template, ptx_level_of
from .likelihood_launch import HEAVY, PARAMETERS, TILE_ELEMENTS, likelihood_backward, likelihood_forward
from .sums import finish_columns
from .tiles import ONE, SHARED, Tiles

# Warps of a program whose rows have many tiles: there are few programs then, one for each row of a chunk.
WARPS_OF_LONG_ROWS = 4 * NUM_WARPS
LONG_ROW = 8 * TILE_ELEMENTS

_templates: Memory[Template] = Memory()


def head(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    library: Tensor | None,
    grad: Tensor | None,
    spec: HeadSpec,
    bounds: Bounds,
    wants: tuple[bool, ...],
) -> HeadResults:
    """As `fastvae.kernels` says."""
    if x.dtype is torch.bool:
        x = x.view(torch.uint8)
    gradients = any(wants)
    if spec.kind == MIXTURE:
        return _mixture(x, parameters[0], grad, spec, bounds, gradients)
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous()
    shape = parameters[0].shape
    log_prob = x.new_empty(shape[:1], dtype=torch.float32)
    kept, of_library = None, None
    if gradients and spec.first == "softmax":
        kept, of_library = x.new_empty(shape, dtype=torch.float32), torch.empty_like(log_prob)
    sums = [
        x.new_empty(shape, dtype=torch.float32) if wanted and activation == "given" else None
        for activation, wanted in zip(spec.activations, wants, strict=True)
    ]
    if parameters[0].numel():
        of_parameters = [(one.dtype, one.shape[-1] if one.dim() == 1 else one.stride(0)) for one in parameters]
        key = (spec, gradients, x.device, x.dtype, len(x), x.stride(0), shape, *of_parameters)
        template = _templates.get(key) or _templates.add(key, _template, x, parameters, spec, gradients)
        assert template is not None
        absent = [None] * (len(PARAMETERS) - len(parameters))
        pointers = (x, *parameters, *absent, library, grad, log_prob, kept, *[*sums, *absent][1:], of_library)
        template.start(pointers, bounds)
    else:
        log_prob.zero_()
    given = tuple(
        [None if one is None else finish_columns(one, like) for one, like in zip(sums, parameters, strict=True)]
    )
    return HeadResults(log_prob, given, of_library)


def _template(x: Tensor, parameters: tuple[Tensor, ...], spec: HeadSpec, gradients: bool) -> Template:
    rows, event = parameters[0].shape
    most = TILE_ELEMENTS // (2 if spec.kind in HEAVY else 1)
    warps = WARPS_OF_LONG_ROWS if event >= LONG_ROW else NUM_WARPS
    columns = min(triton.next_power_of_2(event), most * warps // NUM_WARPS)
    absent = [None] * (len(PARAMETERS) - len(parameters))
    extents = [ONE.value if one.numel() == 1 and one.dim() == 1 else SHARED.value for one in parameters]
    constants = {
        "KIND": spec.kind,
        "CLAMP": "hard" if spec.clamp else "none",
        **dict(zip(("FIRST", "SECOND", "THIRD"), (*spec.activations, *absent), strict=True)),
        **dict(zip(("SECOND_EXTENT", "THIRD_EXTENT"), [*extents, *absent][1:], strict=True)),
        "GRADIENTS": gradients,
        "TILES": Tiles(max(columns, 16), ptx_level_of(x.device), mask_columns=True),
    }
    strides = [
        len(x),
        x.stride(0),
        *[one.stride(0) if one.dim() > 1 else 0 for one in parameters],
        *[0 for _ in absent],
    ]
    return Template(head_kernel, (rows,), (event, *strides), constants, x.device, warps)


def _mixture(
    x: Tensor, parameter: Tensor, grad: Tensor | None, spec: HeadSpec, bounds: Bounds, gradients: bool
) -> HeadResults:
    x = repeat_rows(x, len(parameter))
    log_prob = likelihood_forward(x, (parameter,), spec.likelihood, bounds)
    if gradients:
        of_rows = torch.ones_like(log_prob) if grad is None else grad
        (found,) = likelihood_backward(of_rows, x, (parameter,), spec.likelihood, bounds, (True,))
        parameter.copy_(found)  # type: ignore[arg-type]
    return HeadResults(log_prob, (None,))
