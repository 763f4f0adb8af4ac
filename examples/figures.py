"""How the examples draw: digits on sheets, points, curves and bands, with plain axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bench.files import save_figure

COLORS = ("#4c72b0", "#c44e52", "#55a868", "#8172b3", "#ccb974", "#64b5cd", "#dd8452", "#937860")
SIDE = 28


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
    """Digits (N, 784) in rows on one sheet, 0 (paper) to 1 (ink)."""
    rows = -(-len(images) // columns)
    cells = torch.zeros(rows * columns, SIDE + gap, SIDE + gap)
    inner = slice(gap // 2, SIDE + gap // 2)
    cells[: len(images), inner, inner] = images.float().view(-1, SIDE, SIDE)
    return cells.view(rows, columns, SIDE + gap, SIDE + gap).transpose(1, 2).reshape(rows * (SIDE + gap), -1)


def show(axis: Axes, images: Tensor, columns: int, *, below: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
    """Digits in rows, with words for the columns and the rows."""
    axis.imshow(sheet(images, columns).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    cell = SIDE + 2
    axis.set_xticks([(place + 0.5) * cell for place in range(len(below))], below)
    axis.set_yticks([(place + 0.5) * cell for place in range(len(beside))], beside)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def save_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor, columns: int = 10) -> None:
    """Digits, (N, 784) each, in rows: one of originals, under it their reconstructions."""
    count = len(originals) // columns * columns
    pairs = torch.stack([originals[:count].view(-1, columns, 784), reconstructions[:count].view(-1, columns, 784)], 1)
    rows = pairs.shape[0]
    figure = new_figure(
        columns * 0.75, rows * 1.6 + 0.6, "Held-out digits (upper rows) and their reconstructions (lower rows)"
    )
    axes = figure.subplots(rows, 1, squeeze=False)
    for axis, pair in zip(axes[:, 0], pairs, strict=True):
        show(axis, pair.reshape(-1, 784), columns)
    save_figure(figure, path)


def save_samples(path: Path, samples: Tensor, columns: int = 10) -> None:
    """Digits, (N, 784), in a grid."""
    rows = -(-len(samples) // columns)
    figure = new_figure(columns * 0.75, rows * 0.75 + 0.6, "New digits: mean images of z drawn from the prior N(0, I)")
    show(figure.subplots(), samples, columns)
    save_figure(figure, path)


def save_traversals(path: Path, walks: Tensor, values: Sequence[float], nats: Sequence[float]) -> None:
    """One latent a row: digits (rows, columns, 784), the values along a row, and the KL of each row's latent."""
    rows, columns = walks.shape[:2]
    figure = new_figure(
        columns * 0.75 + 0.8, rows * 0.75 + 0.9, "One digit, one latent changed at a time: those with the largest KL"
    )
    axis = figure.subplots()
    show(
        axis, walks.flatten(0, 1), columns,
        below=[f"{value:g}" for value in values], beside=[f"{kl:.1f} nats" for kl in nats],
    )  # fmt: skip
    axis.set_xlabel("value of the latent, in standard deviations of the prior")
    save_figure(figure, path)


def save_map(path: Path, means: Tensor, labels: Tensor, plane: Tensor, reach: float) -> None:
    """A plane of two latents: where the digits lie, (N, 2), and what is decoded from it, (side * side, 784), row by
    row from the top, over -reach to reach."""
    figure = new_figure(13, 6.6, "A model with two latents: its whole code on one sheet")
    points, images = figure.subplots(1, 2)
    for digit in labels.unique().tolist():
        ours = means[labels == digit]
        points.scatter(*ours.T.numpy(), s=10, color=f"C{digit}", label=str(digit))
    label(points, "held-out digits: means of their posteriors", "$z_1$", "$z_2$")
    points.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2)
    side = round(len(plane) ** 0.5)
    images.imshow(
        sheet(plane, side, gap=0).numpy(), cmap="gray_r", vmin=0, vmax=1, extent=(-reach, reach, -reach, reach)
    )
    images.set(title="what the decoder makes of each place", xlabel="$z_1$", ylabel="$z_2$")
    for axis in (points, images):
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    save_figure(figure, path)


def save_curve(path: Path, train: Sequence[float], held_out: Sequence[float]) -> None:
    """Negative ELBO in nats, one value an epoch."""
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    epochs = range(1, len(train) + 1)
    axis.plot(epochs, train, color=COLORS[0], label=f"train, last {train[-1]:.1f}")
    axis.plot(epochs, held_out, color=COLORS[1], label=f"held out, last {held_out[-1]:.1f}")
    label(axis, "Digits VAE 784-400-20: negative ELBO, an upper bound on $-\\log\\,p(x)$", "epoch", "nats per image")
    # The first epochs fall by hundreds of nats and would flatten what is worth seeing.
    lowest = min(*train, *held_out)
    axis.set_ylim(lowest - 3, min(max(*train, *held_out), lowest + 60) + 3)
    axis.legend(frameon=False)
    save_figure(figure, path)
