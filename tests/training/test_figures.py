"""Pictures of a run: images in their places, in their colours, and walks through what carries most."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("lightning", reason="the extra of training is not installed")
pytest.importorskip("matplotlib", reason="the extra of training is not installed")

from fastvae.likelihoods import Bernoulli
from fastvae.nn import (
    VAE,
    ConditionalVAE,
    ConvDecoder,
    ConvEncoder,
    HierarchicalVAE,
    MLPDecoder,
    MLPEncoder,
)
from fastvae.priors import GaussianMixture
from fastvae.training import data_figures, figures
from fastvae.training.statistics import value_range


def _shown(figure):
    """The array of the first picture of each panel."""
    return [axis.images[0].get_array() for axis in figure.axes]


def test_a_sheet_holds_each_image_in_its_place():
    images = (torch.arange(1, 4) / 4).view(3, 1, 1, 1).expand(3, 3, 5, 6)
    drawn = figures.sheet(images, columns=2, gap=2)
    assert drawn.shape == (14, 16, 3)
    assert [drawn[row, column, 2].item() for row, column in ((3, 4), (3, 12), (10, 4), (10, 12))] == [
        0.25,
        0.5,
        0.75,
        0,
    ]
    assert drawn[0].abs().max() == 0


def test_values_outside_0_and_1_are_cut_off():
    drawn = figures.sheet(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1), columns=2, gap=0)
    assert drawn.flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("ink", "name"), [(True, "gray_r"), (False, "gray")])
def test_grey_images_are_inverted_on_request_only(ink, name):
    figure = figures.samples(torch.zeros(4, 1, 8, 8), columns=2, ink=ink)
    assert figure.axes[0].images[0].get_cmap().name == name


def test_values_of_any_range_are_made_visible():
    like = torch.tensor([-1.0, 0.0, 3.0, 9.0]).view(4, 1, 1, 1)
    assert figures.displayable(like, -1.0, 3.0).flatten().tolist() == [0, 0.25, 1, 1]
    assert figures.displayable(like, 0.0, 1.0).flatten().tolist() == [0, 0, 1, 1]
    assert figures.displayable(torch.ones(1, 1, 1, 1), 1.0, 1.0).item() == 0.0


def test_one_outlier_does_not_rescale_all():
    x = torch.linspace(-2, 2, 10_000)
    low, high = value_range(x)
    x[0] = 1000.0
    assert value_range(x) == pytest.approx((low, high), abs=0.02)
    assert value_range(torch.tensor([0.2, 0.4])) == (0.0, 1.0)
    assert value_range(torch.tensor([])) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "edge", "shape"), [(1, 0, (5, 7, 3)), (3, 1, (14, 18, 3))])
def test_a_grid_has_the_pixels_of_its_images(count, edge, shape):
    images = torch.rand(count, 3, 5, 7)
    grid = figures.image_grid(images, columns=2 if count > 1 else 1)
    assert grid.shape == shape
    expected = (images[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(grid[edge : edge + 5, edge : edge + 7], expected)


def test_reconstructions_stand_below_their_originals():
    originals = torch.full((7, 3, 4, 4), 0.25)
    figure = figures.reconstructions(originals, originals * 2, columns=3, ink=False)
    panels = _shown(figure)
    assert len(panels) == 2  # 6 of the 7
    assert all((panel[2, 2, 0], panel[8, 2, 0]) == (0.25, 0.5) for panel in panels)


@pytest.mark.parametrize("side", [8, 28, 256])
def test_a_sheet_of_any_images_is_of_a_size_to_look_at(side):
    figure = figures.samples(torch.rand(20, 3, side, side), ink=False)
    width, height = figure.get_size_inches()
    assert 4 <= width <= 7
    assert 1 <= height <= 12


@pytest.mark.parametrize(("count", "shown"), [(100, 96), (3, 3)])
def test_samples_fill_whole_rows(count, shown):
    (drawn,) = _shown(figures.samples(torch.ones(count, 3, 64, 64)))
    assert round(drawn.sum() / (3 * 64 * 64)) == shown


def _vae(**options):
    return VAE(MLPEncoder((1, 8, 8), 6, 5), MLPDecoder(5, 6, (1, 8, 8)), Bernoulli(), **options)


def test_a_walk_changes_one_latent_at_a_time_of_those_that_carry_most():
    vae, x = _vae(), torch.rand(30, 1, 8, 8)
    with torch.no_grad():
        vae.encoder.layers[-1].weight[3] *= 20  # the mean of latent 3 moves far with x
    walks, carried = figures.walk_latents(vae, x, (-1.0, 0.5), 4, start=2)
    assert walks.shape == (4, 2, 1, 8, 8)
    assert [float(words.split()[0]) for words in carried] == sorted(
        (float(words.split()[0]) for words in carried), reverse=True
    )
    assert carried[0].endswith("nats")
    with torch.no_grad():
        z = vae.encode(x[2:3]).mu
        z[:, 3] = 0.5
        torch.testing.assert_close(walks[0, 1], vae.decode(z)[0])


def test_a_latent_with_positions_is_walked_by_channel():
    vae = VAE(
        ConvEncoder((1, 8, 8), (4, 4), latent_channels=3),
        ConvDecoder(latent_channels=3, channels=(4, 4), output_shape=(1, 8, 8)),
        Bernoulli(),
    )
    walks, carried = figures.walk_latents(vae, torch.rand(10, 1, 8, 8), (-2.0, 0.0, 2.0), 10)
    assert walks.shape == (3, 3, 1, 8, 8)
    assert len(carried) == 3


def test_without_a_closed_form_the_means_that_vary_most_are_walked():
    vae = _vae(prior=GaussianMixture(5, 3))
    walks, carried = figures.walk_latents(vae, torch.rand(10, 1, 8, 8), (0.0,), 2)
    assert walks.shape == (2, 1, 1, 8, 8)
    assert all(words.endswith("var") for words in carried)


def test_a_conditional_model_walks_under_the_condition_of_its_row():
    encoder = MLPEncoder((1, 8, 8), 6, 5, condition_dim=3)
    vae = ConditionalVAE(encoder, MLPDecoder(5, 6, (1, 8, 8), condition_dim=3), Bernoulli(), num_classes=3)
    x, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    walks, _ = figures.walk_latents(vae, x, (0.0, 1.0), 2, start=1, condition=labels)
    others, _ = figures.walk_latents(vae, x, (0.0, 1.0), 2, start=1, condition=(labels + 1) % 3)
    assert walks.shape == (2, 2, 1, 8, 8)
    assert not torch.allclose(walks, others)


def test_levels_of_latents_are_not_walked():
    vae = HierarchicalVAE.of_mlps((1, 8, 8), 6, (2, 3), Bernoulli())
    assert figures.walk_latents(vae, torch.rand(5, 1, 8, 8), (0.0,), 2) is None


def test_curves_show_what_was_measured_and_nothing_else():
    history = [
        {"epoch": epoch, "step": epoch, "train_elbo": -300.0 / epoch, "val_elbo": math.nan if epoch == 2 else -310.0}
        for epoch in range(1, 31)
    ]
    drawn = figures.curves(history)
    assert list(drawn) == ["bound"]  # nothing else was measured
    (bounds,) = drawn["bound"].axes
    assert [line.get_label() for line in bounds.lines] == ["ELBO, training", "ELBO, held out"]
    assert [len(line.get_xdata()) for line in bounds.lines] == [30, 29]
    assert bounds.lines[0].get_ydata()[0] == 300.0
    assert bounds.get_ylim()[1] <= 310.0


def test_each_value_of_a_series_has_its_own_scale():
    x = torch.tensor([1.0, 100.0, 0.1, 0.0, 0.0])[:, None] * torch.rand(2, 5, 12)
    figure = data_figures.series(x, x)
    assert [axis.get_title() for axis in figure.axes] == ["value 1 of 5", "value 2 of 5", "value 3 of 5", "", "", ""]
    for place, axis in enumerate(figure.axes):
        shown = x[:, place % 3]
        assert axis.get_ylim()[1] - axis.get_ylim()[0] == pytest.approx(1.1 * (shown.max() - shown.min()).item())
    assert [axis.get_title() for axis in data_figures.series(x[:, :1], x[:, :1]).axes] == ["", ""]


def test_one_epoch_is_a_point_that_is_seen():
    (line,) = figures.curves([{"epoch": 1, "train_elbo": -3.0}])["bound"].axes[0].lines
    assert line.get_marker() == "o"
