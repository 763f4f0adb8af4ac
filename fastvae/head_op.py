"""A decoder's last linear layers and the likelihood as one operator, chunk by chunk of rows; and its gradients.

    h (rows, H)  ->  outputs a_i = h W_i^T + b_i of each layer  ->  parameters of p(x|z)  ->  log p(x|z) (rows,)

(`fastvae.kernels.head_spec` has the formulas.) No more than a chunk of the outputs is ever held. A chunk's products are
PyTorch's; all between them is one call of a backend's `head`, which gives log p and overwrites the outputs by their
gradients. The gradients of log p by everything are sums over the chunks,

    d h = sum_i g_i W_i        d W_i = g_i^T h        d b_i = sum over rows of g_i        (g_i: gradient of a_i)

A row of a 1x1 convolution is an image: h (rows, C, positions), and a_i = W_i h + b_i at each position.

computed on the way forward (``ahead``) for a gradient of 1 for each row, where that of log p is expected to be the same
for all rows: backward multiplies by it then. Where it is not the same, or was not expected to be, backward computes
the outputs again: one product more of three.
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
    "recorded_gradients",
]  # fmt: skip

_NARROW = (torch.bfloat16, torch.float16)


class HeadRun(NamedTuple):
    """How a head is computed, forward and backward."""

    spec: HeadSpec
    bounds: Bounds
    backend: str  # as requested
    ahead: bool


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
        if ahead and not is_compiling() and not is_graph_kept() and _is_uniform(grad):
            found = iter([one.mul_(grad[0]) for one in ahead])  # nobody else has them
        else:
            found = iter(torch.ops.fastvae.head_backward.default(grad, list(ahead), *op_arguments(tensors, wants, run)))
        return None, *[next(found) if wanted else None for wanted in wants]


def op_arguments(tensors: Sequence[Tensor | None], wants: Sequence[bool], run: HeadRun) -> tuple[Any, ...]:
    """Of the registered ops, after the gradient."""
    bits = sum([1 << i for i, wanted in enumerate(wants) if wanted])
    return *ops._packed(tensors), bits, run.spec.encode(), *ops._floats(run.bounds), run.backend


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
    return grad.stride(0) == 0 or len(grad) == 1 or (grad.is_cpu and bool((grad == grad[0]).all()))


def _fake_head(tensors, bits, wants, spec, floats, traced, backend):
    given = _inputs(tensors, bits, decode_head_spec(spec))
    log_prob = given.hidden.new_empty(len(given.hidden), dtype=likelihood_dtype(given.hidden, given.x))
    return [log_prob, *_fake_head_backward(log_prob, [], tensors, bits, wants, spec, floats, traced, backend)]


def _fake_head_backward(grad, ahead, tensors, bits, wants, spec, floats, traced, backend):
    given = ops._unpacked(tensors, bits, 3 + 2 * len(decode_head_spec(spec).activations))
    return [torch.empty_like(one, memory_format=torch.contiguous_format) for one in _of_bits(given, wants)]


def _of_bits(values: Sequence[Any], bits: int) -> list[Any]:
    return [value for i, value in enumerate(values) if bits >> i & 1]


_HEAD = f"Tensor[] tensors, int bits, int wants, str spec, {ops._NUMBERS}"
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
    batch = len(x)
    draws = len(hidden) // max(batch, 1)
    convolved = hidden.dim() == 3
    at_once = rows_of_chunk(len(hidden), bytes_a_row, hidden.device, convolved=convolved) // max(batch, 1)
    if draws > 1 and at_once > 0:
        x = x.repeat(at_once, *[1] * (x.dim() - 1))
        library = library.repeat(at_once) if library is not None and len(library) == batch else library
        size, draws, batch = at_once * batch, 1, len(hidden)
    else:
        size = rows_of_chunk(batch, bytes_a_row, hidden.device, convolved=convolved)
    for draw in range(draws):
        for first in range(0, batch, size):
            rows = slice(draw * batch + first, draw * batch + min(first + size, batch))
            of_x = slice(first % len(x), first % len(x) + rows.stop - rows.start)
            of_library = rows if library is not None and len(library) == len(hidden) else of_x
            yield _Chunk(rows, x[of_x], None if library is None else library[of_library])


def in_chunks(
    inputs: HeadInputs,
    wants: int,
    spec: HeadSpec,
    bounds: Bounds,
    backend: str,
    grad: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """log p of each row, and the gradients of the tensors whose bits are in ``wants``.

    ``grad``: that of log p, 1 if None; or, where all rows are one chunk, what gives it from log p.
    """
    hidden, x, library, layers = inputs
    kernels = ops.likelihood_kernels(backend, x, (hidden,))
    single = likelihood_dtype(hidden, x)
    inputs = inputs._replace(library=None if library is None else library.to(single).contiguous())
    of_rows = grad.to(single).contiguous() if isinstance(grad, Tensor) else None
    tensors = (hidden, x, library, *[one for layer in layers for one in layer])
    sums: list[Tensor | None] = [None] * len(tensors)
    for i, one in enumerate(tensors):
        if one is not None and wants >> i & 1:  # sums over the chunks of narrow products are float32
            dtype = single if one.dtype in _NARROW and i else one.dtype
            sums[i] = (torch.empty if len(hidden) else torch.zeros)(one.shape, dtype=dtype, device=one.device)
    log_prob, of_library = (torch.zeros(len(hidden), dtype=single, device=hidden.device) for _ in range(2))
    has_layer = [how != "given" for how in spec.activations]
    wanted = tuple([wants != 0 if layer else wants >> 3 + 2 * i & 1 != 0 for i, layer in enumerate(has_layer)])
    widths = _widths(inputs, spec)
    buffers: list[Tensor] = []
    first_layer = has_layer.index(True)
    for rows, x_here, library_here in _chunks(inputs, bytes_of_outputs(inputs, spec)):
        h = hidden[rows]
        buffers = buffers or [  # the first chunk is the largest
            scratch(f"outputs of a head {i}", (len(h), width), hidden.dtype, hidden.device)
            for i, width in enumerate(widths)
        ]
        outputs = [buffer[: len(h)] for buffer in buffers]
        parameters = []
        for output, (weight, bias), layer in zip(outputs, layers, has_layer, strict=True):
            if layer:
                _product(h, weight, bias, output)
            parameters.append(_as_channels(output, x_here, spec) if layer else weight)
        is_first = rows.start == 0
        here = None if of_rows is None else of_rows[rows]
        if callable(grad):
            unwanted = (False,) * len(wanted)
            here = grad(kernels.head(x_here, tuple(parameters), library_here, None, spec, bounds, unwanted).log_prob)
        found = kernels.head(x_here, tuple(parameters), library_here, here, spec, bounds, wanted)
        log_prob[rows] = found.log_prob
        if not wants:
            continue
        if found.library is not None:
            of_library[rows] = found.library
        for i, (output, (weight, _), layer) in enumerate(zip(outputs, layers, has_layer, strict=True)):
            of_weight, of_bias = sums[3 + 2 * i : 5 + 2 * i]
            if not layer:
                _add(of_weight, found.given[i], is_first)
                continue
            if hidden.dim() == 3:
                _add_of_convolution(
                    (sums[0], of_weight, of_bias), output, h, weight, rows, (i == first_layer, is_first)
                )
                continue
            _add_product(sums[0], rows, output, weight, i == first_layer)
            _add_product(of_weight, slice(None), output.t(), h, is_first)
            _add(of_bias, None if of_bias is None else output.sum(0, dtype=single), is_first)
    if sums[2] is not None:
        sums[2] = of_library.view(len(hidden) // max(len(sums[2]), 1), len(sums[2])).sum(0)
    return log_prob, [
        one.to(tensor.dtype)
        for one, tensor in zip(sums, tensors, strict=True)
        if one is not None and tensor is not None
    ]


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


def _add_of_convolution(
    sums: Sequence[Tensor | None], output: Tensor, h: Tensor, weight: Tensor, rows: slice, is_first: tuple[bool, bool]
) -> None:
    """Adds to the gradients of hidden units, weight and bias; ``is_first``: the layer, and the chunk."""
    of_hidden, of_weight, of_bias = sums
    of_positions = output.view(len(h), len(weight), -1)
    if of_hidden is not None:
        part = of_hidden[rows]
        torch.baddbmm(part, weight.t().expand(len(h), -1, -1), of_positions, beta=not is_first[0], out=part)
    if of_weight is not None:
        each = torch.bmm(of_positions, h.transpose(1, 2))
        _add(of_weight, each.sum(0, dtype=of_weight.dtype), is_first[1])
    if of_bias is not None:
        _add(of_bias, of_positions.sum((0, 2), dtype=of_bias.dtype), is_first[1])


def _add(to: Tensor | None, part: Tensor | None, is_first: bool) -> None:
    if to is not None and part is not None:
        part = part.view(to.shape)
        if is_first:
            to.copy_(part)
        else:
            to += part


def _add_product(to: Tensor | None, rows: slice, a: Tensor, b: Tensor, is_first: bool) -> None:
    """a b, added to these rows, or written there; what a product with beta = 0 finds there does not count."""
    if to is None:
        return
    if to.dtype == a.dtype:
        to[rows].addmm_(a, b, beta=0 if is_first else 1)
    else:
        _add(to[rows], torch.mm(a, b), is_first)


def _as_channels(output: Tensor, x: Tensor, spec: HeadSpec) -> Tensor:
    """Outputs as the parameter of a likelihood of x: of a mixture, (rows, channels, pixels)."""
    return (
        output.unflatten(1, (channels_of_mixture(x.shape[1], spec.components), -1)) if spec.kind == MIXTURE else output
    )


def recorded_gradients(
    grad: Tensor, tensors: Sequence[Tensor | None], wants: Sequence[bool], run: HeadRun
) -> list[Tensor | None]:
    """The same gradients in plain PyTorch, with all outputs at once; part of a graph where autograd records."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [one.view_as(one) if one is not None and want else one for one, want in zip(tensors, wants, strict=True)]
        log_prob = head_formula(own, run)
    wanted = [one for one, want in zip(own, wants, strict=True) if want and one is not None]
    found = iter(torch.autograd.grad(log_prob, wanted, grad.to(log_prob.dtype), create_graph=record))
    return [next(found) if want else None for want in wants]


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
