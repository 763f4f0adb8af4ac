"""Random latents: every parameterisation, prior, clamp, reduction, number of draws, layout and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae
from tests.conftest import skip_without_triton

from . import formulas
from .tensors import (
    EXECUTED,
    FLOATS,
    INTERPRETED,
    LAYOUTS,
    LONG,
    SHORT,
    as_array,
    assert_near,
    laid_out,
    reduced,
    shapes,
    spread,
    summed_to,
)


@st.composite
def latents(draw, floats: tuple[torch.dtype, ...] = FLOATS) -> dict[str, Any]:
    options: dict[str, Any] = {"scale": draw(st.sampled_from(("logvar", "logstd", "std", "var", "softplus")))}
    if options["scale"] == "softplus" and draw(st.booleans()):
        options["floor"] = draw(st.sampled_from([1e-4, 0.5]))
    prior = draw(st.sampled_from(["", "full", "shared", "one"]))
    clamp = draw(st.sampled_from(["", "", "clamp", "soft_clamp"]))
    if clamp == "clamp":
        options["clamp"] = (0.5, 1.5)
    elif clamp and options["scale"] in ("logvar", "logstd"):
        options["soft_clamp"] = draw(st.sampled_from([0.5, 2.0]))
    if prior and options["scale"] in ("logvar", "logstd"):
        options["residual"] = draw(st.booleans())
    if draw(st.booleans()):
        options["num_samples"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        options["temperature"] = draw(st.sampled_from([0.3, 2.0]))
    return {
        "options": options,
        "prior": prior,
        "shape": draw(shapes),
        "dtype": draw(st.sampled_from(floats)),
        "layouts": [draw(st.sampled_from(LAYOUTS)) for _ in range(4)],
        "reduction": draw(st.sampled_from(["none", "sample", "sum", "batchmean"])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "row_offset": draw(st.sampled_from([0, 5, 2**32 - 1])),
    }


def inputs_of(case: dict[str, Any]) -> list[torch.Tensor]:
    random, shape = np.random.default_rng(case["seed"]), case["shape"]
    sizes = {"": (), "full": (shape,) * 2, "shared": ((1, *shape[1:]),) * 2, "one": ((1,) * len(shape),) * 2}
    found = []
    for index, size in enumerate((shape, shape, *sizes[case["prior"]])):
        values = random.normal(size=size) * random.choice([0.1, 1.0, 2.0])
        if index % 2 and case["options"]["scale"] in ("std", "var"):
            values = np.exp(0.7 * values)
        found.append(laid_out(values, case["dtype"], case["layouts"][index]).requires_grad_())
    return found


def check(backend: str, case: dict[str, Any]) -> None:
    if case["dtype"] == torch.float64 and backend != "reference":
        backend = "reference"
    options, shape, reduction = case["options"], case["shape"], case["reduction"]
    inputs = inputs_of(case)
    common = {"seed": case["seed"], "row_offset": case["row_offset"], **options}
    draws = options.get("num_samples") or 1
    with fastvae.use_backend(backend):
        z, kl = fastvae.sample_and_kl(*inputs, reduction=reduction, **common)
        same_z, log_q, log_p = fastvae.sample_and_log_prob(*inputs, **common)
        wide = torch.float64 if case["dtype"] == torch.float64 else torch.float32
        eps = [
            fastvae.noise(case["seed"], shape, row_offset=case["row_offset"], draw=k, dtype=wide) for k in range(draws)
        ]
    assert torch.equal(z, same_z)
    random = np.random.default_rng(case["seed"] + 1)
    grads = [laid_out(random.normal(size=one.shape), one.dtype, "dense") for one in (z, kl, log_q, log_p)]
    widened = [np.broadcast_to(as_array(one), shape) for one in inputs]
    noise = np.stack([as_array(one) for one in eps])
    zero = np.zeros((draws, *shape))
    for of_log_probs in (False, True):
        of_z = as_array(grads[0]).reshape(zero.shape)
        of_rows = [as_array(one).reshape(draws, shape[0], *[1] * (len(shape) - 1)) + zero for one in grads[2:]]
        of_kl = spread(as_array(grads[1]), shape, reduction)
        given_grads = (of_z, 0 * of_kl, *of_rows) if of_log_probs else (of_z, of_kl, zero, zero)
        exact = formulas.latent(widened, noise, given_grads, options)
        outputs = (same_z, log_q, log_p) if of_log_probs else (z, kl)
        of_outputs = (grads[0], *grads[2:]) if of_log_probs else grads[:2]
        came = torch.autograd.grad(outputs, inputs, of_outputs, allow_unused=True)
        names = ("mu", "scale", "prior_mu", "prior_scale")
        for name, one, given_input, right, size in zip(names, came, inputs, exact.gradients, exact.sizes, strict=False):
            target = tuple(given_input.shape)
            assert_near(f"gradient of {name}", one, summed_to(right, target), summed_to(size, target))
    mu_size = np.abs(exact.z) + np.abs(widened[0]) + 3  # of the terms
    assert_near("z", z.reshape(zero.shape), exact.z, mu_size)
    kl_size = 2 + np.abs(exact.kl) + np.square(widened[1])
    assert_near("kl", kl, reduced(exact.kl, reduction), reduced(kl_size, reduction))
    for name, one, each in (("log_q", log_q, exact.log_q), ("log_p", log_p, exact.log_p)):
        rows = each.reshape(draws, shape[0], -1)
        assert_near(name, one.reshape(draws, -1), rows.sum(2), 3 * (1 + np.abs(rows)).sum(2))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@SHORT
@given(case=latents())
def test_random_latents_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@LONG
@given(case=latents())
def test_many_random_latents_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@INTERPRETED
@given(case=latents(EXECUTED))
def test_many_random_latents_are_right_in_triton(case):
    skip_without_triton()
    check("triton", case)
