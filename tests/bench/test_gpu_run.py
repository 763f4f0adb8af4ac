"""A whole run of the GPU benchmark: its training step and graphs, its time, what it leaves, and `make gpu`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvae
from bench import contenders, gpu, gpu_training, stub_driver
from bench.agreement import Disagreement
from fastvae.nn import posterior

from .test_gpu import MACHINE, ScriptedMeter, latent, measured

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(gpu, "LARGE_COPY_BYTES", 2_000_000)


def test_a_training_step_and_a_graph_with_a_wrong_kl_are_refused(monkeypatch):
    case, right = latent(8, 4), fastvae.sample_and_kl
    rows = {
        "fastvae: kl is off": lambda: gpu_training.training_rows(4, ScriptedMeter()),
        "fastvae: kl": lambda: gpu_training.graph_rows(case, ScriptedMeter()),
    }
    for rows_of in rows.values():
        assert list(rows_of())

    def wrong(*arguments, **options):
        z, kl = right(*arguments, **options)
        return z, 0.5 * kl

    monkeypatch.setitem(contenders._FASTVAE, "sample_and_kl", wrong)
    monkeypatch.setattr(
        posterior, "sample_and_kl_packed", lambda moments, *prior, **o: wrong(*moments.chunk(2, 1), **o)
    )
    monkeypatch.setattr(posterior, "sample_and_kl", wrong)
    for message, rows_of in rows.items():
        with pytest.raises(Disagreement, match=message):
            next(rows_of())


def test_a_graph_that_replays_one_draw_is_refused(monkeypatch):
    monkeypatch.setattr(ScriptedMeter, "graph", lambda self, run: (lambda: None, run()))
    torch.manual_seed(1)
    with pytest.raises(Disagreement, match=r"is not that of the call|draws the same z"):
        next(gpu_training.graph_rows(latent(8, 4), ScriptedMeter()))


def test_no_case_is_begun_when_the_time_is_up(capsys):
    now = iter((0.0, 1.0, 2.0, 3.0))
    until = gpu.Time(2.5, lambda: next(now))
    rows = list(gpu.measure_all([latent(8, 4), latent(8, 5), latent(8, 6)], ScriptedMeter(), 1, until))
    assert {row["latent"] for row in rows} == {4, 5}
    assert "sample_and_kl 8x6 float32: left out, the time is up" in capsys.readouterr().out


def test_a_run_that_is_cut_off_leaves_its_rows(tmp_path):
    report = gpu.Report(tmp_path / "new" / "gpu.md", MACHINE)

    def rows():
        yield {"case": "one"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.table("Latents", {"case": lambda row: row["case"]}, rows())
    assert (tmp_path / "new" / "gpu.md").read_text().endswith("## Latents\n\n| case |\n| --- |\n| one |\n")


def test_without_torch_compile_the_others_are_measured(monkeypatch, capsys):
    def fail(function, **options):
        raise RuntimeError("no compiler\nlong explanation")

    monkeypatch.setattr(torch, "compile", fail)
    gpu._why_not_compiled.cache_clear()
    rows = measured([latent(8, 4)])
    gpu._why_not_compiled.cache_clear()
    assert {row["contender"] for row in rows} == {"fastvae", "eager"}
    assert "without torch.compile, which fails on this machine: RuntimeError: no compiler\n" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_gpu_needs_no_network_and_measures_after_failed_tests_too():
    command = ["make", "--dry-run", "gpu", "PYTHON=some/python", "RESULTS=there"]
    # Below another make, it would say which folder it enters.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    install, info, both = result.stdout.replace("\\\n", "").splitlines()
    tests, bench = both.split("|| tests=$?;")
    assert install.startswith("some/python -m pip install")
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(install.split())
    assert info == "some/python -m fastvae info"
    assert "some/python -m pytest -m " in tests
    assert bench.endswith("some/python -m bench gpu --seconds 220 --results there && exit $tests")
    seconds = [int(number) for number in re.findall(r"timeout (?:--\S+ \S+ )*(\d+)", tests + bench)]
    assert len(seconds) == 2
    assert sum(seconds) < 9 * 60 - 20


@pytest.mark.slow
@pytest.mark.skipif(stub_driver.compiler() is None, reason="there is no C compiler")
def test_with_a_stub_driver_in_place_of_a_gpu_everything_runs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.bench.stub_gpu", "--rounds", "1", "--results", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr + result.stdout
    assert int(re.search(r"(\d+) launches of \d+ kernels", result.stdout)[1]) > 500
    assert (tmp_path / "gpu-stub.md").read_text().count("\n| ") > 80
