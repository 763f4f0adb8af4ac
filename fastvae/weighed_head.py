"""log p(x|z) of K draws whose gradients will be importance weights: computed with log p, and in no second product.

The bound log 1/K sum_k w_k, log w = log p(x|z) + log p(z) - log q(z|x), has the gradient v_k = w_k / sum_j w_j by
log p(x|z_k). These weights are known once log p of all draws of a row of x is: so a chunk has some rows of x with all
their draws. Backward finds out whether the gradient of log p is v, times one number, and multiplies by it; else it
computes the outputs again.

The decoder's layers before the last can be computed in the same chunks (`fastvae.trunk`): then no hidden units of all
draws are held, and what is left is of the size of z and of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .autograd import is_differentiated
from .double_backward import gradients_of
from .head_chunks import HeadChunks, HeadInputs
from .head_op import HeadRun, head_formula, op_arguments, times
from .importance_weights import smallest_weight
from .kernels.reference.scratch import scratch
from .trunk import Layers, apply_layers, with_gradients

__all__ = ["WeighedHeadFunction"]

# Relative error of weights in units of log w times the rounding error of float32; and at most.
_ULPS, _LARGEST_ERROR = 4.0, 1e-3


class WeighedHeadFunction(Function):
    """log p(x|z) (K B,); ``log_ratio`` (K, B) is log p(z) - log q(z|x).

    ``tensors``: those of `HeadInputs.of`, then those of the trunk whose ``layers`` compute hidden units from the first
    of them, in chunks of ``size`` rows of x.
    """

    @staticmethod
    def forward(
        ctx: Any, run: HeadRun, layers: Layers, size: int, log_ratio: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        log_prob, ahead = _weighed(run, layers, size, log_ratio, tensors, ctx.needs_input_grad[4:])
        ctx.save_for_backward(log_ratio, log_prob, *tensors, *ahead)
        ctx.run, ctx.layers = run, layers
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        run, layers, wants = ctx.run, ctx.layers, ctx.needs_input_grad[4:]
        log_ratio, log_prob, *saved = ctx.saved_tensors  # under checkpointing they can be asked for once
        tensors, ahead = saved[: len(wants)], saved[len(wants) :]
        if is_differentiated((grad,)):

            def formula(own: list[Any]) -> list[Tensor]:
                of_trunk, of_head = _split(own, run)
                return [head_formula([apply_layers(layers, of_trunk[0], of_trunk[1:]), *of_head], run)]

            return None, None, None, None, *gradients_of(formula, tensors, wants, (grad,))
        scale = scale_of(grad, log_prob, log_ratio)
        found = iter(_computed_again(run, layers, tensors, wants, grad) if scale is None else times(ahead, -scale))
        return None, None, None, None, *[next(found) if wanted else None for wanted in wants]


def _split(each: Sequence[Any], run: HeadRun) -> tuple[list[Any], list[Any]]:
    """What is of the trunk: its input, weights and biases; and of the head, but for the hidden units."""
    count = HeadInputs.count(run.spec)
    return [each[0], *each[count:]], list(each[1:count])


def _computed_again(
    run: HeadRun, layers: Layers, tensors: Sequence[Tensor | None], wants: Sequence[bool], grad: Tensor
) -> list[Tensor]:
    (of_trunk, of_head), (wants_trunk, wants_head) = _split(tensors, run), _split(wants, run)
    hidden, back = with_gradients(layers, of_trunk, wants_trunk)
    arguments = op_arguments((hidden, *of_head), (any(wants_trunk), *wants_head), run)
    found = torch.ops.fastvae.head_backward.default(grad, [], *arguments)
    through = back(found.pop(0) if any(wants_trunk) else None)
    return [*through[: wants[0]], *found, *through[wants[0] :]]


def _weighed(
    run: HeadRun, layers: Layers, size: int, log_ratio: Tensor, tensors: Sequence[Tensor | None], wants: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """log p, and the gradients of the wanted tensors for the gradient -v of log p, as a loss has it."""
    inputs = HeadInputs.of(tensors[: HeadInputs.count(run.spec)])
    (of_trunk, _), (wants_trunk, wants_head) = _split(tensors, run), _split(wants, run)
    head = HeadChunks(inputs, (any(wants_trunk), *wants_head), run.spec, run.bounds, run.backend)
    draws, batch = log_ratio.shape
    of_draws = inputs.hidden.unflatten(0, (draws, batch))
    library = None if inputs.library is None else inputs.library.to(head.dtype)
    log_prob = torch.empty_like(log_ratio)
    of_inputs = [torch.empty_like(of_draws)] if wants[0] else []
    of_library = [] if library is None or not wants[2] else [torch.empty_like(library)]
    sums: list[Tensor] = []
    for first in range(0, batch, size):
        rows = slice(first, min(first + size, batch))
        h, back = with_gradients(layers, [of_draws[:, rows].flatten(0, 1), *of_trunk[1:]], wants_trunk)
        of_cells = None if library is None else library[rows].repeat(draws)
        to = scratch("gradient of hidden units", h.shape, h.dtype, h.device)
        found = head.add(h, inputs.x[rows], of_cells, _weights_given(log_ratio[:, rows]), to)
        log_prob[:, rows] = found.log_prob.view(draws, -1)
        if of_library and found.library is not None:
            of_library[0][rows] = found.library.view(draws, -1).sum(0)
        through = list(back(found.hidden))
        if of_inputs:
            of_inputs[0][:, rows] = through.pop(0).unflatten(0, (draws, -1))
        sums = [one.add_(more) for one, more in zip(sums, through, strict=True)] if sums else through
    return log_prob.flatten(), [one.flatten(0, 1) for one in of_inputs] + of_library + head.gradients() + sums


def _weights_given(log_ratio: Tensor) -> Callable[[Tensor], Tensor]:
    """-v from log p, draw after draw; 0 for a weight that would lead to denormal numbers."""

    def weigh(log_prob: Tensor) -> Tensor:
        weights = torch.softmax(log_prob.view(log_ratio.shape) + log_ratio, 0)
        return F.threshold(weights, smallest_weight(weights.dtype), 0.0).neg_().flatten()

    return weigh


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
