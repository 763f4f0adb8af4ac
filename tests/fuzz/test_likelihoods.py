"""Random likelihoods: every kind, draws, masks, shared parameters, reductions, layouts and dtypes, and large counts."""

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
from tests.conftest import skip_without_triton

from . import formulas
from .tensors import (
    ARITHMETIC,
    EXECUTED,
    FLOATS,
    INTERPRETED,
    LAYOUTS,
    LONG,
    ROUNDING,
    SHORT,
    as_array,
    assert_near,
    laid_out,
    reduced,
    shapes,
    spread,
    summed_to,
)

ELEMENTWISE = tuple(sorted(set(KINDS) - {MIXTURE}))
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@st.composite
def calls(draw, kinds: tuple[str, ...] = ELEMENTWISE, floats: tuple[torch.dtype, ...] = FLOATS) -> dict[str, Any]:
    kind, shape = draw(st.sampled_from(kinds)), draw(shapes)
    draws, integers = draw(st.sampled_from([None, None, 1, 3])), ()
    if kind in (*COUNTS, "scaled_bernoulli"):
        integers = INTEGERS
    elif kind == MIXTURE:
        integers, shape = INTEGERS[:1], (shape[0], draw(st.sampled_from([1, 3])), *shape[1:])
    return {
        "kind": kind,
        "components": draw(st.sampled_from([1, 2, 5, 10])),
        "clamp": draw(st.sampled_from([None, (-1.0, 0.5)])) if kind in ("gaussian", "laplace", "log_normal") else None,
        "sharing": ["full"] + [draw(st.sampled_from(["full", "shared", "rows", "one"])) for _ in range(2)],
        "shape": shape,
        "draws": draws,
        "mask": draw(st.sampled_from([None, None, "full", "shared", "rows"])),
        "dtypes": [draw(st.sampled_from(floats)) for _ in range(3)],
        "x_dtype": draw(st.sampled_from(FLOATS[:1] + FLOATS[3:] + integers)),
        "layouts": [draw(st.sampled_from(LAYOUTS)) for _ in range(4)],
        "reduction": draw(st.sampled_from(["none", "sample"] if draws else ["none", "sample", "sum", "batchmean"])),
        "largest": draw(st.sampled_from([3.0, 30.0, 200.0, 1e4, 2.0**24])),
        "seed": draw(st.integers(0, 2**32)),
    }


def shared(shape: tuple[int, ...], how: str) -> tuple[int, ...]:
    rows, event = shape[:1], shape[1:]
    none = (1,) * len(event)
    return {"full": shape, "shared": (1, *event), "rows": (*rows, *none), "one": (1, *none)}[how]


