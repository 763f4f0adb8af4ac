"""Objectives on models whose log p(x) is known: bounds and their order, gradients, shaping of the loss, bad input."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import fastvae
from examples.linear_gaussian import LinearGaussian
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, ConditionalVAE, HierarchicalVAE, MLPDecoder, MLPEncoder
from fastvae.objectives import ELBO, IWAE, iwae_bound, log_marginal, naive_log_marginal
from fastvae.priors import GaussianMixture, LearnedGaussian, StandardNormal, VampPrior
from fastvae.schedules import constant, cyclical, linear_warmup


def model_and_data(rows: int = 6, **keywords) -> tuple[LinearGaussian, torch.Tensor]:
    """A linear-Gaussian VAE whose encoder is off the exact posterior, and data from it."""
    model = LinearGaussian(**keywords)
    x = model.draw(rows, generator=torch.Generator().manual_seed(5))
    model.perturb_encoder()
    return model, x


# The bounds


def test_each_bound_is_below_the_next_and_all_below_log_p():
    model, x = model_and_data(300)
    objectives = (ELBO(), IWAE(5), IWAE(50))
    with torch.no_grad():
        bounds = torch.stack([torch.stack([o(model, x, seed=seed).bound for seed in range(20)]) for o in objectives])
        chain = torch.cat([bounds.double(), model.exact_log_prob(x).expand(1, *bounds.shape[1:])])
    steps = chain.diff(dim=0).flatten(1)
    assert (steps.mean(1) > 4 * steps.std(1) / steps.shape[1] ** 0.5).all(), steps.mean(1)


def test_at_the_exact_posterior_every_draw_gives_log_p():
    model = LinearGaussian()
    x = model.draw(50)
    expected = model.exact_log_prob(x)
    log_weights = model.log_weights(x, 7, seed=0).log_weights
    torch.testing.assert_close(log_weights.double(), expected.expand(7, -1), rtol=0, atol=2e-5)
    for objective in (IWAE(1), IWAE(7), IWAE(7, "dreg")):
        torch.testing.assert_close(objective(model, x, seed=0).bound.double(), expected, rtol=0, atol=2e-5)


def test_at_the_exact_posterior_the_elbo_is_log_p_on_average():
    model = LinearGaussian()
    x = model.draw(20)
    with torch.no_grad():
        elbo = torch.stack([ELBO()(model, x, seed=seed).bound for seed in range(1000)]).double()
    error = (elbo.mean(0) - model.exact_log_prob(x)).abs()
    assert (error < 4.5 * elbo.std(0) / 1000**0.5).all()


def test_the_known_posterior_is_the_one_that_bayes_rule_gives():
    model = LinearGaussian()
    with torch.no_grad():
        model.decoder.weight.add_(0.5 * torch.randn(5, 2))  # no longer of orthogonal columns
    x, z = model.draw(4), torch.randn(4, 2, dtype=torch.float64)
    mean, covariance = model.exact_posterior(x)
    log_posterior = torch.distributions.MultivariateNormal(mean, covariance).log_prob(z)
    log_likelihood = model.likelihood.log_prob(model.decoder(z.float()), x).double()
    expected = log_likelihood + Normal(0.0, 1.0).log_prob(z).sum(1) - model.exact_log_prob(x)
    torch.testing.assert_close(log_posterior, expected, rtol=0, atol=1e-4)


def test_iwae_bound_is_log_mean_exp():
    log_weights = 3 * torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(iwae_bound(log_weights), log_weights.exp().mean(0).log())
    assert iwae_bound(log_weights + 1e4).isfinite().all()
    assert torch.equal(iwae_bound(log_weights[:1]), log_weights[0])


def test_bound_and_loss_of_an_objective():
    model, x = model_and_data()
    came = IWAE(5)(model, x, seed=3)
    torch.testing.assert_close(came.bound, iwae_bound(model.log_weights(x, 5, seed=3).log_weights))
    torch.testing.assert_close(came.loss, -came.bound.mean())
    assert came.reconstruction is None
    assert came.kl is None
    torch.testing.assert_close(IWAE(5, "dreg")(model, x, seed=3).bound, came.bound)
    elbo, expected = ELBO()(model, x, seed=3), model.elbo(x, seed=3)
    torch.testing.assert_close((elbo.bound, elbo.reconstruction, elbo.kl), (*expected[:2], expected.kl.mean()))
    torch.testing.assert_close(elbo.loss, -expected.elbo.mean())
    assert not elbo.kl.requires_grad


# The shaped loss


def test_beta_and_capacity_weigh_the_loss_and_not_the_bound():
    model, x = model_and_data()
    plain = model.elbo(x, seed=0)
    kl = plain.kl.mean()
    for keywords, price in (
        ({"beta": 4.0}, 4.0 * kl),
        ({"beta": 0}, 0.0 * kl),
        ({"beta": 10.0, "capacity": 0.5}, 10.0 * (kl - 0.5).abs()),
        ({"capacity": 25}, (kl - 25.0).abs()),
    ):
        came = ELBO(**keywords)(model, x, seed=0)
        torch.testing.assert_close(came.loss, price - plain.reconstruction.mean())
        torch.testing.assert_close(came.bound, plain.elbo)
        torch.testing.assert_close(came.kl, kl)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("group", ["coordinate", "latent"])
def test_free_bits_count_in_loss_and_bound(group, over):
    model, x = model_and_data(20)
    mu, logvar = model.encode(x)
    each = fastvae.gaussian_kl(mu, logvar, reduction="none")
    each = each if group == "coordinate" else each.sum(1, keepdim=True)
    each = each if over == "sample" else each.mean(0, keepdim=True)
    free = each.median().item() + 0.01
    expected = each.clamp_min(free).sum(1).mean()
    came = ELBO(beta=2.0, free_bits=free, free_bits_group=group, free_bits_over=over)(model, x, seed=0)
    plain = model.elbo(x, seed=0)
    torch.testing.assert_close(came.kl, expected)
    torch.testing.assert_close(came.loss, 2.0 * expected - plain.reconstruction.mean())
    torch.testing.assert_close(came.bound.mean(), plain.reconstruction.mean() - expected)
    assert came.bound.mean() < plain.elbo.mean()
    assert came.bound.shape == (20,)


def test_gradient_of_the_shaped_loss():
    model, x = model_and_data()
    parameters = list(model.parameters())
    came = torch.autograd.grad(ELBO(beta=3.0, capacity=0.2)(model, x, seed=0).loss, parameters)
    plain = model.elbo(x, seed=0)
    loss = 3.0 * (plain.kl.mean() - 0.2).abs() - plain.reconstruction.mean()
    torch.testing.assert_close(came, torch.autograd.grad(loss, parameters))


def test_schedules_are_called_with_the_step():
    model, x = model_and_data()
    objective = ELBO(beta=linear_warmup(10), capacity=cyclical(10, ratio=1.0, end=2.0))
    for step in (0, 3, 10):
        beta, capacity = min(step / 10, 1.0), 2.0 * (step % 10) / 10
        expected = ELBO(beta=beta, capacity=capacity)(model, x, seed=0)
        torch.testing.assert_close(objective(model, x, seed=0, step=step).loss, expected.loss)
    with pytest.raises(ValueError, match="step is None, expected an int: beta is a schedule"):
        objective(model, x)
    with pytest.raises(ValueError, match="step is None, expected an int: capacity is a schedule"):
        ELBO(capacity=constant(1.0))(model, x)
    with pytest.raises(ValueError, match=r"beta is -1\.0, expected a finite number of 0 or more"):
        ELBO(beta=lambda step: -1.0)(model, x, step=0)


def test_beta_and_capacity_of_a_call_override_the_objectives():
    model, x = model_and_data()
    came = ELBO(beta=linear_warmup(10), capacity=5.0)(model, x, seed=0, beta=2.0, capacity=1.0)
    torch.testing.assert_close(came.loss, ELBO(beta=2.0, capacity=1.0)(model, x, seed=0).loss)


def test_per_coordinate_returns_the_kl_of_each_latent():
    model, x = model_and_data()
    assert ELBO()(model, x).kl_per_latent is None
    came = ELBO(beta=3.0, free_bits=0.5, per_coordinate=True)(model, x)
    expected = fastvae.gaussian_kl(*model.encode(x), reduction="none").mean(0)
    torch.testing.assert_close(came.kl_per_latent, (expected.detach(),))


# Gradients of the importance-weighted bound


def priors_of(model: LinearGaussian):
    return {
        "standard": lambda: StandardNormal(2),
        "learned": lambda: LearnedGaussian(2),
        "mixture": lambda: GaussianMixture(2, 3),
        "vamp": lambda: VampPrior(model.encoder, 5, 3),
    }


def written_out(model, x, num_samples, seed):
    """The doubly reparameterised gradient of the mean bound for each parameter, in plain PyTorch."""
    mu, logvar = model.encoder(x)
    eps = torch.stack([fastvae.noise(seed, mu.shape, draw=k, dtype=torch.float64) for k in range(num_samples)])
    z = mu + torch.exp(logvar / 2) * eps
    held_z = z.detach().requires_grad_()
    log_q = Normal(mu.detach(), torch.exp(logvar.detach() / 2)).log_prob(held_z).sum(-1)
    log_p_x = Normal(model.decoder(held_z), torch.exp(model.likelihood.logvar / 2)).log_prob(x).sum(-1)
    log_w = log_p_x + model.prior.log_prob(held_z) - log_q
    v = torch.softmax(log_w.detach(), 0)
    (by_z,) = torch.autograd.grad(log_w.sum(), held_z, retain_graph=True)
    for_decoder = (v * log_w).sum(0)
    for_encoder = (v.square() * (by_z * z).sum(-1)).sum(0)
    return torch.autograd.grad((for_decoder + for_encoder).mean(), list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["standard", "learned", "mixture", "vamp"])
def test_dreg_is_its_formula(kind, dtype):
    model, x = model_and_data()
    model.prior = priors_of(model)[kind]()
    model.to(dtype)
    came = torch.autograd.grad(-IWAE(8, "dreg")(model, x.to(dtype), seed=3).loss, list(model.parameters()))
    expected = written_out(model.double(), x.double(), 8, 3)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close([g.double() for g in came], list(expected), rtol=tolerance, atol=tolerance)


def test_the_decoders_gradient_is_the_same_in_both():
    model, x = model_and_data(prior=LearnedGaussian(2))
    weights = [*model.decoder.parameters(), *model.prior.parameters()]
    standard, dreg = (
        torch.autograd.grad(IWAE(8, gradient)(model, x, seed=1).loss, weights) for gradient in ("standard", "dreg")
    )
    torch.testing.assert_close(standard, dreg, rtol=1e-4, atol=1e-5)


class RepeatedPosterior(nn.Module):
    """The same mu and logvar for every row, as a parameter a row: each row's gradient is one draw of the estimator."""

    latent_dim = 2

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor([0.5, -0.3]).repeat(rows, 1))
        self.logvar = nn.Parameter(torch.tensor([-1.0, -0.2]).repeat(rows, 1))

    def forward(self, x):
        return self.mu, self.logvar


