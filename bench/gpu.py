"""On a GPU: latents, a VAE's training step, CUDA graphs and likelihoods, against eager PyTorch and torch.compile.

python -m bench gpu [--batch 128,4096] [--latent 16,256] [--dtype float32,bfloat16] [--rounds 50] [--seconds 270]
                    [--results FOLDER]

With --results, gpu-CHIP.md is written row by row, and for the latents a section of results.json and plots of speed and
bandwidth. Columns of latents and likelihoods:

    milliseconds       device time with the L2 cache flushed before; the queue is kept full, so that host time is not
                       included: the median over rounds, contenders in turns
    call_milliseconds  time of a call when calls follow each other, host time included
    gb_s               bytes that the op has to move (`Case.moved_bytes`) by milliseconds
    share_of_copy      gb_s by that of a large device copy; share_of_equal_copy: by that of a copy of as many bytes
    peak_bytes         the most that was allocated at once during a call, beyond what was allocated before
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastvae

from .agreement import Disagreement
from .cases import DTYPES, Case
from .gpu_meter import GpuMeter, Job
from .gpu_training import CONTENDERS as STEPS
from .gpu_training import graph_rows, training_rows
from .machine import describe_machine
from .measure import Step, copy_of, make_steps
from .records import Columns, Row, command_line, markdown, positive_numbers, save, some_of
from .tables import GPU, GPU_GRAPHS, GPU_TRAINING
from .timing import interleaved_medians

BATCHES = (128, 4096, 65536)
LATENTS = (16, 256, 4096)
TRAINING_BATCHES = (128, 65536, 1024, 8192)
GRAPHS = ((128, 10), (4096, 256), (65536, 256))
LIKELIHOODS = {
    "bernoulli": (4096, 784),
    "gaussian": (4096, 784),
    "negative_binomial": (4096, 2000),
    "zero_inflated": (4096, 2000),
    "scaled_bernoulli": (1024, 20000),
    "mixture": (64, 3, 32, 32),
}
CONTENDERS = ("fastvae", "eager", "torch.compile")
LARGE_COPY_BYTES = 2**30
# Arrays of the size of z that eager PyTorch, the check and the copies may hold at the same time.
ARRAYS_OF_ROOM = 40


def jobs(step: Step) -> dict[str, Job]:
    return {
        "forward": Job(lambda _: step.forward()),
        "backward": Job(step.gradients, prepare=step.forward),
        "both": Job(lambda _: step.both()),
    }


def copy_job(byte_count: int, device: torch.device) -> Job:
    copy = copy_of(byte_count, device)
    return Job(lambda _: copy())


def medians(todo: Mapping[Any, Job], meter: GpuMeter, rounds: int) -> dict[Any, float]:
    """Milliseconds of each job: the median over rounds; in a round every job runs once."""
    times: dict[Any, list[float]] = {name: [] for name in todo}
    for turn in range(-3, rounds):
        for name, job in todo.items():
            value = meter.milliseconds(job)
            if turn >= 0:
                times[name].append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def gb_s(byte_count: int, milliseconds: float) -> float:
    return byte_count / milliseconds / 1e6


def large_copy_rate(meter: GpuMeter, rounds: int) -> float:
    """GB/s of a device copy far larger than the caches."""
    byte_count = min(LARGE_COPY_BYTES, meter.free_bytes() // 4)
    job = copy_job(byte_count, meter.device)
    return gb_s(byte_count, medians({"copy": job}, meter, rounds)["copy"])


@functools.cache
def _why_not_compiled(device: torch.device) -> str:
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, a Triton that PyTorch does not know
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def without_compiled(names: Sequence[str], meter: GpuMeter) -> list[str]:
    """Without the contenders of torch.compile where that does not work, which is said once."""
    reason = _why_not_compiled(meter.device)
    kept = [name for name in names if not reason or name in ("eager", "fastvae")]
    if len(kept) < len(names):
        print(f"without torch.compile, which fails on this machine: {reason}")
    return kept


def measure(case: Case, meter: GpuMeter, copy_rate: float, rounds: int) -> Iterator[Row]:
    """Check the contenders, then time them: a row for each direction and contender. Raises Disagreement."""
    steps = make_steps(case, without_compiled(CONTENDERS, meter), case.tensors(meter.device))
    todo = {(d, name): job for name, step in steps.items() for d, job in jobs(step).items()}
    copies = {(d, "copy"): copy_job(case.moved_bytes(d), meter.device) for d in case.directions}
    times = medians({**todo, **copies}, meter, rounds)
    for direction in case.directions:
        calls: dict[str, float] = {}
        if direction != "backward":  # a graph is run backward once
            ours = {name: functools.partial(todo[direction, name].run, None) for name in steps}
            calls = interleaved_medians(ours, rounds=rounds, calls=10, clock=meter.clock)
        for name in steps:
            rate = gb_s(case.moved_bytes(direction), times[direction, name])
            yield {
                "dtype": case.dtype,
                "batch": case.shape[0],
                "latent": case.shape[1],
                "case": str(case),
                "direction": direction,
                "contender": name,
                "milliseconds": times[direction, name],
                "call_milliseconds": 1e3 * calls[name] if calls else None,
                "gb_s": rate,
                "share_of_copy": rate / copy_rate,
                "share_of_equal_copy": times[direction, "copy"] / times[direction, name],
                "speed_against_eager": times[direction, "eager"] / times[direction, name],
                "peak_bytes": meter.peak_bytes(todo[direction, name]),
            }


class Time:
    """What is left of the seconds that a run may take: no case is begun when they are over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def left(self) -> float:
        return self._end - self._clock()

    def part(self, share: float) -> Time:
        return Time(share * max(self.left(), 0.0), self._clock)


