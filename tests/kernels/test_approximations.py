"""What the hardware's approximate functions do to eps and KL: errors of the published size, injected into the formulas.

The same float32 steps as the kernels' PTX, with every approximate result moved to either end of its published interval.
`fastvae.kernels.triton.philox`, `.functions` and `.parameterisation` derive the bounds that are checked here.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from fastvae.kernels.triton import parameterisation

from .triton.ptx.floats import Accuracy, published_error

F = np.float32
ENDS = ("below", "exact", "above")


def words(count: int) -> np.ndarray:
    """Words of every size, dense where u is nearly 0 or 1 and around the switch between the two radius formulas."""
    random = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint64)
    small = np.unique(np.geomspace(1, 2**31, 4000).astype(np.uint64))
    switch = np.arange(0xFFE00000 - 2000, 0xFFE00000 + 2000, dtype=np.uint64)
    edges = [
        np.arange(3000, dtype=np.uint64),
        small,
        2**32 - small,
        2**32 - 1 - np.arange(3000, dtype=np.uint64),
        switch,
    ]
    return np.concatenate([random, *edges]).astype(np.uint32)


def radius(word: np.ndarray, logarithm: str, root: str) -> np.ndarray:
    u = (word.astype(F).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(F)
    r2 = (Accuracy(logarithm).approximate("lg2", u).astype(F) * F(-1.3862944)).astype(F)
    signed = word.view(np.int32).astype(F)
    near_one = word >= np.uint32(0xFFE00000)
    r2 = np.where(near_one, (signed.astype(np.float64) * -(2.0**-31) - 2.0**-32).astype(F), r2)
    return Accuracy(root).approximate("sqrt", r2).astype(F)


@pytest.mark.parametrize(("logarithm", "root"), list(itertools.product(ENDS, ENDS)))
def test_the_radius_is_within_6_3e_6_wherever_u_lies(logarithm, root):
    word = words(200_000)
    u_minus_1 = (word.astype(np.float64) + 0.5) * 2.0**-32 - 1.0
    exact = np.sqrt(-2.0 * np.log1p(u_minus_1))
    assert np.abs(radius(word, logarithm, root) - exact).max() < 6.3e-6


@pytest.mark.parametrize("end", ENDS)
def test_cos_and_sin_of_the_angle_are_within_1_1e_6(end):
    word = words(200_000)
    angle = (word.view(np.int32).astype(F) * F(2 * np.pi * 2.0**-32)).astype(F)
    turn = word.astype(np.float64) * 2.0**-32
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        got = Accuracy(end).approximate(name, angle)
        assert np.abs(got - function(2 * np.pi * turn)).max() < 1.1e-6


def test_so_every_normal_is_within_the_contracts_1e_5():
    """|d (r cos t)| <= |dr| + r |d cos t|, with the two bounds above and r at most 6.77."""
    word = words(200_000)
    worst = 0.0
    for logarithm, root in itertools.product(ENDS, ENDS):
        exact = np.sqrt(-2.0 * np.log1p((word.astype(np.float64) + 0.5) * 2.0**-32 - 1.0))
        worst = max(worst, (np.abs(radius(word, logarithm, root) - exact) + 1.1e-6 * exact).max())
    assert worst < 1e-5


@pytest.mark.parametrize("end", ENDS)
def test_the_kl_of_a_coordinate_is_off_by_no_more_than_its_bound_and_never_negative(end):
    logvar = np.concatenate([np.linspace(-20, 20, 100_001), np.linspace(-0.05, 0.05, 100_001)]).astype(F)
    std = Accuracy(end).approximate("ex2", (logvar * F(0.7213475)).astype(F)).astype(F)
    rest = (F(-1) - logvar).astype(F)
    large = (std.astype(np.float64) ** 2 + rest.astype(np.float64)).astype(F)
    small = np.abs(logvar) < F(2.0**-7)
    got = np.where(small, 0.5 * logvar.astype(np.float64) ** 2, large)
    wide = logvar.astype(np.float64)
    exact = np.expm1(wide) - wide
    # std^2 is off by twice what std is (published, rounded, exponent rounded); then 1 + logvar and the sum are rounded.
    bound = np.exp(wide) * (2.0**-21 + 2.0**-23 + 2.0**-23 * np.abs(wide)) + 2.0**-23 * (1 + np.abs(wide) + exact)
    assert (got >= 0).all()
    assert (np.abs(got - exact) <= np.where(small, 8e-8, bound)).all()


def fused(a, b, c) -> np.ndarray:
    return (np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)).astype(F)


def polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """By Horner's rule, the highest power first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fused(x, value, F(coefficient))
    return value


