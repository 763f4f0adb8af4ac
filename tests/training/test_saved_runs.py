"""After a run: models loaded from elsewhere, latents and reconstructions of any data, how long an evaluation takes."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")

import fastvae
from fastvae.__main__ import main
from fastvae.likelihoods import Gaussian, MissingAsNaN
from fastvae.training.errors import TrainingError
from fastvae.training.progress import Progress, duration

from .runs import fails, save_images, saved, train

# ---- load


def test_a_model_is_loaded_in_a_line(finished):
    model = fastvae.load(finished)
    assert not model.training
    for name, weight in saved(finished, "best")["state_dict"].items():
        assert torch.equal(model.state_dict()[name.removeprefix("model.")], weight)
    last = fastvae.load(finished / "checkpoints" / "last.ckpt", device="cpu")
    assert last.generate(3, seed=0).shape == (3, 1, 8, 8)


def test_loading_needs_no_lightning(finished, run_python):
    code = f"import sys; sys.modules['lightning'] = None; import fastvae; print(fastvae.load({str(finished)!r}))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "MLPDecoder" in result.stdout


class _Evil:
    def __reduce__(self):
        return (print, ("run by a checkpoint",))


def test_a_file_from_elsewhere_cannot_run_code(tmp_path, capsys):
    torch.save({"fastvae_run": _Evil(), "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(TrainingError, match="is not a checkpoint of"):
        fastvae.load(tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(TrainingError):
        fastvae.load(tmp_path / "plain.ckpt")
    assert "run by a checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"recipe": {"model": "vae"}}, {"recipe": {"unknown": 1}}, {"history": None}])
def test_a_checkpoint_of_another_version_is_refused(finished, tmp_path, change):
    checkpoint = saved(finished)
    checkpoint["fastvae_run"] |= change
    if change == {"history": None}:
        del checkpoint["fastvae_run"]["history"]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(TrainingError, match="describes no model of this version"):
        fastvae.load(tmp_path / "x.ckpt")


def test_older_checkpoints_are_read(finished, tmp_path):
    checkpoint = saved(finished)
    for name in ("library_size", "missing"):
        del checkpoint["fastvae_run"]["recipe"][name]
    del checkpoint["fastvae_run"]["condition_names"]
    for name in ("layout", "missing", "condition", "label", "layer", "skip_unreadable"):
        del checkpoint["fastvae_run"]["settings"][name]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    assert main(["evaluate", str(tmp_path / "x.ckpt"), "--samples=2"]) == 0


# ---- encode, reconstruct


def test_latents_are_in_the_order_of_the_data(finished, data, tmp_path):
    assert main(["encode", str(finished), f"--output={tmp_path / 'x.npy'}"]) == 0
    latents, images = np.load(tmp_path / "x.npy"), np.load(data)["images"]
    expected = fastvae.load(finished).encode(torch.from_numpy(images) / 255).mu.detach().numpy()
    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-6)
    assert main(["encode", str(finished), "--part=held-out", f"--output={tmp_path / 'held.npy'}"]) == 0
    assert len(np.load(tmp_path / "held.npy")) == 10


def test_latents_with_their_cells(finished, data, tmp_path):
    anndata = pytest.importorskip("anndata", reason="the extra of cells is not installed")
    assert main(["encode", str(finished), f"--output={tmp_path / 'x.npy'}"]) == 0
    latents = np.load(tmp_path / "x.npy")
    assert main(["encode", str(finished), f"--output={tmp_path / 'x.h5ad'}"]) == 0
    written = anndata.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(written.X, latents)
    assert written.obs["label"].astype(int).tolist() == np.load(data)["labels"].tolist()


def test_latents_of_all_levels_and_of_other_data(data, tmp_path):
    assert train(data, tmp_path / "run", "--model=hvae", "--latent-dim", "2", "3", "--max-epochs=1") == 0
    other = save_images(tmp_path / "other.npy", rows=7)
    output = f"--output={tmp_path / 'x.npy'}"
    assert main(["encode", str(tmp_path / "run"), f"--data={other}", output]) == 0
    assert np.load(tmp_path / "x.npy").shape == (7, 5)


def test_reconstructions_are_means(finished, data, tmp_path):
    assert main(["reconstruct", str(finished), "--part=all", f"--output={tmp_path / 'x.npy'}"]) == 0
    images = torch.from_numpy(np.load(data)["images"]) / 255
    expected = fastvae.load(finished).reconstruct(images).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, rtol=1e-5, atol=1e-6)
    assert main(["reconstruct", str(finished), "--rows=4", f"--output={tmp_path / 'x.png'}"]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_outputs_that_cannot_be_are_refused(finished, data, tmp_path, capsys):
    fails(capsys, ["encode", finished, "--output=x.png"], "x.png", ".npy or .h5ad")
    fails(capsys, ["reconstruct", finished, "--output=x.h5ad"], "x.h5ad", ".npy or .png")
    other = save_images(tmp_path / "other.npy", shape=(1, 6, 6))
    fails(capsys, ["encode", finished, f"--data={other}", f"--output={tmp_path / 'x.npy'}"], "(1, 6, 6)", "(1, 8, 8)")
    assert not (tmp_path / "x.npy").exists()


def test_labels_are_asked_for_by_name(tmp_path, capsys):
    random = np.random.default_rng(0)
    x = random.random((40, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, labels=np.array(["cat", "dog"])[np.arange(40) % 2])
    assert train(tmp_path / "x.npz", tmp_path / "run", "--model=cvae", "--max-epochs=1") == 0
    made = []
    for label in ("dog", "1"):
        output = tmp_path / f"{label}.npy"
        assert main(["sample", str(tmp_path / "run"), f"--label={label}", "--n=2", f"--output={output}"]) == 0
        made.append(np.load(output))
    assert np.array_equal(*made)
    fails(capsys, ["sample", tmp_path / "run", "--label=cow", "--output=x.npy"], "--label is cow", "cat, dog")


def test_an_array_of_an_archive_is_a_condition(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=random.random((40, 6)), labels=np.arange(40) % 4, plate=np.arange(40) % 2)
    assert train(tmp_path / "x.npz", tmp_path / "run", "--condition=plate", "--max-epochs=1") == 0
    assert fastvae.load(tmp_path / "run").num_classes == 2


# ---- missing values


@pytest.mark.parametrize("model", ["vae", "hvae", "iwae"])
def test_missing_values_are_trained_around(tmp_path, model):
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 6)).astype(np.float32)
    x[random.random(x.shape) < 0.3] = np.nan
    np.save(tmp_path / "x.npy", x)
    output = tmp_path / "run"
    assert train(tmp_path / "x.npy", output, "--missing=nan", f"--model={model}") == 0
    trained = fastvae.load(output)
    assert isinstance(trained.likelihood, MissingAsNaN)
    assert isinstance(trained.likelihood.likelihood, Gaussian)
    elbo = trained.elbo(torch.from_numpy(x)).elbo
    assert torch.isfinite(elbo).all()
    assert torch.isfinite(trained.reconstruct(torch.from_numpy(x))).all()
    assert main(["evaluate", str(output), "--samples=3"]) == 0


def test_missing_pixels_stay_missing_when_black_and_white_are_drawn(tmp_path):
    random = np.random.default_rng(0)
    x = random.random((40, 1, 8, 8)).astype(np.float32)
    x[:, :, :4] = np.nan
    np.save(tmp_path / "x.npy", x)
    assert train(tmp_path / "x.npy", tmp_path / "run", "--missing=nan", "--layout=channels-first") == 0
    trained = fastvae.load(tmp_path / "run")
    given = torch.from_numpy(x[:4])
    seen = trained.likelihood.likelihood
    parameters = trained.decoder(trained.encode(given).mu)
    expected = seen.log_prob(parameters, given.nan_to_num(), reduction="none")[:, :, 4:].flatten(1).sum(1)
    torch.testing.assert_close(trained.likelihood.log_prob(parameters, given), expected)


# ---- evaluate


def test_the_range_is_checked_over_all_rows(tmp_path, capsys):
    x = np.zeros((1500, 4), dtype=np.float32)
    x[-1, -1] = 2.0
    np.save(tmp_path / "x.npy", x)
    arguments = ["train", f"--data={tmp_path / 'x.npy'}", f"--output={tmp_path / 'run'}", "--likelihood=bernoulli"]
    fails(capsys, arguments, "values from 0 to 2", "bernoulli takes 0 to 1")


def test_an_evaluation_says_how_long_it_takes(monkeypatch, capsys):
    clock = iter(np.arange(0.0, 1000.0, 10.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress(100, "samples")
    for _ in range(20):
        progress.done(5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "5 of 100 samples, about 3 min to go"
    assert 9 <= len(lines) <= 11
    assert "95 of 100 samples" not in lines[0]


def test_what_is_quick_is_not_commented(capsys):
    progress = Progress(100, "samples")
    for _ in range(20):
        progress.done(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_the_numbers_of_an_evaluation_do_not_depend_on_how_rows_are_grouped(finished, tmp_path, monkeypatch):
    from fastvae.training import evaluate

    written = []
    for rows in (25, 3):
        monkeypatch.setattr(evaluate, "_NUMBERS_AT_ONCE", rows * 4 * 64)  # 4 draws of 8x8 pixels
        output = tmp_path / f"{rows}.json"
        assert main(["evaluate", str(finished), "--samples=4", f"--json={output}"]) == 0
        numbers = json.loads(output.read_text())
        written.append([*numbers["elbo"], *numbers["log_likelihood"]])
    np.testing.assert_allclose(*written, rtol=1e-4)
