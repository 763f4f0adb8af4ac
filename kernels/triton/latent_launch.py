"""Launches of latents: outputs are made, the kernel is started, and sums that several programs share are finished."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..latent_spec import (
    LatentGradients,
    LatentInputs,
    LatentOutputs,
    LatentScalars,
    LatentSpec,
    latent_gradients,
    latent_outputs,
)
from ..layout import (
    contiguous,
    copy_all,
    empty_gradients,
    empty_kl,
    empty_outputs,
    rows_view,
    split_latent,
    split_packed,
)
from . import launch
from .latent_backward_kernel import latent_backward_kernel
from .latent_forward_kernel import latent_forward_kernel
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
from .sums import COLUMNS, buffer_of, finish_elementwise, finish_gradient, finish_rows, grad_view, is_left, way_of
from .tiles import ELEMENTWISE, NOT_WANTED, SHARED, SUMS
from .views import as_loaded, expanded, extent_of

# Elements of a tile of other than plain latents: its parameters, and backward their gradients, are kept while its draws
# are made.
TILE_ELEMENTS = 1024
PARAMETERS = ("mu", "scale", "prior_mu", "prior_scale")
Out = tuple[Tensor | None, Tensor]  # the gradients of mu and scale, to be written
# Draws that a program makes at least.
LEAST_DRAWS = 4


# None: the tensors must be copied first.
_forward_plans: Memory[Plan] = Memory()
_backward_plans: Memory[Plan] = Memory()


def _numbers(scalars: LatentScalars) -> tuple[float, ...]:
    """Those that a kernel takes at run time: all but the number of draws."""
    return scalars[:1] + scalars[2:]


def _is_plain(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> bool:
    """Whether a tile takes few registers: one draw, no prior, a logarithmic scale without a clamp."""
    one_draw = scalars.num_samples is None and not spec.log_probs
    return one_draw and inputs.prior_mu is None and spec.scale in ("logvar", "logstd") and spec.clamp == "none"


def _scale(inputs: LatentInputs) -> Tensor:
    assert inputs.scale is not None
    return inputs.scale


def _work(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> Work:
    shape, dtype = _scale(inputs).shape, _scale(inputs).dtype
    return Work(
        shape[0],
        math.prod(shape[1:]),
        dtype,
        launch.TILE_ELEMENTS if _is_plain(inputs, spec, scalars) else TILE_ELEMENTS,
        draws=scalars.num_samples or 1,
        shares_row=SHARED.value in _extents(inputs),
    )


def _extents(inputs: LatentInputs) -> tuple[int, int]:
    shape = _scale(inputs).shape
    return extent_of(inputs.prior_mu, shape), extent_of(inputs.prior_scale, shape)


def _constants(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, tiling: Tiling) -> dict[str, Any]:
    """The constants that both kernels have."""
    prior_mu, prior_scale = (as_loaded(extent, tiling, _scale(inputs).dtype) for extent in _extents(inputs))
    return {
        "SCALE": spec.scale,
        "CLAMP": spec.clamp,
        "RESIDUAL": spec.residual,
        "FREE_BITS": spec.kernel_free_bits,
        "SEVERAL_DRAWS": (scalars.num_samples or 1) > 1,
        "PRIOR_MU": prior_mu,
        "PRIOR_SCALE": prior_scale,
    }


def _first_draw(draws: Tensor | None, num_samples: int | None) -> Tensor | None:
    return draws if draws is None or num_samples is None else draws.select(0, 0)


def _draw_stride(draws: Tensor | None, num_samples: int | None) -> int:
    return 0 if draws is None or num_samples is None else draws.stride(0)


def _forward_tiling(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> tuple[Tiling, int]:
    """And what the kernel makes of the KL."""
    reduction = spec.kernel_reduction
    work = _work(inputs, spec, scalars)
    # A KL has no part in the draws: a program that computes one makes them all.
    work = work._replace(reduce_rows=spec.kl_mean, shares_draws=reduction is None and not spec.kl_mean)
    kl = NOT_WANTED if reduction is None else ELEMENTWISE if reduction == "none" else SUMS
    if reduction == "channel":
        channel = channel_to_sum(_scale(inputs).shape, work)
        work = work._replace(channel=channel)
        kl = ELEMENTWISE if channel is None else SUMS
    tiling = tiling_of(work)
    draw_programs = 1
    if work.shares_draws and tiling.tiles_a_row:  # more than one only if there are too few others
        draw_programs = max(1, min(work.draws // LEAST_DRAWS, launch.ENOUGH_PROGRAMS // math.prod(tiling.grid)))
    return tiling._replace(grid=(*tiling.grid, draw_programs)), kl.value


def _forward_buffers(mu: Tensor, spec: LatentSpec, num_samples: int | None, tiling: Tiling, kl: int) -> LatentOutputs:
    """What the forward kernel writes: outputs, or what they are summed from where programs share them."""
    single = functools.partial(mu.new_empty, dtype=torch.float32)
    rows, reduction = mu.shape[0], spec.kernel_reduction
    outputs = empty_outputs(mu, spec, num_samples)
    if kl == ELEMENTWISE.value:
        outputs = outputs._replace(kl=empty_kl(mu, "none"))
    elif kl == SUMS.value and not (reduction == "sample" and tiling.programs_a_row == 1):
        outputs = outputs._replace(kl=single((rows, tiling.programs_a_row)))
    if spec.kl_mean:
        outputs = outputs._replace(kl_mean=single((tiling.grid[1], math.prod(mu.shape[1:]))))
    if spec.log_probs and tiling.tiles_a_row != 1:
        of_tiles = num_samples or 1, rows, tiling.tiles_a_row
        outputs = outputs._replace(log_q=single(of_tiles), log_p=single(of_tiles))
    return outputs


def _plan_forward(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> Plan:
    tiling, kl = _forward_tiling(inputs, spec, scalars)
    mu, scale, prior_mu, prior_scale, _ = inputs
    assert mu is not None
    assert scale is not None
    outputs = _forward_buffers(mu, spec, scalars.num_samples, tiling, kl)
    whole = empty_outputs(mu, spec, scalars.num_samples)
    finish = [None if one is None else one.shape for one in outputs] != [
        None if one is None else one.shape for one in whole
    ]
    plan = Plan(None, tuple([Buffer.like(output) for output in outputs]), finish)
    if mu.numel() == 0:
        return plan
    view = rows_view(
        mu,
        scale,
        expanded(prior_mu, mu.shape),
        expanded(prior_scale, mu.shape),
        _first_draw(outputs.z, scalars.num_samples),
        outputs.kl if kl == ELEMENTWISE.value else None,
    )
    draws = scalars.num_samples or 1
    strides = dict(zip((*PARAMETERS, "z", "kl"), view.strides, strict=True))
    slices = {"z_draw": _draw_stride(outputs.z, scalars.num_samples)}
    others = {"draws": draws, "draws_a_program": -(-draws // tiling.grid[2]), "tiles": tiling.tiles_a_row}
    constants = {
        "WITH_Z": spec.sample,
        "KL": kl,
        "KL_MEAN": spec.kl_mean,
        "LOG_PROBS": spec.log_probs,
        **_constants(inputs, spec, scalars, tiling),
    }
    template = make_template(latent_forward_kernel, view, tiling, strides, constants, mu.device, slices, others)
    return plan._replace(template=template)


def latent_forward(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> LatentOutputs:
    """As `fastvae.kernels` says."""
    if spec.packed_dim is not None:
        inputs, spec = split_latent(inputs, spec)
    mu, scale, prior_mu, prior_scale, seed = inputs
    assert mu is not None
    assert scale is not None
    num_samples = scalars.num_samples
    key = (spec, num_samples, layouts_of(mu, scale, prior_mu, prior_scale))
    plan = _forward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        plan = _forward_plans.add(key, _plan_forward, inputs, spec, scalars)
    if plan is None:
        return _forward_of_copies(inputs, spec, scalars)
    buffers = empty(plan.buffers, mu)
    if plan.template is not None:
        plan.template.start((mu, scale, prior_mu, prior_scale, *buffers, seed), _numbers(scalars))
    outputs = latent_outputs(buffers)
    return _finish_forward(outputs, mu.shape, spec, num_samples) if plan.finish else outputs


def _forward_of_copies(inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars) -> LatentOutputs:
    assert inputs.mu is not None
    outputs = empty_outputs(inputs.mu, spec, scalars.num_samples)
    copy_all(latent_forward(LatentInputs(*contiguous(*inputs)), spec, scalars), outputs)
    return outputs


def _finish_forward(
    buffers: LatentOutputs, shape: torch.Size, spec: LatentSpec, num_samples: int | None
) -> LatentOutputs:
    z, kl, columns, log_q, log_p = buffers
    reduction = spec.kernel_reduction
    if kl is not None and reduction != "none":
        by_element = kl.shape == shape and reduction == "channel"
        kl = finish_elementwise(kl, reduction) if by_element else finish_rows(kl, shape, reduction)
    mean = None if columns is None else columns.sum(0).div_(shape[0]).view(shape[1:])
    if log_q is not None and log_p is not None and log_q.dim() == 3:
        of_rows = shape[:1] if num_samples is None else (num_samples, shape[0])
        log_q, log_p = log_q.sum(2).view(of_rows), log_p.sum(2).view(of_rows)
    return LatentOutputs(z, kl, mean, log_q, log_p)


def _plan_backward(
    grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, wants_prior: bool, out: Out
) -> Plan:
    grad_z, grad_kl, _, grad_log_q, grad_log_p = grads
    mu, _, prior_mu, prior_scale, _ = inputs
    scale = _scale(inputs)
    shape, num_samples = scale.shape, scalars.num_samples
    ways = tuple([way_of(prior, wants_prior, shape) for prior in inputs[2:4]])
    work = _work(inputs, spec, scalars)._replace(reduce_rows=COLUMNS in ways)
    # Long rows in float32: noise, moments and gradients of a smaller tile take two thirds of the registers.
    if grad_z is not None and work.dtype.itemsize == 4 and work.event >= launch.TILE_ELEMENTS:
        work = work._replace(tile_elements=TILE_ELEMENTS)
    tiling = tiling_of(work)
    of_prior = [buffer_of(*one, tiling.grid[1], shape) for one in zip(inputs[2:4], ways, strict=True)]
    finish = any(is_left(*one) for one in zip(of_prior, inputs[2:4], ways, strict=True))
    plan = Plan(None, tuple([Buffer.like(one) for one in of_prior]), finish, ways)
    if scale.numel() == 0:
        return plan
    elementwise, row_strides, kl = None, (0, 0, 0), NOT_WANTED.value
    if grad_kl is not None:
        elementwise, row_strides, kl = grad_view(grad_kl, shape, spec.kernel_reduction)
    view = rows_view(
        _first_draw(grad_z, num_samples),
        elementwise,
        mu,
        scale,
        expanded(prior_mu, shape),
        expanded(prior_scale, shape),
        *out,
        *[None if way == COLUMNS else buffer for buffer, way in zip(of_prior, ways, strict=True)],
    )
    names = ("grad_z", "grad_kl", *(f"{of}{name}" for of in ("", "grad_") for name in PARAMETERS))
    strides = dict(zip(names, view.strides, strict=True))
    if elementwise is None:
        strides["grad_kl"] = row_strides
    q_draw, q_row = _draw_and_row(grad_log_q)
    p_draw, p_row = _draw_and_row(grad_log_p)
    slices = {"grad_z_draw": _draw_stride(grad_z, num_samples)}
    others = {
        "draws": num_samples or 1,
        "grad_log_q_draw": q_draw,
        "grad_log_p_draw": p_draw,
        "grad_log_q_row": q_row,
        "grad_log_p_row": p_row,
    }
    constants = {
        "WITH_Z": grad_z is not None,
        "KL": kl,
        "WITH_LOG_Q": grad_log_q is not None,
        "WITH_LOG_P": grad_log_p is not None,
        "WANTS_PRIOR": wants_prior and prior_mu is not None,
        "SUM_PRIOR_MU": ways[0] == COLUMNS,
        "SUM_PRIOR_SCALE": ways[1] == COLUMNS,
        **_constants(inputs, spec, scalars, tiling),
    }
    template = make_template(latent_backward_kernel, view, tiling, strides, constants, scale.device, slices, others)
    return plan._replace(template=template)


def _draw_and_row(gradient: Tensor | None) -> tuple[int, int]:
    """Strides of the gradient of log probabilities: (draws, rows), or (rows,) of a single draw."""
    if gradient is None:
        return 0, 0
    return 0 if gradient.dim() == 1 else gradient.stride(0), gradient.stride(-1)


def latent_backward(
    grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, wants_prior: bool
) -> LatentGradients:
    """As `fastvae.kernels` says."""
    of_mu, of_scale, *_ = empty_gradients(inputs, wants_prior=False)
    if spec.packed_dim is None:
        assert of_scale is not None
        return _backward(grads, inputs, spec, scalars, wants_prior, (of_mu, of_scale))
    assert of_mu is not None
    out = split_packed(of_mu, spec.packed_dim)
    found = _backward(grads, split_latent(inputs, spec)[0], spec, scalars, wants_prior, out)
    return found._replace(mu=of_mu, scale=None)


def _backward(
    grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, wants_prior: bool, out: Out
) -> LatentGradients:
    grad_z, grad_kl, _, grad_log_q, grad_log_p = grads
    mu, scale, prior_mu, prior_scale, seed = inputs
    assert scale is not None
    layouts = layouts_of(grad_z, grad_kl, grad_log_q, grad_log_p, mu, scale, prior_mu, prior_scale)
    # The spec tells whether the gradients of mu and scale are packed, and with that their strides.
    key = (spec, scalars.num_samples, wants_prior, layouts)
    plan = _backward_plans.get(key, UNKNOWN)
    if plan is UNKNOWN:
        plan = _backward_plans.add(key, _plan_backward, grads, inputs, spec, scalars, wants_prior, out)
    if plan is None:
        return _backward_of_copies(grads, inputs, spec, scalars, wants_prior, out)
    of_prior = empty(plan.buffers, scale)
    if plan.template is not None:
        if grad_z is None and grad_log_p is None:
            seed = None
        pointers = (grad_z, grad_kl, grad_log_q, grad_log_p, *inputs[:4], *out, *of_prior, seed)
        plan.template.start(pointers, _numbers(scalars))
    if plan.finish:
        of_prior = [finish_gradient(*one) for one in zip(of_prior, inputs[2:4], plan.ways, strict=True)]
    return latent_gradients((*out, *of_prior))


def _backward_of_copies(
    grads: LatentOutputs, inputs: LatentInputs, spec: LatentSpec, scalars: LatentScalars, wants_prior: bool, out: Out
) -> LatentGradients:
    copies = LatentOutputs(*contiguous(*grads)), LatentInputs(*contiguous(*inputs)), spec._replace(packed_dim=None)
    gradients = LatentGradients(*out, *empty_gradients(inputs, wants_prior)[2:])
    copy_all(latent_backward(*copies, scalars, wants_prior), gradients)
    return gradients
