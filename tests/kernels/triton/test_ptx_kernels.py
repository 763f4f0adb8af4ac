"""The compiled kernels compute the right numbers: the PTX that a launch would run, executed without a GPU.

Approximate functions get anything that the PTX manual allows, see `tests.kernels.triton.ptx.floats`.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.triton.ptx import launched
from tests.kernels.triton.ptx.cases import (
    LATENT_LAYOUTS,
    LATENT_OPS,
    OPS,
    TARGETS,
    Case,
    default_cases,
    default_latent_cases,
    every_case,
    latent_cases,
)
from tests.kernels.triton.ptx.floats import Accuracy

DEFAULT = [(target, case) for target in TARGETS for case in default_cases(target) + default_latent_cases(target)]
EVERY = {target: every_case() + latent_cases(LATENT_LAYOUTS[: 7 if target == "sm_90" else 2]) for target in TARGETS}
SLOW = [(target, case) for target in TARGETS for case in EVERY[target] if (target, case) not in DEFAULT]
LARGE_NOISE = ("sm_90", Case("noise", "float32", "contiguous", (32, 4096), large=True))
NEAR_ZERO = ("sm_90", Case("gaussian_kl", "float32", "contiguous", (7, 10), "none"))
OWN_PRIOR = [
    (target, Case(op, "float32", "contiguous", (7, 10), "none"))
    for target in ("sm_90", "sm_100")
    for op in ("full prior", "std with prior", "var with prior")
]


def parameters(cases):
    return [pytest.param(target, case, id=f"{target}: {case}") for target, case in cases]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    cases = list(dict.fromkeys([*DEFAULT, LARGE_NOISE, NEAR_ZERO, *OWN_PRIOR]))
    return launched.dump(cases, tmp_path_factory.mktemp("ptx"))


@pytest.fixture(scope="module")
def compiled_slowly(tmp_path_factory):
    return launched.dump(SLOW, tmp_path_factory.mktemp("ptx"))


@pytest.mark.parametrize(("target", "case"), parameters(DEFAULT))
def test_a_kernel_computes_the_formula(compiled, target, case):
    launched.assert_right(launched.execute(compiled[target, case]))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), parameters(SLOW))
def test_a_kernel_computes_the_formula_in_every_case(compiled_slowly, target, case):
    launched.assert_right(launched.execute(compiled_slowly[target, case]))


@pytest.mark.parametrize("mode", ["exact", "random", "above", "below"])
def test_normals_keep_the_contract_with_functions_as_inaccurate_as_allowed(compiled, mode):
    executed = launched.execute(compiled[LARGE_NOISE], Accuracy(mode))
    error = np.abs(executed.outputs["eps"] - launched.noise(executed))
    assert np.mean(error > 1e-5) <= 1e-4
    assert error.max() <= 2e-4


@pytest.mark.parametrize("mode", ["exact", "random", "above", "below"])
@pytest.mark.parametrize("logvar", [0.0, 1e-30, 1e-4, -1e-4, 7.7e-3, 7.9e-3, -7.9e-3, 0.1, -0.1, 0.6, -0.6])
def test_kl_near_its_minimum_is_never_negative(compiled, mode, logvar):
    executed = launched.execute(compiled[NEAR_ZERO], Accuracy(mode), fixed={"mu": 0.0, "scale": logvar})
    exact = launched.right_answers(executed)["kl"].value
    assert (executed.outputs["kl"] >= 0).all()
    np.testing.assert_allclose(executed.outputs["kl"], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "random", "above", "below"])
@pytest.mark.parametrize("value", [0.0, 0.3, -1.7, 5.0])
@pytest.mark.parametrize("case", OWN_PRIOR, ids=str)
def test_the_kl_of_a_gaussian_to_itself_is_0(compiled, case, mode, value):
    given = {"mu": value, "prior_mu": value, "scale": value, "prior_scale": value}
    executed = launched.execute(compiled[case], Accuracy(mode), fixed=given)
    assert (executed.outputs["kl"] == 0).all()


def test_every_op_and_dtype_is_executed_for_every_target():
    assert {(target, case.op, case.dtype) for target, case in DEFAULT if case.op in OPS} == {
        (target, op, dtype) for target in TARGETS for op in OPS for dtype in ("float32", "bfloat16")
    }
    assert {case.op for target, case in DEFAULT if target == "sm_90"} == {*OPS, *LATENT_OPS}
