"""Monitors: active units against one pass over all data, KL per latent, the warning, and the plots."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn

import fastvae
from fastvae.likelihoods import Bernoulli
from fastvae.monitors import (
    ActiveUnits,
    PosteriorCollapseWarning,
    kl_per_latent,
    plot_active_units,
    plot_kl_per_latent,
    posterior_collapse,
)
from fastvae.nn import VAE, ConditionalVAE, MLPDecoder, MLPEncoder
from fastvae.priors import GaussianMixture, LearnedGaussian

# Active units


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_variance_is_that_of_all_batches_at_once(dtype, offset):
    mu = (offset + torch.randn(50, 3, 2) * torch.tensor([0.02, 3.0])).to(dtype)
    units = ActiveUnits()
    for batch in mu.split([1, 30, 0, 7, 12]):
        units.update(batch)
    variance, active = units.compute()
    torch.testing.assert_close(variance, mu.double().var(0), rtol=1e-9, atol=1e-12)
    assert torch.equal(active, mu.double().var(0) > 0.01)
    assert units.count == 50


def test_merged_parts_count_as_the_whole():
    mu = torch.randn(40, 5)
    whole, *parts = (ActiveUnits() for _ in range(4))
    whole.update(mu)
    for part, rows in zip(parts, mu.split([25, 14, 1]), strict=True):
        part.update(rows)
    merged = ActiveUnits()
    for part in (*parts, ActiveUnits()):
        merged.merge(part)
    torch.testing.assert_close(merged.compute().variance, whole.compute().variance)
    assert merged.count == 40
    assert parts[0].count == 25


def test_a_unit_that_follows_the_data_is_active_and_one_that_does_not_is_not():
    x = torch.randn(500, 1)
    units = ActiveUnits()
    units.update(torch.cat([x, 0.05 * x, torch.full_like(x, 7.0)], 1))
    assert units.compute().active.tolist() == [True, False, False]
    wary = ActiveUnits(threshold=1e-4)
    wary.update(torch.cat([x, 0.05 * x, torch.full_like(x, 7.0)], 1))
    assert wary.compute().active.tolist() == [True, True, False]


def test_nothing_of_the_graph_is_kept():
    units = ActiveUnits()
    units.update(torch.randn(4, 2, requires_grad=True))
    units.update(torch.randn(4, 2, requires_grad=True))
    assert not units.compute().variance.requires_grad


def test_update_does_not_synchronise():
    # A meta tensor has no values to look at: whatever asked for one would fail.
    units = ActiveUnits()
    for rows in (3, 4):
        units.update(torch.empty(rows, 2, device="meta"))
    assert units.count == 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ActiveUnits(-0.1), ValueError, "threshold is -0.1, expected a finite number of 0 or more"),
        (lambda: ActiveUnits().update([1.0]), TypeError, "mu is a list, expected a torch.Tensor"),
        (lambda: ActiveUnits().update(torch.tensor(1.0)), ValueError, "mu is 0-d"),
        (lambda: ActiveUnits().merge(3), TypeError, "other is a int, expected ActiveUnits"),
        (lambda: seen((4, 2), (4, 3)), ValueError, r"mu has latents of shape \(3,\), expected \(2,\) as before"),
        (lambda: ActiveUnits().compute(), RuntimeError, "0 samples have been seen, expected 2 or more"),
        (lambda: seen((1, 2)).compute(), RuntimeError, "1 samples have been seen, expected 2 or more"),
        (lambda: seen((4, 2)).merge(seen((4, 3))), ValueError, r"other has latents of shape \(3,\), expected \(2,\)"),
    ],
)
def test_bad_arguments_of_active_units_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def seen(*shapes) -> ActiveUnits:
    units = ActiveUnits()
    for shape in shapes:
        units.update(torch.randn(shape))
    return units


# The KL of each latent


def vae_and_batches(**keywords) -> tuple[VAE, list[torch.Tensor]]:
    vae = VAE(MLPEncoder(6, 8, 3), MLPDecoder(3, 8, 6), Bernoulli(), **keywords)
    return vae, list(torch.rand(11, 6).round().split([4, 6, 1]))


@pytest.mark.parametrize("prior", [None, LearnedGaussian(3)])
def test_kl_per_latent_is_the_mean_over_all_data(prior):
    vae, batches = vae_and_batches(prior=prior)
    state = torch.get_rng_state()
    (came,) = kl_per_latent(vae, iter(batches), seed=0)
    expected = fastvae.gaussian_kl(*vae.encode(torch.cat(batches)), reduction="none").mean(0)
    torch.testing.assert_close(came, expected.detach())
    assert not came.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_kl_per_latent_of_a_conditional_model():
    encoder, decoder = MLPEncoder(6, 8, 3, condition_dim=2), MLPDecoder(3, 8, 6, condition_dim=2)
    vae = ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=2)
    x, digits = torch.rand(8, 6).round(), torch.arange(8) % 2
    (came,) = kl_per_latent(vae, [(x[:5], digits[:5]), [x[5:], digits[5:]]])
    expected = fastvae.gaussian_kl(*vae.encode(x, condition=digits), reduction="none").mean(0)
    torch.testing.assert_close(came, expected.detach())


class Two(nn.Module):
    """Two levels, whose KL is made of the seed and the rows that it is given."""

    def terms(self, x, *, seed, row_offset, per_coordinate):
        assert per_coordinate
        first = fastvae.noise(seed, (len(x), 2), row_offset=row_offset)
        return type("Terms", (), {"kl_per_latent": (first.mean(0), x.mean(0))})


def test_each_level_has_its_own_and_the_batches_are_rows_of_one_stream():
    x = torch.rand(10, 4)
    first, second = kl_per_latent(Two(), x.split(3), seed=5)
    torch.testing.assert_close(first, fastvae.noise(5, (10, 2)).mean(0))
    torch.testing.assert_close(second, x.mean(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae, x: kl_per_latent(nn.Linear(2, 2), x), TypeError, "model is a Linear, expected .* terms"),
        (lambda vae, x: kl_per_latent(vae, []), ValueError, "batches yielded no data, expected one sample or more"),
        (lambda vae, x: kl_per_latent(vae, [(x[0], x[0], x[0])]), ValueError, "batches yielded 3 values at once"),
        (lambda vae, x: kl_per_latent(vae, ["x"]), TypeError, "batches yielded a str, expected tensors x or pairs"),
        (
            lambda vae, x: kl_per_latent(vae_and_batches(prior=GaussianMixture(3, 2))[0], x),
            ValueError,
            "model has a prior without a closed form of the KL",
        ),
    ],
)
def test_bad_arguments_of_kl_per_latent_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(*vae_and_batches())


# The warning


def test_collapsed_latents_are_returned_and_warned_about():
    with pytest.warns(PosteriorCollapseWarning, match=r"KL of 2 of 4 latents is below 0\.01 nats.*\(0, 1\), \(0, 3\)$"):
        assert posterior_collapse(torch.tensor([0.02, 0.001, 1.0, 0.0])) == [(0, 1), (0, 3)]


def test_collapsed_latents_of_levels_and_images():
    levels = (torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.2], [0.3, 2.0]]))
    with pytest.warns(PosteriorCollapseWarning, match="3 of 6"):
        assert posterior_collapse(levels, threshold=0.5) == [(0, 1), (1, 0, 1), (1, 1, 0)]


def test_the_warning_of_many_names_the_first():
    with pytest.warns(PosteriorCollapseWarning, match=r"1000 of 1000 .*\(0, 7\), \.\.\.$"):
        assert len(posterior_collapse(torch.zeros(1000))) == 1000


def test_a_kl_of_nan_is_news():
    levels = [torch.tensor([torch.nan, 1.0, 0.001]), torch.tensor([2.0, torch.nan])]
    with pytest.warns(PosteriorCollapseWarning, match=r"3 of 5 latents is below 0.01 nats or NaN \(2 are NaN\)"):
        assert posterior_collapse(levels) == [(0, 0), (0, 2), (1, 1)]


def test_no_collapse_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert posterior_collapse([torch.ones(3), torch.full((2, 2), 0.01)]) == []


@pytest.mark.parametrize("function", [posterior_collapse, plot_kl_per_latent])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "kl_per_latent is empty, expected one tensor or more"),
        (([None],), TypeError, "kl_per_latent holds a NoneType, expected tensors, one for each level"),
        ((torch.ones(3), -1.0), ValueError, "threshold is -1.0, expected a finite number of 0 or more"),
        ((3.0,), TypeError, "kl_per_latent is a float, expected a tensor, or one for each level"),
    ],
)
def test_bad_arguments_of_the_warning_and_the_plot_are_named(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


# Plots


def heights(axis):
    return [bar.get_height() for bar in axis.patches]


def test_the_plot_of_the_kl_has_a_panel_a_level_with_the_largest_first(tmp_path):
    matplotlib = pytest.importorskip("matplotlib.figure")
    figure = plot_kl_per_latent((torch.tensor([0.5, 2.0, 0.001]), torch.rand(2, 3, 3)), threshold=0.1)
    assert isinstance(figure, matplotlib.Figure)
    first, second = figure.axes
    assert heights(first) == pytest.approx([2.0, 0.5, 0.001])
    assert len(heights(second)) == 18
    assert first.patches[1].get_facecolor() != first.patches[2].get_facecolor()
    assert first.patches[0].get_facecolor() == first.patches[1].get_facecolor()
    assert "level 1" in second.get_title()
    figure.savefig(tmp_path / "kl.png")
    assert (tmp_path / "kl.png").stat().st_size > 1000


def test_the_plot_of_active_units_counts_them():
    pytest.importorskip("matplotlib")
    units = ActiveUnits()
    units.update(torch.tensor([[1.0, 0.5, -3.0], [-1.0, 0.5, 3.0]]))
    (axis,) = plot_active_units(units.compute()).axes
    assert axis.get_title() == "2 of 3 latents are active"
    assert heights(axis) == pytest.approx([18.0, 2.0, 0.0])
    with pytest.raises(TypeError, match=r"activity is a Tensor, expected the result of ActiveUnits\.compute"):
        plot_active_units(torch.ones(3))


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plots need matplotlib: pip install matplotlib"):
        plot_kl_per_latent(torch.ones(3))
