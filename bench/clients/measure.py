"""Times a step patched and unpatched, in turns, after the two were compared."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from typing import Any

import torch

import fastvae
from fastvae.integrations.patching import LIBRARIES

from ..gpu_checks import Disagreement
from ..measure import keep_released_memory
from ..timing import Elsewhere, speed_against
from .case import Case

NAMES = ("unpatched", "patched")
STEPS_COMPARED = 3
TOLERANCE = 1e-4  # relative to the largest number
ROUNDS = 20
TURN_SECONDS = 0.1
AHEAD = 2  # steps of a turn that are not counted


def refuse_disagreement(case: Case) -> None:
    """Raise Disagreement unless the first steps are the same with torch's noise."""
    expected, found = (_first_steps(case, patched) for patched in (False, True))
    error, allowed = (found - expected).abs().max().item(), TOLERANCE * expected.abs().max().item()
    if not error <= allowed:
        raise Disagreement(f"{case.name}: patched it is off by {error:.3g}, expected at most {allowed:.3g}")


def _first_steps(case: Case, patched: bool) -> torch.Tensor:
    torch.manual_seed(0)
    step = case.make()
    with fastvae.patch(case.library, noise="torch") if patched else contextlib.nullcontext():
        return torch.stack([step().double() for _ in range(STEPS_COMPARED)])


def measure_alone(case: Case) -> dict[str, Any]:
    """`measure` in a process of its own: in memory that other cases have cut up, large tensors fault in anew."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(measure, case).result()


def measure(case: Case) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        keep_released_memory()
        refuse_disagreement(case)
        others = Elsewhere()
        seconds = _in_turns(case)
    return {
        "library": case.library,
        "version": metadata.version(LIBRARIES[case.library].distribution),
        "case": case.name,
        "seconds": {name: float(f"{statistics.median(seconds[name]):.4g}") for name in NAMES},
        "speed_against_unpatched": round(speed_against(seconds, "patched", "unpatched"), 3),
        "elsewhere": others.share(),
    }


def _in_turns(case: Case) -> dict[str, list[float]]:
    """Seconds of a step, round by round: the median of a turn. Both have a model of their own, which steps change."""
    steps = {name: case.make() for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    calls = 1
    for turn in range(-2, ROUNDS):
        for name in NAMES if turn % 2 else reversed(NAMES):
            with fastvae.patch(case.library) if name == "patched" else contextlib.nullcontext():
                for _ in range(AHEAD):
                    steps[name]()
                elapsed = statistics.median(_seconds(steps[name]) for _ in range(calls))
            if turn >= 0:
                seconds[name].append(elapsed)
            else:
                calls = max(1, min(200, int(TURN_SECONDS / elapsed)))
    return seconds


def _seconds(step: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
