"""Figures of data that are no images: counts by their mean and variance, series as lines, latents as a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..likelihoods.base import sample_given
from ..nn.model import LatentVariableModel
from .encode import latents_of
from .figures import COLORS, label, new_figure

__all__ = ["of_values"]

_WIDTH = 5.5
_NAMED = 12
"""Labels in a legend; the rest is one grey."""
_SERIES = 4
_VALUES = 3
"""Series in the figure, and values of each step."""


def of_values(
    model: LatentVariableModel, x: Tensor, given: dict[str, Any], kind: str, labels: Tensor | None, names: Sequence[str]
) -> list[tuple[Figure, str, str]]:
    """Figures with a name and a caption each.

    Args:
        x: held-out rows, (N, *event).
        given: what the model is given beside x.
        kind: "counts", "series" or "values".
        labels: of each row, None without any.
        names: of the labels.
    """
    drawn = []
    if kind == "series":
        came = model.reconstruct(x[:_SERIES], **{name: part[:_SERIES] for name, part in given.items()})
        drawn.append((series(x[:_SERIES], came), "reconstructions", "Held-out series (grey) and their reconstructions"))
    if kind == "counts":
        caption = "Mean and variance of each gene: held-out data, and counts drawn from p(x|z) for the same rows"
        drawn.append((mean_and_variance(x, drawn_counts(model, x, given)), "mean-variance", caption))
    if len(x) > 2:
        mapped = latent_map(latents_of(model, x, given), labels, names)
        drawn.append((mapped, "latents", "Held-out data in the plane of most variance of the latents (PCA of mu)"))
    return drawn


def drawn_counts(model: LatentVariableModel, x: Tensor, given: dict[str, Any]) -> Tensor:
    """x ~ p(x|z), z ~ q(z|x), at the library sizes of x; NaN where x is."""
    output = model(x, seed=0, **given)
    generator = torch.Generator(x.device).manual_seed(0)
    came = sample_given(model.likelihood, output.parameters, x, generator)
    return torch.where(torch.isnan(x), x, came)


def mean_and_variance(x: Tensor, drawn: Tensor) -> Figure:
    """Of each coordinate of x and of the drawn counts, (N, *event) each, on logarithmic axes."""
    figure = new_figure(_WIDTH, 4.2)
    axis = figure.subplots()
    for counts, color, name, size in ((x, "#999999", "data", 9), (drawn, COLORS[0], "model", 4)):
        values = counts.flatten(1).double().cpu().numpy()
        known = np.isfinite(values).any(0)
        mean, variance = np.nanmean(values[:, known], 0), np.nanvar(values[:, known], 0)
        seen = (mean > 0) & (variance > 0)
        axis.scatter(mean[seen], variance[seen], s=size, color=color, label=name, alpha=0.6, linewidths=0)
    axis.axline((1, 1), (10, 10), color="black", linewidth=0.8, linestyle=":", label="Poisson")
    axis.set_xscale("log")
    axis.set_yscale("log")
    label(axis, "Counts of each gene", "mean", "variance")
    axis.legend(frameon=False)
    return figure


def latent_map(mu: Tensor, labels: Tensor | None, names: Sequence[str]) -> Figure:
    """The first two principal components of mu, (N, latents), coloured by label."""
    centred = mu.double() - mu.double().mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(mu), 2))
    plane[:, : min(2, len(directions))] = (centred @ directions[:2].T).numpy()
    share = spread.square() / spread.square().sum().clamp_min(1e-30)
    figure = new_figure(_WIDTH, 4.2)
    axis = figure.subplots()
    if labels is None:
        axis.scatter(plane[:, 0], plane[:, 1], s=8, color=COLORS[0], alpha=0.7, linewidths=0)
    else:
        common = torch.bincount(labels).argsort(descending=True)[:_NAMED].tolist()
        others = ~torch.isin(labels, torch.tensor(common))
        if others.any():
            axis.scatter(plane[others, 0], plane[others, 1], s=8, color="#bbbbbb", label="others", linewidths=0)
        for place, number in enumerate(sorted(common)):
            of_label = plane[labels == number]
            marker = "o" if place < len(COLORS) else "^"
            color = COLORS[place % len(COLORS)]
            options: dict[str, Any] = {"color": color, "marker": marker, "label": names[number]}
            axis.scatter(of_label[:, 0], of_label[:, 1], s=10, alpha=0.8, linewidths=0, **options)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    parts = [f"PC {place + 1} ({100 * part:.0f}%)" for place, part in enumerate(share[:2].tolist())]
    label(axis, "Latents of held-out data", *[*parts, "PC 2 (0%)"][:2])
    return figure


def series(originals: Tensor, came: Tensor) -> Figure:
    """Series (N, C, T) as lines, a row of panels each, with a column for each of the first values: of several values,
    each has its own scale. The originals are grey, their reconstructions in colours."""
    shown = min(originals.shape[1], _VALUES)
    figure = new_figure(_WIDTH, 1.4 * len(originals) + 0.4)
    grid = figure.subplots(len(originals), shown, sharex=True, sharey="col", squeeze=False)
    for place, row in enumerate(grid):
        for value, axis in enumerate(row):
            axis.plot(originals[place, value].float().cpu().numpy(), color="#999999", linewidth=2.2)
            axis.plot(came[place, value].float().cpu().numpy(), color=COLORS[value % len(COLORS)], linewidth=1.1)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    for value, (top, bottom) in enumerate(zip(grid[0], grid[-1], strict=True)):
        if originals.shape[1] > 1:
            top.set_title(f"value {value + 1} of {originals.shape[1]}", fontsize=10)
        bottom.set_xlabel("step")
    return figure
