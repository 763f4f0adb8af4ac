"""A decoder's last linear layers and the likelihood as one operator, chunk by chunk of rows; and its gradients.

    h (rows, H)  ->  outputs a_i = h W_i^T + b_i of each layer  ->  parameters of p(x|z)  ->  log p(x|z) (rows,)

(`fastvae.kernels.head_spec` has the formulas.) No more than a chunk of the outputs is ever held. A chunk's products are
PyTorch's; all between them is one call of a backend's `head`, which gives log p and overwrites the outputs by their
gradients. The gradients of log p by everything are sums over the chunks,

    d h = sum_i g_i W_i        d W_i = g_i^T h        d b_i = sum over rows of g_i        (g_i: gradient of a_i)

They are computed on the way forward (``ahead``) where the gradient of log p is expected to be the same for all rows: 1,
or on the fast path that of minus a mean, as most losses have it; backward multiplies by what is missing. Where rows
turn out to have different gradients, or were expected to, backward computes the outputs again: one product more of
three.

A row of a 1x1 convolution is an image: h (rows, C, positions), and a_i = W_i h + b_i at each position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import ops
from .autograd import is_differentiated
from .double_backward import gradients_of
from .kernels.head_spec import HeadSpec, decode_head_spec, rows_of_chunk
from .kernels.layout import likelihood_dtype
from .kernels.likelihood_spec import MIXTURE, Bounds, channels_of_mixture
from .kernels.reference.head import activated
from .kernels.reference.latents import reduce_kl
from .kernels.reference.likelihoods import log_prob_elementwise
from .kernels.reference.scratch import scratch
from .torch_internals import is_compiling, is_graph_kept

__all__ = [
    "HeadFunction", "HeadInputs", "HeadRun", "bytes_of_outputs", "head_formula", "in_chunks", "op_arguments",
    "recorded_gradients", "times",
]  # fmt: skip

_NARROW = (torch.bfloat16, torch.float16)


class HeadRun(NamedTuple):
    """How a head is computed, forward and backward."""

    spec: HeadSpec
    bounds: Bounds
    backend: str  # as requested
    ahead: bool
    direct: bool = False  # not through the dispatcher (`fastvae.fast_path`)


class HeadInputs(NamedTuple):
    """The tensors of a head."""

    hidden: Tensor  # (K B, H), or (K B, C, positions)
    x: Tensor  # (B, event), or (B, C, pixels) of a mixture
    library: Tensor | None  # (B,), or (K B,) if each draw has its own
    layers: tuple[tuple[Tensor, Tensor | None], ...]  # of each parameter: weight and bias, or what is given and None

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> HeadInputs:
        """From hidden, x, library, and two tensors for each parameter."""
        hidden, x, library, *layers = tensors
        return cls(hidden, x, library, tuple(zip(layers[::2], layers[1::2], strict=True)))  # type: ignore[arg-type]


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
            return None, *recorded_gradients(grad, tensors, wants, run)
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
    return HeadInputs.of(ops._unpacked(tensors, bits, 3 + 2 * len(spec.activations)))


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
    given = ops._unpacked(tensors, bits, 3 + 2 * len(decode_head_spec(spec).activations))
    wanted = [one for one, want in zip(given, wants, strict=True) if want]
    return [torch.empty_like(one, memory_format=torch.contiguous_format) for one in wanted]


_HEAD = f"Tensor[] tensors, int bits, bool[] wants, str spec, {ops._NUMBERS}"
ops._define(f"head({_HEAD}) -> Tensor[]", _head, _fake_head)
ops._define(f"head_backward(Tensor grad, Tensor[] ahead, {_HEAD}) -> Tensor[]", _head_backward, _fake_head_backward)


def _widths(inputs: HeadInputs, spec: HeadSpec) -> list[int]:
    """Outputs of a row, of each layer."""
    positions = inputs.hidden.shape[2] if inputs.hidden.dim() == 3 else 1
    return [
        0 if how == "given" else len(weight) * positions
        for (weight, _), how in zip(inputs.layers, spec.activations, strict=True)
    ]


def bytes_of_outputs(inputs: HeadInputs, spec: HeadSpec) -> int:
    """Of a row."""
    return sum(_widths(inputs, spec)) * inputs.hidden.element_size()


class _Chunk(NamedTuple):
    rows: slice
    x: Tensor
    library: Tensor | None


def _chunks(inputs: HeadInputs, bytes_a_row: int) -> Iterator[_Chunk]:
    """Parts of the rows: several draws, for which x is repeated once, or where a draw is too large, parts of each."""
    hidden, x, library, _ = inputs
    rows, batch = hidden.shape[0], x.shape[0]
    draws = rows // max(batch, 1)
    convolved = hidden.dim() == 3
    at_once = rows_of_chunk(rows, bytes_a_row, hidden.device, convolved=convolved) // max(batch, 1)
    if draws > 1 and at_once > 0:
        x = x.repeat(at_once, *[1] * (x.dim() - 1))
        library = library.repeat(at_once) if library is not None and library.shape[0] == batch else library
        size, draws, batch = at_once * batch, 1, rows
    else:
        size = rows_of_chunk(batch, bytes_a_row, hidden.device, convolved=convolved)
    for draw in range(draws):
        for first in range(0, batch, size):
            here = slice(draw * batch + first, draw * batch + min(first + size, batch))
            of_x = slice(first % x.shape[0], first % x.shape[0] + here.stop - here.start)
            of_library = here if library is not None and library.shape[0] == rows else of_x
            yield _Chunk(here, _part(x, of_x), None if library is None else _part(library, of_library))


def _part(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def in_chunks(
    inputs: HeadInputs,
    wants: Sequence[bool],
    spec: HeadSpec,
    bounds: Bounds,
    backend: str,
    grad: Tensor | float | Callable[[Tensor], Tensor] = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """log p of each row, and the gradients of the tensors that are wanted.

    ``grad``: that of log p, of each row or one for all; or, where all rows are one chunk, what gives it from log p.
    """
    hidden, x, library, layers = inputs
    kernels = ops.likelihood_kernels(backend, x, (hidden,))
    single = likelihood_dtype(hidden, x)
    if library is not None:
        inputs = inputs._replace(library=library.to(single).contiguous())
    of_rows = grad.to(single).contiguous() if isinstance(grad, Tensor) else None
    differentiated = any(wants)
    if isinstance(grad, float) and differentiated and grad != 1.0:
        of_rows = torch.full(hidden.shape[:1], grad, dtype=single, device=hidden.device)
    tensors = (hidden, x, library, *[one for layer in layers for one in layer])
    wanted = [one is not None and want for one, want in zip(tensors, wants, strict=True)]
    sums: list[Tensor | None] = [None] * len(tensors)
    if wanted[0]:
        sums[0] = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    layered = [how != "given" for how in spec.activations]
    of_kernel = tuple([differentiated if layer else wanted[3 + 2 * i] for i, layer in enumerate(layered)])
    widths = _widths(inputs, spec)
    bytes_a_row = sum(widths) * hidden.element_size()
    first_layer = layered.index(True)
    log_prob: list[Tensor] = []
    of_library: list[Tensor] = []
    buffers: list[Tensor] = []
    for rows, x_here, library_here in _chunks(inputs, bytes_a_row):
        h = _part(hidden, rows)
        buffers = buffers or [  # the first chunk is the largest
            scratch(f"outputs of a head {i}", (h.shape[0], width), hidden.dtype, hidden.device)
            if layered[i]
            else hidden
            for i, width in enumerate(widths)
        ]
        outputs = [_part(buffer, slice(0, h.shape[0])) for buffer in buffers]
        parameters = []
        for output, (weight, bias), layer in zip(outputs, layers, layered, strict=True):
            if layer:
                _product(h, weight, bias, output)
            parameters.append(_as_channels(output, x_here, spec) if layer else weight)
        here = None if of_rows is None else _part(of_rows, rows)
        if callable(grad):
            unwanted = (False,) * len(of_kernel)
            here = grad(kernels.head(x_here, tuple(parameters), library_here, None, spec, bounds, unwanted).log_prob)
        found = kernels.head(x_here, tuple(parameters), library_here, here, spec, bounds, of_kernel)
        log_prob.append(found.log_prob)
        if not differentiated:
            continue
        if found.library is not None:
            of_library.append(found.library)
        of_hidden = None if sums[0] is None else _part(sums[0], rows)
        for i, (output, (weight, _), layer) in enumerate(zip(outputs, layers, layered, strict=True)):
            at = 3 + 2 * i
            if not layer:
                if wanted[at]:
                    sums[at] = _plus(sums[at], found.given[i])
                continue
            if of_hidden is not None:
                _add_to_hidden(of_hidden, output, weight, i == first_layer)
            if wanted[at]:
                sums[at] = _add_product(sums[at], output, h, single)
            if wanted[at + 1]:
                of_positions = output if hidden.dim() == 2 else output.view(h.shape[0], weight.shape[0], -1)
                bias_dims = 0 if hidden.dim() == 2 else (0, 2)
                sums[at + 1] = _plus(sums[at + 1], of_positions.sum(bias_dims, dtype=single))
    if wanted[2] and library is not None and of_library:
        total = _joined(of_library)
        sums[2] = total.view(-1, library.shape[0]).sum(0) if total.shape != library.shape else total
    return _joined(log_prob or [hidden.new_empty(0, dtype=single)]), [
        _as(tensor, one) for one, tensor, want in zip(sums, tensors, wanted, strict=True) if want and tensor is not None
    ]


def _as(like: Tensor, total: Tensor | None) -> Tensor:
    """A sum over the chunks, None if there are no rows, as the gradient of a tensor."""
    if total is None:
        return torch.zeros_like(like)
    return total if total.shape == like.shape and total.dtype == like.dtype else total.view(like.shape).to(like.dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _product(h: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if h.dim() == 3:
        of_positions, weights = out.view(len(h), len(weight), -1), weight.expand(len(h), -1, -1)
        if bias is None:
            torch.bmm(weights, h, out=of_positions)
        else:
            torch.baddbmm(bias.unsqueeze(1), weights, h, out=of_positions)
    elif bias is None:
        torch.mm(h, weight.t(), out=out)
    else:
        torch.addmm(bias, h, weight.t(), out=out)


def _add_to_hidden(to: Tensor, output: Tensor, weight: Tensor, is_first: bool) -> None:
    """What a product with beta = 0 finds there does not count."""
    if to.dim() == 3:
        of_positions = output.view(len(to), len(weight), -1)
        torch.baddbmm(to, weight.t().expand(len(to), -1, -1), of_positions, beta=not is_first, out=to)
    else:
        to.addmm_(output, weight, beta=0 if is_first else 1)


def _add_product(to: Tensor | None, output: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor | None:
    """output^T h, added to ``to``; sums over the chunks of narrow products are of ``dtype``, float32."""
    if h.dim() == 3:
        each = torch.bmm(output.view(h.shape[0], -1, h.shape[2]), h.transpose(1, 2))
        return _plus(to, each.sum(0, dtype=dtype))
    if to is not None and to.dtype == h.dtype:
        return to.addmm_(output.t(), h)
    product = torch.mm(output.t(), h)
    return _plus(to, product if h.dtype not in _NARROW else product.to(dtype))


def _plus(to: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if to is None or part is None else to.add_(part)


def _as_channels(output: Tensor, x: Tensor, spec: HeadSpec) -> Tensor:
    """Outputs as the parameter of a likelihood of x: of a mixture, (rows, channels, pixels)."""
    return (
        output.unflatten(1, (channels_of_mixture(x.shape[1], spec.components), -1)) if spec.kind == MIXTURE else output
    )


def recorded_gradients(
    grad: Tensor, tensors: Sequence[Tensor | None], wants: Sequence[bool], run: HeadRun
) -> list[Tensor | None]:
    """The same gradients in plain PyTorch, with all outputs at once; part of a graph where autograd records."""
    return gradients_of(lambda own: [head_formula(own, run)], tensors, wants, (grad,))


def _outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if hidden.dim() == 2:
        return F.linear(hidden, weight, bias)
    return F.conv1d(hidden, weight.unsqueeze(2), bias).flatten(1)


def head_formula(tensors: Sequence[Tensor | None], run: HeadRun) -> Tensor:
    """log p(x|z) of each row in plain PyTorch, with all outputs at once; ``tensors`` as for `HeadInputs.of`."""
    hidden, x, library, layers = HeadInputs.of(tensors)
    draws = hidden.shape[0] // max(x.shape[0], 1)
    x = x.repeat(draws, *[1] * (x.dim() - 1))
    library = None if library is None else library.repeat(hidden.shape[0] // max(library.shape[0], 1))
    single, spec = likelihood_dtype(hidden, x), run.spec
    outputs = []
    for (weight, bias), how in zip(layers, spec.activations, strict=True):
        output = weight if how == "given" else _as_channels(_outputs(hidden, weight, bias), x, spec)
        outputs.append(output.to(single))
    values = activated(tuple(outputs), library, spec)
    return reduce_kl(log_prob_elementwise(x, values, spec.likelihood, run.bounds), "sample")
