"""Results as Markdown tables: of the suite, in full and in short, of the training step and of the scaling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .cases import IMAGE, IWAE, LARGE, MEDIUM, OPS, SMALL, Case

# Who stands in which column of the full tables and in which row of the short one; whoever else was timed comes last.
ORDER = ("fastvae", "fastvae reference", "eager", "torch.distributions", "torch.compile", "diffusers")

# The short table: vectors with mu and logvar given apart, images packed as image VAEs have them.
SUMMARY = (
    Case("sample_and_kl", SMALL, "float32"),
    Case("sample_and_kl", MEDIUM, "float32"),
    Case("sample_and_kl_packed", IMAGE, "float32"),
    Case("sample_and_kl", LARGE, "float32"),
)

# The second short table: ops beyond the plain latent, one row each.
MORE_OPS = (
    Case("gaussian_kl_two", MEDIUM, "float32"),
    Case("sample_and_kl_packed_prior", IMAGE, "float32"),
    Case("iwae_50", IWAE, "float32"),
)

# Share of the processors that others took, above which a time is marked: threads have waited for each other.
BUSY = 0.1


class Entry(NamedTuple):
    """A benchmark of the suite."""

    case: str
    direction: str
    contender: str
    seconds: float
    speed: float
    elsewhere: float | None
    saved_bytes: int | None
    peak_bytes: int | None
    peak_of_least: float | None

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, {times(self.speed)}{mark(self.elsewhere)}"


def entries(suite: Mapping[str, Any]) -> list[Entry]:
    """Of the JSON that pytest-benchmark wrote."""
    found = []
    for benchmark in suite["benchmarks"]:
        info = benchmark["extra_info"]
        found.append(
            Entry(
                f"{info['op']} {info['shape']} {info['dtype']}",
                info["direction"],
                info["contender"],
                benchmark["stats"]["median"],
                info["speed_against_eager"],
                *(info.get(key) for key in ("elsewhere", "saved_bytes", "peak_bytes", "peak_of_least")),
            )
        )
    return found


def contenders_in_order(found: Iterable[Entry]) -> list[str]:
    names = list(dict.fromkeys(entry.contender for entry in found))
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


def mark(elsewhere: float | None) -> str:
    """Behind a time that was taken while the machine was busy with something else."""
    return " ?" if elsewhere is not None and elsewhere > BUSY else ""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(suite: Mapping[str, Any]) -> str:
    """Forward and backward in float32: time and speed against eager by shape, memory at the largest."""
    found = {(entry.case, entry.contender): entry for entry in entries(suite) if entry.direction == "both"}
    header = ["float32, forward and backward"]
    header += [f"{case.shape_name}{', packed' if 'packed' in case.op else ''}" for case in SUMMARY]
    header += ["kept for backward", "peak memory"]
    rows = []
    for name in contenders_in_order(found.values()):
        row = [name]
        for case in SUMMARY:
            entry = found.get((str(case), name))
            row.append("" if entry is None else str(entry))
        largest = found.get((str(SUMMARY[-1]), name))
        row.append("" if largest is None or largest.saved_bytes is None else size(largest.saved_bytes))
        row.append("" if largest is None or largest.peak_of_least is None else times(largest.peak_of_least))
        rows.append(row)
    return markdown(header, rows)


def more_ops(suite: Mapping[str, Any]) -> str:
    """Forward and backward in float32 of other ops: fastvae against eager, in time and in what they keep."""
    found = {(entry.case, entry.contender): entry for entry in entries(suite) if entry.direction == "both"}
    rows = []
    for case in MORE_OPS:
        row = [OPS[case.op].about, case.shape_name]
        of_case = [found.get((str(case), name)) for name in ("fastvae", "eager")]
        row += ["" if entry is None else str(entry) for entry in of_case]
        row += ["" if entry is None else size(entry.saved_bytes or 0) for entry in of_case]
        rows.append(row)
    kept = [f"kept for backward, {name}" for name in ("fastvae", "eager")]
    return markdown(["float32, forward and backward", "shape", "fastvae", "eager", *kept], rows)


def full(suite: Mapping[str, Any]) -> str:
    """Every benchmark: a table for each op."""
    found = entries(suite)
    parts = []
    for op in dict.fromkeys(entry.case.split()[0] for entry in found):
        ours = [entry for entry in found if entry.case.split()[0] == op]
        names = contenders_in_order(ours)
        by_row: dict[tuple[str, str], dict[str, Entry]] = {}
        for entry in ours:
            by_row.setdefault((entry.case, entry.direction), {})[entry.contender] = entry
        rows = [
            [*case.split()[1:], direction] + [str(row[name]) if name in row else "" for name in names]
            for (case, direction), row in by_row.items()
        ]
        parts.append(f"## {op}: {OPS[op].about}\n\n{markdown(['shape', 'dtype', 'direction', *names], rows)}")
    return "\n\n".join(parts)


def memory(suite: Mapping[str, Any]) -> str:
    """What each contender keeps for backward, and its peak where that was measured."""
    found = [entry for entry in entries(suite) if entry.saved_bytes is not None]
    names = contenders_in_order(found)
    rows: dict[str, dict[str, str]] = {}
    for entry in found:
        text = size(entry.saved_bytes or 0)
        if entry.peak_bytes is not None and entry.peak_of_least is not None:
            text += f", peak {size(entry.peak_bytes)} ({times(entry.peak_of_least)})"
        rows.setdefault(entry.case, {})[entry.contender] = text
    return markdown(["case", *names], [[case, *(row.get(name, "") for name in names)] for case, row in rows.items()])


def likelihoods(result: Mapping[str, Any]) -> str:
    """Nanoseconds an element, with what is kept for backward."""
    contenders = ("eager", "fastvae", "fastvae reference")
    rows = [
        [
            f"{row['likelihood']}{mark(row['elsewhere'])}",
            row["shape"],
            "" if row["zeros"] is None else f"{row['zeros']:.0%}",
            *(
                f"{1e9 * row['seconds'][name] / row['elements']:.3g} ns, {times(row['speed_against_eager'][name])}"
                for name in contenders
            ),
            *(size(row["saved_bytes"][name]) for name in ("eager", "fastvae")),
        ]
        for row in result["rows"]
    ]
    kept = ["kept for backward, eager", "kept, fastvae"]
    return markdown(["log-likelihood", "shape", "zeros", *(f"{name}, an element" for name in contenders), *kept], rows)


# The third short table: a likelihood of images, one of real values, and those of counts where most are 0.
SHORT_LIKELIHOODS = ("bernoulli", "gaussian", "negative_binomial", "zero_inflated")


def short_likelihoods(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["likelihood"].replace("_", " "),
            row["shape"] + ("" if row["zeros"] is None else f", {row['zeros']:.0%} zeros"),
            f"{duration(row['seconds']['fastvae'])}, {times(row['speed_against_eager']['fastvae'])}",
            f"{duration(row['seconds']['eager'])}, x1.0{mark(row['elsewhere'])}",
            *(size(row["saved_bytes"][name]) for name in ("fastvae", "eager")),
        ]
        for row in result["rows"]
        if row["likelihood"] in SHORT_LIKELIHOODS
    ]
    header = ["log-likelihood", "shape", "fastvae", "eager", "kept for backward, fastvae", "kept for backward, eager"]
    return markdown(header, rows)


def clients(result: Mapping[str, Any]) -> str:
    """A step of other libraries, patched and unpatched."""
    rows = [
        [
            f"{row['library']} ({row['version'].partition('+')[0]})",
            row["case"],
            f"{duration(row['seconds']['patched'])}, x{row['speed_against_unpatched']:.2f}{mark(row['elsewhere'])}",
            duration(row["seconds"]["unpatched"]),
        ]
        for row in result["rows"]
    ]
    return markdown(["fastvae.patch", "a step", "patched", "unpatched"], rows)


def training(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['batch']}{mark(row['elsewhere'])}",
            duration(row["step_seconds"]["eager"]),
            duration(row["step_seconds"]["fastvae"]),
            f"x{row['step_seconds']['eager'] / row['step_seconds']['fastvae']:.3f}",
            f"{row['latent_share']['eager']:.1%}",
            f"{row['latent_share']['fastvae']:.1%}",
        ]
        for row in result["rows"]
    ]
    header = ["batch", "step, eager", "step, fastvae", "speed", "latent op's share, eager", "with fastvae"]
    return markdown(header, rows)


def kernel_alone(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["shape"],
            row["direction"],
            duration(row["seconds"]),
            duration(row["copy_seconds"]),
            f"{row['seconds'] / row['copy_seconds']:.2f}",
        ]
        for row in result["rows"]
    ]
    return markdown(["shape", "kernel", "time", "copy of the same bytes", "times as long"], rows)


def scaling(result: Mapping[str, Any]) -> str:
    """Nanoseconds an element by size."""
    rows = [
        [f"{point['elements']:,}{mark(point['elsewhere'])}"]
        + [f"{1e9 * point['seconds'][name] / point['elements']:.3g}" for name in ("eager", "fastvae", "copy")]
        + [times(point["seconds"]["eager"] / point["seconds"]["fastvae"])]
        for point in result["points"]
    ]
    return markdown(["elements", "eager, ns an element", "fastvae", "copy of the same bytes", "speed"], rows)
