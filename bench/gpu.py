"""The latent op on a GPU against eager PyTorch and torch.compile: time, rate, share of a device copy, peak memory.

python -m bench.gpu [--batch 1024,16384] [--latent 64,256] [--dtype float32,bfloat16] [--output bench/results] [--quick]

Every contender is first shown to compute the op (`bench.gpu_checks`); when one does not, no file is written. Columns:

    milliseconds       the device's own time, caches flushed before, the queue kept full so that the host's time is no
                       part of it: the median over rounds, contenders in turns
    call_milliseconds  the host's time of a call, calls one after another: what launching costs is in it
    gb_s               the bytes that the op has to move (`moved_bytes`) by milliseconds
    share_of_copy      gb_s of that of a large device copy; share_of_equal_copy: of a copy that moves as many bytes
    peak_bytes         the most that was allocated at a time during a call beyond what was there before
"""

from __future__ import annotations

import argparse
import csv
import datetime
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

import fastvae
from fastvae.files import whole_file

from . import eager
from .gpu_checks import Disagreement, Op, Tensors, check, make_tensors
from .timing import interleaved_medians

BATCHES = (64, 1024, 16384, 65536)
LATENTS = (16, 64, 256, 1024, 4096)
DTYPES = ("float32", "bfloat16")
QUICK = {"batch": (1024, 16384), "latent": (64, 1024)}
ROUNDS, QUICK_ROUNDS = 50, 10

# Arrays of the size of z that a direction has to read or write, and numbers a row (the KL, its gradient).
ARRAYS = {"forward": 3, "backward": 5, "both": 8}
ROW_NUMBERS = {"forward": 1, "backward": 1, "both": 2}

LARGE_COPY_BYTES = 2**30
# Arrays that eager PyTorch, the check and the copies are given room for.
ARRAYS_OF_ROOM = 40

COLUMNS = (
    *("device", "capability", "torch", "triton", "cuda", "driver", "fastvae", "date"),
    *("dtype", "batch", "latent", "direction", "contender", "milliseconds", "call_milliseconds"),
    *("gb_s", "share_of_copy", "share_of_equal_copy", "speed_against_eager", "peak_bytes"),
)


class Case(NamedTuple):
    dtype: str
    batch: int
    latent: int

    @property
    def array_bytes(self) -> int:
        return self.batch * self.latent * getattr(torch, self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.batch} x {self.latent} {self.dtype}"


class Job(NamedTuple):
    """What is timed, and what is done before that: a backward pass needs a graph of its own."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]


class Meter(Protocol):
    device: torch.device

    def milliseconds(self, job: Job) -> float: ...

    def peak_bytes(self, job: Job) -> int: ...

    def free_bytes(self) -> int: ...

    def clock(self) -> float: ...


class GpuMeter:
    """Measures on the current CUDA device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._flushed = torch.empty(2**28, dtype=torch.uint8, device=self.device)  # larger than any cache
        self._flushes = 4

    def milliseconds(self, job: Job) -> float:
        """One run. The device is first given enough to do that the host has queued the run before it begins."""
        while self._flushes <= 4096:
            prepared = job.prepare()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            for _ in range(self._flushes):
                self._flushed.zero_()
            start.record()
            job.run(prepared)
            stop.record()
            queued_in_time = not start.query()
            torch.cuda.synchronize()
            if queued_in_time:
                return start.elapsed_time(stop)
            self._flushes *= 2
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

    def clock(self) -> float:
        return time.perf_counter()


def sweep(dtypes: Sequence[str], batches: Sequence[int], latents: Sequence[int]) -> list[Case]:
    return [Case(dtype, batch, latent) for dtype in dtypes for batch in batches for latent in latents]


def moved_bytes(case: Case, direction: str) -> int:
    """What any implementation has to move: each array once, float32 numbers a row; the seed's 8 bytes left out."""
    return ARRAYS[direction] * case.array_bytes + ROW_NUMBERS[direction] * 4 * case.batch


def make_contenders() -> dict[str, Op]:
    """Made anew for each case: compiled for its shape alone, whatever was compiled before."""
    torch.compiler.reset()
    return {
        "fastvae": fastvae.sample_and_kl,
        "eager": eager.sample_and_kl,
        "compile": torch.compile(eager.sample_and_kl, fullgraph=True, dynamic=False),
    }


def jobs(op: Op, tensors: Tensors) -> dict[str, Job]:
    def forward() -> Any:
        return op(tensors.mu, tensors.logvar)

    return {
        "forward": Job(lambda: None, lambda _: forward()),
        "backward": Job(forward, tensors.gradients),
        "both": Job(lambda: None, lambda _: tensors.gradients(forward())),
    }


