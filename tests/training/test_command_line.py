"""The command line: each command does what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("jsonargparse", reason="the extra of training is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra of training is not installed")

import fastvae.info  # noqa: E402
from fastvae.__main__ import COMMANDS, main  # noqa: E402
from fastvae.nn.model import LatentVariableModel  # noqa: E402
from fastvae.training import run_folder  # noqa: E402
from fastvae.training.saved_run import find_checkpoint, read_checkpoint  # noqa: E402

from .runs import history, largest_difference, save_images, saved, train  # noqa: E402

PICTURES = ("curve-bound", "curve-terms", "curve-units", "kl", "reconstructions", "samples", "traversals")

# ---- commands


def test_without_a_command_the_commands_are_listed(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fastvae.__version__


def test_an_unknown_command_is_an_error(capsys):
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"usage: fastvae {name}" in capsys.readouterr().out


def test_the_module_and_the_entry_point_are_the_same(run_python):
    code = "from importlib.metadata import entry_points; [e] = entry_points(group='console_scripts', name='fastvae')"
    script = run_python(f"{code}; e.load()(['--version'])")
    module = run_python(
        "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('fastvae', None, '__main__')"
    )
    assert script.stdout == module.stdout == f"{fastvae.__version__}\n"


def test_without_the_extra_a_command_says_what_to_install(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith(("fastvae.training", "lightning")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    assert main(["train"]) == 1
    assert 'pip install "fastvae-kernels[train]"' in capsys.readouterr().err


# ---- info


def test_info_needs_no_extra(run_python):
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['jsonargparse'] = None\n"
        "from fastvae.__main__ import main; sys.exit(main(['info', '--shape', '4096x256']))"
    )
    came = run_python(code)
    assert came.returncode == 0, came.stderr
    assert f"torch {torch.__version__}" in came.stdout
    assert "sample_and_kl of 4096x256, float32" in came.stdout


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_info_tells_what_a_shape_runs_on(backend):
    words = {"cpu": "compiled C for", "reference": "PyTorch's own operations", "triton": "512x1 programs of 4 warps"}
    with fastvae.use_backend(backend):
        shown = fastvae.info.lines((4096, 256), torch.float32, torch.device("cpu"))
    assert shown[-1].startswith(f"  {backend}: {words[backend]}")
    assert any(line.startswith("  reference: ") for line in shown)


def test_info_knows_when_a_call_stays_on_one_thread():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with fastvae.use_backend("cpu"):
            small, large = (
                fastvae.info.lines(shape, torch.float32, torch.device("cpu"))[-1] for shape in ((128, 20), (4096, 256))
            )
    finally:
        torch.set_num_threads(threads)
    assert small.endswith("on 1 thread")
    assert large.endswith("on 2 threads")


def test_info_tells_when_the_backend_that_was_asked_for_is_not_there(monkeypatch):
    monkeypatch.setattr(fastvae.kernels.backend, "requested", "triton")
    monkeypatch.setitem(fastvae.kernels.backend._unavailable, "triton", "there is no GPU")
    monkeypatch.setattr(fastvae.kernels.backend, "_resolved", {})
    shown = fastvae.info.lines((4, 2), torch.float32, torch.device("cpu"))
    assert "  triton: not available: there is no GPU" in shown
    assert shown[-1].startswith("  no backend: backend 'triton' is not available")


@pytest.mark.parametrize("arguments", [["--shape", "4x"], ["--device", "cuda:99"], ["--dtype", "int8"]])
def test_info_refuses_what_is_not_there(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["info", *arguments])
    assert left.value.code == 2
    assert arguments[1] in capsys.readouterr().err


# ---- train


def test_a_run_leaves_checkpoints_a_log_pictures_and_a_report(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "logs/version_0/metrics.csv"} <= names
    assert {f"pictures/{name}.png" for name in PICTURES} <= names
    assert "report.html" in names
    assert not [name for name in names if "unfinished" in name]
    rows = history(finished)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["val_elbo"] > rows[0]["val_elbo"]
    log = (finished / "logs/version_0/metrics.csv").read_text()
    assert {"elbo", "kl", "reconstruction", "val_elbo", "samples_per_second"} <= set(log.splitlines()[0].split(","))


def test_the_log_of_tensorboard_is_there_where_that_is_installed(finished):
    installed = importlib.util.find_spec("tensorboard") is not None
    assert bool(list((finished / "logs/version_0").glob("events*"))) == installed


@pytest.mark.parametrize(("every", "drawn"), [(0, 1), (2, 2), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_pictures_are_drawn_each_few_epochs_and_at_the_end(data, tmp_path, monkeypatch, every, drawn):
    written = []
    write_report = run_folder.write_report
    monkeypatch.setattr(
        run_folder, "write_report", lambda path, **given: (written.append(path), write_report(path, **given))
    )
    assert train(data, tmp_path / "run", "--max-epochs=3", f"--pictures-every={every}") == 0
    assert written == [tmp_path / "run/report.html"] * drawn


def test_a_terminal_shows_a_bar_with_the_numbers_that_count(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert train(data, tmp_path / "run", "--trainer.log_every_n_steps=1") == 0
    shown = capsys.readouterr()
    bar = shown.out + shown.err
    for name in ("elbo=", "reconstruction=", "kl=", "active_units=", "samples_per_second="):
        assert name in bar
    assert "\nepoch 1:" not in bar


def test_checkpoints_hold_tensors_and_plain_values_only(finished):
    for name in ("best", "last"):
        assert saved(finished, name)["fastvae_run"]["settings"]["hidden"] == [8]


def test_the_best_checkpoint_is_that_of_the_highest_bound(data, tmp_path):
    assert train(data, tmp_path / "run", "--learning-rate=0.5", "--max-epochs=4", "--schedule=constant") == 0
    rows = history(tmp_path / "run")
    best = max(rows, key=lambda row: row["val_elbo"])
    assert saved(tmp_path / "run", "best")["global_step"] == best["step"]


@pytest.mark.parametrize(
    "options",
    [
        ("--model=conv", "--channels=4"),
        ("--model=conv", "--quality=draft", "--precision=bf16-true"),
        ("--model=conv", "--channels", "4", "6", "--likelihood=mixture"),
        ("--model=cvae",),
        ("--model=hvae", "--latent-dim", "2", "3"),
        pytest.param(("--model=hvae",), marks=pytest.mark.slow),
        ("--model=iwae", "--iwae-samples=3", "--dreg=true"),
        ("--prior=vamp", "--components=4"),
        ("--prior=mixture", "--components=4", "--likelihood=gaussian"),
        ("--prior=learned", "--likelihood=continuous-bernoulli"),
        ("--likelihood=laplace", "--beta=2", "--warmup-epochs=1", "--free-bits=0.1", "--capacity=3"),
        ("--likelihood=poisson",),
        ("--likelihood=negative-binomial", "--binarize=false"),
        pytest.param(("--likelihood=zero-inflated", "--prior=vamp", "--components=3"), marks=pytest.mark.slow),
        pytest.param(("--model=hvae", "--likelihood=zero-inflated"), marks=pytest.mark.slow),
        pytest.param(("--model=cvae", "--likelihood=negative-binomial"), marks=pytest.mark.slow),
        ("--precision=bf16-mixed", "--trainer.gradient_clip_val=1"),
    ],
)
def test_every_kind_of_model_trains_is_evaluated_and_sampled(data, tmp_path, capsys, options):
    assert train(data, tmp_path / "run", "--max-epochs=1", *options) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--samples=8", f"--json={tmp_path / 'numbers.json'}"]) == 0
    assert "8 importance samples" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["samples"] == 10
    (elbo, _), (reconstruction, _), (kl, _) = (numbers[name] for name in ("elbo", "reconstruction", "kl"))
    assert elbo == pytest.approx(reconstruction - kl, rel=1e-4)
    assert main(["sample", str(tmp_path / "run"), "--n=5", f"--output={tmp_path / 'new.npy'}"]) == 0
    made = np.load(tmp_path / "new.npy")
    assert made.shape == (5, 1, 8, 8)
    assert np.isfinite(made).all()


def test_positive_data_train_under_a_log_normal(tmp_path):
    """The encoder sees log x and the decoder gives its mean, both standardised."""
    logarithms = np.array([5.0, -20.0, 0.0]) + np.random.default_rng(0).normal(size=(200, 3))
    np.save(tmp_path / "x.npy", np.exp(logarithms).astype(np.float32))
    options = ("--likelihood=log-normal", "--max-epochs=1")
    assert train(tmp_path / "x.npy", tmp_path / "run", *options) == 0
    model = fastvae.load(tmp_path / "run")
    for one in (model.encoder.encoder, model.decoder):
        np.testing.assert_allclose(one.mean, logarithms.mean(0), atol=0.5)
        np.testing.assert_allclose(one.std, logarithms.std(0), atol=0.5)
    assert main(["sample", str(tmp_path / "run"), "--n=5", f"--output={tmp_path / 'new.npy'}"]) == 0
    assert (np.load(tmp_path / "new.npy") > 0).all()


def test_a_folder_of_colour_images_trains_a_convolutional_vae(tmp_path):
    random = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "images").mkdir(exist_ok=True)
        image = Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{number}.png")
    options = ("--model=conv", "--channels=4", "--image-size=8", "--batch-size=4")
    assert train(tmp_path / "images", tmp_path / "run", *options) == 0
    assert read_checkpoint(find_checkpoint(tmp_path / "run")).recipe.likelihood == "gaussian"
    assert main(["sample", str(tmp_path / "run"), f"--output={tmp_path / 'new.png'}", "--draw=true"]) == 0
    assert Image.open(tmp_path / "new.png").size == (80, 80)  # 8 by 8 images of 8 pixels, 2 between them


def test_images_of_any_size_train_a_convolutional_vae(tmp_path):
    data = save_images(tmp_path / "odd.npy", shape=(3, 11, 9))
    assert train(data, tmp_path / "run", "--model=conv", "--channels", "4", "8", "--max-epochs=1") == 0
    assert main(["sample", str(tmp_path / "run"), "--n=1", f"--output={tmp_path / 'one.png'}"]) == 0
    assert Image.open(tmp_path / "one.png").size == (9, 11)


def test_a_picture_of_samples_has_their_own_pixels(data, tmp_path, monkeypatch):
    assert train(data, tmp_path / "run", "--likelihood=gaussian") == 0
    dark = torch.full((1, 1, 8, 8), 0.02)
    dark[..., 0, 0] = 9.0  # one outlier
    monkeypatch.setattr(LatentVariableModel, "generate", lambda self, n, **given: dark.expand(n, -1, -1, -1))
    assert main(["sample", str(tmp_path / "run"), "--n=1", f"--output={tmp_path / 'one.png'}"]) == 0
    shown = np.asarray(Image.open(tmp_path / "one.png"))
    assert shown.shape == (8, 8)
    assert shown[0, 0] == 255
    assert (shown[1:] == 5).all()


def test_a_temperature_narrows_what_is_sampled(finished, tmp_path):
    made = {}
    for temperature in (1, 0):
        output = tmp_path / f"{temperature}.npy"
        assert main(["sample", str(finished), f"--temperature={temperature}", f"--output={output}"]) == 0
        made[temperature] = np.load(output)
    assert made[0].std(0).max() < 1e-6 < made[1].std(0).max()


def test_the_report_of_iwae_names_the_epoch_of_its_best_checkpoint(data, tmp_path):
    options = ("--model=iwae", "--iwae-samples=3", "--learning-rate=0.3", "--max-epochs=5", "--schedule=constant")
    assert train(data, tmp_path / "run", *options) == 0
    epoch = saved(tmp_path / "run", "best")["epoch"] + 1
    assert f"nats (epoch {epoch})" in (tmp_path / "run/report.html").read_text()
    assert "best held-out IWAE" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_pictures_are_drawn_in_any_precision(data, tmp_path, precision, whole_pictures):
    assert train(data, tmp_path / "run", f"--precision={precision}", "--max-epochs=1") == 0
    assert (tmp_path / "run/report.html").exists()


def test_vectors_train_without_pictures_of_images(tmp_path, whole_pictures):
    data = save_images(tmp_path / "x.npy", shape=(6,))
    assert train(data, tmp_path / "run") == 0
    assert {path.stem for path in (tmp_path / "run/pictures").iterdir()} == {
        "curve-bound",
        "curve-terms",
        "curve-units",
        "kl",
        "latents",
    }


def test_settings_come_from_a_file_and_the_line_goes_over_it(data, tmp_path):
    (tmp_path / "settings.yaml").write_text(
        "beta: 3.0\nmax_epochs: 3\nlatent_dim: [7]\ntrainer:\n  accumulate_grad_batches: 2\n"
    )
    arguments = ["train", f"--config={tmp_path / 'settings.yaml'}", f"--data={data}", "--hidden=8", "--batch_size=20"]
    assert main([*arguments, f"--output={tmp_path / 'run'}", "--beta=2"]) == 0
    settings = saved(tmp_path / "run")["fastvae_run"]["settings"]
    assert (settings["beta"], settings["max_epochs"], settings["latent_dim"]) == (2.0, 3, [7])
    assert saved(tmp_path / "run")["global_step"] == 3  # two batches an epoch, one step for both


def test_the_settings_of_a_run_make_the_same_run(finished, tmp_path):
    assert main(["train", "--config", str(finished / "config.yaml"), f"--output={tmp_path / 'again'}"]) == 0
    assert largest_difference(saved(finished), saved(tmp_path / "again")) == 0.0


@pytest.mark.parametrize(
    "model",
    [(), ("--model=conv", "--channels=4", "--likelihood=gaussian", "--warmup-steps=3", "--warmup-epochs=1")],
    ids=["linear layers", "conv"],
)
def test_a_run_stopped_between_epochs_goes_on_to_the_same_end(data, tmp_path, model):
    options = ("--max-epochs=4", "--schedule=constant", *model)
    assert train(data, tmp_path / "whole", *options) == 0
    assert train(data, tmp_path / "parts", *options, "--max-epochs=1") == 0
    assert main(["train", f"--resume={tmp_path / 'parts'}", "--max-epochs=4"]) == 0
    assert largest_difference(saved(tmp_path / "whole"), saved(tmp_path / "parts")) == 0.0
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert (tmp_path / "parts/logs/version_1/metrics.csv").exists()


def test_a_complete_run_is_drawn_again_and_not_changed(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    (tmp_path / "run/report.html").unlink()
    (tmp_path / "run/pictures/kl.png").unlink()
    assert main(["train", f"--resume={tmp_path / 'run'}"]) == 0
    assert "has 2 epochs, expected more by --max-epochs" in capsys.readouterr().out
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/pictures/kl.png").exists()
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_a_run_is_taken_up_and_evaluated_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_images(Path("dots.npz"))
    assert train("dots.npz", Path("run")) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert main(["train", "--resume=../here/run", "--max-epochs=3"]) == 0
    assert main(["evaluate", "../here/run", "--samples=2"]) == 0
    assert not list((tmp_path / "there").iterdir())


def test_the_settings_of_a_run_that_was_resumed_make_a_new_one(data, tmp_path):
    assert train(data, tmp_path / "run", "--max-epochs=1") == 0
    assert main(["train", f"--resume={tmp_path / 'run'}", "--max-epochs=2"]) == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    arguments = ["train", "--config", str(tmp_path / "run/config.yaml"), f"--output={tmp_path / 'new'}", "--seed=9"]
    assert main(arguments) == 0
    assert len(history(tmp_path / "new")) == 2
    assert history(tmp_path / "new") != history(tmp_path / "run")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_a_time_limit_ends_each_start_after_a_whole_epoch(data, tmp_path):
    assert train(data, tmp_path / "whole", "--max-epochs=3") == 0
    assert train(data, tmp_path / "run", "--max-epochs=3", "--trainer.max_time=00:00:00:00") == 0
    for epochs in (1, 2, 3):
        assert len(history(tmp_path / "run")) == epochs
        assert main(["train", f"--resume={tmp_path / 'run'}"]) == 0
    assert largest_difference(saved(tmp_path / "whole"), saved(tmp_path / "run")) == 0.0


def test_a_folder_named_like_data_that_come_with_a_package_is_not_taken_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--hidden=8", "--max-epochs=1", "--pictures-every=0"]
    assert main(["train", "--data=digits", "--output=digits", *options]) == 0
    assert main(["train", "--resume=digits", "--max-epochs=2"]) == 0


def test_callbacks_of_ones_own_can_be_added(data, tmp_path):
    callback = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    assert train(data, tmp_path / "run", callback, f"--trainer.callbacks.dirpath={tmp_path / 'own'}") == 0
    assert list((tmp_path / "own").glob("*.ckpt"))


def test_settings_are_printed_for_a_file(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--latent_dim=7", "--print_config"])
    assert left.value.code == 0
    assert "latent_dim:\n- 7\n" in capsys.readouterr().out
