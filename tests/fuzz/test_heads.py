"""Random heads, a decoder's last linear layers and the likelihood: activations, draws, shapes, layouts and dtypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import fastvae
from fastvae.likelihoods import Linear, linear_log_prob
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
    spread,
)
from .test_likelihoods import COUNTS, MIXTURE

POSITIVE = ("exp", "softplus")
ACTIVATIONS: dict[str, list[tuple[str, ...]]] = {
    "bernoulli": [("identity",)],
    "continuous_bernoulli": [("identity",)],
    "gaussian": [("identity", "softplus"), ("identity", "given")],
    "laplace": [("identity", "exp"), ("identity", "given")],
    "poisson": [("identity", "softmax")],
    "negative_binomial": [("softmax", *POSITIVE), ("given", *POSITIVE)],
    "zero_inflated_negative_binomial": [("softmax", *POSITIVE), ("given", *POSITIVE), ("identity", "given")],
    MIXTURE: [("identity",)],
}
STEP = 1e-6  # of differences that tell how much the slopes change with the parameters


@st.composite
def heads(draw, floats: tuple[torch.dtype, ...] = FLOATS) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(ACTIVATIONS)))
    event = tuple(draw(st.lists(st.sampled_from([1, 2, 5, 17]), min_size=1, max_size=2)))
    if kind == MIXTURE:
        event = (draw(st.sampled_from([1, 3])), *event[:-1], min(event[-1], 5))
    draws = draw(st.sampled_from([None, None, 1, 3]))
    return {
        "kind": kind,
        "components": draw(st.sampled_from([1, 2, 10])),
        "activations": [draw(st.sampled_from(one)) for one in ACTIVATIONS[kind]],
        "biases": [draw(st.booleans()) for _ in range(3)],
        "clamp": draw(st.sampled_from([None, (-1.0, 0.5)])) if kind in ("gaussian", "laplace") else None,
        "sizes": (draw(st.sampled_from([1, 2, 7, 40])), draw(st.sampled_from([1, 3, 16, 33])), event),
        "draws": draws,
        "dtype": draw(st.sampled_from(floats)),
        "x_dtype": draw(st.sampled_from((torch.float32, torch.int64) if kind in COUNTS else (torch.float32,))),
        "layouts": [draw(st.sampled_from(LAYOUTS)) for _ in range(5)],
        "reduction": draw(st.sampled_from(["sample"] if draws else ["sample", "sum", "batchmean"])),
        "rows_alike": draw(st.booleans()),
        "largest": draw(st.sampled_from([3.0, 200.0])),
        "seed": draw(st.integers(0, 2**32)),
    }


class Output(NamedTuple):
    """A parameter as a function of a layer's outputs; sizes are how far rounding the outputs moves it."""

    value: np.ndarray
    slope: np.ndarray
    curve: np.ndarray
    size: np.ndarray


def activated(how: str, kind: str, out: np.ndarray, size: np.ndarray, library: np.ndarray) -> Output:
    one = np.ones_like(out)
    if how == "exp":
        return Output(np.exp(out), np.exp(out), np.exp(out), np.exp(out) * size)
    if how == "softplus":
        sigmoid = special.expit(out)
        return Output(np.logaddexp(0, out), sigmoid, sigmoid * (1 - sigmoid), sigmoid * size)
    if how == "softmax":  # its slope is that by the logarithm of the mean
        log_mean = np.log(library)[:, None] + special.log_softmax(out, 1)
        size = size + (special.softmax(out, 1) * size).sum(1, keepdims=True) + np.abs(log_mean)
        mean = np.exp(log_mean)
        return Output(log_mean, one, 0 * one, size) if kind == "poisson" else Output(mean, mean, mean, mean * size)
    return Output(out, one, 0 * one, size)


def data_of(case: dict[str, Any], random: np.random.Generator) -> np.ndarray:
    shape = (case["sizes"][0], *case["sizes"][2])
    if case["kind"] == MIXTURE:
        return random.integers(0, 256, size=shape) / 255
    if case["kind"] in COUNTS:
        rate = np.exp(random.uniform(-2.0, np.log(case["largest"]), size=shape))
        return random.poisson(rate) * random.integers(0, 2, size=shape)
    return random.random(shape) if "bernoulli" in case["kind"] else random.normal(size=shape)


