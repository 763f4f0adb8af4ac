"""Residual encoders and decoders for images, and networks on standardised data."""

from __future__ import annotations

import pytest
import torch

from fastvae.likelihoods import Gaussian
from fastvae.nn import (
    VAE,
    MLPEncoder,
    ResidualBlock,
    ResidualDecoder,
    ResidualEncoder,
    StandardizedDecoder,
    StandardizedEncoder,
)
from fastvae.nn.residual import residual_sizes


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 30), (3, 45, 64), (4, 7, 65)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_images_of_any_size_go_to_latents_and_back(shape, patch):
    encoder = ResidualEncoder(shape, (8, 16), 5, patch=patch)
    decoder = ResidualDecoder(5, (16, 8), shape, patch=patch)
    mu, logvar = encoder(torch.rand(2, *shape))
    assert mu.shape == logvar.shape == (2, 5)
    assert decoder(mu).shape == (2, *shape)
    assert torch.equal(encoder(torch.ones(2, *shape), packed=True)[:, :5], encoder(torch.ones(2, *shape))[0])


def test_every_pixel_is_seen_and_every_weight_is_trained():
    shape = (3, 11, 9)
    vae = VAE(ResidualEncoder(shape, (8, 16), 5, patch=2), ResidualDecoder(5, (16, 8), shape, patch=2), Gaussian())
    for weight in vae.parameters():  # the second convolution of a block starts at zero and would hide the first
        torch.nn.init.normal_(weight, std=0.1)
    x = torch.rand(2, *shape, requires_grad=True)
    (-vae.elbo(x, seed=0).elbo.mean()).backward()
    assert (x.grad != 0).all()
    assert all((weight.grad != 0).any() for weight in vae.parameters())


def test_a_new_block_changes_nothing():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16)(x), x)


@pytest.mark.parametrize("side", [8, 16, 28, 32, 45, 64, 96, 128, 256, 512])
def test_sizes_follow_the_side_of_the_image(side):
    patch, channels = residual_sizes(side, 2 * side)
    smallest = side / patch / 2 ** (len(channels) - 1)
    assert 2 <= smallest <= 8
    assert side / patch <= max(8, side / 8, 32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_shape": (8, 8)}, ValueError, "expected \\(C, H, W\\)"),
        ({"channels": ()}, ValueError, "channels is \\(\\)"),
        ({"patch": 0}, ValueError, "patch is 0"),
        ({"latent_dim": 1.5}, TypeError, "latent_dim is 1.5"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, error, message):
    given = {"input_shape": (1, 8, 8), "channels": (4,), "latent_dim": 2, "patch": 1} | options
    with pytest.raises(error, match=message):
        ResidualEncoder(**given)


def test_the_encoder_sees_standardised_data_and_the_decoder_gives_them_back():
    encoder, decoder = StandardizedEncoder(torch.nn.Identity(), (2,)), StandardizedDecoder(torch.nn.Identity(), (2,))
    x = torch.tensor([[10.0, -1.0], [30.0, 1.0]])
    for module in (encoder, decoder):
        module.set_statistics(torch.tensor([20.0, 0.0]), torch.tensor([10.0, 2.0]))
    torch.testing.assert_close(encoder(x), torch.tensor([[-1.0, -0.5], [1.0, 0.5]]))
    torch.testing.assert_close(decoder(encoder(x)), x)
    again = StandardizedEncoder(torch.nn.Identity(), (2,))
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(x), encoder(x))


def test_a_standardised_encoder_is_packed_as_its_network_is():
    encoder = StandardizedEncoder(MLPEncoder(4, 3, 2), (4,))
    assert encoder.packs_moments
    assert encoder.latent_dim == 2
    assert encoder(torch.rand(5, 4), packed=True).shape == (5, 4)


def test_a_standard_deviation_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="std has the value 0"):
        StandardizedEncoder(torch.nn.Identity(), (2,)).set_statistics(0.0, torch.tensor([1.0, 0.0]))
