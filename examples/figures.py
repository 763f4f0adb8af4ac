"""Plots of digits for the examples, on top of the plots of any images in `fastvae.training.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from torch import Tensor

from fastvae.files import save_figure
from fastvae.training import figures
from fastvae.training.figures import COLORS, label, new_figure

__all__ = ["COLORS", "label", "new_figure", "save_curve", "save_figure", "save_map", "show"]

SIDE = 28


def images(digits: Tensor) -> Tensor:
    """Digits (..., 784) as images (..., 1, 28, 28)."""
    return digits.unflatten(-1, (1, SIDE, SIDE))


def show(axis: Axes, digits: Tensor, columns: int, *, gap: int = 2, below: Sequence[str] = ()) -> None:
    """Digits (N, 784), 0 (white) to 1 (black), on a grid; ``below`` labels the columns."""
    figures.show(axis, images(digits), columns, ink=True, gap=gap, below=below)


def save_map(path: Path, means: Tensor, labels: Tensor, plane: Tensor, reach: float) -> None:
    """The latent plane of a model with two latents: the posterior means of digits, (N, 2), and the images decoded from
    a grid over -reach to reach, (side * side, 784), row by row from the top."""
    figure = new_figure(13, 6.6, "A model with two latents: its whole latent space")
    points, decoded = figure.subplots(1, 2)
    for digit in labels.unique().tolist():
        points.scatter(*means[labels == digit].T.numpy(), s=10, color=f"C{digit}", label=str(digit))
    label(points, "held-out digits: posterior means", "$z_1$", "$z_2$")
    points.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2)
    show(decoded, plane, round(len(plane) ** 0.5), gap=0)
    decoded.images[0].set_extent((-reach, reach, -reach, reach))
    ticks = range(-int(reach), int(reach) + 1, 2)
    decoded.set_xticks(ticks, map(str, ticks))
    decoded.set_yticks(ticks, map(str, ticks))
    decoded.set(title="the decoded image at each point", xlabel="$z_1$", ylabel="$z_2$")
    for axis in (points, decoded):
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    save_figure(figure, path)


def save_curve(path: Path, train: Sequence[float], held_out: Sequence[float]) -> None:
    """Negative ELBO in nats by epoch."""
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    epochs = range(1, len(train) + 1)
    axis.plot(epochs, train, color=COLORS[0], label=f"train, last {train[-1]:.1f}")
    axis.plot(epochs, held_out, color=COLORS[1], label=f"held out, last {held_out[-1]:.1f}")
    label(axis, "Digits VAE 784-400-20: negative ELBO, an upper bound on $-\\log\\,p(x)$", "epoch", "nats per image")
    # Cut off the first epochs, which fall by hundreds of nats and would flatten the rest.
    lowest = min(*train, *held_out)
    axis.set_ylim(lowest - 3, min(max(*train, *held_out), lowest + 60) + 3)
    axis.legend(frameon=False)
    save_figure(figure, path)
