"""The pictures that the digits demo draws, as PNG files written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bench.files import save_figure

_TRAIN, _HELD_OUT = "#4c72b0", "#c44e52"


def save_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor, columns: int = 10) -> None:
    """Digits, (N, 784) each, in rows: one of originals, under it their reconstructions."""
    count = len(originals) // columns * columns
    pairs = torch.stack([originals[:count].view(-1, columns, 784), reconstructions[:count].view(-1, columns, 784)], 1)
    rows = pairs.shape[0]
    figure = Figure(figsize=(columns * 0.75, rows * 1.6 + 0.6), layout="constrained")
    figure.suptitle("Held-out digits (upper rows) and their reconstructions (lower rows)")
    axes = figure.subplots(rows, 1, squeeze=False)
    for axis, pair in zip(axes[:, 0], pairs, strict=True):
        _show(axis, _grid(pair.reshape(-1, 784), columns))
    save_figure(figure, path)


def save_samples(path: Path, samples: Tensor, columns: int = 10) -> None:
    """Digits, (N, 784), in a grid."""
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(columns * 0.75, rows * 0.75 + 0.6), layout="constrained")
    figure.suptitle("New digits: mean images of z drawn from the prior N(0, I)")
    _show(figure.subplots(), _grid(samples, columns))
    save_figure(figure, path)


def save_curve(path: Path, train: Sequence[float], held_out: Sequence[float]) -> None:
    """Negative ELBO in nats, one value an epoch."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    epochs = range(1, len(train) + 1)
    axis.plot(epochs, train, color=_TRAIN, label=f"train, last {train[-1]:.1f}")
    axis.plot(epochs, held_out, color=_HELD_OUT, label=f"held out, last {held_out[-1]:.1f}")
    axis.set_title("Digits VAE 784-400-20: negative ELBO, an upper bound on $-\\log\\,p(x)$")
    axis.set_xlabel("epoch")
    axis.set_ylabel("nats per image")
    # The first epochs fall by hundreds of nats and would flatten what is worth seeing.
    lowest = min(*train, *held_out)
    axis.set_ylim(lowest - 3, min(max(*train, *held_out), lowest + 60) + 3)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save_figure(figure, path)


def _grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images (N, 784) on one sheet, 0 (paper) to 1 (ink)."""
    rows = -(-len(images) // columns)
    cells = torch.zeros(rows * columns, 28 + gap, 28 + gap)
    cells[: len(images), gap // 2 : 28 + gap // 2, gap // 2 : 28 + gap // 2] = images.float().view(-1, 28, 28)
    return cells.view(rows, columns, 28 + gap, 28 + gap).transpose(1, 2).reshape(rows * (28 + gap), -1)


def _show(axis: Axes, sheet: Tensor) -> None:
    axis.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()
