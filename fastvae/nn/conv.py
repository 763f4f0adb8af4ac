"""An encoder and a decoder of strided convolutions for images, ready for the models of `fastvae.nn`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..sizes import event_shape, positive_size, positive_sizes
from .inputs import check_condition_dim, check_rows, join_condition


class ConvEncoder(nn.Module):
    """q(z|x) of images by convolutions of stride 2, each of which halves height and width.

    Args:
        input_shape: (C, H, W) of one image; H and W divisible by 2^n, n the number of convolutions.
        channels: of what each convolution gives, one int or one for each.
        latent_dim: size of a z without positions, by a linear layer from all of the last convolution's output; or
        latent_channels: channels of a z that keeps positions, (latent_channels, H / 2^n, W / 2^n). One of the two.
        activation: makes the activation module that follows each convolution.
        condition_dim: size of a condition, given to the first convolution as channels; None without one: q(z|x, c).

    Raises:
        TypeError, ValueError: a size is not a positive int, or does not divide; the message names the argument.

    >>> import torch
    >>> from fastvae.nn import ConvEncoder
    >>> encoder = ConvEncoder((1, 28, 28), (32, 64), latent_channels=4)
    >>> mu, logvar = encoder(torch.rand(8, 1, 28, 28))
    >>> mu.shape, encoder.latent_shape
    (torch.Size([8, 4, 7, 7]), (4, 7, 7))
    """

    packs_moments = True

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
        widths = _channels(channels)
        self.input_shape = _image_shape("input_shape", input_shape)
        self.condition_dim = check_condition_dim(condition_dim)
        height, width = _smallest("input_shape", self.input_shape, len(widths))
        self.latent_shape = _latent_shape(latent_dim, latent_channels, (height, width))
        layers: list[nn.Module] = []
        inputs = self.input_shape[0] + self.condition_dim
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), activation()]
            inputs = outputs
        # One last layer for mu and logvar: one tensor that the fused ops read in place.
        moments = 2 * self.latent_shape[0]
        if latent_channels is None:
            layers += [nn.Flatten(), nn.Linear(inputs * height * width, moments)]
        else:
            layers += [nn.Conv2d(inputs, moments, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, packed: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """mu and logvar, (B, *latent_shape) each, in the module's dtype, of x (B, C, H, W).

        Args:
            condition: (B, condition_dim).
            packed: give both as the one tensor that they are the halves of, along dimension 1.
        """
        check_rows("x", x, self.input_shape)
        moments = self.layers(join_condition(x, condition, self.condition_dim))
        if packed:
            return moments
        mu, logvar = moments.chunk(2, dim=1)
        return mu, logvar


class ConvDecoder(nn.Module):
    """The parameters of p(x|z) of images by transposed convolutions of stride 2, each of which doubles both sides.

    Args:
        latent_dim: size of a z without positions; or
        latent_channels: channels of a z with positions, (latent_channels, H / 2^n, W / 2^n). One of the two.
        channels: of what each of the n transposed convolutions takes, one int or one for each.
        output_shape: (C, H, W) of the parameters of one image; H and W divisible by 2^n.
        activation: makes the activation module that comes before each transposed convolution.
        condition_dim: size of a condition, which the first layer sees beside z; None without one: p(x|z, c).

    Raises:
        TypeError, ValueError: a size is not a positive int, or does not divide; the message names the argument.

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
        widths = _channels(channels)
        self.output_shape = _image_shape("output_shape", output_shape)
        self.condition_dim = check_condition_dim(condition_dim)
        height, width = _smallest("output_shape", self.output_shape, len(widths))
        self.latent_shape = _latent_shape(latent_dim, latent_channels, (height, width))
        inputs = self.latent_shape[0] + self.condition_dim
        layers: list[nn.Module] = []
        if latent_channels is None:
            layers += [nn.Linear(inputs, widths[0] * height * width), nn.Unflatten(1, (widths[0], height, width))]
        else:
            layers += [nn.Conv2d(inputs, widths[0], 3, padding=1)]
        for given, outputs in zip(widths, (*widths[1:], self.output_shape[0]), strict=True):
            layers += [activation(), nn.ConvTranspose2d(given, outputs, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The likelihood's parameters, (B, *output_shape), in the module's dtype, of z (B, *latent_shape).

        Args:
            condition: (B, condition_dim).
        """
        check_rows("z", z, self.latent_shape)
        return self.layers(join_condition(z, condition, self.condition_dim))


def _channels(channels: int | Sequence[int]) -> tuple[int, ...]:
    widths = positive_sizes("channels", channels)
    if not widths:
        raise ValueError(f"channels is {channels!r}, expected at least one size")
    return widths


def _image_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    sizes = event_shape(name, shape)
    if len(sizes) != 3:
        raise ValueError(f"{name} is {shape!r}, expected (C, H, W)")
    return sizes


def _smallest(name: str, shape: tuple[int, ...], halvings: int) -> tuple[int, int]:
    """Height and width on the latent side."""
    _, height, width = shape
    factor = 2**halvings
    if height % factor or width % factor:
        raise ValueError(f"{name} is {shape}, expected H and W divisible by {factor}: {halvings} layers of stride 2")
    return height // factor, width // factor


def _latent_shape(latent_dim: int | None, latent_channels: int | None, positions: tuple[int, int]) -> tuple[int, ...]:
    if (latent_dim is None) == (latent_channels is None):
        raise ValueError(f"latent_dim is {latent_dim!r}, latent_channels is {latent_channels!r}; expected one of them")
    if latent_dim is not None:
        return (positive_size("latent_dim", latent_dim),)
    assert latent_channels is not None
    return (positive_size("latent_channels", latent_channels), *positions)
