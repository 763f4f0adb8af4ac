"""The README's few numbers, its table and its plot: one list of them, of results.json's sections by name.

Each is forward and backward, or a whole training step, in plain PyTorch (or the library unpatched) and with fastvae.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .cases import IMAGE, IWAE, LARGE, SMALL, Case
from .records import Row, markdown, timings
from .tables import duration, mark, times

TABLE, PLOT = "table", "plot"


class Comparison(NamedTuple):
    """What was timed with fastvae and without."""

    plain_seconds: float
    fastvae_seconds: float
    speed: float
    other_load: float | None


Find = Callable[[Row], Comparison | None]


class Number(NamedTuple):
    """Where a number is in results.json, and where it is shown."""

    label: str
    section: str
    find: Find
    of_a_model: bool = False  # a layer or a step, not an op alone
    shown: tuple[str, ...] = (PLOT,)


def _case(wanted: Case) -> Find:
    """A case of `bench cpu` or `bench likelihoods`."""

    def find(section: Row) -> Comparison | None:
        found = {t.contender: t for t in timings(section) if t.case == wanted and t.direction == "both"}
        if "eager" not in found or "fastvae" not in found:
            return None
        plain, ours = found["eager"], found["fastvae"]
        return Comparison(plain.seconds, ours.seconds, ours.speed_against_eager, ours.other_load)

    return find


def _row(seconds: str, plain: str, ours: str, **wanted: Any) -> Find:
    """A row of another command: two of the times of its column ``seconds``."""

    def find(section: Row) -> Comparison | None:
        for row in section["rows"]:
            if all(row[name] == value for name, value in wanted.items()):
                times = row[seconds]
                return Comparison(times[plain], times[ours], times[plain] / times[ours], row["other_load"])
        return None

    return find


def _client(case: str) -> Find:
    return _row("seconds", "unpatched", "patched", case=case)


def _head(kind: str, shape: str) -> Find:
    return _row("seconds", "eager", "fastvae", kind=kind, shape=shape)


_BOTH = (TABLE, PLOT)
_WIDE = "2048 x 128 -> 20000"
NUMBERS = (
    Number("z and KL, 128x10", "cpu", _case(Case("sample_and_kl", SMALL)), shown=_BOTH),
    Number("z and KL, 65536x256", "cpu", _case(Case("sample_and_kl", LARGE)), shown=_BOTH),
    Number("z and KL of images, 16x4x64x64", "cpu", _case(Case("sample_and_kl_packed", IMAGE)), shown=_BOTH),
    Number("50 draws, log q, log p, 100x50", "cpu", _case(Case("iwae_50", IWAE))),
    Number("Bernoulli log p, 1024x784", "likelihoods", _case(Case("bernoulli", (1024, 784)))),
    Number(
        "zero-inflated log p, 1024x4000",
        "likelihoods",
        _case(Case("zero_inflated", (1024, 4000), zeros=0.9)),
        shown=_BOTH,
    ),
    Number(f"wide head, counts, {_WIDE}", "head", _head("zero_inflated", _WIDE), True, _BOTH),
    Number(
        "diffusers posterior, 16x8x64x64",
        "clients",
        _client("diffusers' posterior, 16x8x64x64 to z and KL, and back"),
        True,
    ),
    Number(
        "scVI step, 128 cells x 2000 genes",
        "clients",
        _client("scVI step, zero-inflated negative binomial, 128 x 2000"),
        True,
        _BOTH,
    ),
    Number("VAE 784-400-20, batch 1024", "training", _row("step_seconds", "eager", "fastvae", batch=1024), True),
)


def comparisons(results: Mapping[str, Any], place: str) -> list[tuple[Number, Comparison]]:
    """Those of a place that were measured, in order."""
    found = [
        (number, number.find(results[number.section]))
        for number in NUMBERS
        if place in number.shown and number.section in results
    ]
    return [(number, one) for number, one in found if one is not None]


def table(results: Mapping[str, Any]) -> str:
    rows = [
        (
            number.label,
            duration(one.plain_seconds),
            duration(one.fastvae_seconds),
            times(one.speed) + mark(one.other_load),
        )
        for number, one in comparisons(results, TABLE)
    ]
    return markdown(["forward and backward, float32", "without", "fastvae", "speed"], rows)


def description(results: Mapping[str, Any]) -> str:
    """What the plot shows, as text."""
    return "; ".join(f"{number.label}: {times(one.speed)}" for number, one in comparisons(results, PLOT))