class Estimators(NamedTuple):
    standard: torch.Tensor
    dreg: torch.Tensor


def draws_of_gradients(num_samples: int, rows: int = 4000) -> Estimators:
    """(rows, 4) each: independent draws of the gradient of one x's bound for its mu and logvar."""
    linear = LinearGaussian()
    x = linear.draw(1, generator=torch.Generator().manual_seed(0)).expand(rows, -1)
    model = VAE(RepeatedPosterior(rows), linear.decoder, linear.likelihood)
    parameters = list(model.encoder.parameters())

    def draws(gradient):
        return torch.cat(torch.autograd.grad(IWAE(num_samples, gradient)(model, x, seed=7).bound.sum(), parameters), 1)

    return Estimators(draws("standard"), draws("dreg"))


@pytest.mark.parametrize("num_samples", [1, 4, 32])
def test_dreg_and_the_standard_gradient_agree_on_average(num_samples):
    standard, dreg = draws_of_gradients(num_samples, rows=20_000)
    difference = standard.mean(0) - dreg.mean(0)
    error = ((standard.var(0) + dreg.var(0)) / len(standard)).sqrt()
    assert (difference.abs() < 4.5 * error).all(), difference / error
    assert (dreg.mean(0).abs() > 10 * error).any(), "a gradient of nothing would agree too"


