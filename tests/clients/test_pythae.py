"""pythae, patched: sampling and losses of its models, their own methods, and what is left afterwards."""

from __future__ import annotations

import contextlib

import pytest
import torch
from pythae import models

import fastvae
from bench.clients.pythae import training_step
from fastvae.integrations import pythae

from .training import check_same_losses, check_same_spread

BATCH, SHAPE, LATENT = 64, (1, 4, 4), 16
SMALL = 4  # draws of so few numbers are left to torch
LOSSES = (*pythae.ONE_DRAW, *pythae.MANY_DRAWS)

EXTRAS = {
    "BetaVAE": {"beta": 3.0},
    "DisentangledBetaVAE": {"beta": 3.0, "C": 2.0, "warmup_epoch": 10},
    "IWAE": {"number_samples": 5},
    "CIWAE": {"number_samples": 5, "beta": 0.3},
    "MIWAE": {"number_samples": 5, "number_gradient_estimates": 3},
    "PIWAE": {"number_samples": 5, "number_gradient_estimates": 3},
}

# Of each loss: the dimensions between the batch and the rest, and what it is given besides.
DRAWS = {"IWAE": (5,), "CIWAE": (5,), "MIWAE": (3, 5), "PIWAE": (3, 5)}
MORE = {"DisentangledBetaVAE": {"epoch": 4}}


def make_model(name, error="mse"):
    config = getattr(models, f"{name}Config", None) or getattr(models, f"{name}_Config")
    return getattr(models, name)(
        config(input_dim=SHAPE, latent_dim=LATENT, reconstruction_loss=error, **EXTRAS.get(name, {}))
    )


def make_step(name):
    return training_step(make_model(name), torch.rand(BATCH, *SHAPE))


def patched(noise):
    return contextlib.nullcontext() if noise is None else fastvae.patch("pythae", noise=noise)


