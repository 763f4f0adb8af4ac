"""The digits demo: how it splits and binarises, that its speed check compares equals, and that it draws."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

for _module in ("mlxtend", "matplotlib", "tqdm"):
    pytest.importorskip(_module, reason="the demo's extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

from bench.training import EagerVAE  # noqa: E402
from examples import digits  # noqa: E402


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


def test_the_split_is_shuffled_and_its_seed_rules_it():
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
    vae = digits.make_vae(0)
    plain = EagerVAE(vae.encoder, vae.decoder, vae.likelihood)
    x = digits.binarize(_digits(2000)[0], _generator())
    torch.testing.assert_close(plain.elbo(x).kl, vae.elbo(x).kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.elbo(x).elbo.mean(), vae.elbo(x).elbo.mean(), rtol=1e-3, atol=0)


def test_a_short_run_writes_three_pictures_and_leaves_the_random_state_alone(tmp_path, capsys):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    paths = digits.run(*_digits(200), epochs=1, output=tmp_path / "new", seed=0, rounds=1)
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    assert len(paths) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert "Held-out negative ELBO" in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_picture_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", fail)
    with pytest.raises(OSError, match="disk full"):
        digits.figures.save_curve(tmp_path / "training.png", [2.0, 1.0], [2.0, 1.0])
    assert not list(tmp_path.iterdir())


def test_without_its_extra_the_demo_says_how_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "examples.digits")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SystemExit, match="run `make demo`"):
        importlib.import_module("examples.digits")
