"""An encoder and a decoder of plain linear layers, ready for the models of `fastvae.nn`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..sizes import event_shape, positive_size, positive_sizes
from .inputs import check_condition_dim, check_rows, join_condition


class MLPEncoder(nn.Module):
    """q(z|x) by a multilayer perceptron (Kingma & Welling, arXiv 1312.6114, appendix C.2).

    Args:
        input_shape: shape of one x without the batch, an int for a vector.
        hidden: width of the hidden layers, one int or one for each layer.
        latent_dim: size of z.
        activation: makes the activation module that follows each hidden layer.
        condition_dim: size of a condition that stands beside x, None without one: q(z|x, c).

    Raises:
        TypeError, ValueError: a size is not an int, or not positive; the message names the argument.

    >>> import torch
    >>> from fastvae.nn import MLPEncoder
    >>> mu, logvar = MLPEncoder((1, 28, 28), 400, 20)(torch.rand(8, 1, 28, 28))
    >>> mu.shape, logvar.shape
    (torch.Size([8, 20]), torch.Size([8, 20]))
    """

    packs_moments = True

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
        # One last layer for both halves: one matrix product, and one tensor that the fused ops read in place.
        self.layers = _mlp(inputs, positive_sizes("hidden", hidden), 2 * self.latent_dim, activation)

    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, packed: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """mu and logvar, (B, latent_dim) each, in the module's dtype, of x (B, *input_shape).

        Args:
            condition: (B, condition_dim).
            packed: give both as the one tensor that they are the halves of, (B, 2 latent_dim).
        """
        check_rows("x", x, self.input_shape)
        moments = self.layers(join_condition(x.flatten(1), condition, self.condition_dim))
        if packed:
            return moments
        mu, logvar = moments.chunk(2, dim=1)
        return mu, logvar


class MLPDecoder(nn.Module):
    """The parameters of p(x|z) by a multilayer perceptron (Kingma & Welling, arXiv 1312.6114, appendix C.1).

    Args:
        latent_dim: size of z.
        hidden: width of the hidden layers, one int or one for each layer.
        output_shape: shape of one x without the batch, an int for a vector.
        activation: makes the activation module that follows each hidden layer.
        condition_dim: size of a condition that stands beside z, None without one: p(x|z, c).

    Raises:
        TypeError, ValueError: a size is not an int, or not positive; the message names the argument.

    >>> import torch
    >>> from fastvae.nn import MLPDecoder
    >>> MLPDecoder(20, (200, 400), (1, 28, 28))(torch.zeros(8, 20)).shape
    torch.Size([8, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: int | Sequence[int],
        output_shape: int | Sequence[int],
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_size("latent_dim", latent_dim)
        self.output_shape = event_shape("output_shape", output_shape)
        self.condition_dim = check_condition_dim(condition_dim)
        widths = positive_sizes("hidden", hidden)
        self.layers = _mlp(self.latent_dim + self.condition_dim, widths, math.prod(self.output_shape), activation)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The likelihood's parameters, (B, *output_shape), in the module's dtype, of z (B, latent_dim).

        Args:
            condition: (B, condition_dim).
        """
        check_rows("z", z, (self.latent_dim,))
        return self.layers(join_condition(z, condition, self.condition_dim)).unflatten(1, self.output_shape)


def _mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
