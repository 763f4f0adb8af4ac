"""What the dimensions of an array mean: clear shapes are understood, others refused with the readings there are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fastvae.training.datasets import describe, load_source, whole
from fastvae.training.errors import TrainingError
from fastvae.training.memory_maps import by_path, opened
from fastvae.training.samples import Samples


def _load(tmp_path, x, **options):
    np.save(tmp_path / "x.npy", x)
    return load_source(str(tmp_path / "x.npy"), **options)


def _refused(tmp_path, x, *words, **options):
    with pytest.raises(TrainingError) as caught:
        _load(tmp_path, x, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "event"),
    [
        ((5, 16, 16, 1), (1, 16, 16)),
        ((5, 16, 12, 3), (3, 16, 12)),
        ((5, 3, 16, 12), (3, 16, 12)),
        ((5, 13, 64, 64), (13, 64, 64)),
        ((5, 64, 64, 13), (13, 64, 64)),
        ((5, 64, 60, 2), (2, 64, 60)),
        ((5, 16, 12), (1, 16, 12)),
    ],
)
def test_channels_are_found(tmp_path, shape, event):
    source = _load(tmp_path, np.zeros(shape, dtype=np.uint8))
    assert (source.train.event_shape, source.kind) == (event, "image")


@pytest.mark.parametrize("shape", [(5, 3, 6, 4), (5, 4, 4, 4), (5, 16, 16, 16), (5, 3, 32, 3), (5, 1, 28, 1)])
def test_two_readings_are_refused_with_both(tmp_path, shape):
    _, first, middle, last = shape
    words = (f"of {middle}x{last}", "--layout channels-first", f"of {first}x{middle}", "--layout channels-last")
    _refused(tmp_path, np.zeros(shape, dtype=np.uint8), str(shape), *words)
    source = _load(tmp_path, np.zeros(shape, dtype=np.uint8), layout="channels-last")
    assert source.train.event_shape == (last, first, middle)
    source = _load(tmp_path, np.zeros(shape, dtype=np.uint8), layout="channels-first")
    assert source.train.event_shape == (first, middle, last)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels_last", [True, False])
def test_rgba_is_laid_on_white(tmp_path, dtype, channels_last):
    x = np.zeros((4, 8, 8, 4))
    x[..., 0] = 1.0  # red
    x[:, :4, :, 3] = 1.0  # opaque above
    x[..., 4:, 3] *= 0.2
    x = (255 * x).astype(np.uint8) if dtype == np.uint8 else x.astype(dtype)
    given = x if channels_last else x.transpose(0, 3, 1, 2)
    source = _load(tmp_path, given)
    assert source.train.event_shape == (3, 8, 8)
    rows = source.train.rows(np.array([0]))[0]
    expected = x.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    expected = (expected[..., :3] * expected[..., 3:] + 1 - expected[..., 3:])[0].transpose(2, 0, 1)
    torch.testing.assert_close(rows.double().numpy(), expected, atol=1e-6, rtol=0)
    assert any("RGBA" in note for note in source.notes)
    layout = "channels-last" if channels_last else "channels-first"
    assert _load(tmp_path, given, layout=layout).train.event_shape == (4, 8, 8)


def test_four_channels_of_other_values_are_no_rgba(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 4, 16, 16)).astype(np.float32)
    assert _load(tmp_path, x).train.event_shape == (4, 16, 16)


def test_series_are_asked_for(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 50, 3)).astype(np.float32)
    _refused(tmp_path, x, "series of 50 steps of 3 values (--layout series)", "grey images of 50x3 (--layout image)")
    _refused(tmp_path, np.abs(x) / 10, "--layout series")  # values between 0 and 1 make no image of it
    source = _load(tmp_path, x, layout="series")
    assert (source.train.event_shape, source.kind) == ((3, 50), "series")
    assert "series of 50 steps of 3 values" in describe(source)
    np.testing.assert_array_equal(whole(source).rows(np.arange(6)).numpy(), x.transpose(0, 2, 1))
    assert _load(tmp_path, x[..., 0], layout="series").train.event_shape == (1, 50)
    assert _load(tmp_path, x, layout="image").train.event_shape == (1, 50, 3)
    assert _load(tmp_path, x, layout="values").train.event_shape == (50, 3)
    _refused(tmp_path, x[..., None], "--layout series expected (N, T) or (N, T, C)", layout="series")
    _refused(tmp_path, x[:, :, 0], "--layout image expected (N, H, W)", layout="image")


def test_floats_that_look_like_grey_images_are_said_to_be_read_as_such(tmp_path):
    source = _load(tmp_path, np.random.default_rng(0).random((5, 28, 28)))
    assert source.train.event_shape == (1, 28, 28)
    assert any("grey images of 28x28" in note and "--layout series" in note for note in source.notes)


def test_twelve_bits_in_sixteen(tmp_path):
    x = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8) * 16
    source = _load(tmp_path, x)
    torch.testing.assert_close(whole(source).rows(np.arange(4))[:, 0].numpy() * 4095, x.astype(np.float32))
    assert any("12 bits" in note for note in source.notes)
    _refused(tmp_path, x.reshape(4, 64), "uint16", "--likelihood poisson")


def test_image_size_holds_for_arrays_and_is_refused_without_images(tmp_path):
    x = np.zeros((4, 10, 20), dtype=np.uint8)
    x[:, :, :5] = x[:, :, 15:] = 255  # outside of the middle square
    source = _load(tmp_path, x, image_size=4)
    assert source.train.event_shape == (1, 4, 4)
    assert source.train.rows(np.array([0])).abs().max() == 0
    _refused(tmp_path, x.reshape(4, 200), "--image-size 4", "no images", image_size=4)


def test_the_range_is_that_of_all_rows(tmp_path):
    x = np.zeros((3000, 2), dtype=np.float32)
    x[2999] = 7.0
    assert _load(tmp_path, x).value_range == (0.0, 7.0)


def test_nan_is_missing_on_request(tmp_path):
    x = np.zeros((4, 3), dtype=np.float32)
    x[2, 1] = np.nan
    _refused(tmp_path, x, "nan in row 2", "--missing nan")
    source = _load(tmp_path, x, missing="nan")
    assert whole(source).rows(np.arange(4)).isnan().sum() == 1
    x[3, 0] = np.inf
    _refused(tmp_path, x, "inf in row 3", missing="nan")
    _refused(tmp_path, np.full((3, 2), np.nan), "no value but NaN", missing="nan")
    counts = np.array([[1.0, np.nan], [0.0, 3.0]])
    assert len(whole(_load(tmp_path, counts, missing="nan", counts=True))) == 2
    _refused(tmp_path, np.array([[0.5, np.nan], [0.0, 3.0]]), "whole numbers", missing="nan", counts=True)


# ---- memory maps


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.transpose(0, 3, 1, 2), lambda x: x[7::2, ::-1, 1:, :2]])
def test_a_memory_map_goes_to_workers_by_path(tmp_path, view):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).random((400, 16, 16, 3), dtype=np.float32))
    x = view(np.load(path, mmap_mode="r"))
    assert isinstance(x, np.memmap)
    samples = Samples(x, index=np.arange(50)[::-1])
    pickled = pickle.dumps(samples)
    assert len(pickled) < 4000
    again = pickle.loads(pickled)
    assert isinstance(again.x, np.memmap) or isinstance(again.x.base, np.memmap)
    np.testing.assert_array_equal(again.x, x)
    assert torch.equal(again.rows(np.array([3, 1])), samples.rows(np.array([3, 1])))


def test_what_is_no_memory_map_is_pickled_as_it_is():
    x = np.arange(6.0)
    assert by_path(x) is x
    assert opened(x) is x


def test_worker_processes_read_the_map(tmp_path):
    from fastvae.training.batches import BatchLoader, PartSampler

    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    samples = Samples(np.load(tmp_path / "x.npy", mmap_mode="r"))
    loader = BatchLoader(samples, PartSampler(20, 10, seed=None), conditional=False, workers=1)
    loader.multiprocessing_context = "spawn"
    assert torch.cat([batch.x for batch in loader]).flatten().tolist() == list(range(40))
