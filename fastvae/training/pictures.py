"""The pictures of a run, as matplotlib figures: images in rows, walks through the latents, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..monitors import ActiveUnits, kl_per_latent
from ..nn import VAE
from ..nn.model import LatentVariableModel
from ..priors import Prior

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(f'pictures need matplotlib ({error}): pip install "fastvae-kernels[train]"') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#4c72b0", "#c44e52", "#55a868", "#8172b3", "#ccb974", "#64b5cd", "#dd8452", "#937860")
WALK = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0)
"""In standard deviations of the prior: where `walk_latents` may go."""
_WIDEST = 10.0
"""Of a sheet of images, in inches."""
_TITLE_WIDTH = 4.8
"""In inches: narrower figures would cut their title off."""
_CRISP = 32
"""Images up to this side are drawn pixel by pixel; larger ones may be shrunk, and would lose lines that way."""
_PRIOR_DRAWS = 2000
"""From which the mean and the spread of a prior are estimated that is not one Gaussian."""


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """Width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    return figure


def label(axis: Axes, title: str, x: str, y: str) -> None:
    """What is drawn, on plain axes."""
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def sheet(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images (N, C, H, W) in rows on one sheet: (rows (H + gap), columns (W + gap), C), with 0 between them."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = torch.zeros(rows * columns, channels, height + gap, width + gap)
    cells[:count, :, gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = images.float().cpu().clamp(0, 1)
    cells = cells.view(rows, columns, channels, height + gap, width + gap)
    return cells.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)


def is_ink(images: Tensor) -> bool:
    """Whether images are drawings rather than photographs: of one channel, and most of it nothing."""
    return images.shape[1] == 1 and bool(images.median() < 0.05)


def displayable(images: Tensor, like: Tensor) -> Tensor:
    """Images for the eye: as they are where ``like`` is in [0, 1], else scaled as takes it there."""
    low, high = like.min(), like.max()
    if low >= 0 and high <= 1:
        return images
    return (images - low) / (high - low).clamp_min(1e-12)


def show(
    axis: Axes,
    images: Tensor,
    columns: int,
    *,
    ink: bool,
    gap: int = 2,
    below: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> None:
    """Images in rows, with words for the columns and the rows.

    ``ink``: of grey images, 1 is ink on white paper; as a photograph has it, 1 is white, if false.
    """
    drawn = sheet(images, columns, gap)
    options: dict[str, Any] = {"interpolation": "nearest" if max(images.shape[2:]) <= _CRISP else "antialiased"}
    if drawn.shape[-1] == 1:
        drawn = drawn[..., 0]
        options |= {"cmap": "gray_r" if ink else "gray", "vmin": 0, "vmax": 1}
    axis.imshow(drawn.numpy(), **options)
    height, width = images.shape[2] + gap, images.shape[3] + gap
    axis.set_xticks([(place + 0.5) * width for place in range(len(below))], below)
    axis.set_yticks([(place + 0.5) * height for place in range(len(beside))], beside)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _sheet_size(images: Tensor, columns: int, rows: int) -> tuple[float, float]:
    """In inches: as wide as there is room for, but not more than an inch and a half for an image."""
    width = min(_WIDEST, 1.5 * columns) if images.shape[-1] > 64 else min(_WIDEST, 0.75 * columns)
    return width, width / columns * rows * images.shape[-2] / images.shape[-1]


def reconstructions(originals: Tensor, came: Tensor, columns: int = 10, *, ink: bool) -> Figure:
    """Images, (N, C, H, W) each, in rows: one of originals, under it their reconstructions."""
    columns = min(columns, len(originals))
    rows = len(originals) // columns
    whole = rows * columns
    pairs = torch.stack([part[:whole].cpu().unflatten(0, (rows, columns)) for part in (originals, came)], 1)
    width, height = _sheet_size(originals, columns, 2 * rows)
    title = "Held-out data (upper rows)\nand their reconstructions (lower rows)"
    figure = new_figure(max(width, _TITLE_WIDTH), height + 0.25 * rows + 0.6, title)
    for axis, pair in zip(figure.subplots(rows, 1, squeeze=False)[:, 0], pairs, strict=True):
        show(axis, pair.flatten(0, 1), columns, ink=ink)
    return figure


def samples(images: Tensor, columns: int = 10, *, ink: bool, title: str | None = None) -> Figure:
    """Images, (N, C, H, W), in a grid."""
    columns = min(columns, len(images))
    width, height = _sheet_size(images, columns, -(-len(images) // columns))
    figure = new_figure(width if title is None else max(width, _TITLE_WIDTH), height + 0.5 * bool(title), title)
    show(figure.subplots(), images, columns, ink=ink)
    return figure


def traversals(walks: Tensor, values: Sequence[float], carried: Sequence[str], *, ink: bool) -> Figure:
    """One latent a row: images (rows, columns, C, H, W), the values along a row, and what each row's latent carries."""
    rows, columns = walks.shape[:2]
    width, height = _sheet_size(walks[0], columns, rows)
    figure = new_figure(
        max(width + 0.9, _TITLE_WIDTH), height + 0.9, "One latent changed at a time: those that carry most"
    )
    axis = figure.subplots()
    show(axis, walks.flatten(0, 1), columns, ink=ink, below=[f"{value:g}" for value in values], beside=carried)
    axis.set_xlabel("value of the latent, in standard deviations of the prior")
    return figure


@torch.no_grad()
def walk_latents(
    model: LatentVariableModel,
    x: Tensor,
    values: Sequence[float],
    rows: int,
    *,
    start: int = 0,
    condition: Tensor | None = None,
) -> tuple[Tensor, list[str]] | None:
    """One row of x (B, *event) decoded with one latent at a time set to each of the values, (rows, values, *event).

    Of the latents with the largest KL over all of x; where the prior has no closed form of it, of those whose posterior
    mean varies most. Which comes second, in words. A latent with positions is changed a channel at a time, at all
    positions. None for models with several levels of latents, each of which shapes those below it.

    Values are in standard deviations of the prior from its mean; of a prior that is not one Gaussian, both are
    estimated from draws. ``start`` is the row, ``condition`` (B, ...) is of all rows.
    """
    given = {} if condition is None else {"condition": condition}
    if not isinstance(model, VAE):
        return None
    mu = model.encode(x, **given).mu
    carried, unit = _carried(model, x, mu, condition)
    by_channel = carried.flatten(1).sum(1) if carried.dim() > 1 else carried
    most, channels = by_channel.sort(descending=True)
    rows = min(rows, len(channels))
    z = mu[start : start + 1].expand(rows, len(values), *mu.shape[1:]).clone()
    center, spread = _prior_moments(model, mu, start, condition)
    for row, channel in enumerate(channels[:rows]):
        for column, value in enumerate(values):
            z[row, column, channel] = center[channel] + value * spread[channel]
    one = {} if condition is None else {"condition": condition[[start] * (rows * len(values))]}
    walks = model.decode(z.flatten(0, 1), **one).unflatten(0, (rows, len(values)))
    return walks, [f"{value:.1f} {unit}" for value in most[:rows].tolist()]


def _prior_moments(model: VAE, mu: Tensor, start: int, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the prior of row ``start``, of the shape of its z."""
    prior = model._prior(None if condition is None else model._check_condition(condition, mu))
    mean: Tensor | None
    logvar: Tensor | None
    if isinstance(prior, Prior):
        if not prior.closed_form:
            drawn = prior.sample(_PRIOR_DRAWS, seed=0).to(mu)
            return drawn.mean(0), drawn.std(0)
        mean, logvar = prior.gaussian(mu.dtype)
    else:
        mean, logvar = (None, None) if prior is None else (prior[0][start], prior[1][start])
    if mean is None or logvar is None:
        return torch.zeros_like(mu[start]), torch.ones_like(mu[start])
    return mean, torch.exp(0.5 * logvar)


def _carried(model: VAE, x: Tensor, mu: Tensor, condition: Tensor | None) -> tuple[Tensor, str]:
    """How much each latent carries, and in which unit."""
    if model._exact_kl:
        (kl,) = kl_per_latent(model, [x if condition is None else (x, condition)], seed=0)
        return kl, "nats"
    if len(mu) < 2:
        return torch.zeros_like(mu[0]), "var"  # one row does not vary
    units = ActiveUnits()
    units.update(mu)
    return units.compute().variance, "var"


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """The bound, its two terms and the active units over the epochs; a row of ``history`` has what was measured."""
    figure = new_figure(10, 3.6)
    bounds, terms, units = figure.subplots(1, 3, width_ratios=(4, 3, 3))
    for color, (name, words) in zip(COLORS, _BOUNDS.items(), strict=False):
        _plot(bounds, history, name, words, color, sign=-1)
    label(bounds, "negative bound", "epoch", "nats a sample")
    _cut_first_epochs(bounds)
    _plot(terms, history, "val_reconstruction", "reconstruction", COLORS[1], sign=-1)
    label(terms, "terms, held out", "epoch", "$-\\log\\,p(x|z)$ in nats")
    _cut_first_epochs(terms)
    beside = terms.twinx()
    _plot(beside, history, "val_kl", "KL", COLORS[2])
    beside.set_ylabel("KL in nats")
    beside.spines[["top"]].set_visible(False)
    if terms.lines or beside.lines:
        # Two scales leave no place inside that is free for sure: below the epochs.
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        terms.legend(*_handles(terms, beside), frameon=False, **below)
    _plot(units, history, "active_units", "active", COLORS[3])
    label(units, "active units, held out", "epoch", "latents")
    units.set_ylim(bottom=0)
    units.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis in (bounds, terms, units):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if bounds.lines:
        bounds.legend(frameon=False)
    return figure


_BOUNDS = {
    "train_elbo": "ELBO, training",
    "val_elbo": "ELBO, held out",
    "train_iwae": "IWAE, training",
    "val_iwae": "IWAE, held out",
}


def _plot(axis: Axes, history: Sequence[Mapping[str, float]], name: str, words: str, color: str, sign: int = 1) -> None:
    points = [(row["epoch"], sign * row[name]) for row in history if math.isfinite(row.get(name, math.nan))]
    if points:
        axis.plot(*zip(*points, strict=True), color=color, label=words, marker="o" if len(points) == 1 else None)


def _cut_first_epochs(axis: Axes) -> None:
    """They fall by hundreds of nats, and would flatten what is worth seeing."""
    values = np.sort(np.concatenate([np.empty(0), *(np.asarray(line.get_ydata(), float) for line in axis.lines)]))
    if len(values) >= 10:
        low, usual, high = values[0], values[int(0.8 * len(values))], values[-1]
        axis.set_ylim(low - 0.05 * (usual - low), min(high, usual + (usual - low)))


def _handles(*axes: Axes) -> tuple[list[Any], list[str]]:
    found = [axis.get_legend_handles_labels() for axis in axes]
    return [handle for handles, _ in found for handle in handles], [word for _, words in found for word in words]
