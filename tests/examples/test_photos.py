"""The comparison of a trained model with principal components: its data, its numbers, and a short run."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("jsonargparse", reason="the extra of training is not installed")
pytest.importorskip("sklearn", reason="the extra of training is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra of training is not installed")

from examples import photos  # noqa: E402


def test_held_out_crops_share_no_pixel_with_those_to_train_on(monkeypatch):
    taken = []
    monkeypatch.setattr(photos, "_crop", lambda photo, random: taken.append(photo) or np.zeros((3, 64, 64), np.uint8))
    train, held_out = photos.photo_crops(4)
    assert len(train) == 4
    assert len(held_out) == photos.HELD_OUT
    left, right = taken[0], taken[2]
    assert left.shape[1] + right.shape[1] == 640
    assert not np.shares_memory(left, right)


def test_a_crop_is_the_mean_of_four_pixels():
    photo = np.arange(128 * 128 * 3, dtype=np.uint32).reshape(128, 128, 3) % 251
    came = photos._crop(photo, np.random.default_rng(0))
    assert came.shape == (3, 64, 64)
    assert came[1, 0, 0] == round(photo[:2, :2, 1].mean())


@pytest.mark.parametrize("rows", [30, 120])  # fewer and more than values
def test_components_are_those_of_the_svd(rows):
    random = np.random.default_rng(0)
    train, held_out = (random.integers(0, 256, (n, 3, 4, 4)).astype(np.uint8) for n in (rows, 7))
    x, y = (part.reshape(len(part), -1) / 255 for part in (train, held_out))
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:5]
    expected = (x.mean(0) + (y - x.mean(0)) @ axes.T @ axes).clip(0, 1).reshape(held_out.shape)
    np.testing.assert_allclose(photos.component_reconstructions(train, held_out, 5), expected, atol=1e-3)


def test_grey_reconstructions_have_no_colour_correlation_however_close():
    images = np.random.default_rng(0).random((5, 3, 8, 8)) + np.linspace(0, 9, 5)[:, None, None, None]
    assert photos.colour_correlation(images, images) == pytest.approx(1.0)
    noise = np.random.default_rng(1).normal(size=images.shape) * 1e-6
    assert abs(photos.colour_correlation(images.mean(1, keepdims=True) + noise, images)) < 0.2


def test_shapes_are_strongly_coloured():
    train, held_out = photos.shapes(6)
    assert train.shape == (6, 3, 64, 64)
    assert ((train.max(1) - train.min(1).astype(int)).mean((1, 2)) > 150).all()
    assert not np.array_equal(train[0], held_out[0])


def test_a_run_is_compared_and_says_what_it_missed(tmp_path, capsys):
    options = ["--data=shapes", "--rows=40", "--latents=2", f"--output={tmp_path}", "--max-epochs=1", "--channels=8"]
    assert photos.main([*options, "--accelerator=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "held-out error" in shown
    assert "reached" in shown or "MISSED" in shown
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert 0 < numbers["error"] < 1
    assert -1 <= numbers["colour_correlation"] <= 1
    assert Image.open(tmp_path / "comparison.png").size == (10 * 66, 7 * 66)


def test_an_option_that_there_is_not_ends_it(tmp_path):
    with pytest.raises(SystemExit):
        photos.main(["--data=shapes", "--rows=40", f"--output={tmp_path}", "--nonsense=1"])
