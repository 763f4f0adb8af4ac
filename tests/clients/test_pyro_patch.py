"""Pyro's own Normal, patched: its numbers, gradients and KL, and what is left afterwards."""

from __future__ import annotations

import contextlib

import pytest
import torch
from pyro import distributions as of_pyro
from pyro.infer import JitTrace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl as torch_kl
from torch.distributions import kl_divergence

import fastvae
from fastvae.integrations import normal_ops
from fastvae.integrations import pyro as integration

from .pyro_problem import Problem, normal, parameters
from .training import check_same_losses, check_same_spread

pytestmark = pytest.mark.filterwarnings("error:Ambiguous kl_divergence:RuntimeWarning")


@pytest.fixture(autouse=True)
def small_draws_are_fused_too(monkeypatch):
    monkeypatch.setattr(integration, "MIN_FUSED_DRAW", 0)


def test_small_draws_are_pyros_own(monkeypatch):
    monkeypatch.undo()
    draws = []
    for patched in (False, True):
        torch.manual_seed(0)
        with fastvae.patch("pyro") if patched else contextlib.nullcontext():
            draws.append([normal(*parameters(64, size)).rsample() for size in (127, 128)])
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][1], draws[1][1])


def make_step():
    problem = Problem()
    optimiser = torch.optim.Adam([*problem.encoder.parameters(), *problem.decoder.parameters()], lr=0.01)
    elbo = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)

    def step():
        optimiser.zero_grad()
        loss = elbo.differentiable_loss(problem.model, problem.normal, problem.x)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def test_the_losses_are_those_of_an_unpatched_run():
    check_same_losses(make_step, "pyro")


def test_with_fastvaes_noise_the_final_loss_is_within_those_of_other_seeds():
    check_same_spread(make_step, "pyro")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("guide", ["normal", "ours"])
