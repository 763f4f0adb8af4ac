"""Networks that work on standardised data, inside models whose inputs and outputs keep the units of the data.

Networks start at a scale of 1, and learn slowly from data of another one. The statistics are buffers, which are saved
with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..likelihoods import Linear
from . import calls
from .head import ConvLikelihoodHead, Score, takes_score
from .model import check_module

__all__ = ["StandardizedDecoder", "StandardizedEncoder", "copy_interface"]


class _Standardized(nn.Module):
    """A network with buffers ``mean`` and ``std``, which are 0 and 1 until they are set or loaded."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        check_module("network", network)
        self.network = network
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("std", torch.ones(tuple(shape)))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor | float, std: Tensor | float = 1.0) -> None:
        """Each of ``shape``, or of fewer dimensions that broadcast to it.

        Raises:
            ValueError: std has a value that is not positive.
        """
        spread = torch.as_tensor(std)
        if not bool((spread > 0).all()):
            raise ValueError(f"std has the value {spread.min().item():g}, expected positive numbers")
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(spread)

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mean.shape)}"


def copy_interface(wrapper: Any, encoder: nn.Module) -> None:
    """Give a wrapper what the models look for in an encoder."""
    wrapper.packs_moments = getattr(encoder, "packs_moments", False)
    wrapper.latent_shape = getattr(encoder, "latent_shape", None)
    wrapper.latent_dim = getattr(encoder, "latent_dim", None)


class StandardizedEncoder(_Standardized):
    """``network((x - mean) / std)``, for an encoder or the first of the modules that lead up to one.

    Args:
        network: module that takes x first.
        shape: of mean and std, to which x (B, *event) is broadcast: (C, 1, 1) for a value for each channel of images.

    >>> import torch
    >>> from fastvae.nn import MLPEncoder, StandardizedEncoder
    >>> encoder = StandardizedEncoder(MLPEncoder(2, 8, 3), (2,))
    >>> encoder.set_statistics(torch.tensor([500.0, 0.0]), torch.tensor([100.0, 1.0]))
    >>> mu, logvar = encoder(torch.tensor([[450.0, 0.5]]))
    >>> mu.shape, encoder.latent_dim
    (torch.Size([1, 3]), 3)
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(network, shape)
        copy_interface(self, network)

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:
        return self.network((x - self.mean) / self.std, *others, **options)

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...


class StandardizedDecoder(_Standardized):
    """``mean + std network(z)``, for a decoder whose output is one tensor (B, *event).

    For means in the units of the data, mean and std are the data's; for logits, mean is the logit of the data's mean.

    Args:
        network: module that takes z first.
        shape: of mean and std, which the network's output is broadcast with.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(network, shape)
        # Statistics of each position are no factors of a 1x1 convolution's weights.
        convolves = any(isinstance(module, ConvLikelihoodHead) for module in network.modules())
        self.takes_score = takes_score(network) and not (convolves and math.prod(self.mean.shape[-2:]) > 1)

    def forward(self, z: Tensor, *others: Any, score: Score | None = None) -> Tensor:
        if score is None:
            return torch.addcmul(self.mean, self.std, self.network(z, *others))

        def score_at_scale(hidden: Tensor, layers: Sequence[Linear], shape: tuple[int, ...]) -> Tensor:
            # Of each output of a layer; a 1x1 convolution has one for each channel.
            of_outputs = shape if layers[0].weight.dim() == 2 else (shape[0], 1, 1)
            mean, std = (statistic.expand(of_outputs).flatten() for statistic in (self.mean, self.std))
            scaled = [
                layer._replace(
                    weight=std.view(-1, *[1] * (layer.weight.dim() - 1)) * layer.weight,
                    bias=mean if layer.bias is None else torch.addcmul(mean, std, layer.bias),
                )
                for layer in layers
            ]
            return score(hidden, scaled, shape)

        return self.network(z, *others, score=score_at_scale)

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...