def test_dregs_signal_to_noise_rises_with_the_draws_where_the_standard_ones_falls():
    def signal_to_noise(gradient):
        return (gradient.mean(0).norm() / gradient.var(0).sum().sqrt()).item()

    few, many = draws_of_gradients(8), draws_of_gradients(256)
    assert signal_to_noise(many.dreg) > 2 * signal_to_noise(few.dreg)
    assert signal_to_noise(many.standard) < 0.7 * signal_to_noise(few.standard)
    assert signal_to_noise(many.dreg) > 10 * signal_to_noise(many.standard)
    assert many.dreg.var(0).sum() < 0.05 * many.standard.var(0).sum()


def test_dreg_with_nothing_to_differentiate():
    model, x = model_and_data()
    model.encoder.requires_grad_(False)
    loss = IWAE(4, "dreg")(model, x, seed=0).loss
    expected = IWAE(4)(model, x, seed=0).loss
    weights = list(model.decoder.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights))
    with torch.no_grad():
        assert not IWAE(4, "dreg")(model, x).loss.requires_grad


def test_dreg_in_bfloat16():
    vae = VAE(MLPEncoder(4, 8, 2), MLPDecoder(2, 8, 4), Bernoulli()).to(torch.bfloat16)
    came = IWAE(8, "dreg")(vae, torch.rand(5, 4).round().to(torch.bfloat16))
    assert came.bound.dtype == torch.float32
    came.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


