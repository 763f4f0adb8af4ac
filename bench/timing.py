"""Times that can be compared: all contenders in one process, in turns, so that each meets the same machine."""

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
    """How often to time, as `interleaved_seconds` takes it."""

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
        warmup: rounds before that are not counted.
        ahead: calls before each timing that are not counted. What a contender reads and the memory that it allocates
            are then as they are in a loop, and not as another contender has left them.
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


def plan(contenders: Contenders, budget: float, *, clock: Callable[[], float] = time.perf_counter) -> Plan:
    """As many rounds as fit into ``budget`` seconds, up to 100, of timings of about four milliseconds.

    Five rounds are planned where they take up to 15 times as long, and three in any case. Calls each contender twice to
    find out; what was compiled or first touched on the way is warm by then, and only short runs are warmed up further.
    One call ahead of each timing is not counted: of two or three that are, one would meet the other contender's memory.
    """
    if not contenders:
        return Plan(rounds=3, calls=1, warmup=0)
    trial = interleaved_medians(contenders, rounds=1, warmup=1, clock=clock)
    total = max(sum(trial.values()), 1e-9)
    ahead = 1
    calls = min(max(math.ceil(4e-3 * len(trial) / total), 1), 100)
    round_seconds = total * (calls + ahead)
    fewest = 5 if 5 * round_seconds <= 15 * budget else 3
    return Plan(min(max(int(budget / round_seconds), fewest), 100), calls, 3 if total < 0.1 else 0, ahead)


def speed_against(seconds: Mapping[str, list[float]], name: str, baseline: str = "eager") -> float:
    """How many times as fast as the baseline a contender is: the median over rounds of the ratio within the round.

    Both times of a ratio were taken within moments, so that a machine which slows down for a while changes it little.
    """
    pairs = zip(seconds[baseline], seconds[name], strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


class Elsewhere:
    """How much of the processors others take from now on: other processes, and other guests of the same host.

    Where that is much, threads wait for one that is not running, and small times grow many times over. Linux only.
    """

    def __init__(self, processors: Path = Path("/proc/stat")) -> None:
        self._processors = processors
        self._before = self._seconds()

    def share(self) -> float | None:
        """Of all processor time since the beginning, 0 to 1; None where the system does not tell."""
        if self._before is None or (now := self._seconds()) is None:
            return None
        total, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        return min(max((busy - own) / total, 0.0), 1.0) if total > 0 else None

    def _seconds(self) -> tuple[float, float, float] | None:
        """Of all processors together: in all, and not idle; and those of this process."""
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
