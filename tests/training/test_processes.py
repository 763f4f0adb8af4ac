"""Training in several processes: the same run as in one, up to rounding, whatever the last batch has left for each."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("jsonargparse", reason="the extra of training is not installed")

from .runs import OPTIONS, history, largest_difference, save_images, saved, train

# 400 rows to train on: the last batch of an epoch has one row, and 2 or 3 processes to share it. The capacity makes the
# loss depend on the mean over the whole batch in a way that no mean of parts can stand for.
ROWS, SPLIT = 500, ("--batch-size=57", "--capacity=1.5", "--beta=4", "--max-epochs=3", "--learning-rate=0.01")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("data") / "dots.npz", rows=ROWS)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "alone"
    assert train(data, output, *SPLIT) == 0
    return output


@pytest.fixture
def train_in_processes(run_fastvae, data, tmp_path) -> Callable[..., CompletedProcess[str]]:
    """`fastvae train` as the script that pip installs, which Lightning starts again for every further process."""
    script = tmp_path / "fastvae"
    script.write_text("import sys\nfrom fastvae.__main__ import main\nsys.exit(main())\n")

    def train(number, output, *options):
        where = () if any(option.startswith("--resume") for option in options) else (f"--output={output}",)
        arguments = [
            *(str(script), "train", f"--data={data}", *where, *OPTIONS, *options),
            *(f"--devices={number}", "--strategy=ddp"),
        ]
        return run_fastvae(
            f"import os, sys; sys.argv[:] = {arguments}\n"
            "for name in [name for name in os.environ if name.startswith('PYTEST')]: del os.environ[name]\n"
            "from fastvae.__main__ import main; sys.exit(main())",
            OMP_NUM_THREADS="1",
        )

    return train


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_in_several_processes_is_that_in_one(number, train_in_processes, alone, tmp_path):
    came = train_in_processes(number, tmp_path / "together", *SPLIT)
    assert came.returncode == 0, came.stdout + came.stderr
    assert came.stdout.count("to train on") == 1
    assert largest_difference(saved(alone), saved(tmp_path / "together")) < 1e-4
    one, other = history(alone), history(tmp_path / "together")
    assert len(one) == len(other) == 3
    for expected, row in zip(one, other, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    kl_before_and_after_the_capacity = [row["val_kl"] for row in one]
    assert min(kl_before_and_after_the_capacity) < 1.5


@pytest.mark.slow
def test_a_run_on_importance_weights_is_taken_up_by_more_processes(data, train_in_processes, tmp_path):
    options = ("--model=iwae", "--iwae-samples=3", "--batch-size=57", "--schedule=constant")
    assert train(data, tmp_path / "alone", *options, "--max-epochs=2") == 0
    assert train(data, tmp_path / "together", *options, "--max-epochs=1") == 0
    came = train_in_processes(2, tmp_path / "together", *options, f"--resume={tmp_path / 'together'}")
    assert came.returncode == 0, came.stdout + came.stderr
    assert largest_difference(saved(tmp_path / "alone"), saved(tmp_path / "together")) < 1e-4
    for expected, row in zip(history(tmp_path / "alone"), history(tmp_path / "together"), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_what_goes_wrong_in_several_processes_ends_all_of_them(train_in_processes, tmp_path):
    options = ("--likelihood=gaussian", "--learning-rate=1e30", "--schedule=constant", "--max-epochs=5")
    came = train_in_processes(2, tmp_path / "run", *options)
    assert came.returncode == 1
    assert "fastvae train: error: the loss is no longer a finite number" in came.stderr
    assert "Traceback" not in came.stderr
    assert not list((tmp_path / "run").rglob("*.ckpt"))
