"""Time per element of sample_and_kl, forward and backward, from a hundred elements to a hundred million.

python -m bench.scaling [--results bench/results] [--largest 100000000]

Beside the two contenders stands a copy, in preallocated memory, of as many bytes as the step has to read and write:
forward reads two arrays and writes one, backward reads three and writes two. Written to scaling.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastvae.files import save_json

from .cases import Case
from .gpu import Case as MovedCase
from .gpu import copy_job, moved_bytes
from .gpu_checks import Disagreement
from .machine import describe_machine
from .measure import checked_steps, make_steps
from .timing import Elsewhere, interleaved_seconds, plan

LATENT = 100
BATCHES = (1, 3, 10, 32, 100, 316, 1000, 3162, 10_000, 31_623, 100_000, 1_000_000)
CONTENDERS = ("eager", "fastvae")

# float32 arrays that the check, eager PyTorch and the copy hold at a time, with room to spare.
_ARRAYS_OF_ROOM = 26

# Up to here the contenders are checked first. Beyond, float64 formulas take minutes, for rows like those checked below.
_CHECKED_ELEMENTS = 10_000_000


def measure_point(batch: int, *, budget: float = 1.0) -> dict[str, Any]:
    """Seconds of a step on (batch, LATENT) by contender, and of the copy. Raises Disagreement."""
    case = Case("sample_and_kl", (batch, LATENT), "float32")
    device = torch.device("cpu")
    prepare = checked_steps if batch * LATENT <= _CHECKED_ELEMENTS else make_steps
    with torch.random.fork_rng(devices=[]):
        steps = prepare(case, CONTENDERS, case.tensors(device))
        copy = copy_job(moved_bytes(MovedCase(case.dtype, batch, LATENT), "both"), device)
        jobs = {name: step.both for name, step in steps.items()} | {"copy": lambda: copy.run(None)}
        how = plan(jobs, budget)
        others = Elsewhere()
        seconds = interleaved_seconds(jobs, **how._asdict())
    return {
        "elements": batch * LATENT,
        "rounds": how.rounds,
        "elsewhere": others.share(),
        "seconds": {name: float(f"{statistics.median(values):.4g}") for name, values in seconds.items()},
    }


def free_bytes() -> int:
    """Memory that a process may still take; a great deal where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="folder for scaling.json")
    parser.add_argument("--largest", type=int, default=BATCHES[-1] * LATENT, help="elements of the last point")
    options = parser.parse_args(arguments)
    if options.largest < LATENT:
        parser.error(f"--largest is {options.largest}, expected {LATENT} or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a contender was wrong."""
    options = parse(arguments)
    points = []
    for batch in BATCHES:
        elements = batch * LATENT
        if elements > options.largest:
            break
        needed, free = _ARRAYS_OF_ROOM * 4 * elements, free_bytes()
        if needed > free:
            print(f"{elements:>11,} elements: left out, may take {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free")
            break
        try:
            points.append(point := measure_point(batch))
        except Disagreement as error:
            print(f"bench.scaling: nothing was written, a result is wrong: {error}", file=sys.stderr)
            return 1
        per_element = ", ".join(f"{name} {1e9 * value / elements:.3g}" for name, value in point["seconds"].items())
        print(f"{elements:>11,} elements: ns an element: {per_element}", flush=True)
    result = {"machine": describe_machine(torch.device("cpu")), "latent": LATENT, "points": points}
    path = options.results / "scaling.json"
    save_json(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
