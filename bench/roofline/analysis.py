"""The static roofline: instructions per element of the compiled kernels, against what memory traffic leaves time for.

python -m bench roofline [--target sm_90,gfx942] [--dtype float32] [--op sample_and_kl] [--json]

No GPU is needed. docs/roofline.md explains the method and its limits.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from ..records import command_line, some_of
from . import sass
from .gpus import ARCHITECTURES, CHIPS

# Instructions per element of the steady state that the kernels are held to: op -> at most, forward and backward, each
# in float32 and in bfloat16. Of all but the plain latents it is what they take, so that it is seen when they take more.
GOALS = {
    "sample_and_kl": ((27, 29), (33, 36)),
    "gaussian_kl": ((14, 14), (12, 12)),
    "gaussian_kl_two": ((18, 20), (27, 28)),
    "gaussian_kl_shared_prior": ((16, 17), (27, 26)),
    "sample_and_kl_prior": ((39, 42), (50, 53)),
    "sample_and_kl_shared_prior": ((38, 38), (51, 51)),
    "sample_and_kl_std": ((31, 32), (31, 35)),
    "sample_and_kl_softplus": ((46, 48), (53, 57)),
    "sample_and_kl_soft_clamp": ((48, 49), (53, 56)),
    "bernoulli": ((19, 19), (12, 13)),
    "gaussian": ((14, 16), (18, 19)),
    "negative_binomial": ((113, 116), (79, 78)),
    "head_bernoulli": ((26, 27), (26, 27)),
}
GOALS_ON_SM_100 = GOALS | {"sample_and_kl": ((25, 26), (33, 36))}

# Registers of a thread that the plain latents may take, forward and backward, each in float32 and in bfloat16.
REGISTERS = {"sm_90": ((86, 77), (64, 55)), "sm_100": ((88, 86), (70, 64))}


def most_registers(op: str, dtype: str, target: str) -> float:
    if op.removesuffix("_backward") != "sample_and_kl" or target not in REGISTERS:
        return math.inf
    return REGISTERS[target][op.endswith("_backward")][dtype == "bfloat16"]


def goal(op: str, dtype: str, target: str) -> int | None:
    name = op.removesuffix("_backward")
    goals = (GOALS_ON_SM_100 if target == "sm_100" else GOALS).get(name)
    return goals and goals[op != name][dtype == "bfloat16"]


# More arithmetic for the bytes that they move than fits beside them on the faster chips: only its amount is held to.
BOUND_BY_ARITHMETIC = ("negative_binomial", "negative_binomial_backward")

# A good draw of two bytes an element takes longer than memory does, and so does a logarithm that is exact near 1; tiles
# of counts are so short that narrow outputs are read and written 8 bytes at a time.
NOT_HELD = ("noise", "head_negative_binomial", "scaled_bernoulli", "scaled_bernoulli_backward")

# The long aligned rows at which the goals are checked; the shapes of bench.roofline.compiled are reported beside them.
GOAL_SHAPE = "64x65536"


# Arguments of kernels that the batch may share.
SHARED_ARGUMENTS = ("prior_mu_ptr", "prior_scale_ptr", "second_ptr", "third_ptr")


class Work(NamedTuple):
    """What a launch has to do, whatever the machine code."""

    elements: float  # of the array, a thread and step of the loop over columns or draws
    steps: int  # of that loop, in a program
    bytes_an_element: float  # of all tensors, each moved once
    array_bytes: float  # that a step moves of the tensors with the array's shape; a row they share once a tile
    num_warps: int
    unroll: int  # steps that the compiler was asked to put into one round of a loop
    of_chunk: float = 0.0  # bytes an element of a head that are of a chunk of outputs, and stay in the last-level cache


def stored(tensor: Any) -> int:
    """Elements of a tensor that are in memory: those of stride 0 stand for many."""
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def work_of(launch: Any) -> Work:
    """The work of a `fastvae.kernels.triton.launch.Launch`."""
    tensors = [argument for argument in launch.arguments if hasattr(argument, "element_size")]
    elements = max(tensor.numel() for tensor in tensors)
    tiles = launch.constants["TILES"]
    rows, columns = tiles.rows, tiles.columns
    named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    if "FIRST" in launch.constants:
        return _work_of_head(launch, named, tensors)
    event = named["event_units"] * tiles.unit
    shared = [named[name] for name in SHARED_ARGUMENTS if named.get(name) is not None]
    shared = [tensor for tensor in shared if tensor.numel() < elements]
    inside = event / (math.ceil(event / columns) * columns)  # the part of the tiles that is not past the row's end
    arrays = [tensor for tensor in tensors if tensor.numel() == elements]
    return Work(
        inside * rows * columns / (32 * launch.num_warps),
        math.ceil(elements / (rows * columns * math.prod(launch.grid))),
        sum(stored(tensor) * tensor.element_size() for tensor in tensors) / elements,
        sum(array.element_size() for array in arrays) + sum(one.element_size() / rows for one in shared),
        launch.num_warps,
        tiles.unroll,
    )


def _work_of_head(launch: Any, named: dict[str, Any], tensors: Sequence[Any]) -> Work:
    """One row a program; outputs are read and, in place, written: under a softmax in a loop of its own."""
    event, columns = named["event"], launch.constants["TILES"].columns
    elements = tensors[0].numel()
    outputs, has_softmax = named["first_ptr"].element_size(), launch.constants["FIRST"] == "softmax"
    # What is given is read by every program, and stays in the cache.
    read = sum(one.element_size() for one in tensors if one.numel() in (elements, event))
    steps, inside = math.ceil(event / columns), event / (math.ceil(event / columns) * columns)
    # The loops before and after the softmax's own: its outputs, then these, the derivatives and the gradients.
    others = 3 * outputs + 4 if has_softmax else 0
    step = read + (0 if has_softmax else outputs)
    total = step + others
    given = sum(one.element_size() for one in tensors if one.numel() == event)
    of_chunk = total - given - named["x_ptr"].element_size()
    return Work(inside * columns / (32 * launch.num_warps), steps, total, step, launch.num_warps, 1, of_chunk)


def unrolled(body: Sequence[sass.Instruction], work: Work) -> int:
    """How many steps the compiler put into one round of a loop, as asked for, by the bytes that the round moves."""
    return max(1, min(work.unroll, round(sass.global_bytes(body) / (work.array_bytes * work.elements))))


def demand(body: Sequence[sass.Instruction]) -> Counter[str]:
    """Slots of a lane on each pipe that one execution of ``body`` takes, and issue slots."""
    total = Counter({"issue": len(body)})
    for instruction in body:
        total.update(sass.turns(instruction))
    return total


def busy(turns: dict[str, float], work: Work, chip: str) -> dict[str, float]:
    """The share of time in which each pipe of a chip is busy while memory runs at peak bandwidth."""
    rates = ARCHITECTURES[CHIPS[chip].target].rates
    return {pipe: turns.get(pipe, 0) / CHIPS[chip].budget(work.bytes_an_element, rate) for pipe, rate in rates.items()}


def analyse(code: sass.Code, usage: dict[str, int], shared: int, work: Work, target: str) -> dict[str, Any]:
    """The report of one kernel compiled for an NVIDIA target."""
    whole, loop = code.whole(), code.steady_loop(work.array_bytes * work.elements * work.unroll)
    program = code.shortest(work.array_bytes * work.elements)
    in_loop = loop is not None and work.steps > 1
    body = loop if loop is not None and in_loop else program
    times = unrolled(body, work) if in_loop else 1
    elements, rounds = work.elements * times, math.ceil(work.steps / times)
    total = len(program) + (len(body) * (rounds - 1) if in_loop else 0)
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
        "steady_state": "loop" if in_loop else "whole body",
        "unrolled": times,
        "elements": elements,
        "instructions": len(body) / elements,
        "instructions_with_prologue": total / (work.elements * work.steps),
        "pipes": {pipe: counts[pipe] / elements for pipe in sass.PIPES},
        "turns": turns,
        "instructions_in_code": len(whole),
        "unknown_opcodes": sorted({i.opcode for i in whole if sass.pipe(i) == "other"}),
        "bytes": work.bytes_an_element,
        "bytes_of_chunk": work.of_chunk,
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
    """The goals that an entry at GOAL_SHAPE misses; empty if it meets all.

    Without a loop, the body also loads the seed and stores the row sums, so only wide accesses are compared.
    """
    at_most = entry["goal"] or math.inf
    slow = [name for name, chip in entry["chips"].items() if chip["share_of_peak_bandwidth"] < 1]
    wide = sum(int(width) * count for width, count in entry["widths"].items() if int(width) >= 16) / entry["elements"]
    in_loop = entry["steady_state"] == "loop"
    registers = most_registers(entry["op"], entry["dtype"], entry["target"])
    checks = {
        f"{entry['registers']} registers > {registers}": entry["registers"] > registers,
        f"{entry['instructions']:.1f} instructions > {at_most}": entry["instructions"] > at_most,
        "below peak on " + ", ".join(slow): bool(slow) and entry["op"] not in BOUND_BY_ARITHMETIC,
        "local memory": entry["local_accesses"] > 0,
        "shared memory in the loop": in_loop and entry["shared_in_body"] > 0,
        "barriers in the loop": in_loop and entry["barriers_in_body"] > 0,
        f"16-byte accesses move {wide:g} of {entry['array_bytes']:g} bytes": wide < entry["array_bytes"],
        f"moves {wide:g} bytes, needs {entry['array_bytes']:g}": wide > entry["array_bytes"],
        "unknown opcodes": bool(entry["unknown_opcodes"]),
    }
    return [reason for reason, failed in checks.items() if failed]


# What an AMD kernel takes -> its name in the metadata.
AMD_RESOURCES = {
    "vgprs": "vgpr_count",
    "agprs": "agpr_count",
    "sgprs": "sgpr_count",
    "vgpr_spills": "vgpr_spill_count",
    "sgpr_spills": "sgpr_spill_count",
    "private_bytes": "private_segment_fixed_size",
    "shared_bytes": "group_segment_fixed_size",
}


def amd_resources(assembly: str) -> dict[str, int]:
    found = {ours: re.search(rf"^\s*\.{theirs}:\s*(\d+)", assembly, re.M) for ours, theirs in AMD_RESOURCES.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


def measure(job: tuple[str, str, str, str]) -> dict[str, Any]:
    """Compile and analyse one configuration: target, op, dtype, name of a shape."""
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
        entry["goal"] = goal(op, dtype, target)
        held = shape_name == GOAL_SHAPE and op not in NOT_HELD
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
    number = f"{entry['goal']} " if entry.get("goal") else ""
    return "-" if entry["missed"] is None else number + ("missed" if entry["missed"] else "met")


def nvidia_table(entries: Sequence[dict[str, Any]]) -> str:
    """Counts per element of the steady state; for each chip its share of peak bandwidth and its busiest pipe."""
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
    rows = [
        [e["op"], e["dtype"], e["shape"], *(str(e.get(name, "-")) for name in AMD_RESOURCES), _verdict(e)]
        for e in entries
    ]
    return _table(["op", "dtype", "shape", *AMD_RESOURCES, "goals"], rows)


def report(entries: Sequence[dict[str, Any]]) -> str:
    parts = []
    for target in dict.fromkeys(entry["target"] for entry in entries):
        ours = [entry for entry in entries if entry["target"] == target]
        parts.append(f"{target}\n\n" + (nvidia_table if "chips" in ours[0] else amd_table)(ours))
    shares = {
        f"{e['op']} {e['dtype']} {e['bytes_of_chunk'] / e['bytes']:.0%}" for e in entries if e.get("bytes_of_chunk")
    }
    if shares:
        parts.append(
            "Bytes of heads that are of the chunk, and stay in the second-level cache: " + ", ".join(sorted(shares))
        )
    checked = [entry for entry in entries if entry["missed"] is not None]
    failed = [entry for entry in checked if entry["missed"]]
    lines = [f"Goals met by {len(checked) - len(failed)} of {len(checked)} configurations that have them."]
    for e in failed:
        lines.append(f"  missed: {e['target']} {e['op']} {e['dtype']} {e['shape']}: {'; '.join(e['missed'])}")
    return "\n\n".join([*parts, "\n".join(lines)])


def main(arguments: Sequence[str] | None = None) -> int:
    import triton

    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: nothing is compiled in this process. Unset it.", file=sys.stderr)
        return 2

    from .compiled import SHAPES, SHIPPED, TARGETS, is_shipped

    parser = command_line("roofline", __doc__, results=False)
    known = {"target": TARGETS, "op": SHIPPED, "dtype": ("float32", "bfloat16"), "shape": SHAPES}
    for name, values in known.items():
        about = f"one {name} or several, separated by commas; all if left out"
        parser.add_argument(f"--{name}", type=some_of(values), default=list(values), help=about)
    parser.add_argument("--json", action="store_true", help="all entries as JSON")
    options = parser.parse_args(arguments)
    jobs = [
        (target, op, dtype, shape)
        for target in options.target
        for shape in sorted(options.shape, key=lambda shape: shape != GOAL_SHAPE)
        for op in options.op
        for dtype in options.dtype
        if is_shipped(op, shape)
    ]
    if not jobs:
        parser.error("none of these ops is looked at in any of these shapes")
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        entries = list(pool.map(measure, jobs))
    print(json.dumps(entries, indent=1) if options.json else report(entries))
    return 0
