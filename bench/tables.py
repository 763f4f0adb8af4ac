"""Results as Markdown tables. ``section`` is one of `bench.records.load`.

A table of rows as they were measured is `Columns`, which the command prints, too. In the other tables contenders stand
beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from .cases import OPS, Case
from .memory import peak_over_minimum
from .records import Columns, Row, Timing, markdown, timings

# The order of contenders in columns and rows; others come last.
ORDER = ("fastvae", "fastvae reference", "eager", "torch.distributions", "torch.compile", "diffusers")

# The share of processor time taken by other processes above which a measurement is marked: threads have waited.
BUSY = 0.1

Key = TypeVar("Key", bound=Hashable)


def contenders_in_order(found: Iterable[Timing]) -> list[str]:
    names = list(dict.fromkeys(timing.contender for timing in found))
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def duration(seconds: float) -> str:
    """Three significant digits: 85.3 us, 1.57 ms, 0.404 s."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if float(f"{seconds * scale:.3g}") < (1000 if unit == "us" else 100):
            return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds:#.3g}".rstrip(".") + " s"


def size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def times(ratio: float) -> str:
    """x12, x4.5, x0.38"""
    return f"x{ratio:.0f}" if ratio >= 9.95 else f"x{ratio:.1f}" if ratio >= 0.95 else f"x{ratio:.2g}"


def mark(other_load: float | None) -> str:
    """What follows a time that was taken while other processes were busy."""
    return " ?" if other_load is not None and other_load > BUSY else ""


def nanoseconds(seconds: float, elements: int) -> str:
    """An element's part of the time."""
    part = 1e9 * seconds / elements
    return f"{part:.3g}" if part < 100 else f"{part:.0f}"


def table(section: Row, columns: Columns) -> str:
    """A line for each row."""
    return markdown(columns, ([text(row) for text in columns.values()] for row in section["rows"]))


def _beside(found: Iterable[Timing], key: Callable[[Timing], Key]) -> dict[Key, dict[str, Timing]]:
    """The contenders by name, by what they have in common."""
    rows: dict[Key, dict[str, Timing]] = {}
    for timing in found:
        rows.setdefault(key(timing), {})[timing.contender] = timing
    return rows


def _by_case(section: Row) -> dict[Case, dict[str, Timing]]:
    """Forward and backward together."""
    return _beside((timing for timing in timings(section) if timing.direction == "both"), lambda timing: timing.case)


def _speed(timing: Timing | None) -> str:
    return (
        ""
        if timing is None
        else f"{duration(timing.seconds)}, {times(timing.speed_against_eager)}{mark(timing.other_load)}"
    )


def _element(timing: Timing | None) -> str:
    if timing is None:
        return ""
    part = nanoseconds(timing.seconds, timing.case.elements)
    return f"{part} ns, {times(timing.speed_against_eager)}{mark(timing.other_load)}"


def _kept(timing: Timing | None) -> str:
    return "" if timing is None or timing.saved_bytes is None else size(timing.saved_bytes)


def _peak(timing: Timing | None) -> str:
    """In units of the least possible."""
    return (
        "" if timing is None or timing.peak_bytes is None else times(peak_over_minimum(timing.case, timing.peak_bytes))
    )


def likelihoods(section: Row) -> str:
    """The time of an element, forward and backward, and memory kept by fastvae and eager."""
    names = ("fastvae", "eager", "fastvae reference")
    rows = []
    for case, found in _by_case(section).items():
        ours = [found.get(name) for name in names]
        shape = f"{case.shape_name}{case.share_of_zeros}"
        rows.append([case.op.replace("_", " "), shape, *map(_element, ours), *map(_kept, ours[:2])])
    return markdown(["log-likelihood", "shape", *names, *(f"kept for backward, {name}" for name in names[:2])], rows)


def full(section: Row) -> str:
    """Everything that was timed: a table for each op."""
    parts, everything = [], timings(section)
    for op in dict.fromkeys(timing.case.op for timing in everything):
        found = [timing for timing in everything if timing.case.op == op]
        names = contenders_in_order(found)
        rows = [
            [case.shape_name, case.dtype, direction, *(_speed(row.get(name)) for name in names)]
            for (case, direction), row in _beside(found, lambda timing: (timing.case, timing.direction)).items()
        ]
        parts.append(f"## {op}: {OPS[op].about}\n\n{markdown(['shape', 'dtype', 'direction', *names], rows)}")
    return "\n\n".join(parts)


def memory(section: Row) -> str:
    """What each contender keeps for backward, and its peak where that was measured."""
    found = [timing for timing in timings(section) if timing.saved_bytes is not None]
    names = contenders_in_order(found)

    def text(timing: Timing | None) -> str:
        peak = f", peak {size(timing.peak_bytes)} ({_peak(timing)})" if timing and timing.peak_bytes else ""
        return _kept(timing) + peak

    by_case = _beside(found, lambda timing: timing.case)
    return markdown(
        ["case", *names], ([str(case), *(text(row.get(name)) for name in names)] for case, row in by_case.items())
    )


