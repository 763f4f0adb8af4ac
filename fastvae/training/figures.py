"""Matplotlib figures of a run: grids of images, traversals of the latents, curves over the epochs."""

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

__all__ = [
    "COLORS", "WALK", "are_images", "curves", "displayable", "image_grid", "label", "new_figure", "reconstructions",
    "samples", "sheet", "show", "traversals", "walk_latents",
]  # fmt: skip

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(f'pictures need matplotlib ({error}): pip install "fastvae-kernels[train]"') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#4c72b0", "#c44e52", "#55a868", "#8172b3", "#ccb974", "#64b5cd", "#dd8452", "#937860")
WALK = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0)
"""Values that `walk_latents` sets a latent to, in standard deviations of the prior."""
_WIDEST = 6.5
"""Width of a grid of images in inches: on a phone, at 400 pixels, labels of 10 points are still legible."""
_TITLE_WIDTH = 4.8
"""Width in inches that a title needs."""
_CRISP = 32
"""Images up to this side are drawn without interpolation; larger ones may be shrunk, which would drop lines."""
_PRIOR_DRAWS = 2000
"""Draws from which mean and standard deviation are estimated of a prior that is not one Gaussian."""


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """Width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    return figure


def label(axis: Axes, title: str, x: str, y: str) -> None:
    """Title and labels, with a light grid and without the upper and right spine."""
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def sheet(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images (N, C, H, W) in a grid, (rows (H + gap), columns (W + gap), C); 0 between them, cut off to [0, 1]."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = torch.zeros(rows * columns, channels, height + gap, width + gap)
    cells[:count, :, gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = images.float().cpu().clamp(0, 1)
    cells = cells.view(rows, columns, channels, height + gap, width + gap)
    return cells.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)


def are_images(shape: Sequence[int]) -> bool:
    """Whether samples of this shape can be drawn, as grey images or in colour."""
    return len(shape) == 3 and shape[0] in (1, 3)


def displayable(images: Tensor, low: float, high: float) -> Tensor:
    """Images whose values range from ``low``, as which NaN is shown, to ``high``, mapped to [0, 1]; cut off outside."""
    images = images.nan_to_num(nan=low)
    if (low, high) == (0.0, 1.0):
        return images.clamp(0, 1)
    return ((images - low) / max(high - low, 1e-12)).clamp(0, 1)


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1] pixel by pixel, as (rows, columns, C) uint8; a single one has no border."""
    grid = sheet(images, columns, gap=2 if len(images) > 1 else 0)
    return (grid * 255).round().to(torch.uint8)


