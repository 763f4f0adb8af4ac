"""Random invalid calls: one argument of a valid call replaced, which the ValueError or TypeError must name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae
from fastvae import likelihoods

from .tensors import LONG, SHORT

NOT_A_NUMBER = st.sampled_from(["1", None, [1.0], (), {}, float("nan"), object(), 1j])
WRONG: dict[str, Any] = {
    "mu": st.sampled_from([None, 1.0, [[0.0]], "mu", torch.zeros(2, 3, dtype=torch.int64), torch.zeros(())]),
    "logvar": st.sampled_from(
        [
            None,
            "x",
            [[0.0]],
            torch.zeros(2, 4),
            torch.zeros(2),
            torch.zeros(2, 3, dtype=torch.float16),
            torch.ones(2, 3) > 0,
        ]
    ),
    "prior_mu": st.sampled_from(["x", [0.0], torch.zeros(2, 5), torch.zeros(7, 2, 3), torch.zeros(2, 3).long()]),
    "seed": st.sampled_from(["7", 0.5, -(2**70), [1], torch.zeros(1), torch.zeros(2, dtype=torch.int64)]),
    "row_offset": st.sampled_from([-1, 0.5, "0", None, 2**70]),
    "num_samples": st.sampled_from([0, -1, 1.5, "2", [1]]),
    "temperature": st.one_of(NOT_A_NUMBER, st.sampled_from([-1.0, float("inf")])),
    "reduction": st.sampled_from(["mean", "", 1, ["sum"], "SUM", b"sum"]),
    "scale": st.sampled_from(["sigma", "", 3, None, ["std"]]),
    "clamp": st.sampled_from([1.0, "x", (1.0,), (2.0, 1.0), (None, None), (0.0, float("nan"))]),
    "soft_clamp": st.sampled_from([0.0, -1.0, "x", float("nan"), (1.0, 2.0)]),
    "free_bits": st.sampled_from([-1.0, "x", float("nan"), [0.1]]),
}
WRONG_LIKELIHOOD: dict[str, Any] = {
    "logits": st.sampled_from([None, 1.0, "x", torch.zeros(2, 3).long(), torch.zeros(2, 4)]),
    "x": st.sampled_from([None, 1.0, "x", torch.zeros(3, 2), torch.zeros(2, 3) * 1j]),
    "reduction": WRONG["reduction"],
    "mask": st.sampled_from([1, "x", torch.ones(2, 3), torch.ones(5, 3, dtype=torch.bool)]),
}


def expect_error(function: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**arguments)
    words = {"logvar": ("logvar", "scale"), "x": ("x ", "x,", "data"), "logits": ("logits", "x")}.get(name, (name,))
    assert any(word in str(caught.value) for word in words), f"{name} is not in: {caught.value}"


@st.composite
def invalid_latents(draw) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(WRONG)))
    arguments: dict[str, Any] = {"mu": torch.zeros(2, 3), "logvar": torch.zeros(2, 3), "seed": 0}
    if name == "prior_mu":
        arguments["prior_logvar"] = torch.zeros(2, 3)
    return name, arguments | {name: draw(WRONG[name])}


@st.composite
def invalid_likelihoods(draw) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(WRONG_LIKELIHOOD)))
    return name, {"logits": torch.zeros(2, 3), "x": torch.zeros(2, 3)} | {name: draw(WRONG_LIKELIHOOD[name])}


@SHORT
@given(call=invalid_latents())
def test_an_invalid_argument_of_a_latent_is_named(call):
    name, arguments = call
    expect_error(fastvae.sample_and_kl, arguments, name)


@SHORT
@given(call=invalid_likelihoods())
def test_an_invalid_argument_of_a_likelihood_is_named(call):
    name, arguments = call
    expect_error(likelihoods.bernoulli_log_prob, arguments, name)


@pytest.mark.slow
@LONG
@given(latent=invalid_latents(), likelihood=invalid_likelihoods())
def test_many_invalid_arguments_are_named(latent, likelihood):
    expect_error(fastvae.sample_and_kl, latent[1], latent[0])
    expect_error(likelihoods.bernoulli_log_prob, likelihood[1], likelihood[0])
