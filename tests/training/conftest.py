"""Data and a run that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvae.files import whole_file
from tests.fresh import Server, server

from .runs import save_images, train


@pytest.fixture(scope="session")
def run_fastvae() -> Iterator[Server]:
    """As ``run_python``, with what training imports there already, which takes longer than these runs."""
    yield from server("import torch; torch.set_num_threads(1); import fastvae.training.train")


@pytest.fixture
def whole_pictures() -> None:
    """The runs of a test that takes this write their figures as they are."""


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch) -> None:
    """Runs make their figures and write blank files for them: rendering takes longer than all else in a short run."""
    if "whole_pictures" in request.fixturenames:
        return
    try:
        from PIL import Image

        from fastvae.training import run_folder
    except ImportError:  # the extra of training is not installed: there are no runs
        return

    def save_blank(figure: object, path: Path) -> None:
        with whole_file(path) as unfinished:
            Image.new("L", (8, 8)).save(unfinished, "PNG")

    monkeypatch.setattr(run_folder, "save_figure", save_blank)


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