def show(
    axis: Axes,
    images: Tensor,
    columns: int,
    *,
    ink: bool = False,
    gap: int = 2,
    below: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> None:
    """Images in a grid, with labels below the columns and beside the rows.

    Args:
        ink: draw 1 of grey images black on white, as print; else white, as in a photograph.
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


def _columns(images: Tensor) -> int:
    return 10 if images.shape[-1] <= _CRISP else 8 if images.shape[-1] <= 64 else 5


def _sheet_size(images: Tensor, columns: int, rows: int) -> tuple[float, float]:
    """Width and height in inches, with at most 1.5 inches for an image."""
    width = min(_WIDEST, 1.5 * columns) if images.shape[-1] > 64 else min(_WIDEST, 0.75 * columns)
    return width, width / columns * rows * images.shape[-2] / images.shape[-1]


def reconstructions(originals: Tensor, came: Tensor, columns: int | None = None, *, ink: bool = False) -> Figure:
    """Images, (N, C, H, W) each: rows of originals, each above the row of their reconstructions."""
    columns = min(columns or _columns(originals), len(originals))
    rows = len(originals) // columns
    whole = rows * columns
    pairs = torch.stack([part[:whole].cpu().unflatten(0, (rows, columns)) for part in (originals, came)], 1)
    width, height = _sheet_size(originals, columns, 2 * rows)
    title = "Held-out data (upper rows)\nand their reconstructions (lower rows)"
    figure = new_figure(max(width, _TITLE_WIDTH), height + 0.25 * rows + 0.6, title)
    for axis, pair in zip(figure.subplots(rows, 1, squeeze=False)[:, 0], pairs, strict=True):
        show(axis, pair.flatten(0, 1), columns, ink=ink)
    return figure


def samples(images: Tensor, columns: int | None = None, *, ink: bool = False, title: str | None = None) -> Figure:
    """Images, (N, C, H, W), in a grid; of three rows or more without ``columns``, the last is left out if not full."""
    whole = columns is None
    columns = min(columns or _columns(images), len(images))
    if whole and len(images) > 2 * columns:
        images = images[: len(images) // columns * columns]
    width, height = _sheet_size(images, columns, -(-len(images) // columns))
    figure = new_figure(width if title is None else max(width, _TITLE_WIDTH), height + 0.5 * bool(title), title)
    show(figure.subplots(), images, columns, ink=ink)
    return figure


def traversals(walks: Tensor, values: Sequence[float], carried: Sequence[str], *, ink: bool = False) -> Figure:
    """One latent a row: images (rows, columns, C, H, W), the values along a row, and a label for each row."""
    rows, columns = walks.shape[:2]
    width, height = _sheet_size(walks[0], columns, rows)
    figure = new_figure(
        max(width + 0.9, _TITLE_WIDTH), height + 0.9, "One latent changed at a time:\nthose that carry most"
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
    """One row of x (B, *event) decoded with one latent at a time set to each of the values.

    Walked are the latents with the largest KL over all of x; for a prior without a closed form of the KL, those whose
    posterior mean varies most. A latent with positions is changed one channel at a time, at all positions.

    Args:
        values: in standard deviations of the prior from its mean; for a prior that is not one Gaussian, both are
            estimated from draws.
        rows: at most so many latents.
        start: the row of x.
        condition: (B, ...), of all rows.

    Returns:
        Images (rows, values, *event), and a label for each row with the KL or the variance of its latent. None for
        models with several levels of latents, where one level changes the prior of the next.
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
    """Mean and standard deviation of the prior of row ``start``, (*latent_shape) each."""
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
    """The KL of each latent in nats, or the variance of its posterior mean; and the unit."""
    if model._exact_kl:
        (kl,) = kl_per_latent(model, [x if condition is None else (x, condition)], seed=0)
        return kl, "nats"
    if len(mu) < 2:
        return torch.zeros_like(mu[0]), "var"  # one row does not vary
    units = ActiveUnits()
    units.update(mu)
    return units.compute().variance, "var"


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """Figures over the epochs by name: the bound, its two terms, and the active units where they were measured.

    A row of ``history`` has the measurements of one epoch.
    """
    drawn = {"bound": _curve_of_bound(history), "terms": _curve_of_terms(history), "units": _curve_of_units(history)}
    return {name: figure for name, figure in drawn.items() if any(axis.lines for axis in figure.axes)}


def _curve_figure(title: str, y: str) -> tuple[Figure, Axes]:
    figure = new_figure(*_CURVE_SIZE)
    axis = figure.subplots()
    label(axis, title, "epoch", y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axis


def _curve_of_bound(history: Sequence[Mapping[str, float]]) -> Figure:
    figure, axis = _curve_figure("negative bound", "nats a sample")
    for color, (name, words) in zip(COLORS, _BOUNDS.items(), strict=False):
        _plot(axis, history, name, words, color, sign=-1)
    _cut_first_epochs(axis)
    if axis.lines:
        axis.legend(frameon=False)
    return figure


def _curve_of_terms(history: Sequence[Mapping[str, float]]) -> Figure:
    figure, axis = _curve_figure("terms, held out", "$-\\log\\,p(x|z)$ in nats")
    _plot(axis, history, "val_reconstruction", "reconstruction", COLORS[1], sign=-1)
    _cut_first_epochs(axis)
    beside = axis.twinx()
    _plot(beside, history, "val_kl", "KL", COLORS[2])
    beside.set_ylabel("KL in nats")
    beside.spines[["top"]].set_visible(False)
    if axis.lines or beside.lines:
        # Below the axes: with two scales, curves may be anywhere inside.
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        axis.legend(handles=[*axis.lines, *beside.lines], frameon=False, **below)
    return figure


def _curve_of_units(history: Sequence[Mapping[str, float]]) -> Figure:
    figure, axis = _curve_figure("active units, held out", "latents")
    _plot(axis, history, "active_units", "active", COLORS[3])
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


_CURVE_SIZE = (4.2, 3.2)
"""In inches: legible at the width of a phone, and three fit beside each other on a screen."""
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
    """Limit the y axis to the later epochs: the first ones fall by hundreds of nats and would flatten the rest."""
    values = np.sort(np.concatenate([np.empty(0), *(np.asarray(line.get_ydata(), float) for line in axis.lines)]))
    if len(values) >= 10:
        low, usual, high = values[0], values[int(0.8 * len(values))], values[-1]
        axis.set_ylim(low - 0.05 * (usual - low), min(high, usual + (usual - low)))
