"""log p(x|z) of K draws whose gradients will be importance weights: computed with log p, and in no second product.

The bound log 1/K sum_k w_k, log w = log p(x|z) + log p(z) - log q(z|x), has the gradient v_k = w_k / sum_j w_j by
log p(x|z_k). These weights are known once log p of all draws of a row of x is: so a chunk has some rows of x with all
their draws, their outputs stay where they are until v is known, and then make way for their gradients. Backward finds
out whether the gradient of log p is v, times one number, and multiplies by it; else it computes the outputs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .autograd import is_differentiated
from .head_op import HeadInputs, HeadRun, bytes_of_outputs, in_chunks, op_arguments, recorded_gradients, times
from .kernels.head_spec import rows_of_chunk

__all__ = ["WeighedHeadFunction", "rows_at_once", "scale_of"]

# Relative error of weights in units of log w times the rounding error of float32; and at most.
_ULPS, _LARGEST_ERROR = 4.0, 1e-3


def rows_at_once(inputs: HeadInputs, run: HeadRun, draws: int) -> int:
    """Rows of x whose draws are one chunk; 0 if one row is too much."""
    hidden = inputs.hidden
    size = bytes_of_outputs(inputs, run.spec)
    return rows_of_chunk(len(hidden), size, hidden.device, convolved=hidden.dim() == 3) // draws


class WeighedHeadFunction(Function):
    """log p(x|z) (K B,); ``log_ratio`` (K, B) is log p(z) - log q(z|x), ``tensors`` are those of `HeadInputs.of`."""

    @staticmethod
    def forward(ctx: Any, run: HeadRun, log_ratio: Tensor, *tensors: Tensor | None) -> Tensor:
        log_prob, ahead = _weighed(log_ratio, tensors, ctx.needs_input_grad[2:], run)
        ctx.save_for_backward(log_ratio, log_prob, *tensors, *ahead)
        ctx.run = run
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wants = ctx.needs_input_grad[2:]
        log_ratio, log_prob, *saved = ctx.saved_tensors  # under checkpointing they can be asked for once
        tensors, ahead = saved[: len(wants)], saved[len(wants) :]
        if is_differentiated((grad,)):
            return None, None, *recorded_gradients(grad, tensors, wants, ctx.run)
        scale = scale_of(grad, log_prob, log_ratio)
        if scale is None:
            found = torch.ops.fastvae.head_backward.default(grad, [], *op_arguments(tensors, wants, ctx.run))
        else:
            found = times(ahead, -scale)
        rest = iter(found)
        return None, None, *[next(rest) if wanted else None for wanted in wants]


def _weighed(
    log_ratio: Tensor, tensors: Sequence[Tensor | None], wants: Sequence[bool], run: HeadRun
) -> tuple[Tensor, list[Tensor]]:
    """log p, and the gradients of the wanted tensors for the gradient -v of log p, as a loss has it."""
    inputs = HeadInputs.of(tensors)
    hidden, x, library, _ = inputs
    draws, batch = log_ratio.shape
    size = rows_at_once(inputs, run, draws)
    if size >= batch:
        return in_chunks(inputs, wants, run.spec, run.bounds, run.backend, _weights_given(log_ratio))
    log_prob = torch.empty(draws, batch, dtype=log_ratio.dtype, device=hidden.device)
    of_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if wants[0] else None
    of_library = None if library is None or not wants[2] else torch.empty_like(library)
    sums: list[Tensor] = []
    for first in range(0, batch, size):
        rows = slice(first, first + size)
        ratio = log_ratio[:, rows]
        own = hidden.unflatten(0, (draws, batch))[:, rows].flatten(0, 1)
        part = inputs._replace(hidden=own, x=x[rows], library=None if library is None else library[rows])
        values, found = in_chunks(part, wants, run.spec, run.bounds, run.backend, _weights_given(ratio))
        log_prob[:, rows] = values.view(ratio.shape)
        if of_hidden is not None:
            of_hidden.unflatten(0, (draws, batch))[:, rows] = found.pop(0).unflatten(0, (draws, -1))
        if of_library is not None:
            of_library[rows] = found.pop(0)
        sums = [one.add_(more) for one, more in zip(sums, found, strict=True)] if sums else found
    return log_prob.flatten(), [one for one in (of_hidden, of_library) if one is not None] + sums


def _weights_given(log_ratio: Tensor) -> Callable[[Tensor], Tensor]:
    """-v from log p, draw after draw."""
    return lambda log_prob: torch.softmax(log_prob.view(log_ratio.shape) + log_ratio, 0).neg_().flatten()


def scale_of(grad: Tensor, log_prob: Tensor, log_ratio: Tensor) -> float | None:
    """The number c of a gradient c v; None if it is another gradient, by more than the rounding of log w explains."""
    log_weights = log_prob.view(log_ratio.shape) + log_ratio
    weights, of_rows = torch.softmax(log_weights, 0).flatten(), grad.to(log_weights.dtype)
    largest = weights.argmax()
    scale = (of_rows[largest] / weights[largest]).item()
    rounding = _ULPS * torch.finfo(log_weights.dtype).eps * (1 + log_weights.abs().max().item())
    rounding = min(rounding, _LARGEST_ERROR)
    if not bool(((of_rows - scale * weights).abs() <= abs(scale) * (rounding * weights + 1e-12)).all()):
        return None
    return math.copysign(1.0, scale) if abs(abs(scale) - 1.0) <= rounding else scale
