"""The benchmark of likelihoods: every contender right, wrong ones refused, what its tables say."""

from __future__ import annotations

import pytest
import torch

from bench import likelihoods, tables
from bench.gpu_checks import Disagreement
from bench.likelihoods import CONTENDERS, LIKELIHOODS, Case, Step, make_step

SMALL = [Case(name, (3, 3, 4, 5) if name == "mixture" else (6, 8), 0.5) for name in LIKELIHOODS]


def steps_of(case):
    x, parameters = case.tensors()
    return {name: make_step(case, name, x, parameters) for name in CONTENDERS}, x


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_contenders_agree_and_fastvae_keeps_nothing(case):
    steps, x = steps_of(case)
    likelihoods.refuse_disagreement(case, steps, x)
    assert likelihoods.kept_bytes(steps["fastvae"], x) == 0
    if case.name != "bernoulli":  # binary_cross_entropy_with_logits keeps nothing either
        assert likelihoods.kept_bytes(steps["eager"], x) > 0


@pytest.mark.parametrize("wrong", [lambda log_prob: log_prob * 1.001, lambda log_prob: log_prob * float("nan")])
def test_a_wrong_contender_is_refused_by_name(wrong):
    case = SMALL[0]
    steps, x = steps_of(case)
    right = steps["fastvae"]
    steps["fastvae"] = Step(lambda *given: wrong(right.function(*given)), right.arguments)
    with pytest.raises(Disagreement, match=r"bernoulli 6x8, 50% zeros, fastvae: log p is off by"):
        likelihoods.refuse_disagreement(case, steps, x)


def test_a_wrong_gradient_is_refused():
    case = SMALL[2]
    steps, x = steps_of(case)
    right = steps["fastvae"]
    steps["fastvae"] = Step(lambda mean, logvar: right.function(mean, logvar.detach() + 0 * logvar), right.arguments)
    with pytest.raises(Disagreement, match="the gradient of parameter 2"):
        likelihoods.refuse_disagreement(case, steps, x)


@pytest.mark.parametrize("zeros", [0.9, 0.5])
def test_counts_have_the_share_of_zeros_that_was_asked_for(zeros):
    x, _ = Case("negative_binomial", (200, 300), zeros).tensors()
    assert (x == 0).float().mean().item() == pytest.approx(zeros, abs=0.02)


def test_the_tables_have_a_row_for_each_measurement():
    row = likelihoods.measure(Case("negative_binomial", (6, 8), 0.5), budget=0.01)
    assert row["saved_bytes"]["fastvae"] == 0
    full = tables.likelihoods({"rows": [row]})
    assert "| negative_binomial" in full
    short = tables.short_likelihoods({"rows": [row]})
    assert f"| negative binomial | 6x8, {row['zeros']:.0%} zeros |" in short
    assert "poisson" not in tables.short_likelihoods({"rows": [row | {"likelihood": "poisson"}]})


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        likelihoods.main(["weibull"])
    assert "NAME is 'weibull', expected some of bernoulli" in capsys.readouterr().err


def test_torchs_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    likelihoods.measure(Case("bernoulli", (4, 5)), budget=0.01)
    assert torch.equal(before, torch.get_rng_state())
