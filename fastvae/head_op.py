"""A decoder's last linear layers and the likelihood as one operator, chunk by chunk of rows; and its gradients.

No more than a chunk of the outputs is ever held (`fastvae.head_chunks` has the formulas). The gradients are computed on
the way forward (``ahead``) where the gradient of log p is expected to be the same for all rows: 1, or on the fast path
that of minus a mean, as most losses have it; backward multiplies by what is missing. Where rows turn out to have
different gradients, or were expected to, backward computes the outputs again: one product more of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import ops
from .autograd import is_differentiated
from .double_backward import gradients_of
from .head_chunks import HeadInputs, as_channels, in_chunks
from .kernels.head_spec import HeadSpec, decode_head_spec
from .kernels.layout import likelihood_dtype, repeat_rows
from .kernels.likelihood_spec import Bounds
from .kernels.reference.head import activated
from .kernels.reference.latents import reduce_kl
from .kernels.reference.likelihoods import log_prob_elementwise
from .torch_internals import is_compiling, is_graph_kept

__all__ = ["HeadFunction", "HeadRun", "head_formula", "op_arguments", "times"]


class HeadRun(NamedTuple):
    """How a head is computed, forward and backward."""

    spec: HeadSpec
    bounds: Bounds
    backend: str  # as requested
    ahead: bool
    direct: bool = False  # not through the dispatcher (`fastvae.fast_path`)


class HeadFunction(Function):
    """log p(x|z) of each row; ``tensors`` as for `HeadInputs.of`."""

    @staticmethod
    def forward(ctx: Any, run: HeadRun, *tensors: Tensor | None) -> Tensor:
        wants = ctx.needs_input_grad[1:] if run.ahead else (False,) * len(tensors)
        if run.direct:
            inputs = HeadInputs.of(tensors)
            expected = _expected(inputs.hidden.shape[0])
            log_prob, ahead = in_chunks(inputs, wants, run.spec, run.bounds, run.backend, expected)
        else:
            log_prob, *ahead = torch.ops.fastvae.head.default(*op_arguments(tensors, wants, run))
        ctx.save_for_backward(*tensors, *ahead)
        ctx.run = run
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        run, wants = ctx.run, ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors  # under checkpointing they can be asked for once
        tensors, ahead = saved[: len(wants)], saved[len(wants) :]
        if is_differentiated((grad,)):
            return None, *gradients_of(lambda own: [head_formula(own, run)], tensors, wants, (grad,))
        if ahead and not is_compiling() and _is_uniform(grad):
            found = iter(times(ahead, _missing_factor(grad, run)))
        else:
            of_one = [] if run.direct else list(ahead)
            found = iter(torch.ops.fastvae.head_backward.default(grad, of_one, *op_arguments(tensors, wants, run)))
        return None, *[next(found) if wanted else None for wanted in wants]


def _expected(rows: int) -> float:
    """The gradient of log p of each row where the loss is minus its mean."""
    return -1.0 / max(rows, 1)


def _missing_factor(grad: Tensor, run: HeadRun) -> Tensor | float:
    if not run.direct:
        return grad[0]
    factor = (grad[0].item() if grad.is_cpu else grad[0]) / _expected(grad.shape[0])
    is_one = isinstance(factor, float) and abs(factor - 1.0) < torch.finfo(grad.dtype).eps
    return 1.0 if is_one else factor


def times(ahead: Sequence[Tensor], factor: Tensor | float) -> Sequence[Tensor]:
    """Gradients that were computed ahead, in a backward: in place where nobody else has them."""
    if is_graph_kept():
        return [one * factor for one in ahead]
    return ahead if isinstance(factor, float) and factor == 1.0 else [one.mul_(factor) for one in ahead]


def op_arguments(tensors: Sequence[Tensor | None], wants: Sequence[bool], run: HeadRun) -> tuple[Any, ...]:
    """Of the registered ops, after the gradient."""
    return *ops._packed(tensors), list(wants), run.spec.encode(), *ops._floats(run.bounds), run.backend


def _inputs(tensors: Sequence[Tensor], bits: int, spec: HeadSpec) -> HeadInputs:
    return HeadInputs.of(ops._unpacked(tensors, bits, HeadInputs.count(spec)))


def _head(tensors, bits, wants, spec, floats, traced, backend):
    spec = decode_head_spec(spec)
    log_prob, gradients = in_chunks(_inputs(tensors, bits, spec), wants, spec, ops._bounds(floats, traced), backend)
    return [log_prob, *gradients]


def _head_backward(grad, ahead, tensors, bits, wants, spec, floats, traced, backend):
    if ahead and _is_uniform(grad):
        return [(one * grad[0]).to(one.dtype) for one in ahead]
    spec = decode_head_spec(spec)
    return in_chunks(_inputs(tensors, bits, spec), wants, spec, ops._bounds(floats, traced), backend, grad)[1]


def _is_uniform(grad: Tensor) -> bool:
    """Whether all rows have the same gradient. Of a GPU's tensor only its strides tell, as they do below a sum."""
    if len(grad) == 0:
        return False
    return grad.stride(0) == 0 or len(grad) == 1 or (grad.is_cpu and torch.equal(grad, grad[:1].expand_as(grad)))


def _fake_head(tensors, bits, wants, spec, floats, traced, backend):
    given = _inputs(tensors, bits, decode_head_spec(spec))
    log_prob = given.hidden.new_empty(len(given.hidden), dtype=likelihood_dtype(given.hidden, given.x))
    return [log_prob, *_fake_head_backward(log_prob, [], tensors, bits, wants, spec, floats, traced, backend)]


def _fake_head_backward(grad, ahead, tensors, bits, wants, spec, floats, traced, backend):
    given = ops._unpacked(tensors, bits, HeadInputs.count(decode_head_spec(spec)))
    wanted = [one for one, want in zip(given, wants, strict=True) if want]
    return [torch.empty_like(one, memory_format=torch.contiguous_format) for one in wanted]


_HEAD = f"Tensor[] tensors, int bits, bool[] wants, str spec, {ops._NUMBERS}"
ops._define(f"head({_HEAD}) -> Tensor[]", _head, _fake_head)
ops._define(f"head_backward(Tensor grad, Tensor[] ahead, {_HEAD}) -> Tensor[]", _head_backward, _fake_head_backward)


def _outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if hidden.dim() == 2:
        return F.linear(hidden, weight, bias)
    return F.conv1d(hidden, weight.unsqueeze(2), bias).flatten(1)


def head_formula(tensors: Sequence[Tensor | None], run: HeadRun) -> Tensor:
    """log p(x|z) of each row in plain PyTorch, with all outputs at once; ``tensors`` as for `HeadInputs.of`."""
    hidden, x, library, layers = HeadInputs.of(tensors)
    x = repeat_rows(x, len(hidden))
    library = None if library is None else repeat_rows(library, len(hidden))
    single, spec = likelihood_dtype(hidden, x), run.spec
    outputs = []
    for (weight, bias), how in zip(layers, spec.activations, strict=True):
        output = weight if how == "given" else as_channels(_outputs(hidden, weight, bias), x, spec)
        outputs.append(output.to(single))
    values = activated(tuple(outputs), library, spec)
    return reduce_kl(log_prob_elementwise(x, values, spec.likelihood, run.bounds), "sample")