def values_of(case: dict[str, Any], random: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """x and the parameters."""
    shape, kind = case["shape"], case["kind"]
    first = (case["draws"], *shape) if case["draws"] else shape
    if kind == MIXTURE:
        x = random.integers(0, 256, size=shape)
        x[random.random(shape) < 0.2] = random.choice([0, 255])
        channels = case["components"] * (10 if shape[1] == 3 else 3)
        parameter = random.normal(size=(*first[: -len(shape) + 1], channels, *shape[2:])) * random.choice(
            [0.3, 1.0, 3.0]
        )
        return x if case["x_dtype"] == torch.uint8 else x / 255, [parameter]
    sizes = [first, *(shared(shape, how) for how in case["sharing"][1:])]
    values = [random.normal(size=size) for size in sizes[: KINDS[kind].parameters]]
    if kind == "scaled_bernoulli":
        values = [random.random(one.shape) ** random.choice([0.05, 1.0, 4.0]) for one in values]
        return random.integers(0, 3, size=shape), values
    if kind == "log_normal":
        return np.exp(random.choice([1.0, 20.0]) * random.normal(size=shape)), values
    if kind not in COUNTS:
        return random.random(shape) if "bernoulli" in kind else random.normal(size=shape), values
    most = {torch.uint8: 200.0, torch.int16: 3e4}.get(case["x_dtype"], 1e9)
    scale = np.exp(random.uniform(-2.0, np.log(min(case["largest"], most)), size=shape))
    x = np.minimum(random.poisson(scale) * random.integers(0, 2, size=shape), min(case["largest"], most))
    values[0] = random.choice([0.0, 0.1, 1.0]) * values[0] + np.log(scale)
    if kind != "poisson":
        values[0], values[1] = np.exp(values[0]), np.exp(random.choice([1.0, 5.0]) * values[1])
    return x, values


def check(backend: str, case: dict[str, Any]) -> None:
    random, shape, kind, reduction = np.random.default_rng(case["seed"]), case["shape"], case["kind"], case["reduction"]
    draws, of_mixture = case["draws"] or 1, kind == MIXTURE
    x_values, values = values_of(case, random)
    mask, options = None, {"components": case["components"]} if of_mixture else {}
    if case["clamp"]:
        options["clamp"] = case["clamp"]
    if case["mask"]:
        over = (shape[0], *shape[2:]) if of_mixture else shape
        mask = torch.tensor(random.random(shared(over, case["mask"])) < 0.7)
        options["mask"] = mask
        kept = np.broadcast_to(mask.numpy(), over)[(slice(None), None) if of_mixture else ...]

    def tensor_of(values: np.ndarray, dtype: torch.dtype, layout: str) -> tuple[torch.Tensor, np.ndarray]:
        """The argument, of which nothing that is missing is a number, and the values in it."""
        tensor = laid_out(values, dtype, layout)
        clean = as_array(tensor)
        own = of_mixture or values.shape[-len(shape) :] == shape
        if own and mask is not None and dtype.is_floating_point and layout != "expanded":
            tensor = laid_out(np.where(kept, values, random.choice([np.nan, np.inf])), dtype, layout)
        return tensor, clean

    x, x_exact = tensor_of(x_values, case["x_dtype"], case["layouts"][3])
    given = [tensor_of(*one) for one in zip(values, case["dtypes"], case["layouts"], strict=False)]
    parameters = [tensor.requires_grad_() for tensor, _ in given]
    if not all(np.isfinite(clean).all() for _, clean in given):
        return  # a mean or theta beyond float16
    if any(one.dtype == torch.float64 for one in (x, *parameters)):
        backend = "reference"

    def by_row(array: np.ndarray) -> np.ndarray:
        """Draws are rows, too: (draws B, ...)."""
        rest = array.shape[-len(shape) + 1 :] if of_mixture else shape[1:]
        return np.broadcast_to(array, (draws, shape[0], *rest)).reshape(-1, *rest)

    exactly = [by_row(clean) for _, clean in given]
    if of_mixture:
        levels = x_exact / 255 if x.dtype == torch.uint8 else x_exact
        exact = formulas.mixture(by_row(levels), exactly[0], case["components"])
    else:
        exact = formulas.likelihood(kind, by_row(x_exact), exactly, case["clamp"])
    with fastvae.use_backend(backend):
        log_prob = getattr(likelihoods, f"{kind}_log_prob")(*parameters, x, reduction=reduction, **options)
    grad = laid_out(random.normal(size=log_prob.shape), log_prob.dtype, "dense")
    gradients = torch.autograd.grad(log_prob, parameters, grad)

    leading = (case["draws"], shape[0]) if case["draws"] else shape[:1]
    each = exact.log_prob.shape
    rows = as_array(grad).reshape(-1, *grad.shape[len(leading) :]) if grad.dim() else as_array(grad)
    of_each = spread(rows, each, reduction)
    counted = 1.0 if mask is None else by_row(kept).reshape(each)

    def as_returned(array: np.ndarray) -> np.ndarray:
        found = reduced(array * counted, reduction)
        return found.reshape(*leading, *found.shape[1:]) if found.ndim else found

    assert_near("log p", log_prob, as_returned(exact.log_prob), as_returned(exact.size))
    weight = (of_each * counted)[(slice(None), None) if of_mixture else ...]
    for index, (came, parameter) in enumerate(zip(gradients, parameters, strict=True)):
        target = (1,) * (len(shape) + 1 - parameter.dim()) + tuple(parameter.shape)
        terms, sizes = weight * exact.slopes[index], np.abs(weight) * exact.slope_sizes[index]
        if draws > 1:  # PyTorch adds up what each draw has for a parameter that they share, in the parameter's dtype
            sizes = sizes + np.abs(terms) * ROUNDING[parameter.dtype] / ARITHMETIC[torch.float32]
        right, size = (
            summed_to(one.reshape(draws, shape[0], *one.shape[1:]), target).reshape(parameter.shape)
            for one in (terms, sizes)
        )
        if draws > target[0]:  # that of one draw may be beyond the dtype where the sum is not
            of_draws = summed_to(terms.reshape(draws, shape[0], *terms.shape[1:]), (draws, *target[1:]))
            beyond = np.abs(of_draws).max(0) > torch.finfo(parameter.dtype).max
            right = np.where(beyond.reshape(right.shape), np.inf, right)
        assert_near(f"gradient {index}", came, right, size + 1e-3)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@SHORT
@given(case=calls())
def test_random_likelihoods_are_right(backend, case):
    check(backend, case)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@SHORT
@given(case=calls((MIXTURE,)))
def test_random_mixtures_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@LONG
@given(case=calls())
def test_many_random_likelihoods_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@LONG
@given(case=calls((MIXTURE,)))
def test_many_random_mixtures_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@INTERPRETED
@given(case=calls(floats=EXECUTED))
def test_many_random_likelihoods_are_right_in_triton(case):
    skip_without_triton()
    check("triton", case)


@pytest.mark.slow
@INTERPRETED
@given(case=calls((MIXTURE,), EXECUTED))
def test_many_random_mixtures_are_right_in_triton(case):
    skip_without_triton()
    check("triton", case)
