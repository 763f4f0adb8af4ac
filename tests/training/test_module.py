"""VAEModule and VAEDataModule for programs of one's own: what a step computes, draws, logs and refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("matplotlib", reason="the extra of training is not installed")

from torch.utils.data import DataLoader, TensorDataset

from fastvae.likelihoods import Bernoulli, Gaussian
from fastvae.nn import VAE, ConditionalVAE, HierarchicalVAE, MLPDecoder, MLPEncoder, head
from fastvae.objectives import ELBO, IWAE
from fastvae.priors import GaussianMixture
from fastvae.training import Batch, Samples, Source, TrainingError, VAEDataModule, VAEModule
from fastvae.training.batches import derived_seed
from fastvae.training.evaluate import measure
from fastvae.training.lightning import Trainer


class Dots(VAEDataModule):
    """Images of 16 pixels in [0, 1] with labels 0 and 1, or of the subclass's choice."""

    rows, held_out_rows = 50, 12

    def load(self) -> Source:
        random = np.random.default_rng(0)
        x = random.random((self.rows + self.held_out_rows, 16), dtype=np.float32)
        labels = np.arange(len(x)) % 2
        cut = self.rows
        return Source(Samples(x[:cut], labels[:cut]), Samples(x[cut:], labels[cut:]), ("even", "odd"))


def _vae(**options):
    torch.manual_seed(0)
    return VAE(MLPEncoder(16, 8, 3), MLPDecoder(3, 8, 16), Bernoulli(), **options)


def _conditional():
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder(16, 8, 3, condition_dim=2), MLPDecoder(3, 8, 16, condition_dim=2)
    return ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=2)


def _fit(module, tmp_path, data=None, **options):
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0, log_every_n_steps=1, **options,
    )  # fmt: skip
    if isinstance(data, DataLoader):
        trainer.fit(module, data)
    else:
        trainer.fit(module, datamodule=data or Dots(batch_size=20))
    return trainer


class Recording(VAE):
    """Keeps what it is called with."""

    def forward(self, x, **options):
        self.calls = [*getattr(self, "calls", []), (x.detach().clone(), options)]
        return super().forward(x, **options)


# ---- a step