def copy_job(byte_count: int, device: torch.device) -> Job:
    """A copy that reads and writes so many bytes in all."""
    source = torch.ones(max(1, byte_count // 2), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Job(lambda: None, lambda _: target.copy_(source))


def medians(todo: Mapping[Any, Job], meter: Meter, rounds: int) -> dict[Any, float]:
    """Milliseconds of each job: the median over rounds, in each of which every job has its turn."""
    times: dict[Any, list[float]] = {name: [] for name in todo}
    for turn in range(-3, rounds):
        for name, job in todo.items():
            value = meter.milliseconds(job)
            if turn >= 0:
                times[name].append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def gb_s(byte_count: int, milliseconds: float) -> float:
    return byte_count / milliseconds / 1e6


def large_copy_rate(meter: Meter, rounds: int) -> float:
    """GB/s of a device copy far larger than the caches."""
    byte_count = min(LARGE_COPY_BYTES, meter.free_bytes() // 4)
    job = copy_job(byte_count, meter.device)
    return gb_s(byte_count, medians({"copy": job}, meter, rounds)["copy"])


def measure(
    case: Case, contenders: Mapping[str, Op], meter: Meter, copy_rate: float, rounds: int
) -> list[dict[str, Any]]:
    """Check the contenders, then time them: a row for each direction and contender. Raises Disagreement."""
    tensors = make_tensors(case.batch, case.latent, getattr(torch, case.dtype), meter.device)
    check(contenders, tensors)
    todo = {(d, name): job for name, op in contenders.items() for d, job in jobs(op, tensors).items()}
    copies = {(d, "copy"): copy_job(moved_bytes(case, d), meter.device) for d in ARRAYS}
    times = medians({**todo, **copies}, meter, rounds)
    rows = []
    for direction in ARRAYS:
        calls: dict[str, float] = {}
        if direction != "backward":  # which cannot be called again and again
            ours = {name: _call(todo[direction, name]) for name in contenders}
            calls = interleaved_medians(ours, rounds=rounds, calls=10, clock=meter.clock)
        for name in contenders:
            rate = gb_s(moved_bytes(case, direction), times[direction, name])
            rows.append(
                {
                    **case._asdict(),
                    "direction": direction,
                    "contender": name,
                    "milliseconds": times[direction, name],
                    "call_milliseconds": 1e3 * calls[name] if calls else "",
                    "gb_s": rate,
                    "share_of_copy": rate / copy_rate,
                    "share_of_equal_copy": times[direction, "copy"] / times[direction, name],
                    "speed_against_eager": times[direction, "eager"] / times[direction, name],
                    "peak_bytes": meter.peak_bytes(todo[direction, name]),
                }
            )
    return rows


def _call(job: Job) -> Callable[[], object]:
    return lambda: job.run(job.prepare())


def describe(row: Mapping[str, Any]) -> str:
    case = Case(row["dtype"], row["batch"], row["latent"])
    return (
        f"{case!s:<22} {row['direction']:<8} {row['contender']:<8} {row['milliseconds']:9.4f} ms"
        f" {row['gb_s']:7.0f} GB/s {row['share_of_copy']:4.0%} of a copy {row['speed_against_eager']:6.2f}x eager"
        f" {row['peak_bytes'] / 1e6:8.1f} MB"
    )


def measure_all(
    cases: Sequence[Case],
    meter: Meter,
    rounds: int,
    contenders: Callable[[], Mapping[str, Op]] = make_contenders,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """The rows of all cases that the device has room for; each is told when its case is done."""
    copy_rate = large_copy_rate(meter, rounds)
    say(f"a large device copy: {copy_rate:.0f} GB/s")
    rows: list[dict[str, Any]] = []
    for case in cases:
        needed, free = ARRAYS_OF_ROOM * case.array_bytes, meter.free_bytes()
        if needed > free:
            say(f"{case}: left out, it may take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
            continue
        try:
            rows += (new := measure(case, contenders(), meter, copy_rate, rounds))
        except Disagreement as error:
            raise Disagreement(f"{case}: {error}") from None
        for row in new:
            say(describe(row))
    return rows


def write_csv(path: Path, machine: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            short = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**machine, **short})


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def driver_version() -> str:
    """Of NVIDIA's driver; empty where its tool does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.partition("\n")[0].strip()


def describe_machine(device: torch.device) -> dict[str, str]:
    import triton

    return {
        "device": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or f"hip {torch.version.hip}",
        "driver": driver_version(),
        "fastvae": fastvae.__version__,
        "date": now(),
    }


def file_stem(device_name: str) -> str:
    return "gpu_" + re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")


def why_not_here() -> str:
    """Why this machine cannot measure; empty if it can."""
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    triton = fastvae.backends()["triton"]
    if "cuda float32" not in triton["chosen_for"]:
        return f"the Triton backend does not serve the GPU: {triton['reason'] or 'another one was asked for'}"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected positive numbers, separated by commas")
    return tuple(numbers)


def _dtypes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not {"float32", "bfloat16", "float16"}.issuperset(names):
        raise argparse.ArgumentTypeError(f"{text!r}, expected float32, bfloat16 or float16, separated by commas")
    return names


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=_numbers, help=f"rows, separated by commas; {BATCHES} if left out")
    parser.add_argument("--latent", type=_numbers, help=f"coordinates a row, likewise; {LATENTS} if left out")
    parser.add_argument("--dtype", type=_dtypes, default=DTYPES, help="float32, bfloat16 and float16, likewise")
    parser.add_argument(
        "--output", type=Path, default=Path("bench/results"), help="folder of the CSV file and the plots"
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    options = parser.parse_args(arguments)
    options.batch = options.batch or (QUICK["batch"] if options.quick else BATCHES)
    options.latent = options.latent or (QUICK["latent"] if options.quick else LATENTS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a contender was wrong; 2 where there is no GPU to measure."""
    options = parse(arguments)
    cases = sweep(options.dtype, options.batch, options.latent)
    reason = why_not_here()
    if reason:
        print(f"bench.gpu: none of the {len(cases)} cases was measured: {reason}", file=sys.stderr)
        return 2
    meter = GpuMeter()
    machine = describe_machine(meter.device)
    try:
        with fastvae.use_backend("triton"):
            rows = measure_all(cases, meter, QUICK_ROUNDS if options.quick else ROUNDS)
    except Disagreement as error:
        print(f"bench.gpu: nothing was written, a result is wrong: {error}", file=sys.stderr)
        return 1
    path = options.output / f"{file_stem(machine['device'])}.csv"
    write_csv(path, machine, rows)
    print(f"wrote {path}")
    try:
        from .gpu_plots import save_plots
    except ImportError as error:
        print(f"no plots: {error}")
        return 0
    for plot in save_plots(path, machine, rows):
        print(f"wrote {plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
