"""Plots: the README's, speed against eager PyTorch by shape, time per element by size, what a GPU reached by size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fastvae.files import save_figure

from . import summary
from .cases import DIRECTIONS
from .records import Row, Timing, timings
from .tables import contenders_in_order, times

_DTYPES = ("float32", "bfloat16")  # float16 is timed at one shape

_GREY = "#8c8c8c"
_COLORS = {
    "fastvae": "#c44e52",
    "fastvae reference": "#e5a3a5",
    "eager": "#4c72b0",
    "torch.distributions": "#8172b3",
    "torch.compile": "#55a868",
    "diffusers": "#ccb974",
}


def _tidy(axis: Axes, grid: str = "both") -> None:
    axis.grid(axis=grid, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def save_summary(results: Mapping[str, Any], path: Path) -> None:
    """The README's plot: how many times as fast ops and steps are; the numbers are in the file's text, too."""
    shown = summary.comparisons(results, summary.PLOT)
    figure = Figure(figsize=(7.2, 0.42 * len(shown) + 1.1), layout="constrained")
    axis = figure.subplots()
    for place, (number, one) in enumerate(shown):
        axis.barh(-place, one.speed, 0.7, color=_COLORS["eager" if number.of_a_model else "fastvae"])
        axis.text(one.speed, -place, f" {times(one.speed)}", va="center", fontsize=12)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks([-place for place in range(len(shown))], [number.label for number, _ in shown], fontsize=12)
    axis.set_xlim(0, 1.15 * max((one.speed for _, one in shown), default=1.0))
    machine = results["cpu"]["machine"]
    axis.set_xlabel("times as fast as without fastvae", fontsize=12)
    figure.supxlabel(f"{machine['cpu']}, {machine['threads']} threads", fontsize=11)
    names = (("an op", "fastvae"), ("a layer or step of a model", "eager"))
    patches = [Patch(color=_COLORS[color], label=name) for name, color in names]
    axis.legend(handles=patches, loc="lower right", frameon=False, fontsize=12)
    axis.set_axisbelow(True)
    _tidy(axis, "x")
    axis.spines["left"].set_visible(False)
    axis.tick_params("y", length=0)
    save_figure(figure, path, summary.description(results))


def save_suite(section: Row, path: Path, op: str = "sample_and_kl") -> None:
    """One op: speed against eager, a group of bars for each shape."""
    ours = [timing for timing in timings(section) if timing.case.op == op]
    dtypes = [dtype for dtype in _DTYPES if any(timing.case.dtype == dtype for timing in ours)]
    machine = section["machine"]
    figure, panels = _grid(f"{op} on {machine['cpu']}, {machine['threads']} threads, {machine['date']}", dtypes)
    for (dtype, direction), axis in panels.items():
        _bars(axis, [timing for timing in ours if (timing.case.dtype, timing.direction) == (dtype, direction)])
        axis.set_ylim(bottom=0.8 * min(timing.speed_against_eager for timing in ours))
    first = panels[dtypes[0], DIRECTIONS[0]]
    figure.supylabel("times as fast as eager")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def _grid(title: str, dtypes: Sequence[str]) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A row of panels for each dtype, a column for each direction."""
    figure = Figure(figsize=(13, 3 * len(dtypes) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(dtypes), len(DIRECTIONS), squeeze=False, sharex="row", sharey="row")
    panels = dict(zip(itertools.product(dtypes, DIRECTIONS), axes.flat, strict=True))
    for (dtype, direction), axis in panels.items():
        axis.set_title(f"{direction}, {dtype}")
    return figure, panels


def _bars(axis: Axes, ours: list[Timing]) -> None:
    shapes = list(dict.fromkeys(timing.case.shape_name for timing in ours))
    names = [name for name in contenders_in_order(ours) if name != "eager"]
    for index, name in enumerate(names):
        mine = [timing for timing in ours if timing.contender == name]
        places = [shapes.index(timing.case.shape_name) + (index + 0.5) / len(names) * 0.8 - 0.4 for timing in mine]
        speeds = [timing.speed_against_eager for timing in mine]
        # Bars start at eager's speed: up is faster, down is slower.
        lengths, bottoms = [abs(speed - 1.0) for speed in speeds], [min(speed, 1.0) for speed in speeds]
        axis.bar(places, lengths, 0.8 / len(names), bottom=bottoms, color=_COLORS.get(name, "black"), label=name)
    axis.axhline(1, color=_COLORS["eager"], label="eager")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _position: f"x{value:g}")
    axis.set_xticks(range(len(shapes)), shapes)
    _tidy(axis, "y")


def save_scaling(section: Row, path: Path) -> None:
    """Nanoseconds an element, forward and backward, by the number of elements."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    points, machine = section["rows"], section["machine"]
    for name, label in (("eager", "eager"), ("fastvae", "fastvae"), ("copy", "copy of the same bytes")):
        sizes = [point["elements"] for point in points]
        per_element = [1e9 * point["seconds"][name] / point["elements"] for point in points]
        axis.plot(sizes, per_element, ":" if name == "copy" else ".-", color=_COLORS.get(name, _GREY), label=label)
    axis.set_title(f"sample_and_kl, forward and backward, float32\n{machine['cpu']}, {machine['threads']} threads")
    axis.set(xscale="log", yscale="log", xlabel="elements", ylabel="ns an element")
    axis.legend(frameon=False)
    _tidy(axis)
    save_figure(figure, path)


def save_gpu(folder: Path, name: str, machine: Row, rows: Sequence[Row]) -> None:
    """Speed and bandwidth on a GPU, by size."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    versions = f"torch {machine['versions']['torch']}, triton {machine['triton']}"
    for what, label in (("speed_against_eager", "times as fast as eager PyTorch"), ("gb_s", "GB/s")):
        figure, panels = _grid(f"Latent op on {machine['device']}, {versions}, {machine['date']}", dtypes)
        for key, axis in panels.items():
            _points(axis, what, [row for row in rows if (row["dtype"], row["direction"]) == key])
        panels[dtypes[0], DIRECTIONS[0]].legend(frameon=False)
        figure.supxlabel("batch x latent")
        figure.supylabel(label)
        path = folder / f"{name}_{what}.png"
        save_figure(figure, path)
        print(f"wrote {path}")


def _points(axis: Axes, what: str, rows: Sequence[Row]) -> None:
    """A dot for each case; the line connects the medians of cases of the same size."""
    for contender in dict.fromkeys(row["contender"] for row in rows):
        points = sorted((row["batch"] * row["latent"], row[what]) for row in rows if row["contender"] == contender)
        sizes = sorted({size for size, _ in points})
        middle = [sorted(value for s, value in points if s == size) for size in sizes]
        color = _COLORS.get(contender, _GREY)
        axis.plot(*zip(*points, strict=True), ".", color=color)
        axis.plot(sizes, [values[len(values) // 2] for values in middle], color=color, label=contender)
    if what == "gb_s":
        copy = rows[0]["gb_s"] / rows[0]["share_of_copy"]
        axis.axhline(copy, color=_GREY, linestyle=":", label="device copy")
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    _tidy(axis)
