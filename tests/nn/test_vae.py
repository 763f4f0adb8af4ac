"""The VAE module: the bound and its parts, seeds, dtypes, compilation, what it refuses, and that it learns."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastvae
from fastvae.likelihoods import Bernoulli, Gaussian
from fastvae.nn import VAE, MLPDecoder, MLPEncoder

SHAPE = (1, 4, 5)


def _vae(likelihood: nn.Module | None = None, seed: int = 0) -> VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(MLPEncoder(SHAPE, (16, 8), 6), MLPDecoder(6, 16, SHAPE), likelihood or Bernoulli())


def _x(batch: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(1)).round().to(dtype)


# The bound


def test_elbo_is_reconstruction_minus_kl():
    bound = _vae().elbo(_x(), seed=0)
    assert torch.equal(bound.elbo, bound.reconstruction - bound.kl)
    assert all(part.shape == (8,) for part in bound)


def test_elbo_is_the_one_that_torch_distributions_computes():
    vae = _vae().double()
    x = _x(dtype=torch.float64)
    bound = vae.elbo(x, seed=3)
    mu, logvar = vae.encoder(x)
    posterior = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    z = mu + posterior.scale * fastvae.noise(3, mu.shape, dtype=torch.float64)
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, torch.ones_like(mu))).sum(1)
    reconstruction = torch.distributions.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(bound.kl, kl)
    torch.testing.assert_close(bound.reconstruction, reconstruction)

    parameters = list(vae.parameters())
    came = torch.autograd.grad(bound.elbo.mean(), parameters)
    expected = torch.autograd.grad((reconstruction - kl).mean(), parameters)
    torch.testing.assert_close(came, expected)


def test_kl_is_never_negative():
    vae = _vae()
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(1e-3)
    assert (vae.elbo(_x()).kl >= 0).all()


def test_elbo_is_below_log_p_x_where_that_is_known():
    # A linear decoder with Gaussian noise: x ~ N(b, W W' + s^2 I), so that log p(x) has a closed form.
    torch.manual_seed(0)
    decoder = nn.Linear(2, 3)
    vae = VAE(MLPEncoder(3, 8, 2), decoder, Gaussian(0.5))
    x = torch.randn(64, 3)
    covariance = decoder.weight @ decoder.weight.T + 0.5 * torch.eye(3)
    log_p = torch.distributions.MultivariateNormal(decoder.bias, covariance).log_prob(x)
    with torch.no_grad():
        elbo = torch.stack([vae.elbo(x, seed=seed).elbo for seed in range(200)]).mean(0)
    assert (elbo < log_p + 0.1).all()


def test_forward_returns_the_draw_its_posterior_and_the_decoders_output():
    vae = _vae()
    x = _x()
    output = vae(x, seed=5)
    z, kl = fastvae.sample_and_kl(*vae.encoder(x), seed=5)
    expected = {"z": z, "mu": vae.encoder(x)[0], "logvar": vae.encoder(x)[1], "kl": kl, "parameters": vae.decoder(z)}
    torch.testing.assert_close(output._asdict(), expected)
    assert vae.encode(x)._fields == ("mu", "logvar")


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5, learned=True)])
def test_a_few_steps_raise_the_bound(likelihood):
    vae = _vae(likelihood)
    x = torch.ones(64, *SHAPE) * (torch.arange(64) % 2).view(-1, 1, 1, 1)  # all paper or all ink: one bit to learn
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    before = vae.elbo(x, seed=0).elbo.mean().item()
    for step in range(30):
        optimizer.zero_grad()
        (-vae.elbo(x, seed=step).elbo.mean()).backward()
        optimizer.step()
    assert vae.elbo(x, seed=0).elbo.mean().item() > before + 1


# Seeds


def test_the_same_seed_gives_the_same_bound_and_another_seed_another():
    vae, x = _vae(), _x()
    assert torch.equal(vae.elbo(x, seed=1).elbo, vae.elbo(x, seed=1).elbo)
    assert torch.equal(vae.elbo(x, seed=1).elbo, vae.elbo(x, seed=torch.tensor([1])).elbo)
    assert not torch.equal(vae.elbo(x, seed=1).elbo, vae.elbo(x, seed=2).elbo)


def test_manual_seed_determines_the_draw_without_a_seed():
    vae, x = _vae(), _x()
    torch.manual_seed(4)
    first, second = vae(x).z, vae(x).z
    torch.manual_seed(4)
    assert torch.equal(vae(x).z, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "draw",
    [
        lambda vae, generator: vae(_x(), generator=generator).z,
        lambda vae, generator: vae.elbo(_x(), generator=generator).elbo,
        lambda vae, generator: vae.reconstruct(_x(), sample=True, generator=generator),
        lambda vae, generator: vae.generate(5, generator=generator),
        lambda vae, generator: vae.generate(5, generator=generator, sample=True),
    ],
    ids=["forward", "elbo", "reconstruct", "generate", "generate pixels"],
)
def test_only_the_generator_determines_the_draw(draw):
    vae = _vae()
    state = torch.get_rng_state()
    first = draw(vae, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(draw(vae, torch.Generator().manual_seed(1)), first)
    assert not torch.equal(draw(vae, torch.Generator().manual_seed(2)), first)


def test_row_offset_makes_the_parts_of_a_batch_draw_what_the_whole_draws():
    vae, x = _vae(), _x()
    whole = vae(x, seed=7)
    parts = [vae(x[:3], seed=7), vae(x[3:], seed=7, row_offset=3)]
    torch.testing.assert_close(torch.cat([part.z for part in parts]), whole.z)
    bound = torch.cat([vae.elbo(x[:3], seed=7).elbo, vae.elbo(x[3:], seed=7, row_offset=3).elbo])
    torch.testing.assert_close(bound, vae.elbo(x, seed=7).elbo)
    image = vae.reconstruct(x[3:], sample=True, seed=7, row_offset=3)
    torch.testing.assert_close(image, vae.reconstruct(x, sample=True, seed=7)[3:])


# Images


def test_decode_gives_the_mean_image():
    vae = _vae()
    z = torch.randn(3, 6)
    torch.testing.assert_close(vae.decode(z), torch.sigmoid(vae.decoder(z)))


def test_reconstruct_goes_through_the_posterior_mean_or_one_draw():
    vae, x = _vae(), _x()
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(vae.encode(x).mu))
    torch.testing.assert_close(vae.reconstruct(x, sample=True, seed=2), vae.decode(vae(x, seed=2).z))


def test_generate_decodes_the_noise_of_its_seed():
    vae = _vae()
    torch.testing.assert_close(vae.generate(5, seed=9), vae.decode(fastvae.noise(9, (5, 6))))
    assert vae.generate(0).shape == (0, *SHAPE)


def test_generate_can_draw_pixels_too():
    pixels = _vae().generate(5, seed=9, sample=True)
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(pixels, _vae().generate(5, seed=9, sample=True))
    assert not torch.equal(pixels, _vae().generate(5, seed=10, sample=True))


class _ImageEncoder(nn.Module):
    """Latents with a shape, as convolutional encoders make them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, logvar = self.conv(x).chunk(2, dim=1)
        return mu, logvar


