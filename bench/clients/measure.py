"""Training steps of other libraries with `fastvae.patch` and without.

python -m bench clients [LIBRARY ...] [--results FOLDER]

With torch's noise both must give the same first steps, or nothing is timed. Times are medians, taken in turns; a turn
is a number of steps under one patch.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch

import fastvae
from fastvae.integrations.patching import LIBRARIES

from ..agreement import Disagreement
from ..measure import keep_freed_memory
from ..memory import give_memory_back, peak_beyond
from ..records import Row, named, save, show
from ..tables import CLIENTS
from ..timing import OtherLoad, interleaved_medians, speed_against

Make = Callable[[], Callable[[], torch.Tensor]]
Result = TypeVar("Result")

NAMES = ("unpatched", "patched")
STEPS_COMPARED = 3
TOLERANCE = 1e-4  # relative to the largest number
ROUNDS = 20
TURN_SECONDS = 0.1
AHEAD = 2  # steps of a turn that are not counted
CALL_ROUNDS = 5  # of calls that take seconds, one a turn


def refuse_disagreement(library: str, name: str, make: Make, count: int) -> None:
    """Raise Disagreement unless the first ``count`` steps give the same losses with torch's noise."""

    def first_steps(patched: bool) -> torch.Tensor:
        torch.manual_seed(0)
        step = make()
        with fastvae.patch(library, noise="torch") if patched else contextlib.nullcontext():
            return torch.stack([step().double() for _ in range(count)])

    expected, found = map(first_steps, (False, True))
    error, allowed = (found - expected).abs().max().item(), TOLERANCE * expected.abs().max().item()
    if not error <= allowed:
        raise Disagreement(f"{name}: patched it is off by {error:.3g}, expected at most {allowed:.3g}")


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """In a new process: large tensors fault in page by page in memory that other steps have fragmented."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(function, *arguments).result()


def measure_call(library: str, name: str, make: Make, replayed: Make | None) -> Row:
    """`measure`, and the peaks of memory, of a call that takes seconds; and its seconds without the model."""
    peaks = {patched: alone(_peak, library, make, patched == "patched") for patched in NAMES}
    rest = None if replayed is None else alone(_seconds, replayed)
    return {**alone(measure, library, name, make, CALL_ROUNDS, 0), "peak_bytes": peaks, "seconds_without_model": rest}


def _seconds(make: Make) -> float:
    keep_freed_memory()
    return interleaved_medians({"call": make()}, rounds=CALL_ROUNDS, warmup=1)["call"]


def _peak(library: str, make: Make, patched: bool) -> int | None:
    if not Path("/proc/self/clear_refs").exists():
        return None
    give_memory_back()
    call = make()
    with fastvae.patch(library) if patched else contextlib.nullcontext():
        return peak_beyond(call)


def measure(library: str, name: str, make: Make, rounds: int = ROUNDS, ahead: int = AHEAD) -> Row:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        keep_freed_memory()
        # Of calls that train, the first: TOTALVI's second epoch differs by a tenth between one thread and two.
        refuse_disagreement(library, name, make, STEPS_COMPARED if ahead else 1)
        others = OtherLoad()
        seconds = _in_turns(library, make, rounds, ahead)
    return {
        "library": library,
        "version": metadata.version(LIBRARIES[library].distribution),
        "case": name,
        "seconds": {name: statistics.median(seconds[name]) for name in NAMES},
        "speed_against_unpatched": speed_against(seconds, "patched", "unpatched"),
        "other_load": others.share(),
    }


def _in_turns(library: str, make: Make, rounds: int, ahead: int) -> dict[str, list[float]]:
    """Seconds of a step, round by round: the median of a turn. Each has its own model, as steps change it."""
    steps = {name: make() for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    calls = 1
    for turn in range(-2 if ahead else -1, rounds):
        for name in NAMES if turn % 2 else reversed(NAMES):
            with fastvae.patch(library) if name == "patched" else contextlib.nullcontext():
                elapsed = interleaved_medians({name: steps[name]}, rounds=calls, warmup=ahead)[name]
            if turn >= 0:
                seconds[name].append(elapsed)
            else:
                calls = max(1, min(200, int(TURN_SECONDS / elapsed)))
    return seconds


def measure_all(libraries: Sequence[str]) -> Iterator[Row]:
    for library in libraries:
        module = "torch_distributions" if library == "torch" else library
        for name, make in importlib.import_module(f"bench.clients.{module}").STEPS.items():
            yield alone(measure, library, name, make)
        if library == "scvi":
            models = importlib.import_module("bench.clients.scvi_models")
            for name, make in models.CALLS.items():
                yield measure_call(library, name, make, models.REPLAYED.get(name))


def main(arguments: Sequence[str] | None = None) -> None:
    options = named("clients", __doc__, "LIBRARY", LIBRARIES, arguments)
    save(options.results, "clients", show(measure_all(options.names), CLIENTS))
