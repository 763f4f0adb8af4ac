"""What the encoders of this package share, and the decoders: shape checks, and concatenation with a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from ..checks import check_tensor
from ..size_checks import positive_size
from . import calls

__all__ = ["Decoder", "Encoder", "check_condition_dim", "check_rows"]


class Encoder(nn.Module):
    """``layers`` compute mu and logvar as one tensor, which the fused ops read in place."""

    packs_moments = True
    input_shape: tuple[int, ...]
    condition_dim: int = 0
    layers: nn.Sequential
    _flattens = False

    def _moments(self, x: Tensor) -> Tensor:
        return self.layers(x)

    @overload
    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, packed: Literal[False] = False
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, x: Tensor, condition: Tensor | None = None, *, packed: Literal[True]) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, packed: bool
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, packed: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """mu and logvar, (B, latent_dim) or (B, *latent_shape) each, in the module's dtype, of x (B, *input_shape).

        Args:
            condition: (B, condition_dim).
            packed: return both in one tensor, packed along dimension 1.
        """
        check_rows("x", x, self.input_shape)
        x = x.flatten(1) if self._flattens else x
        moments = self._moments(join_condition(x, condition, self.condition_dim))
        if packed:
            return moments
        mu, logvar = moments.chunk(2, dim=1)
        return mu, logvar

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...


class Decoder(nn.Module):
    latent_shape: tuple[int, ...]
    condition_dim: int = 0
    layers: nn.Sequential

    def _output(self, z: Tensor) -> Tensor:
        return self.layers(z)

    def forward(self, z: Tensor, condition: Tensor | None = None, *, score: Any = None) -> Tensor:
        """The likelihood's parameters, (B, *output_shape), in the module's dtype, of z (B, *latent_shape).

        Args:
            condition: (B, condition_dim).
            score: of a decoder that ends in a `LikelihoodHead`: return what this function makes of its last layers
                instead (`fastvae.nn.head`).
        """
        check_rows("z", z, self.latent_shape)
        joined = join_condition(z, condition, self.condition_dim)
        return self._output(joined) if score is None else self.layers(joined, score)

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...


def check_rows(name: str, tensor: Tensor, event: tuple[int, ...]) -> None:
    check_tensor(name, tensor)
    if tensor.shape[1:] != event:
        expected = ", ".join(["batch", *map(str, event)])
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({expected})")


def check_condition_dim(condition_dim: int | None) -> int:
    """The number of channels that the condition adds; 0 without one."""
    return 0 if condition_dim is None else positive_size("condition_dim", condition_dim)


def join_condition(h: Tensor, condition: Tensor | None, condition_dim: int) -> Tensor:
    """h (B, C, ...) with the condition (B, condition_dim) concatenated as channels, equal at every position."""
    if not condition_dim:
        if condition is not None:
            raise TypeError("condition was given to a module without condition_dim, expected None")
        return h
    if condition is None:
        raise TypeError(f"condition is None, expected a tensor of shape (batch, {condition_dim})")
    check_rows("condition", condition, (condition_dim,))
    if condition.shape[0] != h.shape[0]:
        raise ValueError(f"condition has {len(condition)} rows, the input has {len(h)}; expected the same")
    positions = h.shape[2:]
    channels = condition.reshape(condition.shape + (1,) * len(positions)).expand(-1, -1, *positions)
    return torch.cat([h, channels], 1)
