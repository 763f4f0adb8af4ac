"""What `bench.gpu` measured, as pictures: speed against eager PyTorch by size, and GB/s by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastvae.files import save_figure

_COLORS = {"fastvae": "#c44e52", "eager": "#4c72b0", "compile": "#55a868"}


def save_plots(csv_path: Path, machine: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write both beside the CSV file: a row of panels for each dtype, a column for each direction."""
    paths = []
    for what, label in (("speed_against_eager", "times as fast as eager PyTorch"), ("gb_s", "GB/s")):
        path = csv_path.with_name(f"{csv_path.stem}_{what}.png")
        save_figure(_figure(what, label, machine, rows), path)
        paths.append(path)
    return paths


def _figure(what: str, label: str, machine: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Figure:
    dtypes, directions = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dtype", "direction"))
    size = (4 * max(1, len(directions)), 3.2 * max(1, len(dtypes)) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    versions = f"torch {machine['torch']}, triton {machine['triton']}"
    figure.suptitle(f"Latent op on {machine['device']}, {versions}, {machine['date'][:10]}")
    if rows:
        panels = figure.subplots(len(dtypes), len(directions), squeeze=False, sharex=True, sharey="row")
        for dtype, line in zip(dtypes, panels, strict=True):
            for direction, axis in zip(directions, line, strict=True):
                ours = [row for row in rows if row["dtype"] == dtype and row["direction"] == direction]
                _panel(axis, what, ours)
                axis.set_title(f"{direction}, {dtype}")
            line[0].set_ylabel(label)
        for axis in panels[-1]:
            axis.set_xlabel("batch x latent")
        panels[0, 0].legend(frameon=False)
    return figure


def _panel(axis: Axes, what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """One dot a case; the line goes through the medians of cases of the same size."""
    for contender in dict.fromkeys(row["contender"] for row in rows):
        points = sorted((row["batch"] * row["latent"], row[what]) for row in rows if row["contender"] == contender)
        sizes = sorted({size for size, _ in points})
        middle = [sorted(value for s, value in points if s == size) for size in sizes]
        color = _COLORS.get(contender, "#8c8c8c")
        axis.plot(*zip(*points, strict=True), ".", color=color)
        axis.plot(sizes, [values[len(values) // 2] for values in middle], color=color, label=contender)
    if what == "gb_s" and rows:
        copy = rows[0]["gb_s"] / rows[0]["share_of_copy"]
        axis.axhline(copy, color="#8c8c8c", linestyle=":", label="device copy")
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
