"""Random likelihoods: every kind, shared parameters, reductions, layouts and dtypes, and large counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae
from fastvae import likelihoods
from fastvae.kernels.likelihood_spec import COUNTS, KINDS, MIXTURE

from . import formulas
from .tensors import FLOATS, LAYOUTS, LONG, SHORT, as_array, assert_near, laid_out, reduced, shapes, spread, summed_to

ELEMENTWISE = sorted(set(KINDS) - {"scaled_bernoulli", MIXTURE})


@st.composite
def calls(draw) -> dict[str, Any]:
    kind = draw(st.sampled_from(ELEMENTWISE))
    integers = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return {
        "kind": kind,
        "clamp": draw(st.sampled_from([None, (-1.0, 0.5)])) if kind in ("gaussian", "laplace") else None,
        "sharing": ["full"] + [draw(st.sampled_from(["full", "shared", "one"])) for _ in range(2)],
        "shape": draw(shapes),
        "dtypes": [draw(st.sampled_from(FLOATS)) for _ in range(3)],
        "x_dtype": draw(st.sampled_from(FLOATS[:1] + FLOATS[3:] + (integers if kind in COUNTS else ()))),
        "layouts": [draw(st.sampled_from(LAYOUTS)) for _ in range(4)],
        "reduction": draw(st.sampled_from(["none", "sample", "sum", "batchmean"])),
        "largest": draw(st.sampled_from([3.0, 30.0, 200.0, 1e4, 2.0**24])),
        "seed": draw(st.integers(0, 2**32)),
    }


def tensors_of(case: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    random, shape, kind = np.random.default_rng(case["seed"]), case["shape"], case["kind"]
    sizes = {"full": shape, "shared": (1, *shape[1:]), "one": (1,) * len(shape)}
    values = [random.normal(size=sizes[name]) for name in case["sharing"][: KINDS[kind].parameters]]
    x = random.random(shape) if "bernoulli" in kind else random.normal(size=shape)
    if kind in COUNTS:
        most = min(
            case["largest"], 200.0 if case["x_dtype"] == torch.uint8 else 3e4 if case["x_dtype"] == torch.int16 else 1e9
        )
        scale = np.exp(random.uniform(-2.0, np.log(most), size=shape))
        x = np.minimum(random.poisson(scale) * random.integers(0, 2, size=shape), most)
        if kind == "poisson":
            values[0] = np.log(scale) + random.choice([0.0, 0.1, 1.0]) * values[0]
        else:
            values[0] = scale * np.exp(random.choice([0.0, 0.1, 1.0]) * values[0])
            values[1] = np.exp(random.choice([1.0, 5.0]) * values[1])
    parameters = [
        laid_out(value, dtype, layout).requires_grad_()
        for value, dtype, layout in zip(values, case["dtypes"], case["layouts"], strict=False)
    ]
    return laid_out(x, case["x_dtype"], case["layouts"][3]), parameters


def check(backend: str, case: dict[str, Any]) -> None:
    x, parameters = tensors_of(case)
    if any(one.dtype == torch.float64 for one in (x, *parameters)):
        backend = "reference"
    shape, reduction, kind = case["shape"], case["reduction"], case["kind"]
    options = {"clamp": case["clamp"]} if case["clamp"] else {}
    if not all(one.isfinite().all() for one in parameters):
        return  # a mean or theta beyond float16
    exact = formulas.likelihood(
        kind, as_array(x), [np.broadcast_to(as_array(one), shape) for one in parameters], case["clamp"]
    )
    with fastvae.use_backend(backend):
        log_prob = getattr(likelihoods, f"{kind}_log_prob")(*parameters, x, reduction=reduction, **options)
    grad = laid_out(np.random.default_rng(case["seed"] + 1).normal(size=log_prob.shape), log_prob.dtype, "dense")
    gradients = torch.autograd.grad(log_prob, parameters, grad)
    assert_near("log p", log_prob, reduced(exact.log_prob, reduction), reduced(exact.size, reduction))
    each = spread(as_array(grad), shape, reduction)
    for index, (one, parameter) in enumerate(zip(gradients, parameters, strict=True)):
        target = tuple(parameter.shape)
        right, size = (
            summed_to(one, target) for one in (each * exact.slopes[index], np.abs(each) * exact.slope_sizes[index])
        )
        assert_near(f"gradient {index}", one, right, size + 1e-3)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@SHORT
@given(case=calls())
def test_random_likelihoods_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@LONG
@given(case=calls())
def test_many_random_likelihoods_are_right(backend, case):
    if backend == "triton" and torch.bfloat16 in case["dtypes"]:
        return  # the interpreter rounds it another way
    check(backend, case)
