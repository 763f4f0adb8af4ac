"""Data and a run that the tests of a module share."""

from __future__ import annotations

import pytest

from .runs import save_images, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data(folder):
    return save_images(folder / "dots.npz")


@pytest.fixture(scope="module")
def finished(folder, data):
    """A run of two epochs that nobody changes."""
    assert train(data, folder / "finished", "--trainer.log_every_n_steps=1") == 0
    return folder / "finished"
