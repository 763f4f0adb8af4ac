"""The latent op on a GPU against eager PyTorch and torch.compile: time, bandwidth, share of a device copy, peak memory.

python -m bench gpu [--batch 1024,16384] [--latent 64,256] [--dtype float32,bfloat16] [--rounds 50] [--results FOLDER]

With --results, plots of speed and bandwidth are written beside results.json, whose section has the GPU's name. Columns:

    milliseconds       device time with the L2 cache flushed before; the queue is kept full, so that host time is not
                       included: the median over rounds, contenders in turns
    call_milliseconds  time of a call when calls follow each other, host time included
    gb_s               bytes that the op has to move (`Case.moved_bytes`) by milliseconds
    share_of_copy      gb_s by that of a large device copy; share_of_equal_copy: by that of a copy of as many bytes
    peak_bytes         the most that was allocated at once during a call, beyond what was allocated before
"""

from __future__ import annotations

import functools
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

import fastvae

from .cases import DTYPES, Case
from .machine import describe_machine
from .measure import Step, copy_of, make_steps
from .records import Row, command_line, positive_numbers, save, show, some_of
from .tables import GPU
from .timing import interleaved_medians

BATCHES = (64, 1024, 16384, 65536)
LATENTS = (16, 64, 256, 1024, 4096)
CONTENDERS = ("fastvae", "eager", "torch.compile")
LARGE_COPY_BYTES = 2**30
# Arrays of the size of z that eager PyTorch, the check and the copies may hold at the same time.
ARRAYS_OF_ROOM = 40


class Job(NamedTuple):
    """What is timed, ``run``, and what runs before it and is not timed: a backward pass needs a new graph."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


class GpuMeter:
    """Measures on the current CUDA device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._flushed = torch.zeros(2**26, device=self.device)  # 256 MiB, larger than any L2 cache

    def milliseconds(self, job: Job) -> float:
        """Device time of one run. Flushing keeps the device busy until the host has queued the run.

        Where the host was too late, the run is repeated with twice as many flushes. Each call starts again from a few,
        so that a delay of the host does not slow down all later calls.
        """
        flushes = 4
        while flushes <= 4096:
            prepared = job.prepare()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            for _ in range(flushes):
                # By reading: lines that a flush has written would be written back during the timed run.
                self._flushed.sum()
            start.record()
            job.run(prepared)
            stop.record()
            queued_in_time = not start.query()
            torch.cuda.synchronize()
            if queued_in_time:
                return start.elapsed_time(stop)
            flushes *= 2
        raise RuntimeError("the host does not queue the work before the device gets to it: something waits for results")

    def peak_bytes(self, job: Job) -> int:
        prepared = job.prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = job.run(prepared)
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return peak

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    clock = staticmethod(time.perf_counter)


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


def measure(case: Case, meter: GpuMeter, copy_rate: float, rounds: int) -> Iterator[Row]:
    """Check the contenders, then time them: a row for each direction and contender. Raises Disagreement."""
    steps = make_steps(case, CONTENDERS, case.tensors(meter.device))
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


def measure_all(cases: Sequence[Case], meter: GpuMeter, rounds: int) -> Iterator[Row]:
    """The rows of all cases that fit in the device's memory; the others are named."""
    copy_rate = large_copy_rate(meter, rounds)
    print(f"a large device copy: {copy_rate:.0f} GB/s")
    for case in cases:
        needed, free = ARRAYS_OF_ROOM * case.array_bytes, meter.free_bytes()
        if needed > free:
            print(f"{case}: left out, it may take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
        else:
            yield from measure(case, meter, copy_rate, rounds)


def why_not_here() -> str:
    """Why there is nothing to measure on this machine; empty if there is."""
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    triton = fastvae.backends()["triton"]
    if "cuda float32" not in triton["chosen_for"]:
        return f"the Triton backend does not serve the GPU: {triton['reason'] or 'another one was asked for'}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 where there is no GPU to measure."""
    parser = command_line("gpu", __doc__)
    parser.add_argument("--batch", type=positive_numbers, default=BATCHES, help="rows, separated by commas")
    parser.add_argument("--latent", type=positive_numbers, default=LATENTS, help="coordinates a row, likewise")
    parser.add_argument("--dtype", type=some_of(DTYPES), default=DTYPES[:2], help=f"of {', '.join(DTYPES)}, likewise")
    parser.add_argument("--rounds", type=int, default=50, help="timings of each; 10 for a quick look")
    options = parser.parse_args(arguments)
    sizes = itertools.product(options.dtype, options.batch, options.latent)
    cases = [Case("sample_and_kl", (batch, latent), dtype) for dtype, batch, latent in sizes]
    reason = why_not_here()
    if reason:
        print(f"bench gpu: none of the {len(cases)} cases was measured: {reason}", file=sys.stderr)
        return 2
    meter = GpuMeter()
    with fastvae.use_backend("triton"):
        rows = show(measure_all(cases, meter, options.rounds), GPU)
    if options.results is None:
        return 0
    machine = describe_machine(meter.device)
    name = "gpu_" + re.sub(r"[^a-z0-9]+", "_", machine["device"].lower()).strip("_")
    save(options.results, name, rows, machine)
    try:
        from .plots import save_gpu
    except ImportError as error:
        print(f"no plots: {error}")
    else:
        save_gpu(options.results, name, machine, rows)
    return 0
