"""scvi-tools' decoders under `fastvae.patch`: their last layers and the likelihood of counts in one op.

While scvi-tools is patched, the last layers of its decoders return deferred tensors (`fastvae.integrations.deferred`).
scvi-tools' own code passes them on, through softmax, library size and exp, to its NegativeBinomial or
ZeroInflatedNegativeBinomial. ``log_prob(x).sum(-1)`` of these is `linear_log_prob`, which never holds the parameters as
a whole; everything else that is done with the distribution, its parameters or log_prob computes them first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.head_spec import Density
from ..likelihoods.functional import INTEGERS
from ..likelihoods.head import Linear, linear_log_prob
from ..torch_internals import has_hooks, is_transformed
from .deferred import Deferred, Outputs, defer_layers, is_waiting
from .patching import setting_of

__all__ = ["DECODERS", "Head", "LogProb", "are_counts", "head_of", "with_deferred_layers"]

DECODERS = ("DecoderSCVI", "LinearDecoderSCVI", "MultiDecoder", "DecoderTOTALVI")

# Where these decoders keep the layers that give parameters of counts.
_HEADS = ("px_scale_decoder", "px_r_decoder", "px_dropout_decoder", "factor_regressor", "px_dropout_decoder_gene")

_ELEMENTS_CHECKED = 2**18  # at once: they stay in the cache


def with_deferred_layers(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a decoder, whose last layers defer their outputs."""

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if setting_of("scvi") is None or is_transformed():
            return original(self, *args, **kwargs)
        with defer_layers(_weights(self)):
            return original(self, *args, **kwargs)

    return forward


def _weights(decoder: nn.Module) -> Iterator[Tensor]:
    """Of the last layers, without those whose outputs a hook observes or changes."""
    heads = [] if has_hooks(decoder) else [getattr(decoder, name, None) for name in _HEADS]
    for head in heads:
        modules = list(head.modules()) if isinstance(head, nn.Module) else []
        if not any(map(has_hooks, modules)):
            yield from [module.weight for module in modules if isinstance(module, nn.Linear)]


class Head(NamedTuple):
    """What `linear_log_prob` takes."""

    density: Density
    hidden: Tensor
    parameters: tuple[Linear | Tensor, ...]
    x: Tensor
    library: Tensor

    def log_prob(self) -> Tensor:
        """Of each cell, and of each draw."""
        density, hidden, parameters, x, library = self
        return linear_log_prob(density, hidden, parameters, x, library=library)


def head_of(density: Density, x: Any, mu: Any, theta: Any, *logits: Any) -> Head | None:
    """The head that these parameters come from; None if they do not, or have been computed already."""
    if not (is_waiting(mu) and isinstance(mu, Outputs) and mu.layer.activation == "softmax" and mu.factor is not None):
        return None
    if not (type(x) is Tensor and x.dtype in (torch.float32, *INTEGERS) and x.device == mu.device):
        return None
    if x.shape != mu.shape[-2:] or x.requires_grad or x.layout is not torch.strided:
        return None
    parameters: list[Linear | Tensor] = [mu.layer]
    for one, activation in ((theta, "exp"), *[(one, "identity") for one in logits]):
        if is_waiting(one):
            if not isinstance(one, Outputs) or one.hidden is not mu.hidden or one.shape != mu.shape:
                return None
            if one.layer.activation != activation or one.factor is not None:
                return None
            parameters.append(one.layer)
        elif activation == "exp" and type(one) in (Tensor, nn.Parameter) and one.dtype == torch.float32:
            if one.device != x.device or one.shape not in (x.shape[1:], (1, *x.shape[1:])):  # not shared by the cells
                return None
            parameters.append(one)
        else:
            return None
    return Head(density, mu.hidden, tuple(parameters), x, mu.factor.squeeze(-1))


class LogProb(Deferred):
    """log p of each count of each cell; its sum over a cell's counts comes from the head."""

    head: Head

    @classmethod
    def of(cls, head: Head, shape: torch.Size, compute: Callable[[], Tensor]) -> LogProb:
        made: LogProb = cls.make(head.hidden, shape, compute)
        made.head = head
        return made

    def deferred(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in (torch.sum, Tensor.sum) and len(args) + len(kwargs) == 2:
            dim = args[1] if len(args) == 2 else kwargs.get("dim", kwargs.get("axis"))
            if dim in (-1, self.dim() - 1):
                return self.head.log_prob()
        return NotImplemented


def are_counts(x: Tensor) -> bool:
    """Whether all values are whole, and none is negative. It reads the device."""
    rows = max(_ELEMENTS_CHECKED // max(x.shape[-1], 1), 1) if x.is_cpu else max(len(x), 1)
    for part in x.split(rows):
        if part.numel() and bool(part.amin() < 0):
            return False
        # A sum takes a quarter of the time of any(). Of NaN and infinity, frac is NaN, which is true.
        if x.is_floating_point() and bool(torch.frac(part).sum()):
            return False
    return True