Given = Linear | torch.Tensor


def arguments_of(
    case: dict[str, Any], random: np.random.Generator, outputs: int
) -> tuple[torch.Tensor, list[Given], torch.Tensor | None, list[torch.Tensor]]:
    """hidden, the parameters and the library, and all leaves in this order."""
    (batch, width, event), dtype = case["sizes"], case["dtype"]
    shape = (case["draws"], batch, width) if case["draws"] else (batch, width)
    hidden = laid_out(random.normal(size=shape), dtype, case["layouts"][1])
    parameters: list[Given] = []
    leaves = [hidden]
    for how, has_bias, layout in zip(case["activations"], case["biases"], case["layouts"][2:], strict=False):
        if how == "given":
            of_all = np.exp(random.normal(size=event if has_bias else 1))
            parameters.append(laid_out(of_all, dtype, "dense"))
            leaves.append(parameters[-1])
            continue
        weight = laid_out(random.normal(size=(outputs, width)) / width**0.5, dtype, layout)
        bias = laid_out(random.normal(size=outputs), dtype, "dense") if has_bias else None
        parameters.append(Linear(weight, bias, how))
        leaves += [weight] if bias is None else [weight, bias]
    library = None
    if case["activations"][0] == "softmax":
        library = laid_out(np.exp(random.normal(size=batch)) * outputs, dtype, "dense")
        leaves.append(library)
    for leaf in leaves:
        leaf.requires_grad_()
    return hidden, parameters, library, leaves


def with_sizes(
    likelihood: Callable[[list[np.ndarray]], formulas.Likelihood],
    found: list[Output],
    rounding: float,
    steps: tuple[float, ...],
    signs: list[Any],
) -> formulas.Likelihood:
    """Sizes that include how the slopes change with the parameters, by differences for each of the steps and signs."""
    values = [one.value for one in found]
    exact = likelihood(values)
    size, slope_sizes = exact.size, list(exact.slope_sizes)
    for (index, one), step, sign in itertools.product(enumerate(found), steps, signs):
        above, below = (
            likelihood([value + end * sign * one.size * (i == index) for i, value in enumerate(values)])
            for end in (step, -step)
        )
        size = size + np.abs(above.log_prob - below.log_prob) / step * rounding
        for i, (one_end, other) in enumerate(zip(above.slopes, below.slopes, strict=True)):
            slope_sizes[i] = slope_sizes[i] + np.abs(one_end - other) / step * rounding
    return exact._replace(size=size, slope_sizes=slope_sizes)