# What objectives are


@pytest.mark.parametrize("objective", [ELBO(beta=linear_warmup(5), free_bits=0.1), IWAE(5, "dreg")])
def test_objectives_are_plain_values(objective):
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert copy.deepcopy(objective) == objective
    assert eval(repr(objective)) == objective


@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), IWAE(3, "dreg")])
def test_seeds_determine_the_draw(objective):
    model, x = model_and_data()
    state = torch.get_rng_state()
    whole = objective(model, x, seed=1).bound
    assert not torch.equal(whole, objective(model, x, seed=2).bound)
    parts = [objective(model, x[:2], seed=1).bound, objective(model, x[2:], seed=1, row_offset=2).bound]
    torch.testing.assert_close(torch.cat(parts), whole)
    first = objective(model, x, generator=torch.Generator().manual_seed(1)).bound
    assert torch.equal(objective(model, x, generator=torch.Generator().manual_seed(1)).bound, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_conditions_reach_conditional_models():
    encoder, decoder = MLPEncoder(4, 8, 2, condition_dim=3), MLPDecoder(2, 8, 4, condition_dim=3)
    vae = ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=3)
    x, digits = torch.rand(6, 4).round(), torch.arange(6) % 3
    for objective in (ELBO(), IWAE(3), IWAE(3, "dreg")):
        mixed = objective(vae, x, condition=digits, seed=0).bound
        alike = objective(vae, x, condition=1, seed=0).bound
        assert torch.equal(mixed == alike, digits == 1)
    mixed = log_marginal(vae, x, 70, chunk=128, condition=digits, seed=0).estimate
    alike = log_marginal(vae, x, 70, chunk=1000, condition=1, seed=0).estimate
    torch.testing.assert_close(mixed[digits == 1], alike[digits == 1])
    assert (mixed != alike)[digits != 1].all()
    assert naive_log_marginal(vae, x, 70, chunk=128, condition=digits).estimate.shape == (6,)
    with pytest.raises(ValueError, match=r"condition has shape \(5,\), x has \(6, 4\); expected equal rows"):
        log_marginal(vae, x, 10, condition=digits[:5])


