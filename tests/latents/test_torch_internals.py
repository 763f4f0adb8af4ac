"""Each private name of PyTorch, taken away before fastvae is imported: the same results, by a slower way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fastvae
from fastvae.torch_internals import fast_apply
from tests.fresh import server

SOURCES = Path(fastvae.__file__).parent
NAMES = re.findall(r'_find\("(.+?)"\)', (SOURCES / "torch_internals.py").read_text())

# Draws, gradients, batches of gradients, transforms, second derivatives, patched distributions, counts, compiled code.
OPS = """
import warnings
import torch, fastvae
from fastvae import likelihoods

warnings.simplefilter("ignore")
torch.manual_seed(0)
results = []
mu, logvar = (torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_() for _ in range(2))
z, kl = fastvae.sample_and_kl(mu, logvar, seed=1)
results += [z, kl, *torch.autograd.grad((z.sum(), kl.sum()), (mu, logvar), retain_graph=True)]
results += torch.autograd.grad(kl, mu, torch.eye(3), is_grads_batched=True, retain_graph=True)
(first,) = torch.autograd.grad(kl.sum(), logvar, create_graph=True)
results += torch.autograd.grad(first.sum(), logvar)
results.append(fastvae.noise(7, (2, 3)))
results.append(torch.func.grad(lambda m: fastvae.sample_and_kl(m, 2 * m, seed=1)[1].sum())(mu.detach()))
results.append(torch.func.vmap(lambda m: fastvae.reparameterize(m, m, seed=1))(mu.detach().unsqueeze(1)))
posterior = fastvae.DiagonalGaussian(mu, logvar)
results += [posterior.mode + 0, posterior.sample_and_kl(seed=3)[1]]
counts = likelihoods.NegativeBinomial(4)
drawn = counts.sample(torch.zeros(2, 4), generator=torch.Generator().manual_seed(0))
assert drawn.shape == (2, 4) and type(results[-2]) is torch.Tensor
results.append(likelihoods.bernoulli_log_prob(mu, torch.ones(3, 4)))
with fastvae.patch("torch"):
    normal = torch.distributions.Normal(mu * 1, logvar.exp())
    drawn = normal.rsample()
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(torch.zeros(4), torch.ones(4)))
    (drawn.sum() * 0 + kl.sum()).backward()
results += [kl, mu.grad]
anneal = lambda x, t: fastvae.reparameterize(x, x, seed=1, temperature=t)
annealed = torch.compile(anneal, backend="eager", fullgraph=True)
results += [annealed(mu.detach(), t) for t in (0.5, 0.6, 0.7)]
print([result.detach().double().sum().item() for result in results])
"""

# Looked up while something is compiled. PyTorch itself cannot do without it.
WITHOUT_SYMBOLIC_SHAPES = """
from types import SimpleNamespace
from unittest import mock
from fastvae import torch_internals
mock.patch.object(torch_internals, "experimental", SimpleNamespace()).start()
"""

WITHOUT = """
import importlib
module, _, names = {path!r}.partition(":")
*owners, name = names.split(".")
owner = importlib.import_module(module)
for part in owners:
    owner = getattr(owner, part)
kept = getattr(owner, name)
delattr(owner, name)
import fastvae
from fastvae import torch_internals
assert torch_internals._find({path!r}) is None
setattr(owner, name, kept)
"""


@pytest.fixture(scope="module")
def run_compiling():
    """Torch's compiler takes seconds to import, too: once, before anything is taken away."""
    yield from server("import torch; torch.compile(lambda x, t: x * t, backend='eager')(torch.ones(2), 0.5)")


@pytest.fixture(scope="module")
def expected(run_compiling):
    return numbers(run_compiling(OPS))


def numbers(process):
    assert process.returncode == 0, process.stderr
    return [float(number) for number in process.stdout.strip()[1:-1].split(",")]


@pytest.mark.parametrize("path", NAMES)
def test_the_ops_work_without_a_private_name(run_compiling, expected, path):
    came = numbers(run_compiling(WITHOUT.format(path=path) + OPS))
    assert came == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_numbers_that_change_compile_without_the_name_that_says_which_do(run_compiling, expected):
    came = numbers(run_compiling(WITHOUT_SYMBOLIC_SHAPES + OPS))
    assert came == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_importing_fastvae_does_not_import_sympy(run_python):
    """Which takes long; torch imports it when something is compiled."""
    came = run_python("import sys, torch, fastvae; print(*sys.modules)")
    assert "fastvae" in came.stdout.split(), came.stderr
    assert "sympy" not in came.stdout.split()


def test_private_names_are_in_one_file():
    private = re.compile(r"torch\._C\b|_functorch|forward_ad\._|torch\._[a-z]|autograd\._[a-z]")
    for source in SOURCES.rglob("*.py"):
        if source.name != "torch_internals.py":
            assert not private.search(source.read_text()), source


def test_fast_apply_does_not_need_the_class_that_runs_backward():
    """An attribute of each Function, which cannot be taken away before fastvae is imported."""
    other = type("Other", (torch.autograd.Function,), {})
    other._backward_cls = None
    assert callable(fast_apply(other))
