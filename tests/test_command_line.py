"""The command line: each command does what it says, and what goes wrong is told in a line or two, with a way out."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("jsonargparse", reason="the extra of training is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra of training is not installed")

import fastvae.files  # noqa: E402
import fastvae.info  # noqa: E402
from fastvae.__main__ import COMMANDS, main  # noqa: E402
from fastvae.training.checkpoints import find_checkpoint, read_checkpoint  # noqa: E402

from .training_runs import OPTIONS, history, largest_difference, save_images, saved, train  # noqa: E402


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


def _fails(capsys, arguments, *words, status=1):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    message = capsys.readouterr().err
    assert message.startswith(f"fastvae {arguments[0]}: error: ")
    assert len(message.splitlines()) <= 2
    for word in words:
        assert word in message


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
    assert "no command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"usage: fastvae {name}" in capsys.readouterr().out


def test_the_module_and_the_entry_point_are_the_same(tmp_path):
    code = "from importlib.metadata import entry_points; [e] = entry_points(group='console_scripts', name='fastvae')"
    script = subprocess.run([sys.executable, "-c", f"{code}; e.load()(['--version'])"], capture_output=True, text=True)
    module = subprocess.run([sys.executable, "-m", "fastvae", "--version"], capture_output=True, text=True)
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


def test_info_needs_no_extra():
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['jsonargparse'] = None\n"
        "from fastvae.__main__ import main; sys.exit(main(['info', '--shape', '4096x256']))"
    )
    came = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
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
    monkeypatch.setattr(fastvae.kernels.selection, "requested", "triton")
    monkeypatch.setitem(fastvae.kernels.selection._unavailable, "triton", "there is no GPU")
    monkeypatch.setattr(fastvae.kernels.selection, "_resolved", {})
    shown = fastvae.info.lines((4, 2), torch.float32, torch.device("cpu"))
    assert "  triton: not available: there is no GPU" in shown
    assert shown[-1].startswith("  nothing: backend 'triton' is not available")


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
    assert {f"pictures/{name}.png" for name in ("curves", "kl", "reconstructions", "samples", "traversals")} <= names
    assert "report.html" in names
    assert not [name for name in names if "unfinished" in name]
    rows = history(finished)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["val_elbo"] > rows[0]["val_elbo"]
    log = (finished / "logs/version_0/metrics.csv").read_text()
    assert {"elbo", "kl", "reconstruction", "val_elbo", "samples_per_second"} <= set(log.splitlines()[0].split(","))


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
        ("--model=conv", "--channels", "4", "6", "--likelihood=mixture"),
        ("--model=cvae",),
        ("--model=hvae", "--latent-dim", "2", "3"),
        ("--model=hvae",),
        ("--model=iwae", "--iwae-samples=3", "--dreg=true"),
        ("--prior=vamp", "--components=4"),
        ("--prior=mixture", "--components=4", "--likelihood=gaussian"),
        ("--prior=learned", "--likelihood=continuous-bernoulli"),
        ("--likelihood=laplace", "--beta=2", "--warmup-epochs=1", "--free-bits=0.1", "--capacity=3"),
        ("--likelihood=poisson",),
        ("--likelihood=negative-binomial", "--binarize=false"),
        ("--likelihood=zero-inflated", "--prior=vamp", "--components=3"),
        ("--model=hvae", "--likelihood=zero-inflated"),
        ("--model=cvae", "--likelihood=negative-binomial"),
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
    assert Image.open(tmp_path / "new.png").width > 100


def test_vectors_train_without_pictures_of_images(tmp_path):
    data = save_images(tmp_path / "x.npy", shape=(6,))
    assert train(data, tmp_path / "run") == 0
    assert {path.stem for path in (tmp_path / "run/pictures").iterdir()} == {"curves", "kl"}


def test_settings_come_from_a_file_and_the_line_goes_over_it(data, tmp_path):
    (tmp_path / "settings.yaml").write_text("beta: 3.0\nmax_epochs: 5\nlatent_dim: [7]\ntrainer:\n  max_steps: 1\n")
    arguments = ["train", f"--config={tmp_path / 'settings.yaml'}", f"--data={data}", "--hidden=8", "--batch_size=20"]
    assert main([*arguments, f"--output={tmp_path / 'run'}", "--beta=2"]) == 0
    settings = saved(tmp_path / "run")["fastvae_run"]["settings"]
    assert (settings["beta"], settings["max_epochs"], settings["latent_dim"]) == (2.0, 5, [7])
    assert saved(tmp_path / "run")["global_step"] == 1


def test_the_settings_of_a_run_make_the_same_run(finished, tmp_path):
    assert main(["train", "--config", str(finished / "config.yaml"), f"--output={tmp_path / 'again'}"]) == 0
    assert largest_difference(saved(finished), saved(tmp_path / "again")) == 0.0


def test_a_run_stopped_between_epochs_goes_on_to_the_same_end(data, tmp_path):
    options = ("--max-epochs=4", "--schedule=constant")
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
    assert "has its 2 epochs: give more by --max-epochs" in capsys.readouterr().out
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


def test_settings_are_printed_for_a_file(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--latent_dim=7", "--print_config"])
    assert left.value.code == 0
    assert "latent_dim:\n- 7\n" in capsys.readouterr().out


# ---- what goes wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data=nowhere.npy",), ("nowhere.npy does not exist",)),
        (("--batch-size=41",), ("40 samples", "--batch-size 40")),
        (("--model=conv", "--channels", "2", "2", "2", "2"), ("8x8", "divisible by 16", "--image-size")),
        (("--model=hvae", "--hidden", "8", "8"), ("hvae has one hidden layer",)),
        (("--latent-dim", "2", "3"), ("several levels are for --model hvae",)),
        (("--model=cvae", "--prior=vamp"), ("cvae is built with the standard one",)),
        (("--held-out=1.5",), ("--held-out is 1.5",)),
        (("--resume=nowhere",), ("nowhere is no run to resume",)),
        (("--strategy=fsdp",), ("Lightning's Trainer refuses", "fsdp", "GPU")),
        (("--precision=7",), ("Lightning's Trainer refuses", "7")),
        (("--devices=0",), ("Lightning's Trainer refuses", "devices")),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(data, tmp_path, capsys, options, words):
    output = tmp_path / "run"
    _fails(capsys, ["train", f"--data={data}", f"--output={output}", *OPTIONS, *options], *words)
    assert not output.exists()


@pytest.mark.parametrize("option", ["--likelihood=normal", "--latent-dim=0", "--nonsense=1", "--beta=-1"])
def test_options_that_there_are_not_end_with_status_2(option, capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", option])
    assert left.value.code == 2
    assert option.partition("=")[0].lstrip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_a_conditional_model_needs_labels(tmp_path, capsys):
    data = save_images(tmp_path / "bare.npy")
    _fails(capsys, ["train", f"--data={data}", "--model=cvae", *OPTIONS], "bare.npy has no labels", "subfolder")


def test_values_that_the_likelihood_has_no_probability_for_are_refused(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full((50, 4), 7.0))
    _fails(capsys, ["train", f"--data={tmp_path / 'x.npy'}", "--likelihood=bernoulli", *OPTIONS], "7", "gaussian")


def test_a_run_is_not_written_over(finished, data, capsys):
    before = (finished / "checkpoints/last.ckpt").read_bytes()
    _fails(capsys, ["train", f"--data={data}", f"--output={finished}", *OPTIONS], "--resume", "another --output")
    assert (finished / "checkpoints/last.ckpt").read_bytes() == before


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--likelihood=gaussian") == 0
    before = saved(tmp_path / "run")
    arguments = [
        "train",
        f"--resume={tmp_path / 'run'}",
        "--learning-rate=1e30",
        "--max-epochs=9",
        "--schedule=constant",
    ]
    _fails(capsys, arguments, "no longer a finite number", "--learning-rate")
    after = saved(tmp_path / "run")
    assert all(torch.isfinite(weight).all() for weight in after["state_dict"].values())
    assert after["global_step"] <= before["global_step"] + 2


def test_a_checkpoint_that_is_cut_off_is_named(finished, tmp_path, capsys):
    whole = (finished / "checkpoints/last.ckpt").read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.ckpt").write_bytes(whole[:length])
        for command in ("evaluate", "sample"):
            _fails(capsys, [command, tmp_path / "cut.ckpt"], "cut.ckpt is not a whole checkpoint", "best.ckpt")


def test_a_run_whose_checkpoint_is_cut_off_is_not_resumed(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    _fails(capsys, ["train", f"--resume={tmp_path / 'run'}"], "not a whole checkpoint", "best.ckpt")
    assert last.stat().st_size == 1000


def test_a_checkpoint_of_another_model_is_not_resumed(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    arguments = ["train", f"--resume={tmp_path / 'run'}", "--latent-dim=5", "--max-epochs=3"]
    _fails(capsys, arguments, "another model", "latent_dim (3,), not (5,)")
    arguments = ["train", f"--resume={tmp_path / 'run'}", "--batch-size=10", "--max-epochs=3"]
    _fails(capsys, arguments, "other batches", "40 rows by 20, not 40 rows by 10")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_a_run_can_be_moved_and_the_learning_rate_set_anew(data, tmp_path):
    assert train(data, tmp_path / "run", "--learning-rate=0.5") == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    best = max(row["val_elbo"] for row in history(tmp_path / "moved"))
    assert main(["train", f"--resume={tmp_path / 'moved'}", "--learning-rate=1e-9", "--max-epochs=3"]) == 0
    rows = history(tmp_path / "moved")
    assert rows[2]["val_elbo"] == pytest.approx(rows[1]["val_elbo"], abs=1e-4)
    assert not (tmp_path / "run").exists()
    of_best = [state for name, state in saved(tmp_path / "moved")["callbacks"].items() if "'val_elbo'" in name]
    assert of_best[0]["best_model_score"].item() == pytest.approx(max(best, rows[2]["val_elbo"]))


def test_a_file_of_another_program_is_no_checkpoint(tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    _fails(capsys, ["evaluate", tmp_path / "other.ckpt"], "is not a checkpoint of `fastvae train`")
    torch.save({"object": fastvae.info.PACKAGES, "module": torch.nn.Linear(1, 1)}, tmp_path / "other.ckpt")
    _fails(capsys, ["sample", tmp_path / "other.ckpt"], "is not a checkpoint of `fastvae train`")
    _fails(capsys, ["sample", tmp_path / "none.ckpt"], "none.ckpt does not exist")
    _fails(capsys, ["sample", tmp_path], "has no checkpoint")


def test_other_data_must_fit_the_model(finished, tmp_path, capsys):
    other = save_images(tmp_path / "other.npy", shape=(1, 8, 10))
    _fails(capsys, ["evaluate", finished, f"--data={other}"], "shape (1, 8, 10)", "(1, 8, 8)")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(finished, device, capsys):
    _fails(capsys, ["evaluate", finished, f"--device={device}"], f"--device {device} cannot be used")


def test_sampling_refuses_what_it_cannot_write(finished, tmp_path, capsys):
    _fails(capsys, ["sample", finished, "--output=new.jpg"], "new.jpg", ".png or .npy")
    _fails(capsys, ["sample", finished, "--label=1"], "trained without labels")
    data = save_images(tmp_path / "x.npz", shape=(6,))
    assert train(data, tmp_path / "run", "--model=cvae") == 0
    _fails(capsys, ["sample", tmp_path / "run", "--output=new.png"], "no image", "samples.npy")
    _fails(capsys, ["sample", tmp_path / "run", "--label=3", "--output=new.npy"], "expected 0 to 2")


def test_a_label_that_is_asked_for_is_drawn(data, tmp_path):
    assert train(data, tmp_path / "run", "--model=cvae", "--max-epochs=1") == 0
    made = {}
    for label in (0, 1):
        output = tmp_path / f"{label}.npy"
        assert main(["sample", str(tmp_path / "run"), f"--label={label}", "--n=2", f"--output={output}"]) == 0
        made[label] = np.load(output)
    assert main(["sample", str(tmp_path / "run"), "--n=2", f"--output={tmp_path / 'both.npy'}"]) == 0
    both = np.load(tmp_path / "both.npy")
    assert np.array_equal(both[0], made[0][0])
    assert np.array_equal(both[1], made[1][1])
    assert not np.array_equal(made[0], made[1])


# ---- full disks and kills


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(data, tmp_path, capsys, monkeypatch):
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fastvae.files.os, "fsync", full)
    _fails(capsys, ["train", f"--resume={tmp_path / 'run'}", "--max-epochs=9"], "No space left", "Free some space")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before
    assert not list((tmp_path / "run").rglob("*unfinished*"))


def test_a_file_that_cannot_grow_is_told_and_leaves_the_last_checkpoint(data, tmp_path):
    """A real limit of the system, in a process of its own."""
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    arguments = [sys.executable, "-m", "fastvae", "train", f"--resume={tmp_path / 'run'}", "--max-epochs=9"]
    came = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert came.returncode == 1
    assert "File too large" in came.stderr
    assert "Traceback" not in came.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_an_interrupted_run_says_how_to_go_on(data, tmp_path):
    arguments = [sys.executable, "-m", "fastvae", "train", f"--data={data}", f"--output={tmp_path / 'run'}", *OPTIONS]
    process = subprocess.Popen(
        [*arguments, "--max-epochs=100000"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    )  # fmt: skip
    try:
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"fastvae train --resume {tmp_path / 'run'}" in shown
    assert "Traceback" not in shown
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt").step > 0


def test_a_run_killed_ten_times_ends_as_an_undisturbed_one(tmp_path):
    """SIGKILL at any moment, and every other time while a checkpoint is being written."""
    data = save_images(tmp_path / "dots.npy", rows=500)
    options = [
        "--max-epochs=25",
        "--checkpoint-every=3",
        "--batch-size=50",
        *OPTIONS[:2],
        *OPTIONS[4:],
        f"--data={data}",
    ]
    assert main(["train", f"--output={tmp_path / 'whole'}", *options]) == 0
    arguments = [sys.executable, "-m", "tests.killed_runs", str(tmp_path / "killed"), "0", "10", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    came = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment)
    assert came.returncode == 0, came.stdout + came.stderr
    assert "10 killed" in came.stdout
    whole, killed = saved(tmp_path / "whole"), saved(tmp_path / "killed")
    assert whole["global_step"] == killed["global_step"] == 25 * 8
    assert largest_difference(whole, killed) == 0.0
    assert history(tmp_path / "whole") == history(tmp_path / "killed")
    for name in ("exp_avg", "exp_avg_sq"):
        states = [one["optimizer_states"][0]["state"] for one in (whole, killed)]
        assert all(torch.equal(states[0][place][name], states[1][place][name]) for place in states[0])
