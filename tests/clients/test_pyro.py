"""Pyro: DiagonalGaussian in models and guides, where Pyro's own Normal is what it is compared with."""

from __future__ import annotations

import subprocess
import sys

import pyro
import pytest
import torch
from pyro import distributions as of_pyro
from pyro.infer import SVI, JitTraceMeanField_ELBO, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from fastvae.integrations.pyro import DiagonalGaussian

from .pyro_problem import BATCH, LATENT, Problem, normal, parameters

# Two entries that fit a KL equally well would be an accident.
pytestmark = pytest.mark.filterwarnings("error:Ambiguous kl_divergence:RuntimeWarning")


def check_same_mean(ours, theirs):
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize("vectorize_particles", [True, False])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_the_elbo_is_that_of_pyros_normal(elbo, vectorize_particles):
    problem = Problem(mask=torch.arange(BATCH) % 2 == 0, scale=3.0)
    elbo = elbo(num_particles=4, vectorize_particles=vectorize_particles, max_plate_nesting=1)
    check_same_mean(problem.losses(problem.ours, elbo, 60), problem.losses(problem.normal, elbo, 60))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_with_the_same_noise_the_elbo_and_its_gradients_are_equal(elbo, monkeypatch):
    eps = torch.randn(BATCH, LATENT)
    for kind in (DiagonalGaussian, of_pyro.Normal):
        monkeypatch.setattr(kind, "rsample", lambda self, sample_shape=(): self.mean + self.stddev * eps)
    problem = Problem(mask=torch.arange(BATCH) % 2 == 0, scale=3.0)
    found = []
    for guide in (problem.ours, problem.normal):
        loss = elbo().differentiable_loss(problem.model, guide, problem.x)
        gradients = torch.autograd.grad(loss, [*problem.encoder.parameters(), *problem.decoder.parameters()])
        found.append([loss.detach(), *gradients])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


def test_under_mean_field_the_kl_is_the_closed_form():
    """log_prob is not asked for, so that the loss of a fixed model has no noise."""

    def model():
        with pyro.plate("data", BATCH):
            pyro.sample("z", of_pyro.Normal(torch.zeros(LATENT), torch.ones(LATENT)).to_event(1))

    def guide():
        with pyro.plate("data", BATCH):
            pyro.sample("z", DiagonalGaussian(mu, logvar))

    mu, logvar = parameters(BATCH, LATENT)
    expected = 0.5 * (mu.double().square() + logvar.double().exp() - 1.0 - logvar.double()).sum()
    losses = [TraceMeanField_ELBO().loss(model, guide) for _ in range(2)]
    assert losses[0] == losses[1] == pytest.approx(expected.item(), rel=1e-5)


def test_the_jit_has_noise_and_gradients_of_its_own_each_time():
    problem = Problem()
    elbo = JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    losses, gradients = [], []
    for _ in range(100):
        problem.encoder.zero_grad()
        losses.append(elbo.loss_and_grads(problem.model, problem.ours, problem.x))
        gradients.append(problem.encoder.weight.grad[0, 0].clone())
    assert len(set(losses)) > 90
    check_same_mean(torch.tensor(losses), problem.losses(problem.normal, TraceMeanField_ELBO(), 100))
    others = []
    for _ in range(100):
        problem.encoder.zero_grad()
        TraceMeanField_ELBO().loss_and_grads(problem.model, problem.normal, problem.x)
        others.append(problem.encoder.weight.grad[0, 0].clone())
    check_same_mean(torch.stack(gradients), torch.stack(others))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: one.mask(torch.tensor([True, False])), lambda one: one.to_event(1)]
)
def test_kl_with_pyros_distributions_is_dispatched(wrap, swap):
    mu, logvar = parameters(2, 4)
    prior_mu, prior_logvar = parameters(2, 4, seed=1)
    ours, expected = DiagonalGaussian(mu, logvar), normal(mu, logvar).to_event(1)
    for other in (DiagonalGaussian(prior_mu, prior_logvar), normal(prior_mu, prior_logvar).to_event(1)):
        theirs = normal(prior_mu, prior_logvar).to_event(1)
        pairs = [(wrap(ours), wrap(other)), (wrap(expected), wrap(theirs))]
        kl, reference = (kl_divergence(*(reversed(pair) if swap else pair)) for pair in pairs)
        assert kl.shape == reference.shape
        torch.testing.assert_close(kl, reference, rtol=1e-5, atol=1e-5)


