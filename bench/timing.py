"""Comparable times: all contenders run in one process, in turns, so that a change of the machine's speed meets all."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

Contenders = Mapping[str, Callable[[], object]]


class Plan(NamedTuple):
    """How often to time; arguments of `interleaved_seconds`."""

    rounds: int
    calls: int
    warmup: int
    ahead: int = 0


def interleaved_seconds(
    contenders: Contenders,
    *,
    rounds: int = 30,
    calls: int = 1,
    warmup: int = 3,
    ahead: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds that one call of each contender takes, round by round.

    Args:
        contenders: name -> what to time. Work queued on a CUDA device is waited for.
        rounds: in each round every contender is timed once; the one that went first goes last in the next round.
        calls: calls to a timing; more than one for what takes microseconds.
        warmup: rounds at the start that are not counted.
        ahead: calls before each timing that are not counted: caches and allocator are then as in a loop of this
            contender, and not as another one has left them.
        clock: returns seconds.
    """
    if rounds < 1 or calls < 1 or warmup < 0:
        raise ValueError(f"rounds is {rounds}, calls {calls}, warmup {warmup}; expected 1, 1 and 0 or more")
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            for _ in range(ahead):
                contenders[name]()
            _wait_for_device()
            start = clock()
            for _ in range(calls):
                contenders[name]()
            _wait_for_device()
            if turn >= 0:
                seconds[name].append((clock() - start) / calls)
    return seconds


def interleaved_medians(contenders: Contenders, **options: Any) -> dict[str, float]:
    """The medians over rounds of `interleaved_seconds`, which takes the same arguments."""
    return {name: statistics.median(values) for name, values in interleaved_seconds(contenders, **options).items()}


def plan(
    contenders: Contenders, budget: float, *, ahead: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Plan:
    """As many rounds as fit into ``budget`` seconds, up to 100, of timings of about four milliseconds.

    At least three rounds, or five if these take up to 15 times the budget. Calls each contender twice to find out how
    long a call takes; compilation and first touches of memory happen there, so only short runs are warmed up further.
    ``ahead`` calls before each timing are not counted: the first call after another contender allocates and reads
    memory in the state in which that one left it.
    """
    if not contenders:
        return Plan(rounds=3, calls=1, warmup=0)
    trial = interleaved_medians(contenders, rounds=1, warmup=1, clock=clock)
    total = max(sum(trial.values()), 1e-9)
    calls = min(max(math.ceil(4e-3 * len(trial) / total), 1), 100)
    round_seconds = total * (calls + ahead)
    fewest = 5 if 5 * round_seconds <= 15 * budget else 3
    return Plan(min(max(int(budget / round_seconds), fewest), 100), calls, 3 if total < 0.1 else 0, ahead)


def speed_against(seconds: Mapping[str, list[float]], name: str, baseline: str = "eager") -> float:
    """How many times as fast as the baseline a contender is: the median over rounds of the ratio within the round.

    Both times of a ratio were taken at nearly the same moment, so that a machine that slows down changes it little.
    """
    pairs = zip(seconds[baseline], seconds[name], strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


class OtherLoad:
    """The share of processor time that other processes, and other guests of the host, take from now on. Linux only.

    A parallel op waits for its slowest thread: where others take much, small times grow many times over.
    """

    def __init__(self, processors: Path = Path("/proc/stat")) -> None:
        self._processors = processors
        self._before = self._seconds()

    def share(self) -> float | None:
        """Share of all processor time since this object was made, 0 to 1; None where the system does not tell."""
        if self._before is None or (now := self._seconds()) is None:
            return None
        total, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        return min(max((busy - own) / total, 0.0), 1.0) if total > 0 else None

    def _seconds(self) -> tuple[float, float, float] | None:
        """Seconds of all processors together: in total, not idle, and of this process."""
        if not self._processors.exists():
            return None
        # user nice system idle iowait irq softirq steal
        ticks = [int(word) for word in self._processors.read_text().splitlines()[0].split()[1:9]]
        tick = 1 / os.sysconf("SC_CLK_TCK")
        times = os.times()
        return tick * sum(ticks), tick * (sum(ticks) - ticks[3] - ticks[4]), times.user + times.system


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
