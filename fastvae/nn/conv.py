"""`ConvEncoder` and `ConvDecoder`: strided convolutions on images for the models of `fastvae.nn`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..size_checks import image_shape, positive_size, positive_sizes
from .inputs import Decoder, Encoder, check_condition_dim

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(Encoder):
    """q(z|x) of images by n convolutions of stride 2, each of which halves height and width.

    Args:
        input_shape: (C, H, W) of one image; H and W divisible by 2^n.
        channels: output channels of each convolution, one int or one for each.
        latent_dim: size of a vector z, by a linear layer on the flattened output of the last convolution; or
        latent_channels: channels of a spatial z, (latent_channels, H / 2^n, W / 2^n). Give one of the two.
        activation: makes the activation module that follows each convolution.
        condition_dim: size of a condition for q(z|x, c), added to x as constant channels; None without one.

    >>> import torch
    >>> from fastvae.nn import ConvEncoder
    >>> encoder = ConvEncoder((1, 28, 28), (32, 64), latent_channels=4)
    >>> mu, logvar = encoder(torch.rand(8, 1, 28, 28))
    >>> mu.shape, encoder.latent_shape
    (torch.Size([8, 4, 7, 7]), (4, 7, 7))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: int | Sequence[int],
        latent_dim: int | None = None,
        *,
        latent_channels: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        widths, self.input_shape, (height, width), self.latent_shape = _geometry(
            "input_shape", input_shape, channels, latent_dim, latent_channels
        )
        self.condition_dim = check_condition_dim(condition_dim)
        layers: list[nn.Module] = []
        inputs = self.input_shape[0] + self.condition_dim
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), activation()]
            inputs = outputs
        moments = 2 * self.latent_shape[0]
        if latent_channels is None:
            layers += [nn.Flatten(), nn.Linear(inputs * height * width, moments)]
        else:
            layers += [nn.Conv2d(inputs, moments, 3, padding=1)]
        self.layers = nn.Sequential(*layers)


class ConvDecoder(Decoder):
    """The parameters of p(x|z) of images by n transposed convolutions of stride 2, each of which doubles both sides.

    Args:
        latent_dim, latent_channels: of z, as for `ConvEncoder`.
        channels: input channels of each transposed convolution, one int or one for each.
        output_shape: (C, H, W) of the parameters of one image; H and W divisible by 2^n.
        activation: makes the activation module that precedes each transposed convolution.
        condition_dim: size of a condition for p(x|z, c), concatenated to z; None without one.

    >>> import torch
    >>> from fastvae.nn import ConvDecoder
    >>> decoder = ConvDecoder(latent_channels=4, channels=(64, 32), output_shape=(1, 28, 28))
    >>> decoder(torch.zeros(8, 4, 7, 7)).shape
    torch.Size([8, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int | None = None,
        *,
        channels: int | Sequence[int],
        output_shape: Sequence[int],
        latent_channels: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        widths, self.output_shape, (height, width), self.latent_shape = _geometry(
            "output_shape", output_shape, channels, latent_dim, latent_channels
        )
        self.condition_dim = check_condition_dim(condition_dim)
        inputs = self.latent_shape[0] + self.condition_dim
        layers: list[nn.Module] = []
        if latent_channels is None:
            layers += [nn.Linear(inputs, widths[0] * height * width), nn.Unflatten(1, (widths[0], height, width))]
        else:
            layers += [nn.Conv2d(inputs, widths[0], 3, padding=1)]
        for inputs, outputs in zip(widths, (*widths[1:], self.output_shape[0]), strict=True):
            layers += [activation(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)


def _geometry(
    name: str,
    shape: Sequence[int],
    channels: int | Sequence[int],
    latent_dim: int | None,
    latent_channels: int | None,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int], tuple[int, ...]]:
    """The channels of each layer, (C, H, W) of an image, H and W on the latent side, and the shape of z."""
    widths = positive_sizes("channels", channels)
    if not widths:
        raise ValueError(f"channels is {channels!r}, expected at least one size")
    sizes = image_shape(name, shape)
    _, height, width = sizes
    factor = 2 ** len(widths)
    if height % factor or width % factor:
        raise ValueError(f"{name} is {sizes}, expected H and W divisible by {factor}: {len(widths)} layers of stride 2")
    positions = height // factor, width // factor
    if (latent_dim is None) == (latent_channels is None):
        raise ValueError(f"latent_dim is {latent_dim!r}, latent_channels is {latent_channels!r}; expected one of them")
    if latent_channels is not None:
        return widths, sizes, positions, (positive_size("latent_channels", latent_channels), *positions)
    assert latent_dim is not None
    return widths, sizes, positions, (positive_size("latent_dim", latent_dim),)
