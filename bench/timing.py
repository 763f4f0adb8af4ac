"""Times that can be compared: all contenders in one process, in turns, so that each meets the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    calls: int = 1,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds that one call of each contender takes: the median over rounds.

    Args:
        contenders: name -> what to time. Work queued on a CUDA device is waited for.
        rounds: in each round every contender is timed once; the one that went first goes last in the next round.
        calls: calls to a timing; more than one for what takes microseconds.
        warmup: rounds before that are not counted.
        clock: returns seconds.
    """
    if rounds < 1 or calls < 1 or warmup < 0:
        raise ValueError(f"rounds is {rounds}, calls {calls}, warmup {warmup}; expected 1, 1 and 0 or more")
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            _wait_for_device()
            start = clock()
            for _ in range(calls):
                contenders[name]()
            _wait_for_device()
            if turn >= 0:
                seconds[name].append((clock() - start) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