def test_the_first_step_is_that_of_a_plain_loop(tmp_path):
    module = VAEModule(_vae(), learning_rate=0.01, schedule="constant", seed=7)
    plain = copy.deepcopy(module.model)
    data = Dots(batch_size=50, seed=7)
    _fit(module, tmp_path, data, max_steps=1)
    data.trainer = None
    (batch,) = data.train_dataloader()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    elbo = plain.elbo(batch.x, seed=derived_seed(7, "draw", 0))
    (-elbo.elbo.mean()).backward()
    optimizer.step()
    for ours, expected in zip(module.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_every_step_draws_anew_and_the_seed_rules(tmp_path):
    torch.manual_seed(0)
    made = [Recording(MLPEncoder(16, 8, 3), MLPDecoder(3, 8, 16), Bernoulli()) for _ in range(3)]
    for model, seed in zip(made, (1, 1, 2), strict=True):
        _fit(VAEModule(model, seed=seed), tmp_path)
    one, same, other = ([call[1]["seed"] for call in model.calls] for model in made)
    assert one == same
    assert len(one) == 2 * (3 + 1)  # three batches and one of validation, twice
    training = one[:3] + one[4:7]
    assert len(set(training)) == 6
    assert one[3] == one[7]  # validation has the same noise each time
    assert not set(one) & set(other)


def test_ink_is_drawn_anew_in_training_and_once_for_validation(tmp_path):
    torch.manual_seed(0)
    model = Recording(MLPEncoder(16, 8, 3), MLPDecoder(3, 8, 16), Bernoulli())
    grey = torch.tensor([0.0, 0.3, 0.7, 1.0] * 4).repeat(200, 1)
    module = VAEModule(model, binarize=True)
    _fit(module, tmp_path, DataLoader(TensorDataset(grey), batch_size=200))
    first, second = (x for x, _ in model.calls)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(first.mean(0).view(4, 4).mean(0), grey[0, :4], rtol=0, atol=0.05)
    assert not torch.equal(first, second)
    batch = Batch(grey, None, 0, 200, 200)
    assert torch.equal(module.held_out_pixels(batch), module.held_out_pixels(batch))
    parts = [Batch(grey[:50], None, 0, 200, 50), Batch(grey[50:], None, 50, 200, 150)]
    assert torch.equal(torch.cat([module.held_out_pixels(part) for part in parts]), module.held_out_pixels(batch))


def test_half_of_the_images_are_mirrored_in_training_and_none_in_validation(tmp_path):
    torch.manual_seed(0)
    shape = (1, 4, 4)
    model = Recording(MLPEncoder(shape, 8, 3), MLPDecoder(3, 8, shape), Bernoulli())
    x = torch.rand(200, *shape)
    module = VAEModule(model, flip=True)
    _fit(module, tmp_path, DataLoader(TensorDataset(x), batch_size=200))
    seen = [came for came, _ in model.calls]
    straight = [(came == x).flatten(1).all(1) for came in seen]
    mirrored = [(came == x.flip(-1)).flatten(1).all(1) for came in seen]
    assert all((one | other).all() for one, other in zip(straight, mirrored, strict=True))
    assert all(70 <= one.sum() <= 130 for one in mirrored)
    assert not torch.equal(mirrored[0], mirrored[1])
    part = module._augmented(x[50:], Batch(x[50:], None, 50, 200, 150), 0)
    assert torch.equal(part, module._augmented(x, Batch(x, None, 0, 200, 200), 0)[50:])


def test_images_are_turned_by_quarters_in_training(tmp_path):
    torch.manual_seed(0)
    shape = (2, 4, 4)
    model = Recording(MLPEncoder(shape, 8, 3), MLPDecoder(3, 8, shape), Bernoulli())
    x = torch.rand(400, *shape)
    module = VAEModule(model, rotate=True)
    _fit(module, tmp_path, DataLoader(TensorDataset(x), batch_size=400))
    turns = [torch.rot90(x, quarters, (2, 3)) for quarters in range(4)]
    first, second = ([(came == one).flatten(1).all(1) for one in turns] for came, _ in model.calls)
    assert torch.stack(first).sum(0).eq(1).all()
    assert all(70 <= one.sum() <= 130 for one in first)
    assert not torch.equal(first[0], second[0])
    part = module._augmented(x[50:], Batch(x[50:], None, 50, 400, 350), 0)
    assert torch.equal(part, module._augmented(x, Batch(x, None, 0, 400, 400), 0)[50:])


def test_images_are_moved_by_up_to_so_many_pixels(tmp_path):
    torch.manual_seed(0)
    shape = (2, 4, 5)
    model = Recording(MLPEncoder(shape, 8, 3), MLPDecoder(3, 8, shape), Bernoulli())
    x = torch.rand(300, *shape)
    module = VAEModule(model, shift=1)
    _fit(module, tmp_path, DataLoader(TensorDataset(x), batch_size=300))
    moved = [
        torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")[:, :, down : down + 4, right : right + 5]
        for down in range(3) for right in range(3)
    ]  # fmt: skip
    first, second = ([(came == one).flatten(1).all(1) for one in moved] for came, _ in model.calls)
    assert torch.stack(first).sum(0).eq(1).all()
    assert all(15 <= one.sum() <= 55 for one in first)  # a ninth of 300 each
    assert not torch.equal(first[0], second[0])
    part = module._augmented(x[50:], Batch(x[50:], None, 50, 300, 250), 0)
    assert torch.equal(part, module._augmented(x, Batch(x, None, 0, 300, 300), 0)[50:])


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (_vae, ELBO(beta=2.0, capacity=3.0, free_bits=0.1)),
        (_vae, ELBO(free_bits=0.5, free_bits_over="batch")),
        (_vae, IWAE(3, "dreg")),
        (lambda: _vae(prior=GaussianMixture(3, 4)), ELBO()),
        (lambda: HierarchicalVAE.of_mlps(16, 8, (2, 3), Bernoulli()), ELBO(beta=lambda step: 0.1 * step)),
        (_conditional, ELBO()),
        (_conditional, IWAE(3)),
    ],
)
def test_every_model_trains_with_every_objective(tmp_path, model, objective):
    module = VAEModule(model(), objective)
    before = [weight.detach().clone() for weight in module.parameters()]
    trainer = _fit(module, tmp_path, Dots(batch_size=20, conditional=isinstance(module.model, ConditionalVAE)))
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    metrics = trainer.callback_metrics
    names = {f"train_{module.bound_name}", "val_elbo", "val_reconstruction", "val_kl", "active_units", module.monitor}
    assert names <= metrics.keys()
    assert metrics["val_elbo"].item() == pytest.approx((metrics["val_reconstruction"] - metrics["val_kl"]).item(), 1e-4)
    if isinstance(objective, IWAE):
        data = trainer.datamodule.source.held_out
        conditional = isinstance(module.model, ConditionalVAE)
        given = {"condition": torch.from_numpy(data.labels)} if conditional else {}
        drawn = module.model.log_weights(data.rows(np.arange(12)), 3, seed=derived_seed(0, "held-out draw"), **given)
        expected = torch.logsumexp(drawn.log_weights, 0).mean() - np.log(3)
        assert metrics["val_iwae"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(("objective", "validated"), [(ELBO(), 1), (IWAE(3), 2)])
def test_the_decoders_last_layer_and_the_likelihood_are_one_op(tmp_path, monkeypatch, objective, validated):
    calls, real = [], head.linear_log_prob

    def counted(*given, **options):
        calls.append(torch.is_grad_enabled())
        return real(*given, **options)

    monkeypatch.setattr(head, "linear_log_prob", counted)
    module = VAEModule(_vae(), objective)
    data = Dots(batch_size=25)
    _fit(module, tmp_path, data)
    # 2 epochs of 2 batches; and after each the held-out rows, by the ELBO and the objective
    assert (calls.count(True), calls.count(False)) == (4, 2 * validated)
    calls.clear()
    measure(module.eval(), data.val_dataloader(), samples=70, chunk=64 * 12, seed=0)
    assert calls == [False] * 3  # the ELBO, and 64 and 6 draws of the log-likelihood


def test_what_is_logged_is_the_mean_over_the_held_out_data(tmp_path):
    module = VAEModule(_vae(), seed=3)
    data = Dots(batch_size=5)
    trainer = _fit(module, tmp_path, data)
    x = data.source.held_out.rows(np.arange(12))
    with torch.no_grad():
        expected = module.model.elbo(x, seed=derived_seed(3, "held-out draw"))
    for name, values in zip(("val_elbo", "val_reconstruction", "val_kl"), expected, strict=True):
        assert trainer.callback_metrics[name].item() == pytest.approx(values.mean().item(), rel=1e-4)
    (kl,) = module.kl_per_latent
    assert kl.sum().item() == pytest.approx(expected.kl.mean().item(), rel=1e-4)


def test_schedules_are_called_with_the_number_of_the_batch(tmp_path):
    steps = []

    def beta(step):
        steps.append(step)
        return 1.0

    _fit(VAEModule(_vae(), ELBO(beta=beta)), tmp_path)
    assert steps == list(range(6))


def test_with_accumulated_gradients_every_batch_still_draws_its_own(tmp_path):
    torch.manual_seed(0)
    model = Recording(MLPEncoder(16, 8, 3), MLPDecoder(3, 8, 16), Bernoulli())
    _fit(VAEModule(model), tmp_path, accumulate_grad_batches=3)
    training = [options["seed"] for x, options in model.calls if len(x) != 12]
    assert len(set(training)) == len(training) == 6


def test_the_learning_rate_falls_to_zero_along_a_cosine_or_stays(tmp_path):
    rates = {}
    for schedule in ("cosine", "constant"):
        module = VAEModule(_vae(), learning_rate=0.1, schedule=schedule)
        trainer = _fit(module, tmp_path)
        rates[schedule] = trainer.optimizers[0].param_groups[0]["lr"]
    assert rates["cosine"] == pytest.approx(0.0, abs=1e-9)
    assert rates["constant"] == 0.1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_of_a_cpu_trains(tmp_path, precision):
    module = VAEModule(_vae())
    trainer = _fit(module, tmp_path, precision=precision)
    assert torch.isfinite(trainer.callback_metrics["val_elbo"])


def test_torchs_random_state_and_threads_are_left_alone(tmp_path):
    module, data = VAEModule(_vae(), binarize=True), Dots(batch_size=20)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    _fit(module, tmp_path, data)
    # Lightning itself draws one seed for its loaders' workers, each time it goes through them.
    assert torch.get_num_threads() == threads
    first = torch.get_rng_state()
    torch.set_rng_state(state)
    for _ in range(2):
        for loader in (data.train_dataloader(), data.val_dataloader()):
            loader.sampler.position = lambda: 0
            list(loader)
    assert torch.equal(torch.get_rng_state(), first)


def test_lightnings_own_checkpoints_and_validation_work(tmp_path):
    module = VAEModule(_vae(), seed=3)
    trainer = _fit(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    fresh = VAEModule.load_from_checkpoint(tmp_path / "own.ckpt", model=_vae(), seed=3)
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), fresh.parameters(), strict=True))
    (metrics,) = trainer.validate(fresh, datamodule=Dots(batch_size=5), verbose=False)
    assert metrics["val_elbo"] == pytest.approx(trainer.callback_metrics["val_elbo"].item())
    (tested,) = trainer.test(fresh, datamodule=Dots(batch_size=5), verbose=False)
    assert tested == metrics