def arguments(name, dtype):
    """recon_x, x, mu, log_var and z, as the forward of this model gives them to its loss."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(shape, generator=generator)

    draws = DRAWS.get(name)
    x = numbers(BATCH, *SHAPE).sigmoid()
    shape = (BATCH, *draws) if draws else (BATCH,)
    recon_x = numbers(*shape, *([16] if draws else SHAPE)).sigmoid()
    given = [recon_x, x, numbers(*shape, LATENT), numbers(*shape, LATENT), numbers(*shape, LATENT)]
    return [one.to(dtype).requires_grad_() for one in given]


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_are_those_of_an_unpatched_run(name):
    check_same_losses(lambda: make_step(name), "pythae")


@pytest.mark.parametrize("name", ["VAE", "IWAE"])
def test_with_fastvaes_noise_the_final_loss_is_within_those_of_other_seeds(name, monkeypatch):
    monkeypatch.setattr(pythae, "MIN_FUSED_DRAW", 0)
    check_same_spread(lambda: make_step(name), "pythae")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("error", ["mse", "bce"])
def test_a_loss_and_its_gradients_are_pythaes_own(name, error):
    model = make_model(name, error)
    exact = arguments(name, torch.float64)
    expected = model.loss_function(*exact, **MORE.get(name, {}))
    given = arguments(name, torch.float32)
    with fastvae.patch("pythae"):
        found = model.loss_function(*given, **MORE.get(name, {}))
    theirs = model.loss_function(*arguments(name, torch.float32), **MORE.get(name, {}))
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in theirs]
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-5)
        weights = torch.linspace(1.0, 2.0, ours.numel()).reshape(ours.shape)
        gradients, references = (
            torch.autograd.grad((value * weights).sum(), leaves, retain_graph=True, allow_unused=True)
            for value, leaves in ((ours, given), (reference, exact))
        )
        for gradient, its in zip(gradients, references, strict=True):
            assert (gradient is None) == (its is None)
            if its is not None:
                torch.testing.assert_close(gradient.double(), its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_fused_loss_is_the_one_that_runs(name, monkeypatch):
    """Otherwise the test above would compare pythae with itself."""
    calls = []
    own = "_log_q_minus_log_p" if name in DRAWS else "gaussian_kl"
    original = getattr(pythae, own)
    monkeypatch.setattr(pythae, own, lambda *given: calls.append(name) or original(*given))
    with fastvae.patch("pythae"):
        for dtype in (torch.float32, torch.float64):
            make_model(name).loss_function(*arguments(name, dtype), **MORE.get(name, {}))
    assert calls == [name]  # not for float64


@pytest.mark.parametrize("name", pythae.SAMPLING)
def test_sampling_is_the_mean_and_noise_times_the_std(name):
    owner, generator = getattr(models, name), torch.Generator().manual_seed(0)
    mu = torch.randn(200, 50, generator=generator).requires_grad_()
    std = torch.rand(200, 50, generator=generator).requires_grad_()
    with fastvae.patch("pythae"):
        torch.manual_seed(2)
        z, eps = owner._sample_gauss(None, mu, std)
        torch.manual_seed(2)
        again, _ = owner._sample_gauss(None, mu, std)
    assert torch.equal(z, again)
    assert not eps.requires_grad
    assert abs(eps.mean()) < 0.05
    assert abs(eps.std() - 1) < 0.05
    torch.testing.assert_close(z, mu + eps * std)
    of_mu, of_std = torch.autograd.grad(z.sum(), [mu, std])
    assert of_mu.eq(1).all()
    torch.testing.assert_close(of_std, eps)
    torch.manual_seed(2)
    seed = torch.randint(-(2**63), 2**63 - 1, (1,))
    assert torch.equal(eps, fastvae.noise(seed, (200, 50)))


def test_the_models_that_define_sample_gauss_are_the_expected_ones():
    """A new model of pythae, or another way to sample, would show here."""
    owners = {
        name: vars(getattr(models, name)).get("_sample_gauss") for name in dir(models) if not name.startswith("_")
    }
    assert {name for name, own in owners.items() if own} == {*pythae.SAMPLING, "VQVAE"}
    for name in (*pythae.SAMPLING, "HVAE"):
        torch.manual_seed(0)
        z, eps = getattr(models, name)._sample_gauss(None, torch.ones(2, 3), torch.full((2, 3), 2.0))
        torch.manual_seed(0)
        assert torch.equal(eps, torch.randn(2, 3))
        assert torch.equal(z, 1 + 2 * eps)


@pytest.mark.parametrize(
    "std",
    [torch.ones(SMALL, LATENT), torch.ones(200, 50, dtype=torch.float64), torch.ones(200, 50, dtype=torch.bfloat16)],
    ids=["few", "float64", "bfloat16"],
)
def test_unsupported_tensors_run_pythaes_own_code(std):
    model = make_model("VAE")
    torch.manual_seed(1)
    expected = model._sample_gauss(torch.zeros_like(std), std)
    torch.manual_seed(1)
    with fastvae.patch("pythae"):
        found = model._sample_gauss(torch.zeros_like(std), std)
    assert all(map(torch.equal, found, expected))


def test_losses_of_other_dtypes_are_pythaes_own():
    for dtype in (torch.float64, torch.bfloat16):
        given = arguments("VAE", dtype)
        expected = make_model("VAE").loss_function(*given)
        with fastvae.patch("pythae"):
            found = make_model("VAE").loss_function(*given)
        assert all(map(torch.equal, found, expected))


def test_latents_of_more_dimensions_are_summed_over_the_last_alone():
    model, (recon_x, x, *_) = make_model("VAE"), arguments("VAE", torch.float32)
    mu, log_var = torch.randn(2, 3, BATCH, LATENT)
    expected = model.loss_function(recon_x, x, mu, log_var, mu)
    with fastvae.patch("pythae"):
        found = model.loss_function(recon_x, x, mu, log_var, mu)
    torch.testing.assert_close(found, expected)


def test_torchs_noise_gives_pythaes_own_numbers():
    model = make_model("VAE")
    draws = []
    for noise in (None, "torch", "fastvae"):
        torch.manual_seed(1)
        with patched(noise):
            draws.append(model._sample_gauss(torch.zeros(200, 50), torch.ones(200, 50))[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["FactorVAE", "INFOVAE_MMD", "BetaTCVAE", "VAMP", "Adversarial_AE", "VAE_IAF", "HVAE"])
def test_models_whose_sampling_alone_is_replaced_train(name, monkeypatch):
    monkeypatch.setattr(pythae, "MIN_FUSED_DRAW", 0)
    found = {}
    for noise in (None, "torch", "fastvae"):
        torch.manual_seed(0)
        step = make_step(name)
        with patched(noise):
            found[noise] = torch.stack([step() for _ in range(3)])
    assert torch.equal(found["torch"], found[None])
    assert not torch.equal(found["fastvae"], found[None])
    torch.testing.assert_close(found["fastvae"], found[None], rtol=0.3, atol=0.3)


def test_a_subclass_keeps_its_own_methods():
    class Own(models.VAE):
        def loss_function(self, recon_x, x, mu, log_var, z):
            return (torch.tensor(5.0),) * 3

        def _sample_gauss(self, mu, std):
            return mu, torch.zeros_like(std)

    own = Own(models.VAEConfig(input_dim=SHAPE, latent_dim=LATENT))
    with fastvae.patch("pythae"):
        output = own({"data": torch.rand(2, *SHAPE)})
        assert output.loss == 5.0
        assert torch.equal(own._sample_gauss(torch.ones(200, 50), torch.ones(200, 50))[0], torch.ones(200, 50))


def test_undo_restores_everything_and_older_objects_run_the_librarys_code(monkeypatch):
    names = {"_sample_gauss": pythae.SAMPLING, "loss_function": LOSSES}
    before = {(name, method): vars(getattr(models, name))[method] for method in names for name in names[method]}
    mu, std = torch.zeros(200, 50), torch.ones(200, 50)
    with fastvae.patch("pythae"):
        during = {(name, method): vars(getattr(models, name))[method] for name, method in before}
        assert not any(during[key] is before[key] for key in before)
    assert all(vars(getattr(models, name))[method] is own for (name, method), own in before.items())
    torch.manual_seed(1)
    expected = models.VAE._sample_gauss(None, mu, std)
    torch.manual_seed(1)
    assert all(map(torch.equal, during["VAE", "_sample_gauss"](None, mu, std), expected))
    monkeypatch.setattr(pythae, "gaussian_kl", None)
    during["VAE", "loss_function"](make_model("VAE"), *arguments("VAE", torch.float32))