def measure_all(cases: Sequence[Case], meter: GpuMeter, rounds: int, until: Time | None = None) -> Iterator[Row]:
    """The rows of all cases that fit in the device's memory and in the time; the others are named."""
    copy_rate = large_copy_rate(meter, rounds)
    print(f"a large device copy: {copy_rate:.0f} GB/s")
    for case in cases:
        needed, free = ARRAYS_OF_ROOM * case.array_bytes, meter.free_bytes()
        if needed > free:
            print(f"{case}: left out, it may take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
        elif _is_over(until, case):
            continue
        else:
            yield from measure(case, meter, copy_rate, rounds)


def _is_over(until: Time | None, what: object) -> bool:
    if until is None or until.left() > 0:
        return False
    print(f"{what}: left out, the time is up")
    return True


class Section(NamedTuple):
    """A part of the measurement: its title, its table, how to come by its rows in the time that it has."""

    title: str
    columns: Columns
    rows: Callable[[Time | None], Iterator[Row]]
    share: float  # of the time that is left


def sections(options: argparse.Namespace, meter: GpuMeter) -> list[Section]:
    """Latents first: with the time spent, the others are left out."""
    sizes = itertools.product(options.dtype, options.batch, options.latent)
    latents = [Case("sample_and_kl", (batch, latent), dtype) for dtype, batch, latent in sizes]
    likelihoods = [Case(op, shape) for op, shape in LIKELIHOODS.items()]
    graphs = [Case("sample_and_kl", shape) for shape in GRAPHS]

    def each(of: Iterable[Any], rows: Callable[[Any], Iterator[Row]]) -> Callable[[Time | None], Iterator[Row]]:
        return lambda until: itertools.chain.from_iterable(rows(one) for one in of if not _is_over(until, one))

    return [
        Section("Latents", GPU, functools.partial(measure_all, latents, meter, options.rounds), 0.4),
        Section(
            "Training step of the 784-400-20 VAE",
            GPU_TRAINING,
            each(TRAINING_BATCHES, lambda batch: training_rows(batch, meter, without_compiled(STEPS, meter))),
            0.6,
        ),
        Section("Step of the latent op in a CUDA graph", GPU_GRAPHS, each(graphs, lambda c: graph_rows(c, meter)), 0.5),
        Section("Likelihoods", GPU, functools.partial(measure_all, likelihoods, meter, options.rounds), 1.0),
    ]


class Report:
    """A Markdown file that is written line by line: a run that is cut off leaves the rows that it has measured."""

    def __init__(self, path: Path | None, machine: Row) -> None:
        self._path, self.failed = path, False
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f"# {machine['device']}\n\n`python -m bench gpu`, {machine['date']}: {_versions(machine)}\n"
            )

    def add(self, line: str) -> None:
        print(line, flush=True)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")

    def table(self, title: str, columns: Columns, rows: Iterable[Row]) -> list[Row]:
        """The rows, each written when it comes. An error ends the table, and is written below it."""
        self.add(f"\n## {title}\n\n{markdown(columns, [])}")
        kept = []
        try:
            for row in rows:
                kept.append(row)
                self.add("| " + " | ".join(text(row) for text in columns.values()) + " |")
        except Exception as error:  # a wrong result, no memory, a compiler that fails: other tables may be had
            self.failed = True
            what = "a result is wrong" if isinstance(error, Disagreement) else type(error).__name__
            self.add(f"\nThis table ends here, {what}: {error}")
        return kept


def _versions(machine: Row) -> str:
    names = ("driver", "cuda", "triton")
    return ", ".join(
        [f"{name} {machine[name]}" for name in names if machine.get(name)]
        + [f"{name} {version}" for name, version in machine["versions"].items()]
    )


def why_not_here() -> str:
    """Why there is nothing to measure on this machine; empty if there is."""
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    triton = fastvae.backends()["triton"]
    if "cuda float32" not in triton["chosen_for"]:
        return f"the Triton backend does not serve the GPU: {triton['reason'] or 'another one was asked for'}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a table was ended by an error, 2 where there is no GPU to measure."""
    parser = command_line("gpu", __doc__)
    parser.add_argument("--batch", type=positive_numbers, default=BATCHES, help="rows, separated by commas")
    parser.add_argument("--latent", type=positive_numbers, default=LATENTS, help="coordinates a row, likewise")
    parser.add_argument("--dtype", type=some_of(DTYPES), default=DTYPES[:2], help=f"of {', '.join(DTYPES)}, likewise")
    parser.add_argument("--rounds", type=int, default=50, help="timings of each; 10 for a quick look")
    parser.add_argument("--seconds", type=float, help="no case is begun after so many")
    options = parser.parse_args(arguments)
    reason = why_not_here()
    if reason:
        print(f"bench gpu: nothing was measured: {reason}", file=sys.stderr)
        return 2
    meter = GpuMeter()
    machine = describe_machine(meter.device)
    slug = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    report = Report(options.results and options.results / f"gpu-{slug.removeprefix('nvidia-')}.md", machine)
    whole = None if options.seconds is None else Time(options.seconds)
    with fastvae.use_backend("triton"):
        for section in sections(options, meter):
            rows = report.table(section.title, section.columns, section.rows(whole and whole.part(section.share)))
            if section.title == "Latents" and options.results is not None and rows:
                _save(options.results, f"gpu-{slug}".replace("-", "_"), rows, machine)
    return int(report.failed)


def _save(folder: Path, name: str, rows: Sequence[Row], machine: Row) -> None:
    save(folder, name, rows, machine)
    try:
        from .plots import save_gpu
    except ImportError as error:
        print(f"no plots: {error}")
    else:
        save_gpu(folder, name, machine, rows)
