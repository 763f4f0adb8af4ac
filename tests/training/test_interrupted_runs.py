"""Full disks, Ctrl-C and kills: what is on the disk is whole, and a run that is taken up ends as an undisturbed one."""

from __future__ import annotations

import errno
import os

import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("jsonargparse", reason="the extra of training is not installed")

import fastvae.files
from fastvae.__main__ import main
from fastvae.training.saved_run import read_checkpoint

from .runs import (
    OPTIONS,
    fails,
    history,
    largest_difference,
    save_images,
    saved,
    train,
)


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(data, tmp_path, capsys, monkeypatch):
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fastvae.files.os, "fsync", full)
    fails(capsys, ["train", f"--resume={tmp_path / 'run'}", "--max-epochs=9"], "No space left", "Free some space")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before
    assert not list((tmp_path / "run").rglob("*unfinished*"))


def test_a_file_that_cannot_grow_is_told_and_leaves_the_last_checkpoint(data, tmp_path, run_fastvae):
    """A real limit of the system, in a process of its own."""
    assert train(data, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()

    came = run_fastvae(f"""
import resource, signal, sys
from fastvae.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))
sys.exit(main(["train", {f"--resume={tmp_path / 'run'}"!r}, "--max-epochs=9"]))
""")
    assert came.returncode == 1
    assert "File too large" in came.stderr
    assert "Traceback" not in came.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_an_interrupted_run_says_how_to_go_on(data, tmp_path, run_fastvae):
    arguments = ["train", f"--data={data}", f"--output={tmp_path / 'run'}", *OPTIONS, "--max-epochs=100000"]
    came = run_fastvae(f"""
import os, pathlib, signal, sys, threading, time
from fastvae.__main__ import main

def interrupt():
    end = time.monotonic() + 60
    while not pathlib.Path({str(tmp_path / "run/checkpoints/last.ckpt")!r}).exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
threading.Thread(target=interrupt, daemon=True).start()
sys.exit(main({arguments}))
""")
    assert came.returncode == 1
    assert f"fastvae train --resume {tmp_path / 'run'}" in came.stdout + came.stderr
    assert "Traceback" not in came.stdout + came.stderr
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt").step > 0


@pytest.mark.parametrize(
    ("kills", "epochs", "more"),
    [
        (4, 12, ()),
        pytest.param(10, 25, (), marks=pytest.mark.slow),
        pytest.param(4, 25, ("--workers=1",), marks=pytest.mark.slow),
        pytest.param(4, 25, ("--trainer.accumulate_grad_batches=3", "--checkpoint-every=1"), marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path, run_fastvae, kills, epochs, more):
    """SIGKILL at any moment, and every other time while a checkpoint is being written."""
    data = save_images(tmp_path / "dots.npy", rows=500)
    options = [
        f"--max-epochs={epochs}", "--checkpoint-every=3", "--batch-size=50", *OPTIONS[:2], *OPTIONS[4:],
        f"--data={data}", *more,
    ]  # fmt: skip
    assert main(["train", f"--output={tmp_path / 'whole'}", *options]) == 0
    came = run_fastvae(f"""
import pathlib
from tests.training import killed_runs
killed_runs.run(pathlib.Path({str(tmp_path / "killed")!r}), 0, {kills}, {options})
""")
    assert came.returncode == 0, came.stdout + came.stderr
    assert f"{kills} killed" in came.stdout
    whole, killed = saved(tmp_path / "whole"), saved(tmp_path / "killed")
    assert whole["global_step"] == killed["global_step"] == epochs * (3 if "accumulate" in str(more) else 8)
    assert largest_difference(whole, killed) == 0.0
    assert history(tmp_path / "whole") == history(tmp_path / "killed")
    for name in ("exp_avg", "exp_avg_sq"):
        states = [one["optimizer_states"][0]["state"] for one in (whole, killed)]
        assert all(torch.equal(states[0][place][name], states[1][place][name]) for place in states[0])
