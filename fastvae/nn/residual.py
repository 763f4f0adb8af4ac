"""A residual convolutional encoder and decoder for images, which train on a few hundred images.

Blocks of group normalisation, SiLU and 3x3 convolutions around a skip connection (pre-activation residual networks,
He et al., arXiv 1603.05027; the block of diffusion models' image VAEs, Rombach et al., arXiv 2112.10752). The second
convolution of a block starts at zero, so that a new network is shallow and its gradients are not damped by its depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..size_checks import image_shape, positive_size, positive_sizes
from . import calls
from .inputs import Decoder, Encoder

__all__ = ["ResidualBlock", "ResidualDecoder", "ResidualEncoder", "residual_sizes"]

_GROUP = 16
"""Channels of a normalisation group."""


class ResidualBlock(nn.Module):
    """x + f(x) with f = norm, SiLU, conv, norm, SiLU, conv: (B, channels, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip
        _zero(self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...


class _WithLinearPart(nn.Module):
    """A module with ``linear``, a sequence with one fixed linear layer in it, or None."""

    linear: nn.Sequential | None

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Of the linear layer: weight (outputs, inputs) and bias (outputs,)."""
        (layer,) = (layer for layer in self.linear or () if isinstance(layer, nn.Linear))
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


class ResidualEncoder(Encoder, _WithLinearPart):
    """q(z|x) of images: patches to channels, then residual blocks at each resolution with stride 2 in between.

    Args:
        input_shape: (C, H, W) of one image, of any H and W: sides that do not divide are padded with their border.
        channels: of each resolution, the first of which is (H / patch, W / patch); each next one halves the sides.
        latent_dim: size of z.
        patch: side of the squares of pixels that become the channels of one position.
        blocks: residual blocks at each resolution.
        linear: add a fixed linear function of the image, averaged to this side, to the output, and start the network's
            own part at zero; None: the network alone. Its weights are to be set, to principal components for example,
            and are not trained: a step of Adam that suits the network would be far too large for them.

    Raises:
        TypeError, ValueError: a size is not a positive int; the message names the argument.

    >>> import torch
    >>> from fastvae.nn import ResidualEncoder
    >>> mu, logvar = ResidualEncoder((3, 45, 64), (32, 64), 20, patch=4)(torch.rand(8, 3, 45, 64))
    >>> mu.shape
    torch.Size([8, 20])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        latent_dim: int,
        *,
        patch: int = 1,
        blocks: int = 1,
        linear: int | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = image_shape("input_shape", input_shape)
        self.latent_dim = positive_size("latent_dim", latent_dim)
        widths = positive_sizes("channels", channels)
        height, width, self._padding = _smallest(self.input_shape, widths, positive_size("patch", patch))
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(self.input_shape[0] * patch**2, widths[0], 3, padding=1),
        ]
        for index, outputs in enumerate(widths):
            if index:
                layers.append(nn.Conv2d(widths[index - 1], outputs, 4, stride=2, padding=1))
            layers += [ResidualBlock(outputs) for _ in range(blocks)]
        layers += [_norm(widths[-1]), nn.SiLU(), nn.Flatten()]
        # One last layer for mu and logvar: one tensor that the fused ops read in place.
        layers.append(nn.Linear(widths[-1] * height * width, 2 * self.latent_dim))
        self.layers = nn.Sequential(*layers)
        self.linear = None
        if linear is not None:
            small = _averaged(self.input_shape, linear)
            into = nn.Linear(math.prod(small), 2 * self.latent_dim).requires_grad_(False)
            self.linear = nn.Sequential(nn.AdaptiveAvgPool2d(small[1:]), nn.Flatten(), into)
            _zero(layers[-1])

    def _moments(self, x: Tensor) -> Tensor:
        below, right = self._padding
        moments = self.layers(F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x)
        return moments if self.linear is None else moments + self.linear(x)


class ResidualDecoder(Decoder, _WithLinearPart):
    """The parameters of p(x|z) of images: the way of `ResidualEncoder` back, each step up by nearest neighbours.

    Args:
        latent_dim: size of z.
        channels: of each resolution from the smallest to the largest, which is (H / patch, W / patch).
        output_shape: (C, H, W) of the parameters of one image, of any H and W.
        patch, blocks: as for `ResidualEncoder`.
        linear: add a fixed linear function of z, an image of this side that is interpolated, and start the network's
            own part at zero; None: the network alone. As of `ResidualEncoder`, it is not trained.

    Raises:
        TypeError, ValueError: a size is not a positive int; the message names the argument.

    >>> import torch
    >>> from fastvae.nn import ResidualDecoder
    >>> ResidualDecoder(20, (64, 32), (3, 45, 64), patch=4)(torch.zeros(8, 20)).shape
    torch.Size([8, 3, 45, 64])
    """

    def __init__(
        self,
        latent_dim: int,
        channels: Sequence[int],
        output_shape: Sequence[int],
        *,
        patch: int = 1,
        blocks: int = 1,
        linear: int | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_size("latent_dim", latent_dim)
        self.latent_shape = (self.latent_dim,)
        self.output_shape = image_shape("output_shape", output_shape)
        widths = positive_sizes("channels", channels)
        height, width, _ = _smallest(self.output_shape, widths, positive_size("patch", patch))
        layers: list[nn.Module] = [
            nn.Linear(self.latent_dim, widths[0] * height * width),
            nn.Unflatten(1, (widths[0], height, width)),
        ]
        for index, inputs in enumerate(widths):
            layers += [ResidualBlock(inputs) for _ in range(blocks)]
            if index + 1 < len(widths):
                # The 1x1 convolution is linear and local: before the upsampling it costs a quarter.
                layers += [nn.Conv2d(inputs, widths[index + 1], 1), nn.Upsample(scale_factor=2)]
        outputs = self.output_shape[0] * patch**2
        # A decoder of many parameters a pixel, such as those of a mixture, would spend nearly all its time here.
        kernel = 3 if outputs <= 4 * widths[-1] else 1
        last = nn.Conv2d(widths[-1], outputs, kernel, padding=kernel // 2)
        self.layers = nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU(), last, nn.PixelShuffle(patch))
        self.linear = None
        if linear is not None:
            small = _averaged(self.output_shape, linear)
            self.linear = nn.Sequential(
                nn.Linear(self.latent_dim, math.prod(small)).requires_grad_(False), nn.Unflatten(1, small),
                nn.Upsample(size=self.output_shape[1:], mode="bilinear"),
            )  # fmt: skip
            _zero(last)

    def _output(self, z: Tensor) -> Tensor:
        _, height, width = self.output_shape
        images = self.layers(z)[:, :, :height, :width]
        return images if self.linear is None else images + self.linear(z)


def residual_sizes(height: int, width: int, base: int = 64) -> tuple[int, tuple[int, ...]]:
    """patch and channels for images of this size: the first resolution has 14 to 32 positions a side, the last 4 to 8.

    ``base`` is the width of the first resolution; the next ones have twice as many channels.
    """
    side, patch = min(height, width), 1
    while patch < 8 and side / (2 * patch) >= 14:
        patch *= 2
    resolutions = 1
    while side / (patch * 2**resolutions) >= 4 and resolutions < 4:
        resolutions += 1
    return patch, tuple(base * min(2, 2**index) for index in range(resolutions))


def _averaged(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    return (shape[0], *(min(one, positive_size("linear", side)) for one in shape[1:]))


def _zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP if channels % _GROUP == 0 else 1, channels)


def _smallest(shape: tuple[int, ...], widths: tuple[int, ...], patch: int) -> tuple[int, int, tuple[int, int]]:
    """Height and width of the smallest resolution, and how many rows and columns of padding lead to it."""
    if not widths:
        raise ValueError("channels is (), expected at least one size")
    factor = patch * 2 ** (len(widths) - 1)
    height, width = (-(-side // factor) for side in shape[1:])
    return height, width, (height * factor - shape[1], width * factor - shape[2])
