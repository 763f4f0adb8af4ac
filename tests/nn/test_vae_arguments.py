"""What a VAE takes and refuses: data, encoders, decoders, arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastvae.likelihoods import Bernoulli, Gaussian
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.priors import LearnedGaussian
from tests.nn.test_vae import SHAPE, _ImageEncoder, _vae, _x


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, *SHAPE)), TypeError, r"x is a ndarray, expected a torch\.Tensor"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), TypeError, "x is uint8, expected one of float32"),
        (torch.zeros(()), ValueError, "x is 0-d, expected shape"),
        (torch.zeros(2, 20), ValueError, r"x has shape \(2, 20\), expected \(batch, 1, 4, 5\)"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "elbo", "encode", "reconstruct"])
def test_bad_data_is_refused_by_name(method, x, error, message):
    with pytest.raises(error, match=message):
        getattr(_vae(), method)(x)


def test_the_decoder_names_an_invalid_z():
    with pytest.raises(ValueError, match=r"z has shape \(2, 5\), expected \(batch, 6\)"):
        _vae().decode(torch.zeros(2, 5))


def test_a_decoder_of_another_shape_is_refused():
    vae = VAE(MLPEncoder(SHAPE, 8, 6), MLPDecoder(6, 8, 20), Bernoulli())
    with pytest.raises(ValueError, match=r"x has shape \(8, 1, 4, 5\), logits has \(8, 20\)"):
        vae.elbo(_x())


def test_an_encoder_without_logvar_is_refused():
    with pytest.raises(TypeError, match=r"encoder returned a Tensor of shape .*, expected the pair \(mu, logvar\)"):
        VAE(nn.Identity(), nn.Identity(), Gaussian()).elbo(torch.zeros(2, 3))


class _Returns(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ((torch.zeros(2, 3),) * 3, TypeError, r"encoder returned 3 values, expected the pair \(mu, logvar\)"),
        (None, TypeError, r"encoder returned NoneType, expected the pair \(mu, logvar\)"),
        (torch.zeros(4), TypeError, r"Tensor of shape \(4,\), expected the pair \(mu, logvar\) or moments \(B, 2C, "),
        ((torch.zeros(2, 3), torch.zeros(2, 4)), ValueError, r"logvar has shape \(2, 4\), mu has \(2, 3\)"),
        (torch.zeros(2, 8), ValueError, r"encoder returned mu of shape \(2, 4\), expected \(batch, 3\)"),
        ((torch.zeros(2, 4),) * 2, ValueError, r"encoder returned mu of shape \(2, 4\), expected \(batch, 3\)"),
    ],
)
def test_an_invalid_encoder_output_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        VAE(_Returns(value), nn.Identity(), Gaussian(), latent_shape=3).elbo(torch.zeros(2, 3))


def test_a_seed_without_sampling_is_refused():
    with pytest.raises(ValueError, match="seed was given with sample=False"):
        _vae().reconstruct(_x(), seed=0)
    with pytest.raises(ValueError, match="seed and generator were both given"):
        _vae().elbo(_x(), seed=0, generator=torch.Generator())


def test_generate_needs_a_known_latent_shape():
    vae = VAE(_ImageEncoder(), nn.Conv2d(2, 1, 3, padding=1), Bernoulli())
    with pytest.raises(RuntimeError, match="the shape of z is unknown"):
        vae.generate(3)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [(2.0, TypeError, "n is a float, expected an int"), (-1, ValueError, "n is -1, expected 0")],
)
def test_generate_refuses_an_invalid_number(n, error, message):
    with pytest.raises(error, match=message):
        _vae().generate(n)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: VAE(lambda x: x, nn.Identity(), Bernoulli()),
            TypeError,
            r"encoder is a function, expected a torch\.nn",
        ),
        (lambda: VAE(nn.Identity(), nn.Identity(), Bernoulli), TypeError, "likelihood is a type, expected"),
        (
            lambda: VAE(nn.Identity(), nn.Identity(), Bernoulli(), latent_shape=(2, 0)),
            ValueError,
            r"latent_shape\[1\] is 0",
        ),
        (lambda: VAE(nn.Identity(), nn.Identity(), Bernoulli(), latent_shape="2"), TypeError, "latent_shape is '2'"),
        (
            lambda: VAE(nn.Identity(), nn.Identity(), Bernoulli(), prior=nn.Identity()),
            TypeError,
            r"prior is a Identity, expected a fastvae\.priors\.Prior or None",
        ),
        (
            lambda: VAE(MLPEncoder(3, 8, 2), nn.Identity(), Bernoulli(), prior=LearnedGaussian(3)),
            ValueError,
            r"prior has latent_shape \(3,\), expected \(2,\), the model's",
        ),
        (lambda: MLPEncoder(3, 8, 2, condition_dim=0), ValueError, "condition_dim is 0, expected a positive int"),
        (lambda: MLPEncoder(0, 8, 2), ValueError, "input_shape is 0, expected a positive int"),
        (lambda: MLPEncoder((), 8, 2), ValueError, r"input_shape is \(\), expected at least one size"),
        (lambda: MLPEncoder(3, (8, -1), 2), ValueError, r"hidden\[1\] is -1, expected a positive int"),
        (lambda: MLPEncoder(3, 8, (2,)), TypeError, r"latent_dim is \(2,\), expected a positive int"),
        (lambda: MLPDecoder(2, 8.0, 3), TypeError, "hidden is 8.0, expected a positive int"),
    ],
)
def test_invalid_constructor_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_hidden_layers_are_one_width_or_several():
    def widths(model: nn.Module) -> list[int]:
        return [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]

    assert widths(MLPEncoder(20, 16, 6)) == [16, 12]
    assert widths(MLPEncoder(20, [], 6)) == [12]
    assert widths(MLPDecoder(6, (8, 16), (4, 5))) == [8, 16, 20]


def test_the_encoders_halves_are_views_of_one_tensor():
    mu, logvar = MLPEncoder(20, 16, 6)(torch.zeros(4, 20))
    assert mu.untyped_storage().data_ptr() == logvar.untyped_storage().data_ptr()
    assert mu.stride() == logvar.stride() == (12, 1)
