"""log p(x|z) of K draws for an importance-weighted bound, rows of x at a time: no hidden units of all draws are held.

`fastvae.weighed_head` computes the gradients of the last layers with log p. Here the layers before them are computed in
the same chunks, rows of x with all their draws, and so are their gradients: what is left is of the size of z and of the
weights. Only for layers that treat each row by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ..autograd import is_differentiated
from ..double_backward import gradients_of
from ..fast_path import are_direct
from ..head_op import times
from ..kernels.head_spec import rows_of_chunk
from ..torch_internals import has_hooks, has_saved_tensor_hooks
from ..weighed_head import scale_of

__all__ = ["Trunk", "weighed_rows"]

_ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU,
    nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip

# Of the hidden units of some rows of x, the tensors of the last layers, and these rows: log p(x|z), draw after draw.
LogProb = Callable[[Tensor, Sequence[Any], slice], Tensor]


class Trunk(NamedTuple):
    """The hidden units of a decoder, not computed yet: the layers before the last, and what goes into them."""

    layers: tuple[nn.Module, ...]
    inputs: Tensor

    def hidden(self) -> Tensor:
        h = self.inputs
        for layer in self.layers:
            h = layer(h)
        return h

    def is_plain(self) -> bool:
        """Whether each row is computed by itself, from weights alone, and nobody looks on."""
        return all(type(one) in (nn.Linear, *_ACTIVATIONS) and not has_hooks(one) for one in self.layers)

    def tensors(self) -> list[Tensor | None]:
        return [one for layer in self.layers if type(layer) is nn.Linear for one in (layer.weight, layer.bias)]

    def apply(self, h: Tensor, tensors: Sequence[Any]) -> Tensor:
        given = iter(tensors)
        for layer in self.layers:
            h = F.linear(h, next(given), next(given)) if type(layer) is nn.Linear else layer(h)
        return h


def weighed_rows(trunk: Trunk, log_ratio: Tensor, tensors: Sequence[Tensor | None], log_prob: LogProb) -> Tensor | None:
    """log p(x|z), (K B,), as ``log_prob`` of the hidden units; ``log_ratio``: (K, B).

    None where all rows are one chunk, or where it is not the CPU that computes float32 or float64 for a backward.
    """
    h, of_trunk = trunk.inputs, trunk.tensors()
    every = (h, *of_trunk, *tensors)
    draws, batch = log_ratio.shape
    floats = h.dtype == log_ratio.dtype and h.dtype in (torch.float32, torch.float64)
    differentiated = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in every)
    if not (floats and h.is_cpu and h.numel() and differentiated and are_direct(*every) and trunk.is_plain()):
        return None
    if torch.is_autocast_enabled("cpu") or has_saved_tensor_hooks(True):  # hooks are for what backward needs
        return None
    widths = [len(one) for one in of_trunk if one is not None and one.dim() == 2]
    widths.append(sum([len(one) for one in tensors if one is not None and one.dim() == 2]))
    rows = rows_of_chunk(len(h), max(widths) * h.element_size(), h.device) // draws
    if not 0 < rows < batch:
        return None

    def of_rows(h: Tensor, tensors: Sequence[Any], rows: slice) -> Tensor:
        count = len(of_trunk)
        return log_prob(trunk.apply(h, tensors[:count]), tensors[count:], rows)

    return _WeighedRows.apply(of_rows, rows, log_ratio.detach(), *every)


class _WeighedRows(Function):
    @staticmethod
    def forward(ctx: Any, of_rows: LogProb, size: int, log_ratio: Tensor, *tensors: Tensor | None) -> Tensor:
        draws, batch = log_ratio.shape
        wants = ctx.needs_input_grad[3:]
        log_prob, h = torch.empty_like(log_ratio), tensors[0].unflatten(0, (draws, batch))  # type: ignore[union-attr]
        of_h = torch.empty_like(h) if wants[0] else None
        sums: list[Tensor] = []
        for first in range(0, batch, size):
            rows = slice(first, min(first + size, batch))
            of_x = h[:, rows].flatten(0, 1), *tensors[1:]
            own: list[Any] = [
                one if one is None else one.detach().requires_grad_(want) for one, want in zip(of_x, wants, strict=True)
            ]
            with torch.enable_grad():
                found = of_rows(own[0], own[1:], rows).view(draws, -1)
                loss = -torch.logsumexp(found + log_ratio[:, rows], 0).sum()
            log_prob[:, rows] = found.detach()
            grads = list(torch.autograd.grad(loss, [one for one, want in zip(own, wants, strict=True) if want]))
            if of_h is not None:
                of_h[:, rows] = grads.pop(0).unflatten(0, (draws, -1))
            sums = [one.add_(more) for one, more in zip(sums, grads, strict=True)] if sums else grads
        ahead = sums if of_h is None else [of_h.flatten(0, 1), *sums]
        ctx.save_for_backward(log_ratio, log_prob, *tensors, *ahead)
        ctx.of_rows = of_rows
        return log_prob.flatten()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wants = ctx.needs_input_grad[3:]
        log_ratio, log_prob, *saved = ctx.saved_tensors
        tensors, ahead = saved[: len(wants)], saved[len(wants) :]
        scale = None if is_differentiated((grad,)) else scale_of(grad, log_prob, log_ratio)
        if scale is None:
            every = slice(0, log_ratio.shape[1])
            found = gradients_of(lambda own: [ctx.of_rows(own[0], own[1:], every)], tensors, wants, (grad,))
            return None, None, None, *found
        rest = iter(times(ahead, -scale))
        return None, None, None, *[next(rest) if want else None for want in wants]