def check(backend: str, case: dict[str, Any]) -> None:
    random, dtype, kind, reduction = np.random.default_rng(case["seed"]), case["dtype"], case["kind"], case["reduction"]
    (batch, width, event), draws = case["sizes"], case["draws"] or 1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    backend = "reference" if wide == torch.float64 else backend
    # Outputs and their gradients are rounded to the dtype of the layers.
    rounding = 1 + 4 * ROUNDING[dtype] / ARITHMETIC[wide]
    x = laid_out(data_of(case, random), case["x_dtype"], case["layouts"][0])
    channels = case["components"] * (10 if event[0] == 3 else 3)
    outputs = channels * math.prod(event[1:]) if kind == MIXTURE else math.prod(event)
    hidden, parameters, library, leaves = arguments_of(case, random, outputs)
    options = {"components": case["components"]} if kind == MIXTURE else {"clamp": case["clamp"]}
    with fastvae.use_backend(backend):
        log_prob = linear_log_prob(kind, hidden, parameters, x, library=library, reduction=reduction, **options)
    grad = torch.tensor(random.normal(size=log_prob.shape)).to(log_prob.dtype)
    if case["rows_alike"]:
        grad = torch.full_like(grad, 0.7)
    came = torch.autograd.grad(log_prob, leaves, grad)

    rows = as_array(hidden).reshape(-1, width)
    each_x = np.broadcast_to(as_array(x), (draws, *x.shape)).reshape(-1, *event)
    of_library = np.ones(len(rows)) if library is None else np.tile(as_array(library), draws)
    found = []
    for parameter, how in zip(parameters, case["activations"], strict=True):
        if isinstance(parameter, Linear):
            weight, bias = as_array(parameter.weight), 0.0 if parameter.bias is None else as_array(parameter.bias)
            out, size = rows @ weight.T + bias, np.abs(rows) @ np.abs(weight).T + np.abs(bias)
        else:
            out = np.broadcast_to(as_array(parameter).reshape(1, -1), (len(rows), outputs))
            size = np.zeros_like(out)
        found.append(activated(how, kind, out, size, of_library))

    def likelihood(values: list[np.ndarray]) -> formulas.Likelihood:
        if kind == MIXTURE:
            return formulas.mixture(each_x, values[0].reshape(-1, channels, *event[1:]), case["components"])
        return formulas.likelihood(kind, each_x, [one.reshape(-1, *event) for one in values], case["clamp"])

    # A Laplace's slope jumps at x: whether rounding brings a mean to the other side takes a step as large as rounding.
    steps = (STEP, rounding * ARITHMETIC[wide]) if kind == "laplace" else (STEP,)
    # Several outputs move log p of a pixel, and with some signs they make up for each other.
    signs = list(random.choice([-1.0, 1.0], size=(4, len(rows), outputs))) if kind == MIXTURE else [1.0]
    exact = with_sizes(likelihood, found, rounding, steps, signs)
    right, size = (reduced(one, reduction).reshape(log_prob.shape) for one in (exact.log_prob, exact.size))
    assert_near("log p", log_prob, right, size)

    weights = spread(as_array(grad).reshape(-1) if grad.dim() else as_array(grad), exact.log_prob.shape, reduction)
    weights = weights[:, None] if kind == MIXTURE else weights
    of_hidden, size_of_hidden = np.zeros_like(rows), np.zeros_like(rows)
    expected: list[tuple[np.ndarray, np.ndarray]] = []
    for index, (one, parameter) in enumerate(zip(found, parameters, strict=True)):
        of_value = (weights * exact.slopes[index]).reshape(len(rows), -1)
        size = (np.abs(weights) * exact.slope_sizes[index]).reshape(len(rows), -1)
        of_out = of_value * one.slope
        moved = one.size / np.maximum(np.abs(one.slope), 1e-9) * rounding  # the outputs
        size = size * np.abs(one.slope) + np.abs(of_value * one.curve) * moved
        if case["activations"][index] == "softmax":
            softmax = special.softmax(one.value if kind == "poisson" else np.log(one.value), 1)
            total, size_of_total = of_out.sum(1, keepdims=True), (size + np.abs(of_out)).sum(1, keepdims=True)
            of_libraries = [each.reshape(draws, batch).sum(0) for each in (total[:, 0], size_of_total[:, 0] * rounding)]
            size = size + softmax * size_of_total * (1 + moved)
            of_out = of_out - softmax * total
        size = (size + np.abs(of_out)) * rounding
        if not isinstance(parameter, Linear):
            axes = 0 if parameter.numel() > 1 else None
            expected.append((of_out.sum(axes).reshape(parameter.shape), size.sum(axes).reshape(parameter.shape)))
            continue
        weight = as_array(parameter.weight)
        of_hidden, size_of_hidden = of_hidden + of_out @ weight, size_of_hidden + size @ np.abs(weight)
        expected.append((of_out.T @ rows, size.T @ np.abs(rows)))
        if parameter.bias is not None:
            expected.append((of_out.sum(0), size.sum(0)))
    expected.insert(0, (of_hidden.reshape(hidden.shape), size_of_hidden.reshape(hidden.shape)))
    if library is not None:
        expected.append((of_libraries[0] / as_array(library), of_libraries[1] / as_array(library)))
    for index, (one, (right, size)) in enumerate(zip(came, expected, strict=True)):
        assert_near(f"gradient {index}", one, right, size + 1e-3)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@SHORT
@given(case=heads())
def test_random_heads_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@LONG
@given(case=heads())
def test_many_random_heads_are_right(backend, case):
    check(backend, case)


@pytest.mark.slow
@INTERPRETED
@given(case=heads(EXECUTED))
def test_many_random_heads_are_right_in_triton(case):
    skip_without_triton()
    check("triton", case)
