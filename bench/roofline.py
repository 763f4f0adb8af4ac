"""The static roofline: what the compiled kernels issue per element, against what fits beside the memory traffic.

python -m bench.roofline [--target sm_90,gfx942] [--dtype float32] [--op sample_and_kl] [--json]

No GPU is used or needed: docs/roofline.md explains the method, and what it cannot see.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from . import sass
from .gpus import ARCHITECTURES, CHIPS

# Instructions per element of the steady state that the kernels are held to: (op, dtype) -> target -> at most.
_FORWARD = {"float32": (27, 25), "bfloat16": (29, 26)}
_LATENTS = {  # what they take, so that it is seen when they take more
    "gaussian_kl_two": (18, 20),
    "gaussian_kl_shared_prior": (16, 17),
    "sample_and_kl_prior": (39, 42),
    "sample_and_kl_shared_prior": (38, 38),
    "sample_and_kl_std": (31, 32),
    "sample_and_kl_softplus": (46, 48),
    "sample_and_kl_soft_clamp": (47, 49),
    "gaussian_kl_two_backward": (27, 28),
    "gaussian_kl_shared_prior_backward": (27, 26),
    "sample_and_kl_prior_backward": (50, 53),
    "sample_and_kl_shared_prior_backward": (51, 51),
    "sample_and_kl_std_backward": (29, 32),
    "sample_and_kl_softplus_backward": (49, 52),
    "sample_and_kl_soft_clamp_backward": (52, 55),
}
_LIKELIHOODS = {  # likewise
    "bernoulli": (19, 19),
    "bernoulli_backward": (12, 13),
    "gaussian": (14, 16),
    "gaussian_backward": (18, 19),
    "negative_binomial": (80, 81),
    "negative_binomial_backward": (73, 71),
}
GOALS: dict[tuple[str, str], dict[str, int]] = {
    **{("sample_and_kl", dtype): dict.fromkeys(ARCHITECTURES, a) | {"sm_100": b} for dtype, (a, b) in _FORWARD.items()},
    ("sample_and_kl_backward", "float32"): dict.fromkeys(ARCHITECTURES, 33),
    ("sample_and_kl_backward", "bfloat16"): dict.fromkeys(ARCHITECTURES, 36),
    **{("gaussian_kl", dtype): dict.fromkeys(ARCHITECTURES, 14) for dtype in _FORWARD},
    **{("gaussian_kl_backward", dtype): dict.fromkeys(ARCHITECTURES, 12) for dtype in _FORWARD},
    **{
        (op, dtype): dict.fromkeys(ARCHITECTURES, at_most[dtype == "bfloat16"])
        for op, at_most in (_LATENTS | _LIKELIHOODS).items()
        for dtype in _FORWARD
    },
}

# More arithmetic for the bytes that they move than fits beside them on the faster chips: only its amount is held to.
BOUND_BY_ARITHMETIC = ("negative_binomial", "negative_binomial_backward")

# The long aligned rows at which the goals are checked; the shapes of bench.compiled are reported beside them.
GOAL_SHAPE = "64x65536"


class Work(NamedTuple):
    """What a launch has to do, whatever the machine code."""

    elements: float  # of the array, a thread and step of the loop over columns or draws
    steps: int  # of that loop, in a program
    bytes_an_element: float  # of all tensors, each moved once
    array_bytes: float  # that a step moves of the tensors with the array's shape; a row they share once a tile
    num_warps: int
    unroll: int  # steps that the compiler was asked to put into one round of a loop


def stored(tensor: Any) -> int:
    """Elements of a tensor that are in memory: those of stride 0 stand for many."""
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def work_of(launch: Any) -> Work:
    """The work of a `fastvae.kernels.triton.launch.Launch`."""
    tensors = [argument for argument in launch.arguments if hasattr(argument, "element_size")]
    elements = max(tensor.numel() for tensor in tensors)
    rows, columns = launch.constants["ROWS"], launch.constants["COLUMNS"]
    named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    event = named["event_units"] * launch.constants["UNIT"]
    inside = event / (math.ceil(event / columns) * columns)  # the part of the tiles that is not past the row's end
    arrays = [tensor for tensor in tensors if tensor.numel() == elements]
    return Work(
        inside * rows * columns / (32 * launch.num_warps),
        math.ceil(elements / (rows * columns * math.prod(launch.grid))),
        sum(stored(tensor) * tensor.element_size() for tensor in tensors) / elements,
        sum(array.element_size() / (1 if array.stride(0) else rows) for array in arrays),
        launch.num_warps,
        launch.constants["UNROLL"],
    )


def unrolled(body: Sequence[sass.Instruction], work: Work) -> int:
    """How many steps the compiler put into one round of a loop, as asked for, by the bytes that the round moves."""
    return max(1, min(work.unroll, round(sass.global_bytes(body) / (work.array_bytes * work.elements))))


def demand(body: Iterable[sass.Instruction]) -> Counter[str]:
    """Turns of a lane on each pipe that executing ``body`` once takes, and issue slots."""
    total: Counter[str] = Counter()
    for instruction in body:
        total["issue"] += 1
        total.update(sass.turns(instruction))
    return total


def busy(turns: dict[str, float], work: Work, chip: str) -> dict[str, float]:
    """The part of its time that each pipe of a chip is busy while memory moves the elements at its peak rate."""
    rates = ARCHITECTURES[CHIPS[chip].target].rates
    return {pipe: turns.get(pipe, 0) / CHIPS[chip].budget(work.bytes_an_element, rate) for pipe, rate in rates.items()}


def analyse(code: sass.Code, usage: dict[str, int], shared: int, work: Work, target: str) -> dict[str, Any]:
    """Everything that is reported of one compiled kernel for an NVIDIA target."""
    whole, loop = code.whole(), code.steady_loop(work.array_bytes * work.elements * work.unroll)
    program = code.shortest(work.array_bytes * work.elements)
    times = 1
    if loop is None or work.steps == 1:
        body, elements = program, work.elements
        total = len(program)
    else:
        times = unrolled(loop, work)
        body, elements = loop, work.elements * times
        total = len(program) + len(loop) * (math.ceil(work.steps / times) - 1)
    counts = Counter(sass.pipe(instruction) for instruction in body)
    turns = {pipe: value / elements for pipe, value in demand(body).items()}
    chips = {}
    for name, chip in CHIPS.items():
        if chip.target == target:
            parts = busy(turns, work, name)
            bound = max(parts, key=lambda pipe: parts[pipe])
            chips[name] = {
                "budget": chip.budget(work.bytes_an_element),
                "share_of_peak_bandwidth": min(1.0, 1 / parts[bound]),
                "bound": "memory" if parts[bound] <= 1 else bound,
                "busiest": bound,
                "busy": parts,
            }
    warps = ARCHITECTURES[target].occupancy(usage["REG"], shared, work.num_warps)
    return {
        "steady_state": "loop" if body is loop else "whole body",
        "unrolled": times,
        "elements": elements,
        "instructions": len(body) / elements,
        "instructions_with_prologue": total / (work.elements * work.steps),
        "pipes": {pipe: counts[pipe] / elements for pipe in sass.PIPES},
        "turns": turns,
        "instructions_in_code": len(whole),
        "unknown_opcodes": sorted({i.opcode for i in whole if sass.pipe(i) == "other"}),
        "bytes": work.bytes_an_element,
        "bytes_in_body": sass.global_bytes(body) / elements,
        "registers": usage["REG"],
        "local_accesses": sum(i.name in sass.LOCAL for i in whole),
        "stack_bytes": usage.get("STACK", 0),
        "shared_bytes": shared,
        "shared_in_body": sum(i.name in sass.SHARED for i in body),
        "barriers_in_body": sum(i.name == "BAR" for i in body),
        "widths": {str(width): count for width, count in sorted(sass.global_widths(body).items())},
        "warps": warps,
        "occupancy": warps / ARCHITECTURES[target].warps,
        "chips": chips,
    }


def missed(entry: dict[str, Any]) -> list[str]:
    """What an entry at the goals' shape falls short of; empty if it meets them all.

    Where there is no loop, the seed and the row sums are in the body too: only the wide accesses must be the arrays'.
    """
    goal = entry["goal"] or math.inf
    slow = [name for name, chip in entry["chips"].items() if chip["share_of_peak_bandwidth"] < 1]
    wide = sum(int(width) * count for width, count in entry["widths"].items() if int(width) >= 16) / entry["elements"]
    in_loop = entry["steady_state"] == "loop"
    checks = {
        f"{entry['instructions']:.1f} instructions > {goal}": entry["instructions"] > goal,
        "below peak on " + ", ".join(slow): bool(slow) and entry["op"] not in BOUND_BY_ARITHMETIC,
        "local memory": entry["local_accesses"] > 0,
        "shared memory in the loop": in_loop and entry["shared_in_body"] > 0,
        "barriers in the loop": in_loop and entry["barriers_in_body"] > 0,
        f"16-byte accesses move {wide:g} of {entry['array_bytes']:g} bytes": wide < entry["array_bytes"],
        f"moves {wide:g} bytes, needs {entry['array_bytes']:g}": wide > entry["array_bytes"],
        "unknown opcodes": bool(entry["unknown_opcodes"]),
    }
    return [reason for reason, failed in checks.items() if failed]


def amd_resources(assembly: str) -> dict[str, int]:
    """Registers, spills and memory that the metadata of an AMD kernel state."""
    names = {
        "vgprs": "vgpr_count",
        "agprs": "agpr_count",
        "sgprs": "sgpr_count",
        "vgpr_spills": "vgpr_spill_count",
        "sgpr_spills": "sgpr_spill_count",
        "private_bytes": "private_segment_fixed_size",
        "shared_bytes": "group_segment_fixed_size",
    }
    found = {ours: re.search(rf"^\s*\.{theirs}:\s*(\d+)", assembly, re.MULTILINE) for ours, theirs in names.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


def measure(job: tuple[str, str, str, str]) -> dict[str, Any]:
    """Compile one configuration (target, op, dtype, name of a shape) and report it."""
    import torch
    import triton

    from .compiled import TARGETS, compile_for, op_launch, shape_and_layout

    target, op, dtype, shape_name = job
    shape, like = shape_and_layout(shape_name)
    launch = op_launch(op, shape, getattr(torch, dtype), like)
    kernel = compile_for(launch, target)
    entry: dict[str, Any] = {"target": target, "op": op, "dtype": dtype, "shape": shape_name}
    if TARGETS[target].backend == "cuda":
        work = work_of(launch)
        instructions, usage = sass.disassemble(kernel.asm["cubin"], triton.knobs.nvidia.cuobjdump.path)
        entry |= analyse(sass.Code(instructions), usage, kernel.metadata.shared, work, target)
        entry["array_bytes"] = work.array_bytes
        entry["goal"] = GOALS.get((op, dtype), {}).get(target)
        held = shape_name == GOAL_SHAPE and op != "noise"  # two bytes an element leave no time for a good draw
        entry["missed"] = missed(entry) if held else None
    else:
        entry |= amd_resources(kernel.asm["amdgcn"])
        entry["missed"] = [
            f"{entry[name]} {name}" for name in ("vgpr_spills", "sgpr_spills", "private_bytes") if entry.get(name)
        ]
    return entry


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def _verdict(entry: dict[str, Any]) -> str:
    goal = f"{entry['goal']} " if entry.get("goal") else ""
    return "-" if entry["missed"] is None else goal + ("missed" if entry["missed"] else "met")


def nvidia_table(entries: Sequence[dict[str, Any]]) -> str:
    """Per element of the steady state; for each chip the share of peak bandwidth, and its busiest limit then."""
    pipes = [pipe for pipe in sass.PIPES if any(entry["pipes"][pipe] for entry in entries)]
    head = ["op", "dtype", "shape", "instr", "run", *pipes, "bytes", "regs", "warps", "local", "sh/bar", "width"]
    rows = []
    for entry in entries:
        row = [entry["op"], entry["dtype"], entry["shape"], f"{entry['instructions']:.1f}"]
        row += [f"{entry['instructions_with_prologue']:.1f}", *(f"{entry['pipes'][pipe]:.2f}" for pipe in pipes)]
        row += [f"{entry['bytes']:.2f}", str(entry["registers"]), str(entry["warps"]), str(entry["local_accesses"])]
        row += [f"{entry['shared_in_body']}/{entry['barriers_in_body']}", ",".join(entry["widths"])]
        for chip in entry["chips"].values():
            row += [f"{chip['share_of_peak_bandwidth']:.0%} ({chip['busiest']} {chip['busy'][chip['busiest']]:.0%})"]
        rows.append([*row, _verdict(entry)])
    return _table([*head, *entries[0]["chips"], "goal"], rows)


def amd_table(entries: Sequence[dict[str, Any]]) -> str:
    names = ("vgprs", "agprs", "sgprs", "vgpr_spills", "sgpr_spills", "private_bytes", "shared_bytes")
    rows = [[e["op"], e["dtype"], e["shape"], *(str(e.get(name, "-")) for name in names), _verdict(e)] for e in entries]
    return _table(["op", "dtype", "shape", *names, "goals"], rows)


def report(entries: Sequence[dict[str, Any]]) -> str:
    parts = []
    for target in dict.fromkeys(entry["target"] for entry in entries):
        ours = [entry for entry in entries if entry["target"] == target]
        parts.append(f"{target}\n\n" + (nvidia_table if "chips" in ours[0] else amd_table)(ours))
    checked = [entry for entry in entries if entry["missed"] is not None]
    failed = [entry for entry in checked if entry["missed"]]
    lines = [f"Goals met by {len(checked) - len(failed)} of {len(checked)} configurations that have them."]
    for e in failed:
        lines.append(f"  missed: {e['target']} {e['op']} {e['dtype']} {e['shape']}: {'; '.join(e['missed'])}")
    return "\n\n".join([*parts, "\n".join(lines)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=(__doc__ or "").splitlines()[0])
    for name in ("target", "dtype", "op", "shape"):
        parser.add_argument(f"--{name}", help=f"one {name} or several, separated by commas; all if left out")
    parser.add_argument("--json", action="store_true", help="everything that was found, for programs")
    options = parser.parse_args(arguments)

    import triton

    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: nothing is compiled in this process. Unset it.", file=sys.stderr)
        return 2

    from .compiled import OPS, SHAPES, TARGETS, is_shipped

    known = {"target": TARGETS, "op": OPS, "dtype": ("float32", "bfloat16"), "shape": SHAPES}
    chosen = {}
    for name, values in known.items():
        given = getattr(options, name)
        chosen[name] = given.split(",") if given else list(values)
        for value in chosen[name]:
            if value not in values:
                parser.error(f"--{name} is {value}, expected one of {', '.join(values)}")
    jobs = [
        (target, op, dtype, shape)
        for target in chosen["target"]
        for shape in sorted(chosen["shape"], key=lambda shape: shape != GOAL_SHAPE)
        for op in chosen["op"]
        for dtype in chosen["dtype"]
        if is_shipped(op, shape)
    ]
    if not jobs:
        parser.error("none of these ops is looked at in any of these shapes")
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        entries = list(pool.map(measure, jobs))
    print(json.dumps(entries, indent=1) if options.json else report(entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