def test_a_kl_without_closed_form_is_estimated():
    ours = DiagonalGaussian(*parameters(2, 4))
    delta = of_pyro.Delta(torch.zeros(2, 4), event_dim=1)
    for other in (of_pyro.MultivariateNormal(torch.zeros(4), torch.eye(4)), delta):
        with pytest.raises(NotImplementedError):
            kl_divergence(ours, other)
    assert torch.equal(kl_divergence(delta, ours), -ours.log_prob(torch.zeros(2, 4)))


def test_it_has_the_shapes_of_a_pyro_distribution():
    ours = DiagonalGaussian(*parameters(3, 1, 4, 2), event_dims=1)
    theirs = normal(*parameters(3, 1, 4, 2)).to_event(1)
    for make in (
        lambda one: one,
        lambda one: one.expand([3, 5, 4]),
        lambda one: one.expand_by([6]),
        lambda one: one.to_event(1),
        lambda one: one.to_event(2).expand_by([2]),
        lambda one: one.mask(torch.ones(4, dtype=torch.bool)),
    ):
        mine, reference = make(ours), make(theirs)
        for shape in ("batch_shape", "event_shape", "event_dim", "has_rsample"):
            assert getattr(mine, shape) == getattr(reference, shape)
        assert mine.shape((2,)) == reference.shape((2,)) == mine((2,)).shape
        value = torch.randn(mine.shape())
        torch.testing.assert_close(mine.log_prob(value), reference.log_prob(value), rtol=1e-4, atol=1e-4)
    assert type(ours.expand([3, 5, 4])) is type(DiagonalGaussian.from_moments(torch.zeros(2, 4))) is DiagonalGaussian


def test_draws_follow_pyros_seed_and_have_gradients():
    mu, logvar = parameters(BATCH, LATENT)
    pyro.set_rng_seed(3)
    first = pyro.sample("z", DiagonalGaussian(mu, logvar))
    pyro.set_rng_seed(3)
    second = pyro.sample("z", DiagonalGaussian(mu, logvar))
    assert torch.equal(first, second)
    of_mu, of_logvar = torch.autograd.grad(first.sum(), [mu, logvar])
    assert of_mu.eq(1).all()
    torch.testing.assert_close(of_logvar, 0.5 * (first - mu), rtol=1e-4, atol=1e-5)


def test_predictions_are_drawn_in_parallel():
    problem = Problem()
    found = Predictive(problem.model, guide=problem.ours, num_samples=400, parallel=True, return_sites=["z"])(problem.x)
    mu, logvar = problem.encoder(problem.x).chunk(2, 1)
    assert found["z"].shape == (400, BATCH, LATENT)
    errors = (found["z"].mean(0) - mu).abs() / (torch.exp(0.5 * logvar) / 400**0.5)
    assert errors.max() < 5
    assert torch.allclose(found["z"].std(0), torch.exp(0.5 * logvar), rtol=0.2)


def test_svi_trains_it():
    problem = Problem()
    svi = SVI(problem.model, problem.ours, pyro.optim.Adam({"lr": 0.02}), TraceMeanField_ELBO())
    losses = [svi.step(problem.x) for _ in range(100)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_without_pyro_the_message_says_what_to_install():
    code = "import sys; sys.modules['pyro'] = None; import fastvae.integrations.pyro"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'ImportError: fastvae.integrations.pyro needs Pyro: pip install "pyro-ppl"' in done.stderr
