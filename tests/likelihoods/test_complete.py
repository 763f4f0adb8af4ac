"""Each likelihood is numbered alike in C, has its function, and is in every table of the tests and docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastvae import likelihoods
from fastvae.kernels.head_spec import DENSITIES
from fastvae.kernels.likelihood_spec import KINDS
from fastvae.likelihoods.base import FusedLikelihood
from tests.nn.test_likelihood_head import LIKELIHOODS

from .cases import CASES
from .test_head_kernels import HEADS
from .test_linear_log_prob import DENSITIES as LAYERS
from .test_modules import MODULES

ROOT = Path(__file__).parents[2]
MODULE_CLASSES = [
    one
    for one in map(likelihoods.__dict__.get, likelihoods.__all__)
    if isinstance(one, type) and issubclass(one, FusedLikelihood)
]


def test_the_kinds_are_in_the_order_of_their_numbers_in_c():
    (body,) = re.findall(r"enum \{\s*(BERNOULLI[^}]*)\}", (ROOT / "kernels/cpu/call.h").read_text())
    numbered = [name.strip() for name in body.split(",") if name.strip()]
    assert len(numbered) == len(KINDS)
    for name, kind in zip(numbered, KINDS, strict=True):
        assert name in kind.upper()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_function_and_a_case(kind):
    assert f"{kind}_log_prob" in likelihoods.__all__
    assert kind in {case.spec.kind for case in CASES.values()}


@pytest.mark.parametrize("density", DENSITIES)
def test_every_density_is_tried_behind_linear_layers(density):
    assert density in LAYERS
    assert density in {spec.kind for spec, _ in HEADS.values()}


@pytest.mark.parametrize("module", MODULE_CLASSES, ids=lambda module: module.__name__)
def test_every_module_is_tried_and_documented(module):
    name = module.__name__
    assert name in (ROOT / "docs/mathematics.md").read_text()
    if name != "DiscretizedLogisticMixture":  # it has tests of its own, and its decoder is not linear in the pixels
        assert module in {type(likelihood) for likelihood, _ in MODULES.values()}
        assert module in {type(make()) for make, *_ in LIKELIHOODS.values()}
