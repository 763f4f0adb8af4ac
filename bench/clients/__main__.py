"""Training steps of other libraries with `fastvae.patch` and without.

python -m bench.clients [LIBRARY ...] [--results bench/results]

Under torch's noise both give the same first steps, or nothing is timed. Times are medians, taken in turns, each turn a
number of steps under one patch. Written to clients.json.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastvae.files import save_json
from fastvae.integrations.patching import LIBRARIES

from ..gpu_checks import Disagreement
from ..machine import describe_machine
from .case import Case
from .measure import NAMES, measure_alone


def cases(library: str) -> list[Case]:
    module = "torch_distributions" if library == "torch" else library
    return importlib.import_module(f"bench.clients.{module}").cases()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a patched step was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.clients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(LIBRARIES)}; all if none")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="folder for clients.json")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.libraries) - set(LIBRARIES))
    if unknown:
        parser.error(f"LIBRARY is {unknown[0]}, expected one of {', '.join(LIBRARIES)}")
    rows = []
    for case in (case for library in options.libraries or LIBRARIES for case in cases(library)):
        try:
            rows.append(row := measure_alone(case))
        except Disagreement as error:
            print(f"bench.clients: nothing was written, a result is wrong: {error}", file=sys.stderr)
            return 1
        times = ", ".join(f"{1e3 * row['seconds'][name]:.4g} ms {name}" for name in NAMES)
        print(f"{case.name}: {times}, x{row['speed_against_unpatched']:.2f}", flush=True)
    if options.libraries:
        return 0  # part of the results: shown, not written
    path = options.results / "clients.json"
    save_json({"machine": describe_machine(torch.device("cpu")), "rows": rows}, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
