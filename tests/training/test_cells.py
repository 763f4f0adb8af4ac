"""Cells: .h5ad files are read batch by batch, trained on by library size and batch, encoded and mapped."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

import fastvae
from fastvae.__main__ import main
from fastvae.training import cells
from fastvae.training.datasets import load_source, median_library, whole
from fastvae.training.errors import TrainingError

from .runs import fails, history, train

anndata = pytest.importorskip("anndata", reason="the extra of cells is not installed")
pd = pytest.importorskip("pandas")
sparse = pytest.importorskip("scipy.sparse")

NAMES = np.array(["B cell", "T cell"])


def _counts(rows=60, genes=12):
    random = np.random.default_rng(0)
    kinds, batches = random.integers(0, 2, rows), random.integers(0, 2, rows)
    means = random.gamma(1.0, 2.0, (2, genes))[kinds] * (1 + batches[:, None])
    return random.poisson(means).astype(np.float32), kinds, batches


def save_cells(path, x=None, layers=None, **columns):
    counts, kinds, batches = _counts()
    obs = {"cell_type": pd.Categorical(NAMES[kinds]), "batch": pd.Categorical(np.array(["one", "two"])[batches])}
    obs = pd.DataFrame(obs | columns, index=[f"cell{row}" for row in range(len(kinds))])
    anndata.AnnData(sparse.csr_matrix(counts) if x is None else x, obs=obs, layers=layers).write_h5ad(path)
    return path


def _rows(source):
    samples = whole(source)
    return samples.rows(np.arange(len(samples))).numpy()


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_rows_are_those_of_the_matrix(tmp_path, monkeypatch, make, held):
    if not held:  # read from the disk
        monkeypatch.setattr(cells, "_IN_MEMORY", 0)
    counts, kinds, batches = _counts()
    path = save_cells(tmp_path / "x.h5ad", make(counts))
    source = load_source(str(path), counts=True, condition=("batch",))
    np.testing.assert_array_equal(_rows(source), counts)
    assert source.label_names == ("B cell", "T cell")
    assert source.condition_names == ("one", "two")
    assert np.array_equal(whole(source).labels, kinds)
    assert np.array_equal(whole(source).given, batches)
    rows = np.array([5, 0, 5])
    again = pickle.loads(pickle.dumps(source.train))
    np.testing.assert_array_equal(again.rows(rows), counts[source.train.index[rows]])
    if not held and make is not sparse.csc_matrix:  # which is held in memory
        assert len(pickle.dumps(source.train.x)) < 2000
    assert median_library(source.train) == np.quantile(counts[source.train.index].sum(1), 0.5, method="lower")


def test_counts_are_found_in_a_layer(tmp_path):
    counts = _counts()[0]
    path = save_cells(tmp_path / "x.h5ad", np.log1p(counts), {"counts": sparse.csr_matrix(counts), "other": counts + 1})
    source = load_source(str(path), counts=True)
    np.testing.assert_array_equal(_rows(source), counts)
    assert any("layers/counts" in note for note in source.notes)
    np.testing.assert_array_equal(_rows(load_source(str(path), counts=True, layer="other")), counts + 1)
    np.testing.assert_array_equal(_rows(load_source(str(path))), np.log1p(counts))


def test_several_conditions_are_one(tmp_path):
    donors = np.arange(60) % 3
    source = load_source(str(save_cells(tmp_path / "x.h5ad", donor=donors)), counts=True, condition=("batch", "donor"))
    assert source.condition_names == ("one, 0", "one, 1", "one, 2", "two, 0", "two, 1", "two, 2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"condition": ("plate",)}, ("--condition plate", "cell_type, batch")),
        ({"label": "kind"}, ("--label kind", "cell_type, batch")),
        ({"layer": "raw"}, ("--layer is 'raw'", "X")),
        ({"condition": ("age",)}, ("--condition age", "float64", "categories")),
        ({"label": "holes"}, ("--label holes", "no value in row 1")),
    ],
)
def test_what_the_file_does_not_have_is_named(tmp_path, options, words):
    holes = pd.Categorical([None if row == 1 else "a" for row in range(60)])
    path = save_cells(tmp_path / "x.h5ad", age=np.linspace(0, 1, 60), holes=holes)
    with pytest.raises(TrainingError) as caught:
        load_source(str(path), counts=True, **options)
    for word in words:
        assert word in str(caught.value)


def test_matrices_that_will_not_do_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="no counts in X, layers/counts or raw/X"):
        load_source(str(save_cells(tmp_path / "x.h5ad", np.log1p(_counts()[0]))), counts=True)


def test_all_values_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "_CHECKED_AT_ONCE", 24)
    counts = _counts()[0]
    counts[-1, -1] = 0.5
    with pytest.raises(TrainingError, match=r"has 0\.5, expected counts"):
        load_source(str(save_cells(tmp_path / "x.h5ad", counts)), counts=True, layer="X")


def test_files_that_are_none_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.h5ad").write_bytes(b"no such format")
    with pytest.raises(TrainingError, match="cannot be read as an"):
        load_source(str(tmp_path / "x.h5ad"))
    with pytest.raises(TrainingError, match="does not exist"):
        load_source(str(tmp_path / "none.h5ad"))
    path = save_cells(tmp_path / "y.h5ad")
    monkeypatch.setitem(sys.modules, "anndata.io", None)
    with pytest.raises(TrainingError, match=r"fastvae-kernels\[cells\]"):
        load_source(str(path))


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    path = save_cells(folder / "cells.h5ad")
    assert train(path, folder / "run", "--condition=batch", "--max-epochs=6") == 0
    return folder / "run"


def test_a_run_has_the_library_size_and_the_batch(run):
    model = fastvae.load(run)
    assert model.num_classes == 2
    assert model.likelihood.log_theta.shape == (12,)
    x = torch.from_numpy(_counts()[0])
    came = model.reconstruct(x, condition=torch.from_numpy(_counts()[2]))
    torch.testing.assert_close(came.sum(1), x.sum(1))
    assert history(run)[-1]["val_elbo"] > history(run)[0]["val_elbo"]


def test_the_report_of_counts_has_no_images_and_only_commands_that_work(run):
    report = (run / "report.html").read_text()
    assert "samples.png" not in report
    assert "fastvae encode" in report
    names = {path.stem for path in (run / "pictures").iterdir()}
    assert {"latents", "mean-variance", "kl"} <= names
    assert "samples" not in names


def test_cells_are_encoded_beside_their_data(run, tmp_path):
    assert main(["encode", str(run), f"--output={tmp_path / 'x.npy'}"]) == 0
    assert main(["encode", str(run), f"--output={tmp_path / 'x.h5ad'}"]) == 0
    latents, written = np.load(tmp_path / "x.npy"), anndata.read_h5ad(tmp_path / "x.h5ad")
    counts, _, batches = _counts()
    expected = fastvae.load(run).encode(torch.from_numpy(counts), condition=torch.from_numpy(batches)).mu
    np.testing.assert_allclose(latents, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(written.obsm["X_fastvae"], latents)
    np.testing.assert_array_equal(written.X.toarray(), counts)
    assert list(written.obs_names[:2]) == ["cell0", "cell1"]


def test_conditions_are_asked_for_by_name(run, tmp_path, capsys):
    assert main(["sample", str(run), "--label=two", "--n=3", "--draw=true", f"--output={tmp_path / 'x.npy'}"]) == 0
    made = np.load(tmp_path / "x.npy")
    assert (made == np.round(made)).all()
    fails(capsys, ["sample", run, "--label=three", f"--output={tmp_path / 'y.npy'}"], "one, two")
    other = save_cells(tmp_path / "other.h5ad", batch=pd.Categorical(["three"] * 60))
    fails(capsys, ["encode", run, f"--data={other}"], "'three'", "one, two")
    assert main(["evaluate", str(run), "--samples=5"]) == 0


def test_options_of_cells_have_an_effect_or_are_refused(tmp_path, capsys):
    path = save_cells(tmp_path / "x.h5ad")
    output = f"--output={tmp_path / 'run'}"
    fails(
        capsys, ["train", f"--data={path}", output, "--model=hvae", "--condition=batch"], "--model cvae, not for hvae"
    )
    fails(
        capsys, ["train", f"--data={path}", output, "--likelihood=gaussian", "--library-size=true"], "--library-size is"
    )
    fails(capsys, ["train", "--data=digits", output, "--condition=batch"], "--condition batch", ".h5ad")
    assert train(path, tmp_path / "plain", "--likelihood=zero-inflated", "--library-size=false", "--max-epochs=1") == 0
    assert not fastvae.load(tmp_path / "plain").likelihood.takes_library
    assert train(path, tmp_path / "zinb", "--likelihood=zero-inflated", "--model=hvae", "--max-epochs=1") == 0
    assert fastvae.load(tmp_path / "zinb").likelihood.takes_library
