"""Convolutional encoders and decoders: shapes, conditions, moments in one piece, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastvae
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, ConditionalVAE, ConvDecoder, ConvEncoder

SHAPE = (3, 8, 12)
FLAT = {"latent_dim": 5}
SPATIAL = {"latent_channels": 2}


def _convs(latent: dict[str, int], condition_dim: int | None = None) -> tuple[ConvEncoder, ConvDecoder]:
    return (
        ConvEncoder(SHAPE, (4, 6), condition_dim=condition_dim, **latent),
        ConvDecoder(channels=(6, 4), output_shape=SHAPE, condition_dim=condition_dim, **latent),
    )


@pytest.mark.parametrize(("latent", "shape"), [(FLAT, (5,)), (SPATIAL, (2, 2, 3))])
def test_images_go_to_latents_and_back(latent, shape):
    encoder, decoder = _convs(latent)
    mu, logvar = encoder(torch.rand(7, *SHAPE))
    assert mu.shape == logvar.shape == (7, *shape)
    assert encoder.latent_shape == decoder.latent_shape == shape
    assert decoder(mu).shape == (7, *SHAPE)


@pytest.mark.parametrize("latent", [FLAT, SPATIAL])
def test_packed_moments_are_the_pair_in_one_tensor(latent):
    encoder, x = _convs(latent)[0], torch.rand(7, *SHAPE)
    assert torch.equal(encoder(x, packed=True), torch.cat(encoder(x), 1))


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sides_are_halved_once_a_layer(side, layers):
    shape = (1, side * 2**layers, 2**layers)
    encoder = ConvEncoder(shape, (4,) * layers, latent_channels=2)
    decoder = ConvDecoder(latent_channels=2, channels=(4,) * layers, output_shape=shape)
    assert encoder(torch.rand(2, *shape))[0].shape == (2, 2, side, 1)
    assert decoder(torch.rand(2, 2, side, 1)).shape == (2, *shape)


@pytest.mark.parametrize("latent", [FLAT, SPATIAL])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_bound_is_that_of_the_ops_in_any_memory_format(latent, memory_format):
    encoder, decoder = _convs(latent)
    vae = VAE(encoder, decoder, Bernoulli()).to(memory_format=memory_format)
    x = torch.rand(7, *SHAPE).round().contiguous(memory_format=memory_format)
    z, kl = fastvae.sample_and_kl(*encoder(x), seed=2)
    bound = vae.elbo(x, seed=2)
    torch.testing.assert_close(bound.kl, kl)
    torch.testing.assert_close(bound.reconstruction, Bernoulli().log_prob(decoder(z), x))
    bound.elbo.mean().backward()
    assert all(parameter.grad.any() for parameter in vae.parameters())


@pytest.mark.parametrize("latent", [FLAT, SPATIAL])
def test_the_condition_is_concatenated_at_every_position(latent):
    encoder, decoder = _convs(latent, condition_dim=2)
    x, condition = torch.rand(7, *SHAPE), torch.randn(7, 2)
    other = condition.clone()
    other[3, 1] += 1.0
    changed = (encoder(x, condition)[0] != encoder(x, other)[0]).flatten(1).any(1)
    assert changed.tolist() == [row == 3 for row in range(7)]
    z = encoder(x, condition)[0]
    changed = (decoder(z, condition) != decoder(z, other)).flatten(1).any(1)
    assert changed.tolist() == [row == 3 for row in range(7)]
    planes = condition.view(7, 2, 1, 1).expand(7, 2, *SHAPE[1:])
    torch.testing.assert_close(encoder(x, condition, packed=True), encoder.layers(torch.cat([x, planes], 1)))


def test_a_conditional_vae_of_convolutions_has_a_bound_and_images():
    vae = ConditionalVAE(*_convs(SPATIAL, condition_dim=4), Bernoulli(), num_classes=4)
    x, classes = torch.rand(7, *SHAPE).round(), torch.arange(7) % 4
    assert vae.elbo(x, condition=classes).elbo.shape == (7,)
    assert vae.log_weights(x, 3, condition=classes).log_weights.shape == (3, 7)
    assert vae.generate(2, condition=1).shape == (2, *SHAPE)


@pytest.mark.parametrize("latent", [FLAT, SPATIAL])
def test_they_pickle_copy_and_reload(latent):
    modules, others = _convs(latent), _convs(latent)
    z = torch.randn(2, *modules[1].latent_shape)
    for module, other, given in zip(modules, others, (torch.rand(2, *SHAPE), z), strict=True):
        other.load_state_dict(module.state_dict())
        for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), other):
            torch.testing.assert_close(twin(given), module(given), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_they_work_in_other_dtypes(dtype):
    encoder, decoder = (module.to(dtype) for module in _convs(SPATIAL))
    mu, _ = encoder(torch.rand(2, *SHAPE).to(dtype))
    assert mu.dtype == decoder(mu).dtype == dtype


def test_activations_are_the_callers_choice():
    encoder = ConvEncoder(SHAPE, (4, 6), 5, activation=nn.SiLU)
    decoder = ConvDecoder(5, channels=(6, 4), output_shape=SHAPE, activation=nn.SiLU)
    for module in (encoder, decoder):
        assert sum(isinstance(layer, nn.SiLU) for layer in module.layers) == 2
        assert not any(isinstance(layer, nn.ReLU) for layer in module.layers)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ConvEncoder((1, 28, 28), (4, 8, 16), 5),
            ValueError,
            r"input_shape is \(1, 28, 28\), expected H and W divisible by 8: 3 layers of stride 2",
        ),
        (
            lambda: ConvDecoder(5, channels=4, output_shape=(1, 4, 5)),
            ValueError,
            r"output_shape is \(1, 4, 5\), expected H and W divisible by 2",
        ),
        (lambda: ConvEncoder((28, 28), 4, 5), ValueError, r"input_shape is \(28, 28\), expected \(C, H, W\)"),
        (lambda: ConvEncoder(784, 4, 5), ValueError, r"input_shape is 784, expected \(C, H, W\)"),
        (lambda: ConvEncoder(SHAPE, (), 5), ValueError, r"channels is \(\), expected at least one size"),
        (lambda: ConvEncoder(SHAPE, (4, 0), 5), ValueError, r"channels\[1\] is 0, expected a positive int"),
        (lambda: ConvEncoder(SHAPE, 4.0, 5), TypeError, r"channels is 4\.0, expected a positive int"),
        (lambda: ConvEncoder(SHAPE, 4), ValueError, "latent_dim is None, latent_channels is None; expected one of"),
        (
            lambda: ConvDecoder(5, latent_channels=2, channels=4, output_shape=SHAPE),
            ValueError,
            "latent_dim is 5, latent_channels is 2; expected one of them",
        ),
        (lambda: ConvEncoder(SHAPE, 4, latent_channels=-1), ValueError, "latent_channels is -1, expected a positive"),
        (lambda: ConvEncoder(SHAPE, 4, 5, condition_dim=0), ValueError, "condition_dim is 0, expected a positive"),
    ],
)
def test_invalid_constructor_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_inputs_of_the_wrong_shape_are_named():
    encoder, decoder = _convs(SPATIAL, condition_dim=2)
    x, z, condition = torch.zeros(7, *SHAPE), torch.zeros(7, 2, 2, 3), torch.zeros(7, 2)
    with pytest.raises(ValueError, match=r"x has shape \(7, 3, 8, 8\), expected \(batch, 3, 8, 12\)"):
        encoder(torch.zeros(7, 3, 8, 8), condition)
    with pytest.raises(ValueError, match=r"z has shape \(7, 2, 2, 2\), expected \(batch, 2, 2, 3\)"):
        decoder(z[..., :2], condition)
    for module, given in ((encoder, x), (decoder, z)):
        with pytest.raises(TypeError, match=r"condition is None, expected a tensor of shape \(batch, 2\)"):
            module(given)
        with pytest.raises(ValueError, match=r"condition has shape \(7, 3\), expected \(batch, 2\)"):
            module(given, torch.zeros(7, 3))
        with pytest.raises(ValueError, match="condition has 6 rows, the input has 7"):
            module(given, condition[:6])
    with pytest.raises(TypeError, match="condition was given to a module without condition_dim"):
        _convs(SPATIAL)[0](x, condition)
