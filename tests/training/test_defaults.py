"""Settings derived from the data, the statistics that a model starts from, and the learning rate over a run."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")

from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fastvae.likelihoods import Gaussian
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.training import Samples, VAEModule
from fastvae.training.defaults import complete
from fastvae.training.lightning import Trainer
from fastvae.training.model_config import ModelConfig
from fastvae.training.optimizer import LEAST_LOG_SCALE, LearningRateFactor
from fastvae.training.statistics import start_from, statistics_of

DERIVED = ("batch_size", "max_epochs", "learning_rate", "warmup_epochs", "warmup_steps", "pictures_every")


def _completed(rows, shape, **given):
    options = dict.fromkeys(DERIVED) | {"model": "vae", "quality": "good"} | given
    config = SimpleNamespace(**options, trainer=SimpleNamespace(gradient_clip_val=given.pop("clip", None)))
    complete(config, Samples(np.zeros((rows, *shape), dtype=np.uint8)))
    return config


# ---- settings


def test_the_digits_train_as_long_as_ever():
    config = _completed(4000, (1, 28, 28))
    assert (config.batch_size, config.max_epochs, config.learning_rate) == (100, 200, 2e-3)


@pytest.mark.parametrize("model", ["vae", "conv"])
@pytest.mark.parametrize("rows", [2, 7, 50, 240, 4000, 60_000])
def test_a_few_rows_still_make_twenty_steps_an_epoch(model, rows):
    config = _completed(rows, (3, 64, 64), model=model)
    assert 1 <= config.batch_size <= rows
    assert rows < 160 or rows / config.batch_size >= 20
    assert config.max_epochs >= 10
    assert config.warmup_steps <= config.max_epochs * rows / config.batch_size / 19


def test_better_quality_takes_longer_in_the_same_proportion():
    draft, good, best = (_completed(4000, (3, 64, 64), model="conv", quality=q) for q in ("draft", "good", "best"))
    assert draft.max_epochs < good.max_epochs < best.max_epochs
    assert best.max_epochs == pytest.approx(4 * good.max_epochs, rel=0.1)


def test_what_is_given_stays():
    given = {"batch_size": 3, "max_epochs": 4, "learning_rate": 0.5, "warmup_epochs": 0.0, "warmup_steps": 6,
             "pictures_every": 0}  # fmt: skip
    config = _completed(500, (3, 64, 64), model="conv", clip=1.5, **given)
    assert {name: getattr(config, name) for name in DERIVED} == given


# ---- statistics


def _samples(x):
    return Samples(np.ascontiguousarray(x, dtype=np.float32))


def test_statistics_are_those_of_numpy():
    x = np.random.default_rng(0).normal(3.0, 2.0, (700, 5)).astype(np.float32)
    came = statistics_of(_samples(x))
    np.testing.assert_allclose(came.mean, x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(came.variance, x.var(0), rtol=1e-4)
    assert came.low == pytest.approx(np.quantile(x, 0.001), abs=0.2)
    assert came.high < x.max()
    assert statistics_of(_samples(x.clip(0.2, 0.9))).low == 0.0


def _started(config, x, **orientations):
    model = config.build(0)
    start_from(model, config, statistics_of(_samples(x)), _samples(x), **orientations)
    return model


@pytest.mark.parametrize("shape", [(3, 8, 8), (6,)])
def test_a_new_model_starts_at_the_scale_of_the_data(shape):
    x = np.random.default_rng(0).normal(500.0, 40.0, (300, *shape)).astype(np.float32)
    model = _started(ModelConfig("vae", "gaussian", shape, hidden=(8,)), x)
    given = torch.from_numpy(x)
    seen = (given - model.encoder.mean) / model.encoder.std
    assert abs(seen.mean()) < 0.1
    assert seen.std() == pytest.approx(1.0, rel=0.05)
    assert model.likelihood.logvar.item() == pytest.approx(2 * math.log(40.0), abs=0.2)
    with torch.no_grad():
        assert model.generate(4, seed=0).mean().item() == pytest.approx(500.0, abs=40.0)


def test_a_convolutional_model_starts_from_principal_components():
    random = np.random.default_rng(0)
    smooth = np.kron(random.normal(size=(200, 3, 2, 2)), np.ones((1, 1, 8, 8))) * [[[[3.0]], [[1.0]], [[0.3]]]] + 5.0
    x = (smooth + 0.1 * random.normal(size=smooth.shape)).astype(np.float32)
    config = ModelConfig("conv", "gaussian", (3, 16, 16), latent_dim=(4,), channels=(8, 16), linear=16)
    model = _started(config, x)
    rows = x.reshape(200, -1).astype(np.float64)
    centred = rows - rows.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    left = np.square(centred - centred @ axes[:4].T @ axes[:4]).mean()
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(x))
        error = (model.reconstruct(torch.from_numpy(x)) - torch.from_numpy(x)).square().mean().item()
    assert error == pytest.approx(left, rel=1e-3)
    torch.testing.assert_close(posterior.mu.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(posterior.mu.var(0), torch.ones(4), rtol=0, atol=0.05)
    assert (posterior.logvar < 0).all()
    assert model.likelihood.logvar.item() == pytest.approx(math.log(error), abs=1e-3)


def test_the_components_are_those_of_mirrored_and_turned_images():
    """Of images that vary in one corner alone, the four orientations of that corner."""
    x = np.zeros((160, 3, 16, 16), dtype=np.float32)
    x[:, :, :4, :8] = np.random.default_rng(0).normal(size=(160, 1, 1, 1))
    config = ModelConfig("conv", "gaussian", (3, 16, 16), latent_dim=(8,), channels=(8, 16), linear=16)
    given = torch.from_numpy(x)
    errors = {}
    for flip in (False, True):
        for rotate in (False, True):
            model = _started(config, x, flip=flip, rotate=rotate)
            for turned in (given, given.flip(-1), given.rot90(1, (2, 3)), given.rot90(3, (2, 3)).flip(-1)):
                errors.setdefault((flip, rotate), []).append((model.reconstruct(turned) - turned).square().mean())
    small = {which: [error < 1e-3 for error in found] for which, found in errors.items()}
    assert small == {
        (False, False): [True, False, False, False],
        (True, False): [True, True, False, False],
        (False, True): [True, False, True, False],
        (True, True): [True, True, True, True],
    }


def test_fewer_rows_than_latents_leave_the_others_unused():
    x = np.random.default_rng(0).random((5, 3, 16, 16), dtype=np.float32)
    config = ModelConfig("conv", "laplace", (3, 16, 16), latent_dim=(9,), channels=(8, 16), linear=16)
    model = _started(config, x)
    mu, logvar = model.encode(torch.from_numpy(x))
    assert torch.isfinite(mu).all()
    assert (mu[:, 4:].abs() < 1e-4).all()
    assert (logvar[:, 4:].abs() < 1e-4).all()


def test_a_bernoulli_starts_at_the_mean_image():
    x = np.zeros((50, 1, 4, 4), dtype=np.float32)
    x[:, :, 1] = 0.75
    model = _started(ModelConfig("vae", "bernoulli", (1, 4, 4), hidden=(8,)), x)
    torch.testing.assert_close(torch.sigmoid(model.decoder.mean)[0, 1], torch.full((4,), 0.75))
    assert torch.sigmoid(model.decoder.mean)[0, 0].max() <= 0.011


def test_data_that_do_not_vary_are_no_division_by_zero():
    model = _started(ModelConfig("vae", "gaussian", (4,), hidden=(8,)), np.full((20, 4), 7.0))
    assert torch.isfinite(model.reconstruct(torch.full((2, 4), 7.0))).all()


def test_a_run_of_version_0_1_is_built_as_it_was():
    config = ModelConfig("conv", "gaussian", (3, 8, 8), channels=(4, 4))
    saved = {name: value for name, value in config.saved().items() if name not in ("blocks", "patch", "standardize")}
    names = {type(module).__name__ for module in ModelConfig.from_saved(saved).build().modules()}
    assert {"ConvEncoder", "ConvDecoder"} <= names
    assert not names & {"ResidualEncoder", "StandardizedEncoder"}
    assert ModelConfig.from_saved(config.saved()) == config


# ---- the learning rate


def test_the_learning_rate_rises_and_falls():
    factor = LearningRateFactor(4, 100)
    assert [factor(0), factor(1)] == pytest.approx([0.2, 0.4], rel=1e-2)
    assert factor(50) == pytest.approx(0.5)
    assert factor(100) == factor(200) == pytest.approx(0.0)
    assert LearningRateFactor(4, None)(1000) == 1.0


class _Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            yield torch.rand(16, generator=generator)


def _module(**options):
    torch.manual_seed(0)
    return VAEModule(VAE(MLPEncoder(16, 8, 3), MLPDecoder(3, 8, 16), Gaussian(0.1, learned=True)), **options)


def _fit(module, loader, tmp_path, **options):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module, loader)
    return [group["lr"] for group in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize("options", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": -1, "max_time": "00:00:00:02"}])
def test_a_run_of_unknown_length_keeps_its_learning_rate(tmp_path, options):
    rates = _fit(_module(learning_rate=0.01), DataLoader(_Stream(), batch_size=3), tmp_path, **options)
    assert rates == pytest.approx([0.01, 0.1])


def test_a_stream_with_a_number_of_steps_follows_the_cosine(tmp_path):
    rates = _fit(_module(), DataLoader(_Stream(), batch_size=3), tmp_path, max_steps=2)
    assert max(rates) < 1e-6


def test_the_scale_of_the_likelihood_keeps_pace_and_stays_bounded(tmp_path):
    module = _module(learning_rate=0.5, schedule="constant")
    x = torch.full((40, 16), 0.3)
    _fit(module, DataLoader(TensorDataset(x), batch_size=2), tmp_path, max_epochs=1)
    assert module.model.likelihood.logvar.item() >= LEAST_LOG_SCALE
