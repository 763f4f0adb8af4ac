"""Lets pytest-benchmark record durations that were measured before.

pytest-benchmark times one contender after another; times that can be compared are taken in turns (`bench.timing`). So a
case is measured first, and each of its benchmarks then runs for as many rounds with `replayed` for a timer, which gives
the durations one by one: statistics, JSON and comparisons are pytest-benchmark's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

_readings: deque[float] = deque()


def replayed() -> float:
    """The timer: what it reads at the start of a round and at its end, in turn."""
    return _readings.popleft()


def replay(benchmark: Any, seconds: Sequence[float], calls: int) -> None:
    """Record rounds of so many calls, each of which took ``seconds``; the test is marked with ``timer=replayed``."""
    _readings.clear()
    for value in seconds:
        _readings.extend((0.0, value * calls))
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=calls)
    if _readings and benchmark.enabled:
        raise RuntimeError(f"{len(_readings)} readings were not asked for: is the test marked with timer=replayed?")
