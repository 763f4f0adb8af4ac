"""Results as pictures: speed against eager PyTorch by shape, and time per element by size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastvae.files import save_figure

from .cases import DIRECTIONS
from .tables import Entry, contenders_in_order, entries

_DTYPES = ("float32", "bfloat16")  # float16 is timed at one shape

_COLORS = {
    "fastvae": "#c44e52",
    "fastvae reference": "#e5a3a5",
    "eager": "#4c72b0",
    "torch.distributions": "#8172b3",
    "torch.compile": "#55a868",
    "diffusers": "#ccb974",
    "copy": "#8c8c8c",
}


def save_suite(suite: Mapping[str, Any], path: Path, op: str = "sample_and_kl") -> None:
    """One op: a row of panels for each dtype, a column for each direction, a group of bars for each shape."""
    ours = [entry for entry in entries(suite) if entry.case.split()[0] == op]
    dtypes = [dtype for dtype in _DTYPES if any(entry.case.split()[2] == dtype for entry in ours)]
    figure = Figure(figsize=(13, 3 * max(1, len(dtypes)) + 0.6), layout="constrained")
    machine = suite["machine_info"]
    figure.suptitle(f"{op} on {machine['cpu']}, {machine['threads']} threads, {machine['date']}")
    panels = figure.subplots(max(1, len(dtypes)), len(DIRECTIONS), squeeze=False, sharey=True)
    for dtype, line in zip(dtypes, panels, strict=True):
        for direction, axis in zip(DIRECTIONS, line, strict=True):
            _bars(axis, [entry for entry in ours if (entry.case.split()[2], entry.direction) == (dtype, direction)])
            axis.set_title(f"{direction}, {dtype}")
        line[0].set_ylabel("times as fast as eager")
    panels[0, 0].set_ylim(bottom=0.8 * min(entry.speed for entry in ours))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def _bars(axis: Axes, ours: list[Entry]) -> None:
    shapes = list(dict.fromkeys(entry.case.split()[1] for entry in ours))
    names = [name for name in contenders_in_order(ours) if name != "eager"]
    for index, name in enumerate(names):
        speeds = {entry.case.split()[1]: entry.speed for entry in ours if entry.contender == name}
        places = [
            place + (index + 0.5) / len(names) * 0.8 - 0.4 for place, shape in enumerate(shapes) if shape in speeds
        ]
        heights = [speeds[shape] for shape in shapes if shape in speeds]
        # Bars stand on eager's speed: up is faster, down is slower.
        bottoms = [min(height, 1.0) for height in heights]
        lengths = [abs(height - 1.0) for height in heights]
        axis.bar(places, lengths, 0.8 / len(names), bottom=bottoms, color=_COLORS.get(name, "black"), label=name)
    axis.axhline(1, color=_COLORS["eager"], label="eager")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _position: f"x{value:g}")
    axis.set_xticks(range(len(shapes)), shapes)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def save_scaling(result: Mapping[str, Any], path: Path) -> None:
    """Nanoseconds an element, forward and backward, by the number of elements."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    points, machine = result["points"], result["machine"]
    for name, label in (("eager", "eager"), ("fastvae", "fastvae"), ("copy", "copy of the same bytes")):
        sizes = [point["elements"] for point in points]
        per_element = [1e9 * point["seconds"][name] / point["elements"] for point in points]
        axis.plot(sizes, per_element, ":" if name == "copy" else ".-", color=_COLORS[name], label=label)
    axis.set_title(f"sample_and_kl, forward and backward, float32\n{machine['cpu']}, {machine['threads']} threads")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("elements")
    axis.set_ylabel("ns an element")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