def test_models_with_levels_of_latents():
    vae = HierarchicalVAE.of_mlps(4, 8, latent_dims=(2, 3), likelihood=Bernoulli())
    x = torch.rand(6, 4).round()
    came, plain = ELBO(per_coordinate=True)(vae, x, seed=0), vae.elbo(x, seed=0)
    torch.testing.assert_close((came.bound, came.kl), (plain.elbo, plain.kl.mean()))
    assert [level.shape for level in came.kl_per_latent] == [(2,), (3,)]
    free = ELBO(free_bits=50.0, free_bits_group="latent")(vae, x)
    torch.testing.assert_close(free.bound, free.reconstruction - 100.0)
    IWAE(3)(vae, x).loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    with pytest.raises(ValueError, match=r"hold_posterior is True, expected False: .* one level of latents"):
        IWAE(3, "dreg")(vae, x)


@pytest.mark.parametrize("objective", [ELBO(beta=2.0, free_bits=0.1), IWAE(3), IWAE(3, "dreg")])
def test_objectives_compile_whole(objective):
    if objective == IWAE(3, "dreg") and torch.__version__ < "2.12":
        pytest.skip("the compiler of PyTorch 2.11 puts the hook of a gradient before what it is a gradient of")
    model, x = model_and_data()
    torch._dynamo.reset()

    def loss(x):
        return objective(model, x, seed=3).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    came, expected = (torch.autograd.grad(run(x), list(model.parameters())) for run in (compiled, loss))
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheduled", [True, False], ids=["step", "numbers"])
def test_schedules_compile_once(scheduled):
    """The compiler takes the first value for a constant, and the second for the first of many."""
    model, x = model_and_data()
    beta, capacity = linear_warmup(10), linear_warmup(10, 1.0, 3.0)
    objective, graphs = ELBO(beta=beta, capacity=capacity), []
    torch._dynamo.reset()

    def loss(x, step, **numbers):
        return (objective if scheduled else ELBO())(model, x, seed=3, step=step, **numbers).loss

    def counting(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(loss, fullgraph=True, backend=counting)
    for step in range(2, 9):
        given = {"step": step} if scheduled else {"step": 0, "beta": beta(step), "capacity": capacity(step)}
        torch.testing.assert_close(compiled(x, **given), objective(model, x, seed=3, step=step).loss)
    assert len(graphs) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: IWAE(0), ValueError, "num_samples is 0, expected 1 or more"),
        (lambda: IWAE(2.0), TypeError, "num_samples is a float, expected an int"),
        (lambda: IWAE(5, "stl"), ValueError, "gradient is 'stl', expected one of 'standard', 'dreg'"),
        (lambda: ELBO(beta=-1), ValueError, "beta is -1, expected a finite number of 0 or more"),
        (lambda: ELBO(beta="1"), TypeError, "beta is a str, expected a number"),
        (lambda: ELBO(capacity=-1.0), ValueError, "capacity is -1.0, expected a finite number of 0 or more"),
        (lambda: ELBO(free_bits=-1.0), ValueError, "free_bits is -1.0"),
        (lambda: ELBO(free_bits_group="level"), ValueError, "free_bits_group is 'level', expected one of"),
        (lambda: ELBO(free_bits_over="data"), ValueError, "free_bits_over is 'data', expected one of"),
        (lambda: ELBO(per_coordinate=1), TypeError, "per_coordinate is a int, expected a bool"),
        (
            lambda: ELBO()(nn.Linear(2, 2), torch.ones(2, 2)),
            TypeError,
            "model is a Linear, expected .* terms",
        ),
        (lambda: IWAE(2)(nn.Linear(2, 2), torch.ones(2, 2)), TypeError, "model is a Linear, expected .* log_weights"),
        (lambda: iwae_bound([1.0]), TypeError, "log_weights is a list, expected a torch.Tensor"),
        (lambda: iwae_bound(torch.zeros(0, 3)), ValueError, r"log_weights has shape \(0, 3\), expected \(K, B\)"),
        (
            lambda: IWAE(2)(*model_and_data(), seed=1, generator=torch.Generator()),
            ValueError,
            "seed and generator",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