# ---- other loaders


def test_loaders_of_tensors_and_of_pairs_will_do(tmp_path):
    x, labels = torch.rand(30, 16), torch.arange(30) % 2
    trainer = _fit(VAEModule(_vae()), tmp_path, DataLoader(x, batch_size=20))
    assert "train_elbo" in trainer.callback_metrics
    trainer = _fit(VAEModule(_conditional()), tmp_path, DataLoader(TensorDataset(x, labels), batch_size=20))
    assert "train_elbo" in trainer.callback_metrics


def test_a_conditional_model_without_labels_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no labels"):
        _fit(VAEModule(_conditional()), tmp_path, DataLoader(torch.rand(30, 16), batch_size=20))


# ---- what is refused


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    class Diverging(Dots):
        def load(self):
            source = super().load()
            source.train.x[30] = 1e30
            return source

    for options, advice in (({}, "--learning-rate"), ({"precision": "16-true"}, "--precision bf16-true")):
        vae = VAE(MLPEncoder(16, 8, 3), MLPDecoder(3, 8, 16), Gaussian())
        with pytest.raises(TrainingError, match=rf"the loss is no longer a finite number.*\n.*{advice}"):
            _fit(VAEModule(vae), tmp_path, Diverging(batch_size=20), **options)


def test_a_weight_that_is_no_number_is_not_saved(tmp_path):
    module = VAEModule(_vae())
    trainer = _fit(module, tmp_path)
    with torch.no_grad():
        module.model.decoder.layers[0].weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"the weight decoder.layers.0.weight is no longer"):
        trainer.save_checkpoint(tmp_path / "never.ckpt")
    assert not (tmp_path / "never.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "model is a Linear, expected a model of fastvae.nn"),
        ({"objective": 3}, TypeError, "objective is a int"),
        ({"schedule": "step"}, ValueError, "schedule is 'step', expected one of 'cosine', 'constant'"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate is 0, expected a positive number"),
        ({"seed": -1}, ValueError, r"seed is -1, expected from 0 to 2\*\*64 - 1"),
        ({"binarize": 1}, TypeError, "binarize is a int"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        VAEModule(**{"model": _vae()} | options)


def test_fewer_samples_than_a_batch_are_refused():
    with pytest.raises(
        TrainingError, match=r"50 samples to train on, fewer than a batch of 51: --batch-size 50 or less"
    ):
        Dots(batch_size=51).setup("fit")


def test_missing_labels_are_refused_before_training():
    class Bare(Dots):
        def load(self):
            source = super().load()
            return Source(Samples(source.train.x), Samples(source.held_out.x), None)

    with pytest.raises(TrainingError, match="has no labels, which a conditional model needs"):
        Bare(conditional=True, batch_size=20).setup("fit")


def test_without_lightning_the_error_says_how_to_get_it(monkeypatch):
    import importlib
    import sys

    for name in ("fastvae.training.module", "fastvae.training.lightning"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ImportError, match=r'pip install "fastvae-kernels\[train\]"'):
        importlib.import_module("fastvae.training.module")
