"""The commands of the benchmarks: arguments, what they print and what they write."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
import torch

from bench import __main__ as runner
from bench import cases, contenders, cpu, measure, records, scaling, training
from bench.cases import Case
from bench.timing import Plan
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder

from .test_suite import names_of, slightly_wrong

pytestmark = pytest.mark.usefixtures("without_compiler")


def test_shapes_are_read_from_the_command_line():
    assert cases.parse_shape("16x4x64x64") == (16, 4, 64, 64)
    for wrong in ("16", "0x4", "ax4", "4x-1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"shape is {wrong!r}, expected"):
            cases.parse_shape(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["4096"], "shape is '4096', expected"),
        (["4x6", "--contenders", "fastvae,jax"], "--contenders is 'jax', expected some of eager, fastvae"),
        (["4x6", "--op", "kl"], "argument --op: invalid choice: 'kl'"),
        (["4x6", "--results", "x"], "--results is for the whole suite on the CPU"),
        (["--device", "cuda", "--results", "x"], "--results is for the whole suite on the CPU"),
        (["4x6", "--device", "tpu0"], "argument --device"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cpu.parse(arguments)
    assert message in capsys.readouterr().err


def test_the_quick_command_has_the_shapes_of_the_suite():
    assert [case.shape for case in cpu.parse(["--op", "iwae_50"]).cases] == [cases.IWAE]
    assert [case.shape for case in cpu.parse(["--op", "gaussian_kl_two"]).cases] == [cases.MEDIUM, cases.IMAGE]
    assert [case.shape for case in cpu.parse(["4x6", "--op", "iwae_50"]).cases] == [(4, 6)]


def test_the_quick_command_prints_each_contender(capsys, monkeypatch):
    monkeypatch.setattr(cpu, "measure", lambda *a, **k: measure.measure(*a, timed=Plan(1, 1, 0), **k))
    cpu.main(["4x6", "--op", "gaussian_kl", "--contenders", "fastvae"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:4:2] for line in lines[4:]] == [
        [direction, name] for direction in cases.DIRECTIONS for name in ("eager", "fastvae")
    ]


def test_the_quick_command_refuses_a_wrong_result(capsys, monkeypatch):
    right = contenders.make
    monkeypatch.setattr(contenders, "make", lambda *a: slightly_wrong(right(*a), 1))
    assert runner.main(["cpu", "4x6", "--contenders", "fastvae"]) == 1
    said = capsys.readouterr()
    assert "bench cpu: nothing was written, a result is wrong: sample_and_kl 4x6 float32, eager: kl" in said.err
    assert said.out.splitlines()[-1].startswith("| ---"), "no time"


def saved(folder: Path, section: str) -> list[dict]:
    return records.load(folder / records.FILE)[section]["rows"]


def test_the_suite_writes_a_row_for_each_direction_and_contender(tmp_path, monkeypatch, capsys):
    small = (Case("sample_and_kl", (4, 6)), Case("noise", (4, 6), "bfloat16"))
    monkeypatch.setattr(cpu, "SUITE", small)
    monkeypatch.setattr(cpu, "measure", lambda *a, **k: measure.measure(*a, timed=Plan(3, 2, 0), **k))
    monkeypatch.setattr(cpu, "peak_bytes", lambda case, name: 5000)
    assert runner.main(["cpu", "--results", str(tmp_path)]) == 0
    rows = saved(tmp_path, "cpu")
    assert [(row["op"], row["direction"], row["contender"]) for row in rows] == [
        (case.op, direction, name) for case in small for direction in case.directions for name in names_of(case)
    ]
    both = next(row for row in rows if (row["direction"], row["contender"]) == ("both", "fastvae"))
    assert (both["shape"], both["dtype"], both["rounds"], both["saved_bytes"]) == ("4x6", "float32", 3, 8)
    assert both["peak_bytes"] == 5000
    assert both["seconds"] > 0
    assert both["speed_against_eager"] > 0
    assert {row["peak_bytes"] for row in rows if row["direction"] != "both"} == {None}
    machine_of_it = records.load(tmp_path / records.FILE)["cpu"]["machine"]
    assert machine_of_it["left_out"]["torch.compile"] == "left out of this test"


def test_a_section_is_replaced_and_the_others_are_kept(tmp_path):
    records.save(tmp_path, "training", [{"batch": 1, "seconds": {"eager": 0.123456789}}])
    records.save(tmp_path, "scaling", [{"elements": 1}])
    records.save(tmp_path, "scaling", [{"elements": 2}, {"elements": 3, "other_load": 0.5}])
    assert saved(tmp_path, "training") == [{"batch": 1, "seconds": {"eager": 0.12346}}]
    assert saved(tmp_path, "scaling") == [{"elements": 2, "other_load": None}, {"elements": 3, "other_load": 0.5}]
    lines = (tmp_path / records.FILE).read_text().splitlines()
    assert "[2, null]," in lines, "a line for each row"


def test_every_command_is_there_and_unknown_ones_are_refused(capsys):
    assert runner.main([]) == 0
    listed = capsys.readouterr().out
    for command, (module, about) in runner.COMMANDS.items():
        assert f"  {command}" in listed
        assert about in listed
        if command != "host":
            assert callable(importlib.import_module(module).main)
    assert runner.main(["gqu"]) == 2
    assert "COMMAND is 'gqu', expected one of cpu, likelihoods, " in capsys.readouterr().err


def test_scaling_writes_its_points(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "plan", lambda *_a, **_k: Plan(1, 1, 0))
    scaling.main(["--results", str(tmp_path), "--largest", "1000"])
    points = saved(tmp_path, "scaling")
    assert [point["elements"] for point in points] == [100, 300, 1000]
    assert set(points[0]["seconds"]) == {"eager", "fastvae", "copy"}
    with pytest.raises(SystemExit):
        scaling.main(["--largest", "10"])
    assert "--largest is 10, expected 100 or more" in capsys.readouterr().err


def test_scaling_stops_where_memory_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "plan", lambda *_a, **_k: Plan(1, 1, 0))
    monkeypatch.setattr(scaling, "free_bytes", lambda: 50_000)
    scaling.main(["--results", str(tmp_path)])
    assert "1,000 elements: left out" in capsys.readouterr().out
    assert len(saved(tmp_path, "scaling")) == 2


def test_the_training_step_is_measured_with_its_latent_op(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "plan", lambda *_a, **_k: Plan(1, 1, 0))
    training.main(["--batch", "4", "--results", str(tmp_path)])
    (row,) = saved(tmp_path, "training")
    assert row["batch"] == 4
    for name in training.CONTENDERS:
        share = row["latent_seconds"][name] / row["step_seconds"][name]
        assert row["latent_share"][name] == pytest.approx(share, abs=1e-4)
    assert "\n| 4" in capsys.readouterr().out


def test_a_training_step_trains_both_models_from_the_same_start():
    vae = VAE(MLPEncoder(784, 8, 2), MLPDecoder(2, 8, 784), Bernoulli())
    before = [parameter.clone() for parameter in vae.parameters()]
    steps = training.training_steps(vae, torch.rand(4, 784).round())
    assert list(steps) == ["eager", "fastvae"]
    for step in steps.values():
        step()
    for parameter, kept in zip(vae.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