LOG1P = (-0.0032440247, 0.019851463, -0.05695954, 0.10603656, -0.1530559, 0.1967594, -0.24954134, 0.33329964, -0.499999)
TANH = (-0.0060969414, 0.020997358, -0.05385095, 0.13332771, -0.33333328)


def test_the_polynomials_here_are_those_of_the_kernels():
    source = Path(parameterisation.__file__).read_text()
    assert all(f"{abs(coefficient)}" in source for coefficient in (*LOG1P, *TANH))


@pytest.mark.parametrize("end", ENDS)
def test_softplus_is_as_exact_as_the_exponential_in_it(end):
    x = np.concatenate([np.linspace(-80, 80, 200_001), np.linspace(-2, 2, 200_001)]).astype(F)
    e = Accuracy(end).approximate("ex2", (np.abs(x) * F(-1.4426950)).astype(F)).astype(F)
    got = (np.maximum(x, F(0)) + fused(e, (e * polynomial(e, *LOG1P)).astype(F), e)).astype(F)
    exact = np.logaddexp(0.0, x.astype(np.float64))
    assert (np.abs(got - exact) <= exact * (5e-7 + np.maximum(0.0, -x) * 2.0**-23)).all()


@pytest.mark.parametrize(("exponential", "inverse"), list(itertools.product(ENDS, ENDS)))
def test_tanh_is_within_1_2e_7_of_itself_where_it_is_small_and_within_2_5e_7_beyond(exponential, inverse):
    x = np.concatenate([np.linspace(-30, 30, 200_001), np.linspace(-0.7, 0.7, 200_001)]).astype(F)
    e = Accuracy(exponential).approximate("ex2", (np.abs(x) * F(-2.8853901)).astype(F)).astype(F)
    part = Accuracy(inverse).approximate("rcp", (F(1) + e).astype(F)).astype(F)
    far = np.copysign(fused(F(-2) * e, part, 1.0), x)
    x2 = (x * x).astype(F)
    near = fused((x * x2).astype(F), polynomial(x2, *TANH), x)
    exact, small = np.tanh(x.astype(np.float64)), np.abs(x) < F(0.625)
    got = np.where(small, near, far)
    assert (np.abs(got - exact) <= np.where(small, 1.2e-7 * np.abs(exact), 2.5e-7)).all()


@pytest.mark.parametrize(("end", "other"), list(itertools.product(ENDS, ENDS)))
def test_the_kl_of_linear_scales_is_never_negative_and_as_exact_as_its_logarithms(end, other):
    """Of two std, each with its own error of the logarithm."""
    random = np.random.default_rng(0)
    prior = np.exp(random.uniform(-5, 5, 200_000)).astype(F)
    std = (prior * np.exp(random.normal(size=200_000) * random.choice([1e-3, 0.1, 1.0], 200_000))).astype(F)
    logvar, prior_logvar = (
        (Accuracy(mode).approximate("lg2", one).astype(F) * F(1.3862944)).astype(F)
        for mode, one in ((end, std), (other, prior))
    )
    ratio = (std * Accuracy(other).approximate("rcp", prior).astype(F)).astype(F)
    d = (logvar - prior_logvar).astype(F)
    large = fused(ratio, ratio, (F(-1) - d).astype(F))
    got = np.where(np.abs(d) < F(2.0**-7), 0.5 * d.astype(np.float64) ** 2, large)
    exact_d = 2 * np.log(std.astype(np.float64) / prior.astype(np.float64))
    exact = np.expm1(exact_d) - exact_d
    size = 1 + np.abs(exact_d) + np.exp(exact_d)
    logarithms = 2 * np.abs(np.log(std.astype(np.float64))) + 2 * np.abs(np.log(prior.astype(np.float64)))
    assert (got >= 0).all()
    assert (np.abs(got - exact) <= 2.0**-21 * size + (2.0**-22 + 2.0**-23) * (2 + logarithms) + 1.2e-7).all()


def test_the_published_errors_are_the_ones_that_the_derivation_uses():
    half, four = np.array([0.75]), np.array([4.0])
    assert published_error("lg2", half, np.log2(half)) == 2.0**-22
    assert published_error("lg2", four, np.log2(four)) == 2.0**-21
    assert published_error("ex2", four, np.exp2(four)) == 16 * 2.0**-22
    assert published_error("sin", half, np.sin(half)) == 2.0**-20.5
    assert published_error("sqrt", four, np.sqrt(four)) == 2 * 2.0**-23
