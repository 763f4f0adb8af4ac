"""Two results side by side; fails where fastvae got slower.

python -m bench compare BEFORE.json AFTER.json [--threshold 1.3] [--by ratio|time]

Latent ops and likelihoods of the contender "fastvae" are compared. By default the ratio to eager PyTorch is: it was
timed in turns with fastvae, so that a slower machine is no slowdown. --by time compares seconds. Where other processes
took much of the processors' time during one of the two runs, the change is shown but does not fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .records import command_line, load, show, timings
from .tables import BUSY, duration, times

# Between two runs of the same code on a virtual machine, 2 of 60 ratios differed by more than 1.15, none by 1.3.
THRESHOLD = 1.3


def changes(before: Mapping[str, Any], after: Mapping[str, Any], by: str) -> list[dict[str, Any]]:
    """Of fastvae's measurements that are in both, the largest slowdown first; raises ValueError if there are none.

    "busy": whether other processes took much of the processors' time in one of the two runs.

    Args:
        before, after: sections, from `bench.records.load`.
        by: "ratio", the times as fast as eager PyTorch, or "time", the median seconds.
    """
    ours = [
        {
            f"{timing.case} {timing.direction}": timing
            for section in ("cpu", "likelihoods")
            for timing in timings(results.get(section, {"rows": []}))
            if timing.contender == "fastvae"
        }
        for results in (before, after)
    ]
    found = []
    for name in ours[0].keys() & ours[1].keys():
        pair = [of_run[name] for of_run in ours]
        old, new = (timing.seconds if by == "time" else timing.speed_against_eager for timing in pair)
        slowdown = new / old if by == "time" else old / new
        busy = any((timing.other_load or 0) > BUSY for timing in pair)
        found.append({"name": name, "before": old, "after": new, "slowdown": slowdown, "busy": busy})
    if not found:
        raise ValueError("the two files have no measurement of fastvae in common")
    return sorted(found, key=lambda change: change["slowdown"], reverse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where fastvae got slower by more than the threshold; 2 where there is nothing to compare."""
    parser = command_line("compare", __doc__, results=False)
    parser.add_argument("before", type=Path, help="results.json of the older run")
    parser.add_argument("after", type=Path, help="results.json of the newer run")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="slowdown that fails; 1.15 is 15%%")
    parser.add_argument("--by", choices=("ratio", "time"), default="ratio", help="ratio to eager PyTorch, or seconds")
    options = parser.parse_args(arguments)
    if not options.threshold >= 1:
        parser.error(f"--threshold is {options.threshold:g}, expected 1 or more")
    try:
        found = changes(load(options.before), load(options.after), options.by)
    except ValueError as error:
        parser.error(str(error))
    judged = [change for change in found if not change["busy"]]
    if not judged:
        parser.error("the machine was busy with something else in all of fastvae's measurements; measure again")
    number = duration if options.by == "time" else times
    late = {True: "busy: not judged", False: "slower"}
    columns = {
        "fastvae": lambda change: change["name"],
        "before": lambda change: number(change["before"]),
        "after": lambda change: number(change["after"]),
        "slower by": lambda change: f"x{change['slowdown']:.2f}",
        "": lambda change: late[change["busy"]] if change["slowdown"] > options.threshold else "",
    }
    show(found, columns)
    slower = [change for change in judged if change["slowdown"] > options.threshold]
    what = "the ratio to eager PyTorch" if options.by == "ratio" else "the median time"
    count = f"{len(slower)} of {len(judged)} measurements of fastvae"
    print(f"\n{count} got slower by more than x{options.threshold:g} in {what}")
    return 1 if slower else 0