def test_a_traced_objective_is_that_of_an_unpatched_run(guide):
    found = []
    for patched in (False, True):
        torch.manual_seed(0)
        problem, elbo = Problem(), JitTrace_ELBO(ignore_jit_warnings=True)
        given = problem.model, getattr(problem, guide), problem.x  # bound once: Pyro traces for each model and guide
        with fastvae.patch("pyro") if patched else contextlib.nullcontext():
            elbo.loss_and_grads(*given)  # the first call traces
            torch.manual_seed(1)
            for _ in range(2):
                problem.encoder.zero_grad()
                found.append(elbo.loss_and_grads(*given))
                found.append(problem.encoder.weight.grad.clone())
    assert found[0] != found[2]
    torch.testing.assert_close(found[4:], found[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("event_dims", [0, 1, 2])
def test_kl_and_its_gradient_are_pyros_own(dtype, event_dims):
    given = [*parameters(2, 3, 4, dtype=dtype), *parameters(2, 3, 4, dtype=dtype, seed=1)]
    found = []
    for patched in (False, True):
        leaves = [(one if patched else one.double()).detach().requires_grad_() for one in given]
        p, q = (normal(*pair).to_event(event_dims) for pair in (leaves[:2], leaves[2:]))
        with fastvae.patch("pyro") if patched else contextlib.nullcontext():
            kl = kl_divergence(p, q)
        assert kl.dtype == leaves[0].dtype
        found.append([kl.double(), *(one.double() for one in torch.autograd.grad(kl.sum(), leaves))])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


def test_under_mean_field_the_fused_kl_is_the_one_that_runs(monkeypatch):
    """Otherwise the test above would compare Pyro with itself."""
    problem, found, fused = Problem(), [], normal_ops.kl_independent
    monkeypatch.setattr(normal_ops, "kl_independent", lambda p, q: found.append(fused(p, q)) or found[-1])
    with fastvae.patch("pyro"):
        TraceMeanField_ELBO().loss(problem.model, problem.normal, problem.x)
    assert len(found) == 1
    assert found[0] is not None


def test_a_patched_draw_has_the_gradients_of_its_noise():
    mu, logvar = parameters(200, 50)
    with fastvae.patch("pyro"):
        std = torch.exp(0.5 * logvar)
        z = of_pyro.Normal(mu, std)()
        eps = (z - mu) / std
        assert not torch.equal(of_pyro.Normal(mu, std)(), z)
    assert abs(eps.mean()) < 0.05
    assert abs(eps.std() - 1) < 0.05
    of_mu, of_logvar = torch.autograd.grad(z.sum(), [mu, logvar])
    assert of_mu.eq(1).all()
    torch.testing.assert_close(of_logvar, 0.5 * (z - mu).detach(), rtol=1e-4, atol=1e-5)


def test_torchs_noise_gives_pyros_own_numbers():
    one = of_pyro.Normal(*parameters(4, 3)[:1], 1.0)
    torch.manual_seed(1)
    expected = one((2,))
    torch.manual_seed(1)
    with fastvae.patch("pyro", noise="torch"):
        assert torch.equal(one((2,)), expected)
    torch.manual_seed(1)
    with fastvae.patch("pyro"):
        assert not torch.equal(one((2,)), expected)


@pytest.mark.parametrize(
    ("loc", "scale"),
    [(0.0, 1.0), (torch.zeros(2, 3).double(), torch.ones(2, 3).double()), (torch.zeros(0, 3), torch.ones(0, 3))],
    ids=["numbers", "float64", "empty"],
)
def test_unsupported_tensors_run_pyros_own_code(loc, scale):
    one, other = of_pyro.Normal(loc, scale), of_pyro.Normal(loc, scale)
    torch.manual_seed(1)
    expected, kl = one(), kl_divergence(one, other)
    torch.manual_seed(1)
    with fastvae.patch("pyro"):
        torch.testing.assert_close(one(), expected, rtol=0, atol=0)
        torch.testing.assert_close(kl_divergence(one, other), kl, rtol=0, atol=0)


def test_a_subclass_keeps_its_own_methods():
    class Shifted(of_pyro.Normal):
        def rsample(self, sample_shape=torch.Size()):  # noqa: B008 as torch has it
            return self.loc.expand(self._extended_shape(sample_shape)) + 1

    with fastvae.patch("pyro"):
        assert torch.equal(Shifted(torch.zeros(2, 3), torch.ones(2, 3))(), torch.ones(2, 3))


def test_torch_distributions_is_left_alone():
    both = [kind(torch.zeros(4, 3), torch.ones(4, 3)) for kind in (torch.distributions.Normal, of_pyro.Normal)]
    torch.manual_seed(1)
    expected = both[0].rsample()
    before = dict(torch_kl._KL_REGISTRY)
    with fastvae.patch("pyro"):
        torch.manual_seed(1)
        assert torch.equal(both[0].rsample(), expected)
        torch.manual_seed(1)
        assert not torch.equal(both[1].rsample(), expected)
        assert all(torch_kl._KL_REGISTRY[key] is value for key, value in before.items())


def test_undo_restores_everything_and_older_objects_run_the_librarys_code():
    one = of_pyro.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    torch.manual_seed(1)
    expected = one()
    kl = kl_divergence(one, one)
    before = dict(torch_kl._KL_REGISTRY)
    with fastvae.patch("pyro"):
        lives_on = of_pyro.Normal.rsample
        kl_lives_on = torch_kl._dispatch_kl(of_pyro.Normal, of_pyro.Normal)
    torch.manual_seed(1)
    assert torch.equal(lives_on(one), expected)
    assert torch.equal(kl_lives_on(one, one), kl)
    assert "rsample" not in vars(of_pyro.Normal)
    assert before == torch_kl._KL_REGISTRY
    of_torch = torch.distributions.Normal
    assert torch_kl._dispatch_kl(of_pyro.Normal, of_pyro.Normal) is before[of_torch, of_torch]


def test_with_torch_patched_too_patches_end_in_any_order():
    one = of_pyro.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    torch.manual_seed(1)
    expected = one()
    for names in (("torch", "pyro"), ("pyro", "torch")):
        patches = [fastvae.patch(name) for name in names]
        assert kl_divergence(one, of_pyro.Normal(1.0, 1.0)).sum().item() == pytest.approx(6.0)
        for patch in patches:
            torch.manual_seed(1)
            assert not torch.equal(one(), expected)
            patch.undo()
        torch.manual_seed(1)
        assert torch.equal(one(), expected)
