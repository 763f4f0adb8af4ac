"""An encoder and a decoder of plain linear layers, ready for `fastvae.nn.VAE`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..arguments import check_tensor


class MLPEncoder(nn.Module):
    """q(z|x) by a multilayer perceptron (Kingma & Welling, arXiv 1312.6114, appendix C.2).

    Args:
        input_shape: shape of one x without the batch, an int for a vector.
        hidden: width of the hidden layers, one int or one for each layer.
        latent_dim: size of z.
        activation: makes the activation module that follows each hidden layer.

    Raises:
        TypeError, ValueError: a size is not an int, or not positive; the message names the argument.

    >>> import torch
    >>> from fastvae.nn import MLPEncoder
    >>> mu, logvar = MLPEncoder((1, 28, 28), 400, 20)(torch.rand(8, 1, 28, 28))
    >>> mu.shape, logvar.shape
    (torch.Size([8, 20]), torch.Size([8, 20]))
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        hidden: int | Sequence[int],
        latent_dim: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.input_shape = _shape("input_shape", input_shape)
        self.latent_dim = _size("latent_dim", latent_dim)
        # One last layer for both halves: one matrix product, and views that the fused ops read without a copy.
        self.layers = _mlp(math.prod(self.input_shape), _sizes("hidden", hidden), 2 * self.latent_dim, activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar, (B, latent_dim) each, in the module's dtype, of x (B, *input_shape)."""
        _check_rows("x", x, self.input_shape)
        mu, logvar = self.layers(x.flatten(1)).chunk(2, dim=1)
        return mu, logvar


class MLPDecoder(nn.Module):
    """The parameters of p(x|z) by a multilayer perceptron (Kingma & Welling, arXiv 1312.6114, appendix C.1).

    Args:
        latent_dim: size of z.
        hidden: width of the hidden layers, one int or one for each layer.
        output_shape: shape of one x without the batch, an int for a vector.
        activation: makes the activation module that follows each hidden layer.

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
    ) -> None:
        super().__init__()
        self.latent_dim = _size("latent_dim", latent_dim)
        self.output_shape = _shape("output_shape", output_shape)
        self.layers = _mlp(self.latent_dim, _sizes("hidden", hidden), math.prod(self.output_shape), activation)

    def forward(self, z: Tensor) -> Tensor:
        """The likelihood's parameters, (B, *output_shape), in the module's dtype, of z (B, latent_dim)."""
        _check_rows("z", z, (self.latent_dim,))
        return self.layers(z).unflatten(1, self.output_shape)


def _mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _size(name: str, size: int) -> int:
    try:
        given = operator.index(size)
    except TypeError:
        raise TypeError(f"{name} is {size!r}, expected a positive int") from None
    if given < 1:
        raise ValueError(f"{name} is {given}, expected a positive int")
    return given


def _sizes(name: str, sizes: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes as a tuple; one int counts as one size."""
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return tuple(_size(f"{name}[{i}]", size) for i, size in enumerate(sizes))
    return (_size(name, sizes),)


def _shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = _sizes(name, shape)
    if not sizes:
        raise ValueError(f"{name} is {shape!r}, expected at least one size")
    return sizes


def _check_rows(name: str, tensor: Tensor, event: tuple[int, ...]) -> None:
    check_tensor(name, tensor)
    if tensor.shape[1:] != event:
        expected = ", ".join(["batch", *map(str, event)])
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({expected})")
