"""Time per element of sample_and_kl, forward and backward, from a hundred elements to a hundred million.

python -m bench scaling [--largest 100000000] [--results FOLDER]

A copy in preallocated memory of as many bytes as the step has to read and write is timed beside the two contenders:
forward reads two arrays and writes one, backward reads three and writes two.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .machine import fields
from .measure import copy_of, make_steps
from .records import Row, command_line, save, show
from .tables import SCALING
from .timing import OtherLoad, interleaved_seconds, plan

LATENT = 100
BATCHES = (1, 3, 10, 32, 100, 316, 1000, 3162, 10_000, 31_623, 100_000, 1_000_000)
CONTENDERS = ("eager", "fastvae")

# float32 arrays that the check, eager PyTorch and the copy hold at the same time, at most.
_ARRAYS_OF_ROOM = 26

# Larger cases are not checked: float64 takes minutes, and their rows are like those of the smaller ones.
_CHECKED_ELEMENTS = 10_000_000


def measure_point(batch: int, *, budget: float = 1.0) -> dict[str, Any]:
    """Seconds of a step on (batch, LATENT) by contender, and of the copy. Raises Disagreement."""
    case = Case("sample_and_kl", (batch, LATENT), "float32")
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        steps = make_steps(case, CONTENDERS, case.tensors(device), check=case.elements <= _CHECKED_ELEMENTS)
        jobs = {name: step.both for name, step in steps.items()}
        jobs["copy"] = copy_of(case.moved_bytes("both"), device)
        how = plan(jobs, budget)
        others = OtherLoad()
        seconds = interleaved_seconds(jobs, **how._asdict())
    return {
        "elements": case.elements,
        "rounds": how.rounds,
        "other_load": others.share(),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }


def free_bytes() -> int:
    """Memory that is available; sys.maxsize where the system does not tell."""
    available = fields(Path("/proc/meminfo")).get("MemAvailable")
    return sys.maxsize if available is None else int(available.split()[0]) * 1024


def points(largest: int) -> Iterator[Row]:
    """Of as many elements as asked for, and as fit in memory."""
    for batch in BATCHES:
        elements = batch * LATENT
        if elements > largest:
            return
        needed, free = _ARRAYS_OF_ROOM * 4 * elements, free_bytes()
        if needed > free:
            print(f"{elements:,} elements: left out, may take {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free")
            return
        yield measure_point(batch)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("scaling", __doc__)
    parser.add_argument("--largest", type=int, default=BATCHES[-1] * LATENT, help="elements of the last point")
    options = parser.parse_args(arguments)
    if options.largest < LATENT:
        parser.error(f"--largest is {options.largest}, expected {LATENT} or more")
    save(options.results, "scaling", show(points(options.largest), SCALING))