def test_latents_may_have_any_shape():
    vae = VAE(_ImageEncoder(), nn.Conv2d(2, 1, 3, padding=1), Bernoulli(), latent_shape=(2, 4, 5))
    assert vae.generate(3).shape == (3, *SHAPE)
    assert vae.elbo(_x()).elbo.shape == (8,)


def test_the_encoder_may_tell_the_latent_shape():
    encoder = _ImageEncoder()
    encoder.latent_shape = (2, 4, 5)
    assert VAE(encoder, nn.Conv2d(2, 1, 3, padding=1), Bernoulli()).latent_shape == (2, 4, 5)
    assert _vae().latent_shape == (6,)


# Dtypes, copies, compilation


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5, learned=True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_works_in_other_dtypes(likelihood, dtype):
    vae = _vae(copy.deepcopy(likelihood)).to(dtype)
    bound = vae.elbo(_x(dtype=dtype), seed=0)
    assert {part.dtype for part in bound} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert vae(_x(dtype=dtype)).z.dtype == vae.generate(2).dtype == dtype
    (-bound.elbo.mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == dtype for parameter in vae.parameters())
    torch.testing.assert_close(bound.elbo.float(), _vae(likelihood).elbo(_x(), seed=0).elbo, rtol=0.03, atol=0.1)


def test_autocast_keeps_the_bound_in_float32():
    vae = _vae()
    with torch.autocast("cpu", torch.bfloat16):
        bound = vae.elbo(_x(), seed=0)
    assert bound.elbo.dtype == torch.float32
    torch.testing.assert_close(bound.elbo, vae.elbo(_x(), seed=0).elbo, rtol=0.03, atol=0.1)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5, learned=True)])
def test_the_model_pickles_copies_and_reloads(likelihood):
    vae = _vae(likelihood)
    loaded = _vae(copy.deepcopy(likelihood), seed=1)
    loaded.load_state_dict(vae.state_dict())
    for twin in (pickle.loads(pickle.dumps(vae)), copy.deepcopy(vae), loaded):
        assert torch.equal(twin.elbo(_x(), seed=0).elbo, vae.elbo(_x(), seed=0).elbo)
        assert torch.equal(twin.generate(3, seed=0), vae.generate(3, seed=0))


def test_the_model_moves_between_devices():
    # No second device is needed to see that every tensor follows.
    vae = _vae(Gaussian()).to("meta")
    assert {tensor.device.type for tensor in (*vae.parameters(), *vae.buffers())} == {"meta"}
    assert vae.elbo(_x().to("meta"), seed=0).elbo.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seed_gives_the_same_bound_and_images_on_a_gpu():
    vae, x = _vae(), _x()
    expected = vae.elbo(x, seed=0).elbo, vae.generate(3, seed=0)
    vae.to("cuda")
    came = vae.elbo(x.cuda(), seed=0).elbo.cpu(), vae.generate(3, seed=0).cpu()
    torch.testing.assert_close(came, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5, learned=True)])
def test_the_loss_compiles_as_one_graph(likelihood):
    vae, x = _vae(likelihood), _x()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return -vae.elbo(x, seed=3).elbo.mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    came, expected = compiled(x), loss(x)
    torch.testing.assert_close(came, expected)
    parameters = list(vae.parameters())
    torch.testing.assert_close(torch.autograd.grad(came, parameters), torch.autograd.grad(expected, parameters))


def test_a_compiled_model_draws_anew_at_every_call():
    vae, x = _vae(), _x()
    compiled = torch.compile(vae, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    first, second = compiled(x).z, compiled(x).z
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(compiled(x).z, first)
