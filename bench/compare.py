"""Two results of the suite side by side; fails where fastvae got slower.

python -m bench.compare BEFORE.json AFTER.json [--threshold 1.3] [--by ratio|time]

The table is pytest-benchmark's own (`pytest-benchmark compare --between=median`). What it has not is the judgement,
which is made here, of the contender "fastvae": by default of the ratio to eager PyTorch, which was timed in turns with
it, so that a slower machine is no slowdown; with ``--by time`` of the times. Where something else took much of the
processors in one of the two runs, threads have waited for each other, and neither tells: that is shown, not judged.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .tables import BUSY

# Two runs of the same code on two cores of a virtual machine: 2 of 60 ratios differed by more than 1.15, none by 1.3.
THRESHOLD = 1.3


class Change(NamedTuple):
    name: str
    before: float
    after: float
    slowdown: float
    """How many times as long it takes after as it took before."""
    busy: bool
    """Whether something else took much of the processors in one of the two runs."""


def load(path: Path) -> dict[str, dict[str, Any]]:
    """The benchmarks of a file that pytest-benchmark wrote, by name; raises ValueError."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return {entry["fullname"]: entry for entry in json.loads(path.read_text())["benchmarks"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected JSON that `python -m pytest bench --benchmark-json` wrote") from None


def changes(before: Mapping[str, Any], after: Mapping[str, Any], by: str) -> list[Change]:
    """Of fastvae's benchmarks that are in both, the largest slowdown first; raises ValueError if there are none.

    Args:
        before, after: from `load`.
        by: "ratio", the times as fast as eager PyTorch, or "time", the median seconds.
    """
    found = []
    for name in before.keys() & after.keys():
        if before[name]["extra_info"].get("contender") != "fastvae":
            continue
        if by == "time":
            old, new = (results[name]["stats"]["median"] for results in (before, after))
            slowdown = new / old
        else:
            old, new = (results[name]["extra_info"]["speed_against_eager"] for results in (before, after))
            slowdown = old / new
        busy = any((results[name]["extra_info"].get("elsewhere") or 0) > BUSY for results in (before, after))
        found.append(Change(name.partition("[")[2].rstrip("]"), old, new, slowdown, busy))
    if not found:
        raise ValueError("the two files have no benchmark of fastvae in common")
    return sorted(found, key=lambda change: change.slowdown, reverse=True)


def describe(change: Change, by: str) -> str:
    if by == "time":
        text = f"{1e3 * change.before:.4g} ms -> {1e3 * change.after:.4g} ms"
    else:
        text = f"x{change.before:.3g} -> x{change.after:.3g} of eager's speed"
    busy = " (not judged: the machine was busy)" if change.busy else ""
    return f"{change.name}: {text}, x{change.slowdown:.2f} slower{busy}"


def print_side_by_side(before: Path, after: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # pytest-benchmark sorts files by name, and heads its columns with it.
        names = [shutil.copyfile(before, f"{folder}/1_before.json"), shutil.copyfile(after, f"{folder}/2_after.json")]
        command = ("-m", "pytest_benchmark", "--storage", folder, "compare", "--between=median", *names)
        subprocess.run([sys.executable, *command], check=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="suite.json of the older run")
    parser.add_argument("after", type=Path, help="suite.json of the newer run")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="slowdown that fails; 1.15 is 15%%")
    parser.add_argument("--by", choices=("ratio", "time"), default="ratio", help="ratio to eager PyTorch, or seconds")
    options = parser.parse_args(arguments)
    if not options.threshold >= 1:
        parser.error(f"--threshold is {options.threshold:g}, expected 1 or more")
    try:
        options.changes = changes(load(options.before), load(options.after), options.by)
        if all(change.busy for change in options.changes):
            raise ValueError("the machine was busy with something else in all of fastvae's benchmarks; measure again")
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where fastvae got slower by more than the threshold; 2 where there is nothing to compare."""
    options = parse(arguments)
    print_side_by_side(options.before, options.after)
    judged = [change for change in options.changes if not change.busy]
    shown = [change for change in options.changes if change.slowdown > options.threshold]
    slower = [change for change in shown if not change.busy]
    what = "the ratio to eager PyTorch" if options.by == "ratio" else "the median time"
    count = f"{len(slower)} of {len(judged)} benchmarks of fastvae"
    print(f"\n{count} got slower by more than x{options.threshold:g} in {what}")
    for change in shown:
        print(f"  {describe(change, options.by)}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
