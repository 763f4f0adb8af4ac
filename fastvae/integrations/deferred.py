"""Outputs of linear layers that another library's code hands on, computed when something needs their values.

Within `defer_layers`, the named layers return a `Deferred`: a tensor of the right shape, dtype and device that has its
layer and hidden units in place of values. A softmax, an exp, and a factor for each row are recorded too. Every other
operation first computes the values, once, as the layer would have done, and then works on an ordinary tensor. Code that
bypasses ``__torch_function__`` (an autograd.Function, a backward hook of a module) must not be given one: its values
are NaN there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..likelihoods.head import Linear
from .support import is_supported

__all__ = ["Deferred", "Outputs", "defer_layers", "is_waiting", "values_of"]

# What is known without the values.
_KNOWN = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cpu", "is_cuda")
} | {Tensor.dim, Tensor.size, Tensor.numel, Tensor.ndimension, Tensor.is_floating_point}


class Deferred(Tensor):
    """A tensor that is computed, and then kept, when an operation needs its values.

    Its operations see the tensors it is computed from as they were: to change them in place before it is computed is an
    error, as in autograd. It is computed in the grad mode in which it was made.
    """

    _value: Tensor | None
    _compute: Callable[[], Tensor]
    _sources: tuple[Tensor, ...]
    _versions: list[int]
    _modes: tuple[bool, bool]

    @classmethod
    def make(cls, like: Tensor, shape: Iterable[int], compute: Callable[[], Tensor], *sources: Tensor) -> Any:
        """Of ``like``'s dtype and device; ``compute`` reads ``sources``."""
        made = torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(tuple(shape)).as_subclass(cls)
        made._value, made._compute, made._sources = None, compute, sources
        made._versions = [_version(one) for one in sources]
        made._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        return made

    def computed(self) -> Tensor:
        """The values, as an ordinary tensor."""
        if self._value is None:
            if [_version(one) for one in self._sources] != self._versions:
                raise RuntimeError(
                    "a parameter of a likelihood was asked for after its layer's weights or inputs had been changed in "
                    "place, as by an optimizer's step; expected it to be asked for before"
                )
            inference, grad = self._modes
            with torch.inference_mode(inference), torch.set_grad_enabled(grad and not inference):
                self._value = self._compute()
            del self._compute
            self._sources = ()
        return self._value

    def deferred(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation that does not need the values yet; NotImplemented of others."""
        return NotImplemented

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _KNOWN and is_waiting(args[0]):
            return super().__torch_function__(function, types, args, kwargs)
        if function is torch.broadcast_tensors:
            return _broadcast(args)
        for one in args:
            if isinstance(one, Deferred) and is_waiting(one):
                result = one.deferred(function, args, kwargs)
                if result is not NotImplemented:
                    return result
        return function(*pytree.tree_map(values_of, args), **pytree.tree_map(values_of, kwargs))


class Outputs(Deferred):
    """Of a linear layer: ``factor`` times the activation of its outputs."""

    hidden: Tensor
    layer: Linear
    factor: Tensor | None

    @classmethod
    def of(cls, hidden: Tensor, layer: Linear, compute: Callable[[], Tensor], factor: Tensor | None = None) -> Outputs:
        sources = [one for one in (hidden, layer.weight, layer.bias, factor) if one is not None]
        made: Outputs = cls.make(hidden, (*hidden.shape[:-1], len(layer.weight)), compute, *sources)
        made.hidden, made.layer, made.factor = hidden, layer, factor
        return made

    def deferred(self, function: Any, args: Any, kwargs: Any) -> Any:
        plain = self.layer.activation == "identity" and self.factor is None
        if function in (torch.exp, Tensor.exp) and plain and not kwargs:
            return Outputs.of(self.hidden, self.layer._replace(activation="exp"), lambda: torch.exp(self.computed()))
        if function in (torch.softmax, Tensor.softmax, F.softmax) and plain:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if dim in (-1, self.dim() - 1) and kwargs.get("dtype") is None and len(args) < 4:
                layer = self.layer._replace(activation="softmax")
                return Outputs.of(self.hidden, layer, lambda: torch.softmax(self.computed(), -1))
        if function in _PRODUCTS and self.factor is None and not kwargs:
            factor = args[1] if args[0] is self else args[0]
            if type(factor) is Tensor and factor.shape == (*self.shape[:-1], 1) and factor.dtype == self.dtype:
                return Outputs.of(self.hidden, self.layer, lambda: factor * self.computed(), factor)
        return NotImplemented


_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)


def is_waiting(tensor: Any) -> bool:
    """Whether it is deferred, and not computed yet."""
    return isinstance(tensor, Deferred) and tensor._value is None


def values_of(tensor: Any) -> Any:
    """A deferred tensor's values; all else as it is."""
    return tensor.computed() if isinstance(tensor, Deferred) else tensor


class defer_layers(TorchFunctionMode):
    """Within it, layers that have one of these weights return `Outputs`."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {id(weight) for weight in weights}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear and not kwargs and len(args) == 3 and id(args[1]) in self._weights:
            hidden, weight, bias = args
            if _can_defer(hidden, weight):
                return Outputs.of(hidden, Linear(weight, bias), lambda: F.linear(hidden, weight, bias))
        return function(*args, **(kwargs or {}))


def _can_defer(hidden: Tensor, weight: Tensor) -> bool:
    """Whether a head takes them: as `F.linear` would without autocast, on a device with kernels."""
    return (
        type(hidden) is Tensor
        and hidden.dim() in (2, 3)
        and hidden.dtype == weight.dtype == torch.float32
        and hidden.device == weight.device
        and not torch.is_autocast_enabled(hidden.device.type)
        and is_supported(hidden)
    )


def _broadcast(tensors: Any) -> tuple[Tensor, ...]:
    tensors = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    shape = torch.broadcast_shapes(*[one.shape for one in tensors])
    return tuple([one if is_waiting(one) and one.shape == shape else values_of(one).expand(shape) for one in tensors])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
