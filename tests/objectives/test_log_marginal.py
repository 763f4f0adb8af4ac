"""Estimates of log p(x) against its exact value, in chunks of bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from examples.linear_gaussian import LinearGaussian
from fastvae.likelihoods import Bernoulli
from fastvae.nn import HierarchicalVAE
from fastvae.objectives import iwae_bound, log_marginal, naive_log_marginal


class Counting(LinearGaussian):
    """Notes how many draws are asked for at once."""

    def __init__(self, **keywords) -> None:
        super().__init__(**keywords)
        self.asked: list[int] = []

    def log_weights(self, x, num_samples, **keywords):
        self.asked.append(len(x) * num_samples)
        return super().log_weights(x, num_samples, **keywords)

    def log_likelihood_under_prior(self, x, num_samples, **keywords):
        self.asked.append(len(x) * num_samples)
        return super().log_likelihood_under_prior(x, num_samples, **keywords)


def model_and_data(rows: int = 6, mean: float = 0.1, logvar: float = 0.2) -> tuple[Counting, torch.Tensor]:
    model = Counting()
    x = model.draw(rows, generator=torch.Generator().manual_seed(5))
    model.perturb_encoder(mean, logvar)
    return model, x


ESTIMATES = pytest.mark.parametrize("estimate", [log_marginal, naive_log_marginal])


def test_importance_sampling_is_within_a_fiftieth_of_a_nat():
    model, x = model_and_data(20)
    came = log_marginal(model, x, 5000, seed=0)
    error = (came.estimate.double() - model.exact_log_prob(x)).abs()
    assert error.max() < 0.02
    assert (error < 4 * came.standard_error).all()


def test_the_standard_error_is_how_far_estimates_scatter():
    model, x = model_and_data(4, mean=0.3, logvar=0.4)
    came = [log_marginal(model, x, 500, seed=seed) for seed in range(200)]
    scatter = torch.stack([one.estimate for one in came]).std(0)
    told = torch.stack([one.standard_error for one in came]).mean(0)
    torch.testing.assert_close(told, scatter, rtol=0.25, atol=0.0)


def test_estimate_and_errors_are_those_of_the_weights():
    model, x = model_and_data()
    came = log_marginal(model, x, 40, seed=3)
    log_weights = model.log_weights(x, 40, seed=3).log_weights.detach().double()
    weights = log_weights.exp()
    torch.testing.assert_close(came.estimate.double(), iwae_bound(log_weights), rtol=1e-5, atol=1e-5)
    effective = weights.sum(0) ** 2 / (weights**2).sum(0)
    torch.testing.assert_close(came.effective_samples.double(), effective, rtol=1e-4, atol=0.0)
    error = weights.std(0) / weights.mean(0) / 40**0.5
    torch.testing.assert_close(came.standard_error.double(), error, rtol=1e-4, atol=0.0)
    assert not came.estimate.requires_grad


def test_at_the_exact_posterior_all_weights_are_equal():
    model, x = model_and_data(mean=0.0, logvar=0.0)
    came = log_marginal(model, x, 100)
    torch.testing.assert_close(came.estimate.double(), model.exact_log_prob(x), rtol=0, atol=2e-5)
    torch.testing.assert_close(came.effective_samples, torch.full((6,), 100.0), rtol=1e-4, atol=0.0)
    assert (came.standard_error < 1e-4).all()


@ESTIMATES
@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 200, 10_000])
def test_the_model_is_never_called_with_more_than_a_chunk(estimate, chunk):
    model, x = model_and_data()
    estimate(model, x, 130, chunk=chunk)
    assert max(model.asked) <= chunk
    assert sum(model.asked) == 6 * 130
    assert max(model.asked) > chunk // 2 or max(model.asked) == 6 * 64, "a chunk is made use of"


@ESTIMATES
@pytest.mark.parametrize("chunk", [64, 100, 128, 250, 10_000])
def test_the_chunk_changes_nothing_but_the_rounding(estimate, chunk):
    model, x = model_and_data(mean=0.5, logvar=-0.5)
    whole, parts = estimate(model, x, 200, chunk=1024, seed=3), estimate(model, x, 200, chunk=chunk, seed=3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(estimate(model, x, 200, chunk=chunk, seed=4).estimate, whole.estimate, atol=1e-3)


@ESTIMATES
def test_small_chunks_change_the_draws(estimate):
    model, x = model_and_data()
    exact, came = model.exact_log_prob(x), estimate(model, x, 3000, chunk=20, seed=3)
    assert ((came.estimate.double() - exact).abs() < 4.5 * came.standard_error).all()


@pytest.mark.parametrize("chunk", [64, 1024])
def test_no_draw_is_repeated(chunk):
    model, x = model_and_data(2)
    seen = []

    def noted(x, num_samples, **keywords):
        drawn = LinearGaussian.log_weights(model, x, num_samples, **keywords)
        seen.append(drawn.z[0].flatten())
        return drawn

    model.log_weights = noted
    log_marginal(model, x, 300, chunk=chunk, seed=3)
    z = torch.cat(seen)
    assert z.numel() == 2 * 300 * 2
    assert len(torch.unique(z)) > 0.999 * z.numel()


def test_hierarchical_draws_are_never_repeated_nor_changed_by_the_chunk():
    vae = HierarchicalVAE.of_mlps(4, 8, latent_dims=(2, 3, 2), likelihood=Bernoulli())
    log_weights, seeds = vae.log_weights, []

    def noted(x, num_samples, *, seed, row_offset):
        seeds.append(seed.item())
        return log_weights(x, num_samples, seed=seed, row_offset=row_offset)

    vae.log_weights = noted
    x = torch.rand(3, 4).round()
    whole = log_marginal(vae, x, 5000, seed=3)
    # As HierarchicalVAE says that its levels have them.
    of_levels = {(seed + level * 0x9E3779B97F4A7C15) % 2**64 for seed in seeds for level in range(100)}
    assert len(of_levels) == 100 * len(seeds) == 100 * 79
    torch.testing.assert_close(log_marginal(vae, x, 5000, chunk=64, seed=3), whole, rtol=1e-5, atol=1e-5)


def test_parts_of_a_batch_give_what_the_whole_gives():
    model, x = model_and_data()
    whole = log_marginal(model, x, 100, seed=3)
    parts = [log_marginal(model, x[:2], 100, seed=3), log_marginal(model, x[2:], 100, seed=3, row_offset=2)]
    for i, part in enumerate(whole):
        torch.testing.assert_close(torch.cat([one[i] for one in parts]), part, rtol=1e-5, atol=1e-5)


@ESTIMATES
def test_only_seed_and_generator_determine_the_draw(estimate):
    model, x = model_and_data()
    state = torch.get_rng_state()
    seeded = estimate(model, x, 100, seed=1)
    assert torch.equal(estimate(model, x, 100, seed=torch.tensor([1])).estimate, seeded.estimate)
    assert torch.equal(estimate(model, x, 100, seed=-1).estimate, estimate(model, x, 100, seed=2**64 - 1).estimate)
    first = estimate(model, x, 100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(estimate(model, x, 100, generator=torch.Generator().manual_seed(1)).estimate, first.estimate)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_from_the_prior_is_right_for_a_short_code():
    model, x = model_and_data()
    came = naive_log_marginal(model, x, 20_000, chunk=50_000, seed=0)
    error = (came.estimate.double() - model.exact_log_prob(x)).abs()
    assert (error < 4.5 * came.standard_error).all()
    assert error.max() < 0.15


def test_sampling_from_the_prior_fails_silently_for_a_long_one():
    model = LinearGaussian(data_dim=60, latent_dim=30, variance=0.01)
    x = model.draw(10, generator=torch.Generator().manual_seed(0))
    exact = model.exact_log_prob(x)
    naive = naive_log_marginal(model, x, 5000, seed=0)
    assert (exact - naive.estimate > 50.0).all()
    assert (naive.standard_error < 2.0).all()
    assert (log_marginal(model, x, 50, seed=0).estimate - exact).abs().max() < 0.01


@ESTIMATES
def test_float64_and_one_draw(estimate):
    model, x = model_and_data()
    came = estimate(model.double(), x.double(), 70, seed=0)
    assert {part.dtype for part in came} == {torch.float64}
    one = estimate(model, x.double(), 1)
    assert one.estimate.isfinite().all()
    assert one.standard_error.isnan().all()
    assert (one.effective_samples == 1.0).all()


@ESTIMATES
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk is 0, expected 1 or more"),
        ({"chunk": 10.0}, TypeError, "chunk is a float, expected an int"),
        ({"num_samples": 0}, ValueError, "num_samples is 0, expected 1 or more"),
        ({"num_samples": None}, TypeError, "num_samples is a NoneType, expected an int"),
        ({"x": [1.0]}, TypeError, "x is a list, expected a torch.Tensor"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\), expected \(batch, \*event\)"),
        ({"x": torch.zeros(0, 5)}, ValueError, r"x has shape \(0, 5\), expected \(batch, \*event\) with a batch of 1"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator were both given"),
        ({"model": nn.Linear(5, 2)}, TypeError, "model is a Linear, expected one with the method log_"),
    ],
)
def test_bad_arguments_are_named(estimate, arguments, error, message):
    model, x = model_and_data()
    with pytest.raises(error, match=message):
        estimate(**{"model": model, "x": x, "num_samples": 10, **arguments})
    assert model.asked == []


def test_a_bad_row_offset_is_named():
    model, x = model_and_data()
    with pytest.raises(ValueError, match="row_offset is -1, expected 0 or more"):
        log_marginal(model, x, 10, row_offset=-1)
