"""The benchmark of likelihoods: all contenders agree, wrong ones are refused, and what its tables say."""

from __future__ import annotations

import pytest
import torch

from bench import __main__ as runner
from bench import agreement, contenders, likelihoods, records, tables
from bench.agreement import Disagreement
from bench.cases import LIKELIHOODS, Case
from bench.measure import make_step, measure
from bench.timing import Plan

CPU = torch.device("cpu")
SMALL = [Case(op, (3, 3, 4, 5) if op == "mixture" else (6, 8), zeros=0.5) for op in LIKELIHOODS]


def functions_of(case):
    return {name: contenders.make(case, name, CPU) for name in contenders.contender_names(case, CPU)}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_contenders_agree_and_fastvae_keeps_nothing(case):
    tensors = case.tensors(CPU)
    functions = functions_of(case)
    assert {"eager", "fastvae"} <= set(functions)
    agreement.refuse_disagreement(case, functions, tensors)
    # With a mask, copies of x and the parameters, and whether anything of a row was observed.
    kept = 3 * case.array_bytes + case.shape[0] if LIKELIHOODS[case.op].masked else 0
    assert make_step(case, "fastvae", tensors).saved_bytes() == kept
    if case.op != "bernoulli":  # binary_cross_entropy_with_logits keeps nothing either
        assert make_step(case, "eager", tensors).saved_bytes() > 0


@pytest.mark.parametrize("wrong", [lambda log_prob: log_prob * 1.001, lambda log_prob: log_prob * float("nan")])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_wrong_contender_is_refused_by_name(case, wrong):
    right = functions_of(case)["fastvae"]
    with pytest.raises(Disagreement, match=rf"^{case.op} .*, 50% zeros, fastvae: log_prob\[0\] is"):
        agreement.refuse_disagreement(case, {"fastvae": lambda *given: wrong(right(*given))}, case.tensors(CPU))


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in SMALL for name in LIKELIHOODS[case.op].differentiable]
)
def test_a_wrong_gradient_of_any_parameter_is_refused(case, name):
    right, place = functions_of(case)["fastvae"], list(LIKELIHOODS[case.op].inputs).index(name)

    def steeper(*given):
        parameter = given[place]
        return right(*given) + 1e-3 * (parameter - parameter.detach()).sum()  # the same value, another gradient

    with pytest.raises(Disagreement, match=rf"fastvae: grad_{name}\["):
        agreement.refuse_disagreement(case, {"fastvae": steeper}, case.tensors(CPU))


@pytest.mark.parametrize("zeros", [0.9, 0.5])
def test_counts_have_the_share_of_zeros_that_was_asked_for(zeros):
    x = Case("negative_binomial", (200, 300), zeros=zeros).tensors(CPU).inputs["x"]
    assert (x == 0).float().mean().item() == pytest.approx(zeros, abs=0.02)


def test_the_tables_have_a_row_for_each_measurement():
    case = Case("negative_binomial", (6, 8), zeros=0.5)
    found = measure(case, contenders.contender_names(case, CPU), CPU, directions=["both"], timed=Plan(1, 1, 0))
    section = {"rows": [timing.row() for timing in found]}
    assert {row["saved_bytes"] for row in section["rows"] if row["contender"] == "fastvae"} == {0}
    header, _, line = tables.likelihoods(section).splitlines()
    assert header.split(" | ")[2:5] == ["fastvae", "eager", "fastvae reference"]
    assert header.endswith("| kept for backward, fastvae | kept for backward, eager |")
    kept = {timing.contender: tables.size(timing.saved_bytes) for timing in found}
    assert line.startswith("| negative binomial | 6x8, 50% zeros | ")
    assert line.count(" ns, x") == 3
    assert line.endswith(f" | {kept['fastvae']} | {kept['eager']} |")


def test_the_command_writes_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(likelihoods, "LIKELIHOOD_SUITE", SMALL[:2])
    monkeypatch.setattr(likelihoods, "measure", lambda *a, **k: measure(*a, **k, timed=Plan(1, 1, 0)))
    assert runner.main(["likelihoods", "--results", str(tmp_path)]) == 0
    rows = records.load(tmp_path / records.FILE)["likelihoods"]["rows"]
    assert {(row["op"], row["zeros"], row["direction"]) for row in rows} == {
        (case.op, 0.5, "both") for case in SMALL[:2]
    }
    assert capsys.readouterr().out.count("| both | eager | ") == 2


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        likelihoods.main(["weibull"])
    assert "argument NAME: 'weibull', expected some of bernoulli" in capsys.readouterr().err


def test_torchs_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    measure(Case("bernoulli", (4, 5)), ["eager", "fastvae"], CPU, timed=Plan(1, 1, 0))
    assert torch.equal(before, torch.get_rng_state())