# One direction of a contender: what `bench cpu` and `bench likelihoods` print.
TIMED: Columns = {
    "direction": lambda timing: timing.direction,
    "contender": lambda timing: timing.contender,
    "case": lambda timing: str(timing.case),
    "a call": _speed,
    "ns an element": lambda timing: nanoseconds(timing.seconds, timing.case.elements),
    "kept for backward": _kept,
}


def _peak_of_client(row: Row, name: str) -> str:
    peak = (row.get("peak_bytes") or {}).get(name)  # a file has null where a row has none
    return "" if peak is None else f", {size(peak)}"


CLIENTS: Columns = {
    "fastvae.patch": lambda row: f"{row['library']} ({row['version'].partition('+')[0]})",
    "a step": lambda row: row["case"],
    "patched": lambda row: (
        f"{duration(row['seconds']['patched'])}, x{row['speed_against_unpatched']:.2f}{mark(row['other_load'])}"
        + _peak_of_client(row, "patched")
    ),
    "unpatched": lambda row: duration(row["seconds"]["unpatched"]) + _peak_of_client(row, "unpatched"),
    "without the model": lambda row: duration(row["seconds_without_model"]) if row.get("seconds_without_model") else "",
}

TRAINING: Columns = {
    "batch": lambda row: f"{row['batch']}{mark(row['other_load'])}",
    "step, eager": lambda row: duration(row["step_seconds"]["eager"]),
    "step, fastvae": lambda row: duration(row["step_seconds"]["fastvae"]),
    "speed": lambda row: f"x{row['step_seconds']['eager'] / row['step_seconds']['fastvae']:.3f}",
    "latent op's share, eager": lambda row: f"{row['latent_share']['eager']:.1%}",
    "with fastvae": lambda row: f"{row['latent_share']['fastvae']:.1%}",
}


def _seconds_and_peak(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        peak, seconds = row["peak_bytes"][name], row["seconds"]
        speed = "" if name == "eager" else f", {times(seconds['eager'] / seconds[name])}"
        return f"{duration(seconds[name])}{speed}" + ("" if peak is None else f", {size(peak)}")

    return text


def _seconds_if_there(name: str) -> Callable[[Row], str]:
    return lambda row: duration(row["seconds"][name]) if name in row["seconds"] else ""


HEAD: Columns = {
    "likelihood": lambda row: f"{row['kind']}{mark(row['other_load'])}",
    "shape": lambda row: row["shape"],
    **{name: _seconds_and_peak(name) for name in ("eager", "fused likelihood", "fastvae")},
    **{name: _seconds_if_there(name) for name in ("products alone", "kernel alone")},
}

KERNEL_ALONE: Columns = {
    "shape": lambda row: row["shape"],
    "kernel": lambda row: row["direction"],
    "time": lambda row: duration(row["seconds"]),
    "copy of the same bytes": lambda row: duration(row["copy_seconds"]),
    "times as long": lambda row: f"{row['seconds'] / row['copy_seconds']:.2f}",
}

SCALING: Columns = {
    "elements": lambda row: f"{row['elements']:,}{mark(row['other_load'])}",
    "eager, ns an element": lambda row: nanoseconds(row["seconds"]["eager"], row["elements"]),
    "fastvae": lambda row: nanoseconds(row["seconds"]["fastvae"], row["elements"]),
    "copy of the same bytes": lambda row: nanoseconds(row["seconds"]["copy"], row["elements"]),
    "speed": lambda row: times(row["seconds"]["eager"] / row["seconds"]["fastvae"]),
}

GPU: Columns = {
    "case": lambda row: row["case"],
    "direction": lambda row: row["direction"],
    "contender": lambda row: row["contender"],
    "device time": lambda row: duration(row["milliseconds"] / 1e3),
    "GB/s": lambda row: f"{row['gb_s']:.0f}",
    "of a large copy": lambda row: f"{row['share_of_copy']:.0%}",
    "speed": lambda row: f"x{row['speed_against_eager']:.2f}",
    "peak": lambda row: size(row["peak_bytes"]),
}

_CALLS: Columns = {
    "contender": lambda row: row["contender"],
    "time": lambda row: duration(row["seconds"]),
    "speed": lambda row: f"x{row['speed_against_eager']:.2f}",
}
GPU_GRAPHS: Columns = {"case": lambda row: row["case"], **_CALLS}
GPU_TRAINING: Columns = {
    "batch": lambda row: str(row["batch"]),
    **_CALLS,
    "peak": lambda row: size(row["peak_bytes"]),
}
