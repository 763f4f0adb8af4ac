"""A decoder's layers before the last, computed for some rows at a time, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .torch_internals import has_hooks

__all__ = ["Trunk", "apply_layers", "with_gradients"]

_ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU,
    nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip

Layers = tuple[nn.Module, ...]


class Trunk(NamedTuple):
    """Hidden units that are not computed yet: the layers, and what goes into them, (rows, features)."""

    layers: Layers
    inputs: Tensor

    def hidden(self) -> Tensor:
        h = self.inputs
        for layer in self.layers:
            h = layer(h)
        return h

    def treats_rows_alone(self) -> bool:
        """Whether each row is computed by itself, from weights alone, and no hook observes it."""
        linear_first = not self.layers or type(self.layers[0]) is nn.Linear  # others might change their input
        return linear_first and all(
            type(one) in (nn.Linear, *_ACTIVATIONS) and not has_hooks(one) for one in self.layers
        )

    def tensors(self) -> list[Tensor | None]:
        """Weights and biases."""
        return [one for layer in self.layers if type(layer) is nn.Linear for one in (layer.weight, layer.bias)]

    def out_features(self) -> int:
        return [self.inputs.shape[-1], *self.widths()][-1]

    def widths(self) -> list[int]:
        return [layer.out_features for layer in self.layers if type(layer) is nn.Linear]


def apply_layers(layers: Layers, h: Tensor, tensors: Sequence[Any]) -> Tensor:
    """Layers of a trunk with ``tensors`` as weights and biases."""
    given = iter(tensors)
    for layer in layers:
        h = F.linear(h, next(given), next(given)) if type(layer) is nn.Linear else layer(h)
    return h


def with_gradients(
    layers: Layers, tensors: Sequence[Tensor | None], wants: Sequence[bool]
) -> tuple[Tensor, Callable[[Tensor | None], Sequence[Tensor]]]:
    """Hidden units, and a function that gives the wanted gradients from the gradient of the hidden units.

    ``tensors``: what goes into the layers, and `Trunk.tensors`.
    """
    if not layers:
        assert tensors[0] is not None
        return tensors[0], lambda grad: [grad] if wants[0] and grad is not None else []
    own: list[Any] = [
        one if one is None else one.detach().requires_grad_(want) for one, want in zip(tensors, wants, strict=True)
    ]
    with torch.enable_grad():
        hidden = apply_layers(layers, own[0], own[1:])
    wanted = [one for one, want in zip(own, wants, strict=True) if want]
    return hidden.detach(), lambda grad: torch.autograd.grad(hidden, wanted, grad) if wanted else []
