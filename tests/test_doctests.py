"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest
import torch

import fastvae

MODULES = ["fastvae", *(module.name for module in pkgutil.walk_packages(fastvae.__path__, "fastvae."))]
MODULES += ["fastvae.kernels.layout", "fastvae.kernels.backend", "fastvae.kernels.reference.philox"]


PAGES = {
    "deployment.md": 9,
    "heads.md": 12,
    "how_it_works.md": 4,
    "install.md": 3,
    "integrations.md": 5,
    "latents.md": 11,
    "likelihoods.md": 15,
    "mathematics.md": 11,
    "training.md": 7,
}
"""And the number of examples that each has at the least."""
TRAINING = ("lightning", "jsonargparse", "matplotlib", "mlxtend")
NEEDS = {"fastvae.integrations.pyro": ("pyro",), "fastvae.monitors": ("matplotlib",), "training.md": TRAINING}
NEEDS |= {name: TRAINING for name in MODULES if name.startswith("fastvae.training.")}


def _skip_without(packages):
    for package in packages:
        pytest.importorskip(package)


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_the_examples_of(name):
    _skip_without(NEEDS.get(name, ()))
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_every_public_function_has_an_example():
    for name in fastvae.__all__:
        value = getattr(fastvae, name)
        if callable(value):
            assert ">>>" in value.__doc__, name


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_the_page(name):
    _skip_without(NEEDS.get(name, ()))
    page = pathlib.Path(__file__).parents[1] / "docs" / name
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted >= PAGES[name]
    assert result.failed == 0


def test_the_examples_of_the_readme():
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 2
    names: dict[str, object] = {}
    try:
        for example in examples:
            exec(example, names)
    finally:
        fastvae.unpatch()
    assert torch.isfinite(names["loss"])
