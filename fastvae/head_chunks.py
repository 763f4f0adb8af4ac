"""Chunks of a head: log p(x|z) of some rows, and the gradients, which are summed over the chunks.

    h (rows, H)  ->  outputs a_i = h W_i^T + b_i of each layer  ->  parameters of p(x|z)  ->  log p(x|z) (rows,)

(`fastvae.kernels.head_spec` has the formulas.) A chunk's products are PyTorch's; all between them is one call of a
backend's `head`, which gives log p and overwrites the outputs by their gradients. With g_i the gradient of a_i,

    d h = sum_i g_i W_i        d W_i = g_i^T h        d b_i = sum over rows of g_i

A row of a 1x1 convolution is an image: h (rows, C, positions), and a_i = W_i h + b_i at each position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import ops
from .kernels.head_spec import HeadSpec, rows_of_chunk
from .kernels.layout import likelihood_dtype, repeat_rows
from .kernels.likelihood_spec import MIXTURE, Bounds, channels_of_mixture
from .kernels.reference.scratch import scratch

__all__ = ["ChunkResults", "HeadChunks", "HeadInputs", "as_channels", "bytes_of_outputs", "in_chunks"]

_T = TypeVar("_T", Tensor, "Tensor | None")

# Bytes of one layer's outputs in memory that is kept from call to call.
_LARGEST_KEPT = 4 * 2**20

_NARROW = (torch.bfloat16, torch.float16)


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

    @staticmethod
    def count(spec: HeadSpec) -> int:
        """How many `of` takes."""
        return 3 + 2 * len(spec.activations)


class ChunkResults(NamedTuple):
    """Of the rows of a chunk."""

    log_prob: Tensor  # (rows,)
    hidden: Tensor | None = None  # gradients, if wanted
    library: Tensor | None = None


class HeadChunks:
    """Computes chunks of a head one after the other, and sums the gradients that all rows share.

    ``inputs``: ``layers`` are those of every chunk; of hidden, x and library only the dtypes and the shape of a row
    matter. ``wants``: which gradients, of hidden, x, library and two tensors for each parameter.
    """

    def __init__(self, inputs: HeadInputs, wants: Sequence[bool], spec: HeadSpec, bounds: Bounds, backend: str) -> None:
        self.layers, self.spec, self.bounds = inputs.layers, spec, bounds
        self.kernels = ops.likelihood_kernels(backend, inputs.x, (inputs.hidden,))
        self.dtype = likelihood_dtype(inputs.hidden, inputs.x)  # of log p and of sums over the rows
        self.tensors = [one for layer in inputs.layers for one in layer]
        self.differentiated, self.wants_hidden = any(wants), wants[0]
        self.wanted = [one is not None and want for one, want in zip(self.tensors, wants[3:], strict=True)]
        self.sums: list[Tensor | None] = [None] * len(self.tensors)
        self.layered = [how != "given" for how in spec.activations]
        self.of_kernel = tuple([self.differentiated if one else want for one, want in self._by_parameter()])
        self.sums_given = any(want and not one for one, want in self._by_parameter())
        self.widths = _widths(inputs, spec)
        self.buffers: list[Any] = [None] * len(self.widths)

    def _by_parameter(self) -> Iterator[tuple[bool, bool]]:
        return zip(self.layered, self.wanted[::2], strict=True)

    def add(
        self,
        h: Tensor,
        x: Tensor,
        library: Tensor | None,
        grad: Tensor | Callable[[Tensor], Tensor] | None = None,
        to: Tensor | None = None,
    ) -> ChunkResults:
        """log p of the rows ``h``, and gradients.

        ``grad``: that of log p of each row, or what gives it from log p; None for 1. ``to``: memory for that of ``h``.
        """
        parameters, outputs = self._parameters(h, x)
        weigh, of_rows = (grad, None) if callable(grad) else (None, grad)
        if weigh is not None and self.sums_given:  # the kernel sums over the rows, so it has to know their gradients
            none = (False,) * len(parameters)
            of_rows = weigh(self.kernels.head(x, parameters, library, None, self.spec, self.bounds, none).log_prob)
            weigh = None
        found = self.kernels.head(x, parameters, library, of_rows, self.spec, self.bounds, self.of_kernel)
        if not self.differentiated:
            return ChunkResults(found.log_prob)
        of_library = found.library
        if weigh is not None:
            weights = weigh(found.log_prob)
            of_library = None if of_library is None else of_library * weights
            for output in outputs:
                if output is not None:
                    output.mul_(weights.unsqueeze(1))
        of_hidden = self._of_hidden(h, outputs, to)
        self._add_sums(h, outputs, found.given)
        return ChunkResults(found.log_prob, of_hidden, of_library)

    def _parameters(self, h: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
        """The kernel's parameters, and those of them that are outputs."""
        parameters: list[Tensor] = []
        outputs: list[Tensor | None] = []
        for i, ((weight, bias), width) in enumerate(zip(self.layers, self.widths, strict=True)):
            output = None
            if self.layered[i]:
                output = self._memory(i, (h.shape[0], width), h)
                _product(h, weight, bias, output)
            outputs.append(output)
            parameters.append(weight if output is None else as_channels(output, x, self.spec))
        return tuple(parameters), outputs

    def _memory(self, i: int, shape: tuple[int, int], like: Tensor) -> Tensor:
        """For outputs; that of large chunks is kept for this head alone. No later chunk is larger than the first."""
        if math.prod(shape) * like.element_size() <= _LARGEST_KEPT:
            return scratch(f"outputs of a head {i}", shape, like.dtype, like.device)
        if self.buffers[i] is None:
            self.buffers[i] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self.buffers[i][: shape[0]]

    def _of_hidden(self, h: Tensor, outputs: Sequence[Tensor | None], to: Tensor | None) -> Tensor | None:
        if not self.wants_hidden:
            return None
        to = torch.empty_like(h, memory_format=torch.contiguous_format) if to is None else to
        is_first = True
        for output, (weight, _) in zip(outputs, self.layers, strict=True):
            if output is not None:
                _add_to_hidden(to, output, weight, is_first)
                is_first = False
        return to

    def _add_sums(self, h: Tensor, outputs: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
        for i, output in enumerate(outputs):
            of_weight, of_bias = self.wanted[2 * i : 2 * i + 2]
            if output is None:
                if of_weight:
                    self.sums[2 * i] = _plus(self.sums[2 * i], given[i])
                continue
            if of_weight:
                self.sums[2 * i] = _add_product(self.sums[2 * i], output, h, self.dtype)
            if of_bias:
                of_positions = output if h.dim() == 2 else output.view(h.shape[0], -1, h.shape[2])
                total = of_positions.sum(0 if h.dim() == 2 else (0, 2), dtype=self.dtype)
                self.sums[2 * i + 1] = _plus(self.sums[2 * i + 1], total)

    def gradients(self) -> list[Tensor]:
        """Those of the layers' tensors that are wanted."""
        pairs = zip(self.sums, self.tensors, self.wanted, strict=True)
        return [_as(tensor, one) for one, tensor, want in pairs if want and tensor is not None]


def in_chunks(
    inputs: HeadInputs,
    wants: Sequence[bool],
    spec: HeadSpec,
    bounds: Bounds,
    backend: str,
    grad: Tensor | float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """log p of each row, and the gradients of the tensors that are wanted.

    ``grad``: that of log p, of each row or one for all.
    """
    hidden, _, library, _ = inputs
    head = HeadChunks(inputs, wants, spec, bounds, backend)
    if library is not None:
        inputs = inputs._replace(library=library.to(head.dtype).contiguous())
    of_rows = grad.to(head.dtype).contiguous() if isinstance(grad, Tensor) else None
    if isinstance(grad, float) and head.differentiated and grad != 1.0:
        of_rows = torch.full(hidden.shape[:1], grad, dtype=head.dtype, device=hidden.device)
    of_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if wants[0] else None
    found = [
        head.add(_part(hidden, rows), x, of_cells, _part(of_rows, rows), _part(of_hidden, rows))
        for rows, x, of_cells in _chunks(inputs, bytes_of_outputs(inputs, spec))
    ]
    gradients = [] if of_hidden is None else [of_hidden]
    if library is not None and wants[2]:
        total = _joined([one.library for one in found if one.library is not None])
        if total is not None and total.shape != library.shape:
            total = total.view(-1, library.shape[0]).sum(0)
        gradients.append(_as(library, total))
    log_prob = _joined([one.log_prob for one in found])
    none = hidden.new_empty(0, dtype=head.dtype)
    return none if log_prob is None else log_prob, gradients + head.gradients()


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


class _Rows(NamedTuple):
    rows: slice
    x: Tensor
    library: Tensor | None


def _chunks(inputs: HeadInputs, bytes_a_row: int) -> Iterator[_Rows]:
    """Parts of the rows: several draws, or where a draw is too large, parts of each."""
    hidden, x, library, _ = inputs
    rows, batch = hidden.shape[0], x.shape[0]
    draws = rows // max(batch, 1)
    convolved = hidden.dim() == 3
    at_once = rows_of_chunk(rows, bytes_a_row, hidden.device, convolved=convolved, group=batch)
    if draws > 1 and at_once > 0:
        library = None if library is None else repeat_rows(library, rows)
        for first in range(0, rows, at_once * batch):
            here = slice(first, min(first + at_once * batch, rows))
            yield _Rows(here, x, _part(library, here))
        return
    size = rows_of_chunk(batch, bytes_a_row, hidden.device, convolved=convolved)
    for draw in range(draws):
        for first in range(0, batch, size):
            of_x = slice(first, min(first + size, batch))
            here = slice(draw * batch + of_x.start, draw * batch + of_x.stop)
            of_library = here if library is not None and library.shape[0] == rows else of_x
            yield _Rows(here, _part(x, of_x), _part(library, of_library))


def _part(tensor: _T, rows: slice) -> _T:
    return tensor if tensor is None or rows.stop - rows.start == len(tensor) else tensor[rows]


def _as(like: Tensor, total: Tensor | None) -> Tensor:
    """A sum over the chunks, None if there are no rows, as the gradient of a tensor."""
    if total is None:
        return torch.zeros_like(like)
    return total if total.shape == like.shape and total.dtype == like.dtype else total.view(like.shape).to(like.dtype)


def _joined(parts: list[Tensor]) -> Tensor | None:
    if not parts:
        return None
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


def as_channels(output: Tensor, x: Tensor, spec: HeadSpec) -> Tensor:
    """Outputs as the parameter of a likelihood of x: of a mixture, (rows, channels, pixels)."""
    return (
        output.unflatten(1, (channels_of_mixture(x.shape[1], spec.components), -1)) if spec.kind == MIXTURE else output
    )
