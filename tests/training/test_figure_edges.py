"""Pictures of a run at their edges: few images, large ones, one epoch, priors that are not N(0, 1)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra of training is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from fastvae.files import save_figure
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, ConditionalVAE, ConvDecoder, ConvEncoder, HierarchicalVAE, MLPDecoder, MLPEncoder
from fastvae.priors import GaussianMixture, LearnedGaussian, Prior, VampPrior
from fastvae.training import figures


def _title_fits(figure) -> bool:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    extent = figure._suptitle.get_window_extent(canvas.get_renderer())
    return extent.x0 >= 0 and extent.x1 <= figure.bbox.width


def _mlps(side: int, latents: int, **options):
    encoder = MLPEncoder((1, side, side), 6, latents, **options)
    return encoder, MLPDecoder(latents, 6, (1, side, side), **options)


def _models():
    encoder, decoder = _mlps(8, 5)
    conv = ConvEncoder((3, 8, 8), (4, 4), latent_channels=3)
    back = ConvDecoder(latent_channels=3, channels=(4, 4), output_shape=(3, 8, 8))
    classes = {"condition_dim": 3}
    return {
        "8x8": (VAE(encoder, decoder, Bernoulli()), {}),
        "28x28": (VAE(*_mlps(28, 4), Bernoulli()), {}),
        "colour": (VAE(conv, back, Bernoulli()), {}),
        "vamp": (VAE(encoder, decoder, Bernoulli(), prior=VampPrior(encoder, (1, 8, 8), 4)), {}),
        "levels": (HierarchicalVAE.of_mlps((1, 8, 8), 6, (2, 3), Bernoulli()), {}),
        "classes": (
            ConditionalVAE(*_mlps(8, 5, **classes), Bernoulli(), num_classes=3),
            {"condition": torch.arange(12) % 3},
        ),
    }


@pytest.mark.parametrize("name", ["8x8", "28x28", "colour", "vamp", "levels", "classes"])
def test_each_model_is_drawn_to_png_files_of_a_size_to_look_at(name, tmp_path):
    model, given = _models()[name]
    x = torch.rand(12, 3 if name == "colour" else 1, *([28 if name == "28x28" else 8] * 2))
    with torch.no_grad():
        drawn = [
            figures.reconstructions(x, model.reconstruct(x, **given), ink=False),
            figures.samples(model.generate(12, seed=0, **given), ink=False),
        ]
    walked = figures.walk_latents(model, x, figures.WALK, 3, **given)
    assert (walked is None) == (name == "levels")
    if walked is not None:
        drawn.append(figures.traversals(walked[0], figures.WALK, walked[1], ink=False))
    for figure in drawn:
        save_figure(figure, tmp_path / "one.png")
        height, width, _ = imread(tmp_path / "one.png").shape
        assert 500 <= width <= 1650
        assert 150 <= height <= 1650


@pytest.mark.parametrize("count", [1, 2, 10])
def test_titles_are_not_cut_off_where_images_are_few(count):
    images = torch.rand(count, 1, 8, 8)
    walks = images.unflatten(0, (1, count))
    assert _title_fits(figures.reconstructions(images, images, ink=True))
    assert _title_fits(figures.traversals(walks, [0.0] * count, ["1.0 nats"], ink=True))


def test_small_images_stay_crisp_and_large_ones_are_shrunk_smoothly():
    how = {side: figures.samples(torch.rand(2, 1, side, side), ink=True) for side in (8, 28, 256)}
    assert [figure.axes[0].images[0].get_interpolation() for figure in how.values()] == [
        "nearest",
        "nearest",
        "antialiased",
    ]


def test_epochs_and_active_units_are_whole_numbers_even_where_there_is_one():
    row = {"epoch": 1, "val_elbo": -3.0, "val_reconstruction": -2.0, "val_kl": 1.0, "active_units": 1}
    drawn = figures.curves([row])
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
    bounds, terms, units = (drawn[name].axes[0] for name in ("bound", "terms", "units"))
    ticks = [*bounds.get_xticks(), *terms.get_xticks(), *units.get_xticks(), *units.get_yticks()]
    assert all(tick == round(tick) for tick in ticks)


def test_the_legend_of_the_terms_hides_neither_of_them():
    row = {"epoch": 1, "val_reconstruction": -2.0, "val_kl": 1.0}
    figure = figures.curves([row, {**row, "epoch": 2, "val_kl": 2.0}])["terms"]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    terms = figure.axes[0]
    legend = terms.get_legend()
    place = legend.get_window_extent(canvas.get_renderer())
    assert [text.get_text() for text in legend.get_texts()] == ["reconstruction", "KL"]
    assert place.y0 >= 0
    assert place.y1 < terms.xaxis.label.get_window_extent().y0 + 1 < terms.bbox.y0


def _stands_at(model, x, walks, z, **given):
    with torch.no_grad():
        torch.testing.assert_close(walks, model.decode(z, **given))
    return True


def _carries_all(model, channel: int):
    """The mean of one latent made to move far with x, so that it is the first to be walked."""
    with torch.no_grad():
        model.encoder.layers[-1].weight[channel] *= 20


def test_a_walk_is_in_standard_deviations_of_a_learned_prior():
    prior = LearnedGaussian(5)
    with torch.no_grad():
        prior.mu[3] = 2.0
        prior.logvar[3] = 2 * torch.tensor(0.5).log()
    model, x = VAE(*_mlps(8, 5), Bernoulli(), prior=prior), torch.rand(30, 1, 8, 8)
    walks, _ = figures.walk_latents(model, x, (-1.0, 3.0), 1)
    z = model.encode(x[:1]).mu.detach().repeat(2, 1)
    z[:, 3] = torch.tensor([1.5, 3.5])
    assert _stands_at(model, x, walks[0], z)


def test_a_walk_is_in_standard_deviations_of_the_prior_of_its_condition():
    """A prior with means (c, c) and standard deviations 1."""

    class Shifted(torch.nn.Module):
        def forward(self, condition):
            mean = condition.sum(1, keepdim=True).expand(-1, 2)
            return mean, torch.zeros_like(mean)

    model = ConditionalVAE(*_mlps(8, 2, condition_dim=1), Bernoulli(), prior=Shifted())
    x, condition = torch.rand(6, 1, 8, 8), torch.arange(6.0).unsqueeze(1)
    _carries_all(model, 1)
    walks, _ = figures.walk_latents(model, x, (-1.0, 2.0), 1, start=4, condition=condition)
    given = {"condition": condition[[4, 4]]}
    z = model.encode(x[[4, 4]], **given).mu.detach().clone()
    z[:, 1] = torch.tensor([3.0, 6.0])
    assert _stands_at(model, x, walks[0], z, **given)


def test_the_spread_of_a_prior_without_closed_form_is_that_of_its_draws():
    class Far(Prior):
        def log_prob(self, z):
            return -(z - 10).abs().sum(1)

        def sample(self, n, **_options):
            return 10 + 4 * torch.linspace(-1, 1, n).sign().unsqueeze(1).expand(n, 2)

    model, x = VAE(*_mlps(8, 2), Bernoulli(), prior=Far(2)), torch.rand(8, 1, 8, 8)
    _carries_all(model, 0)
    walks, _ = figures.walk_latents(model, x, (0.0, 1.0), 1)
    z = model.encode(x[[0, 0]]).mu.detach().clone()
    z[:, 0] = torch.tensor([10.0, 14.0])
    with torch.no_grad():
        torch.testing.assert_close(walks[0], model.decode(z), rtol=0, atol=1e-2)


def test_a_single_row_is_walked_though_it_varies_in_nothing():
    model = VAE(*_mlps(8, 5), Bernoulli(), prior=GaussianMixture(5, 3))
    walks, carried = figures.walk_latents(model, torch.rand(1, 1, 8, 8), (0.0,), 2)
    assert walks.shape == (2, 1, 1, 8, 8)
    assert carried == ["0.0 var", "0.0 var"]
