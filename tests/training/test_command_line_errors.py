"""What goes wrong on the command line is told in a line or two, with a way out, and leaves what is there as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("jsonargparse", reason="the extra of training is not installed")

import fastvae.files
import fastvae.info
from fastvae.__main__ import main
from fastvae.training.datasets import load_source
from fastvae.training.evaluate import held_out_batches
from fastvae.training.saved_run import find_checkpoint, read_checkpoint

from .runs import OPTIONS, fails, history, save_images, saved, train


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data=nowhere.npy",), ("nowhere.npy does not exist",)),
        (("--batch-size=41",), ("40 samples", "--batch-size 40")),
        (("--model=hvae", "--hidden", "8", "8"), ("hvae has one hidden layer",)),
        (("--latent-dim", "2", "3"), ("several levels are for --model hvae",)),
        (("--model=cvae", "--prior=vamp"), ("cvae is built with the standard one",)),
        (("--held-out=1.5",), ("--held-out is 1.5",)),
        (("--strategy=fsdp",), ("Lightning's Trainer refuses", "fsdp", "GPU")),
        (("--precision=7",), ("Lightning's Trainer refuses", "7")),
        (("--devices=0",), ("Lightning's Trainer refuses", "devices")),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(data, tmp_path, capsys, options, words):
    output = tmp_path / "run"
    fails(capsys, ["train", f"--data={data}", f"--output={output}", *OPTIONS, *options], *words)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seed=18446744073709551616",), ("seed is 18446744073709551616",)),
        (("--learning-rate=inf",), ("learning_rate is inf",)),
        (("--beta=inf",), ("beta is inf",)),
        (("--warmup-epochs=inf",), ("infinity",)),
        (("--model=iwae", "--beta=2"), ("--beta shapes the KL", "leave it out")),
        (("--model=iwae", "--free-bits=1"), ("--free-bits shapes the KL",)),
        (("--model=iwae", "--capacity=1"), ("--capacity shapes the KL",)),
        (("--dreg=true",), ("--dreg is a gradient of --model iwae",)),
    ],
)
def test_options_that_cannot_be_or_would_do_nothing_are_refused(data, tmp_path, capsys, options, words):
    fails(capsys, ["train", f"--data={data}", f"--output={tmp_path / 'run'}", *OPTIONS, *options], *words)
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_not_resumed(finished, tmp_path, capsys):
    fails(capsys, ["train", f"--resume={tmp_path / 'nowhere'}"], "nowhere is no run to resume")
    fails(capsys, ["train", f"--resume={finished}", "--output=other"], "--resume and --output were both given")
    (tmp_path / "file").write_text("")
    fails(capsys, ["train", f"--output={tmp_path / 'file'}", *OPTIONS], "is a file", "another --output")


def test_two_processes_do_not_train_in_one_folder(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    with fastvae.files.locked(tmp_path / "run/.lock", wait=False) as alone:
        assert alone
        fails(capsys, ["train", f"--resume={tmp_path / 'run'}", "--max-epochs=3"], "another process trains in")
    assert main(["train", f"--resume={tmp_path / 'run'}", "--max-epochs=3"]) == 0


def test_data_that_have_changed_are_neither_trained_on_nor_called_held_out(tmp_path, capsys):
    data = save_images(tmp_path / "x.npz")
    assert train(data, tmp_path / "run") == 0
    for seed, rows in ((1, 50), (0, 60)):
        save_images(data, rows=rows, seed=seed)
        fails(capsys, ["evaluate", tmp_path / "run"], "has changed since", "--data")
        fails(capsys, ["train", f"--resume={tmp_path / 'run'}", "--max-epochs=3"], "changed" if rows == 50 else "rows")
    assert main(["evaluate", str(tmp_path / "run"), f"--data={data}", "--samples=2"]) == 0


def test_labels_of_other_data_are_matched_by_their_names(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--model=cvae") == 0
    with np.load(data) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    numbers = {}
    for name, renamed in (("same", labels), ("others", np.where(labels == 2, 2, 9))):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=renamed)
    np.savez(tmp_path / "twos.npz", images=images[labels == 2], labels=labels[labels == 2])
    fails(capsys, ["evaluate", tmp_path / "run", f"--data={tmp_path / 'others.npz'}"], "has the label '9'", "0, 1, 2")
    output = tmp_path / "n.json"
    arguments = ["evaluate", str(tmp_path / "run"), f"--data={tmp_path / 'twos.npz'}", "--samples=2", "--rows=1"]
    assert main([*arguments, f"--json={output}"]) == 0
    numbers = json.loads(output.read_text())
    assert numbers["elbo"][1] is None  # one sample has no standard error
    source = load_source(str(tmp_path / "twos.npz"))
    run = read_checkpoint(find_checkpoint(tmp_path / "run"))
    (batch,) = held_out_batches(run, str(tmp_path / "twos.npz"), 1)
    assert batch.condition.tolist() == [2]
    assert source.held_out.labels.max() == 0


@pytest.mark.parametrize("option", ["--likelihood=normal", "--latent-dim=0", "--nonsense=1", "--beta=-1"])
def test_options_that_there_are_not_end_with_status_2(option, capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", option])
    assert left.value.code == 2
    assert option.partition("=")[0].lstrip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--epochs=5", "--max-epochs"), ("--lr", "--learning-rate"), ("--lernin-rate", "--learning-rate"),
     ("--batchsize=3", "--batch-size")],
)  # fmt: skip
def test_the_option_that_was_probably_meant_is_named(option, meant, capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", option, "5"])
    assert left.value.code == 2
    name = option.partition("=")[0]
    assert f"there is no option {name}, did you mean {meant}?" in capsys.readouterr().err


def test_the_quality_of_a_resumed_run_is_refused(finished, capsys):
    fails(capsys, ["train", f"--resume={finished}", "--quality=best"], "--quality", "--max-epochs")


def test_a_conditional_model_needs_labels(tmp_path, capsys):
    data = save_images(tmp_path / "bare.npy")
    fails(capsys, ["train", f"--data={data}", "--model=cvae", *OPTIONS], "bare.npy has no labels", "subfolder")


@pytest.mark.parametrize(
    ("option", "words"),
    [("--flip=true", "--flip mirrors"), ("--rotate=true", "--rotate turns"), ("--shift=1", "--shift moves")],
)
def test_vectors_are_neither_mirrored_nor_turned_nor_moved(tmp_path, capsys, option, words):
    data = save_images(tmp_path / "x.npy", shape=(6,))
    fails(capsys, ["train", f"--data={data}", option, *OPTIONS], f"{words} images", "(6,)")


def test_images_that_are_not_square_are_not_turned(tmp_path, capsys):
    data = save_images(tmp_path / "x.npy", shape=(3, 4, 6))
    fails(capsys, ["train", f"--data={data}", "--rotate=true", *OPTIONS], "--rotate turns square images", "4x6 pixels")


def test_values_that_the_likelihood_has_no_probability_for_are_refused(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full((50, 4), 7.0))
    fails(capsys, ["train", f"--data={tmp_path / 'x.npy'}", "--likelihood=bernoulli", *OPTIONS], "7", "gaussian")


def test_values_without_a_logarithm_are_refused(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.arange(200.0).reshape(50, 4))
    fails(
        capsys, ["train", f"--data={tmp_path / 'x.npy'}", "--likelihood=log-normal", *OPTIONS], "from 0 on", "above 0"
    )


def test_a_run_is_not_written_over(finished, data, capsys):
    before = (finished / "checkpoints/last.ckpt").read_bytes()
    fails(capsys, ["train", f"--data={data}", f"--output={finished}", *OPTIONS], "--resume", "another --output")
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
    fails(capsys, arguments, "no longer a finite number", "--learning-rate")
    after = saved(tmp_path / "run")
    assert all(torch.isfinite(weight).all() for weight in after["state_dict"].values())
    assert after["global_step"] <= before["global_step"] + 2


def test_a_checkpoint_that_is_cut_off_is_named(finished, tmp_path, capsys):
    whole = (finished / "checkpoints/last.ckpt").read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.ckpt").write_bytes(whole[:length])
        for command in ("evaluate", "sample"):
            fails(capsys, [command, tmp_path / "cut.ckpt"], "cut.ckpt is not a whole checkpoint", "best.ckpt")


def test_a_run_whose_checkpoint_is_cut_off_is_not_resumed(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    fails(capsys, ["train", f"--resume={tmp_path / 'run'}"], "not a whole checkpoint", "best.ckpt")
    assert last.stat().st_size == 1000


def test_a_checkpoint_of_another_model_is_not_resumed(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    arguments = ["train", f"--resume={tmp_path / 'run'}", "--latent-dim=5", "--max-epochs=3"]
    fails(capsys, arguments, "another model", "latent_dim (3,), not (5,)")
    arguments = ["train", f"--resume={tmp_path / 'run'}", "--batch-size=10", "--max-epochs=3"]
    fails(capsys, arguments, "other batches", "40 rows by 20, not 40 rows by 10")
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
    fails(capsys, ["evaluate", tmp_path / "other.ckpt"], "is not a checkpoint of `fastvae train`")
    torch.save({"object": fastvae.info.PACKAGES, "module": torch.nn.Linear(1, 1)}, tmp_path / "other.ckpt")
    fails(capsys, ["sample", tmp_path / "other.ckpt"], "is not a checkpoint of `fastvae train`")
    fails(capsys, ["sample", tmp_path / "none.ckpt"], "none.ckpt does not exist")
    fails(capsys, ["sample", tmp_path], "has no checkpoint")


def test_other_data_must_fit_the_model(finished, tmp_path, capsys):
    other = save_images(tmp_path / "other.npy", shape=(1, 8, 10))
    fails(capsys, ["evaluate", finished, f"--data={other}"], "shape (1, 8, 10)", "(1, 8, 8)")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(finished, device, capsys):
    fails(capsys, ["evaluate", finished, f"--device={device}"], f"--device {device} cannot be used")


def test_sampling_refuses_what_it_cannot_write(finished, tmp_path, capsys):
    fails(capsys, ["sample", finished, "--output=new.jpg"], "new.jpg", ".png or .npy")
    fails(capsys, ["sample", finished, "--label=1"], "trained without labels")
    data = save_images(tmp_path / "x.npz", shape=(6,))
    assert train(data, tmp_path / "run", "--model=cvae") == 0
    fails(capsys, ["sample", tmp_path / "run", "--output=new.png"], "no image", "samples.npy")
    fails(capsys, ["sample", tmp_path / "run", "--label=3", "--output=new.npy"], "expected 0 to 2")


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
