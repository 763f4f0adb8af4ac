"""`MLPEncoder` and `MLPDecoder`: multilayer perceptrons for the models of `fastvae.nn`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from ..size_checks import event_shape, positive_size, positive_sizes
from .head import LayersToHead, LikelihoodHead
from .inputs import Decoder, Encoder, check_condition_dim

__all__ = ["MLPDecoder", "MLPEncoder"]


class MLPEncoder(Encoder):
    """q(z|x) by a multilayer perceptron (Kingma & Welling, arXiv 1312.6114, appendix C.2).

    Args:
        input_shape: shape of one x without the batch, an int for a vector.
        hidden: width of the hidden layers, one int or one for each layer.
        latent_dim: size of z.
        activation: makes the activation module that follows each hidden layer.
        condition_dim: size of a condition that is concatenated to x for q(z|x, c); None without one.

    >>> import torch
    >>> from fastvae.nn import MLPEncoder
    >>> mu, logvar = MLPEncoder((1, 28, 28), 400, 20)(torch.rand(8, 1, 28, 28))
    >>> mu.shape, logvar.shape
    (torch.Size([8, 20]), torch.Size([8, 20]))
    """

    _flattens = True

    def __init__(
        self,
        input_shape: int | Sequence[int],
        hidden: int | Sequence[int],
        latent_dim: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = event_shape("input_shape", input_shape)
        self.latent_dim = positive_size("latent_dim", latent_dim)
        self.condition_dim = check_condition_dim(condition_dim)
        inputs = math.prod(self.input_shape) + self.condition_dim
        layers, last = _hidden_layers(inputs, positive_sizes("hidden", hidden), activation)
        self.layers = nn.Sequential(*layers, nn.Linear(last, 2 * self.latent_dim))


class MLPDecoder(Decoder):
    """The parameters of p(x|z) by a multilayer perceptron (Kingma & Welling, arXiv 1312.6114, appendix C.1).

    Args:
        latent_dim: size of z.
        output_shape: shape of one x without the batch, an int for a vector.
        hidden, activation: as for `MLPEncoder`.
        condition_dim: size of a condition that is concatenated to z for p(x|z, c); None without one.
        outputs: how many tensors of that shape the likelihood takes; a tuple of them is returned if several.

    The last layer is a `LikelihoodHead`: models compute log p(x|z) fused with it.

    >>> import torch
    >>> from fastvae.nn import MLPDecoder
    >>> MLPDecoder(20, (200, 400), (1, 28, 28))(torch.zeros(8, 20)).shape
    torch.Size([8, 1, 28, 28])
    """

    takes_score = True

    def __init__(
        self,
        latent_dim: int,
        hidden: int | Sequence[int],
        output_shape: int | Sequence[int],
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        condition_dim: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_size("latent_dim", latent_dim)
        self.latent_shape = (self.latent_dim,)
        self.output_shape = event_shape("output_shape", output_shape)
        self.condition_dim = check_condition_dim(condition_dim)
        widths = positive_sizes("hidden", hidden)
        hidden_layers, last = _hidden_layers(self.latent_dim + self.condition_dim, widths, activation)
        self.layers = LayersToHead(*hidden_layers, LikelihoodHead(last, self.output_shape, outputs=outputs))


def _hidden_layers(
    inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module]
) -> tuple[list[nn.Module], int]:
    """The layers, and the size of what they give."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return layers, inputs
