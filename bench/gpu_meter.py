"""How a GPU is timed: device time with a cold cache, time of calls, memory, captured graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .timing import interleaved_medians


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

    def seconds(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Of a call when calls follow each other, host time included: medians over rounds, in turns."""
        return interleaved_medians(runs, rounds=15, calls=10, clock=self.clock)

    def graph(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """``run`` as a captured CUDA graph: what replays it, and its outputs, which every replay overwrites."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are compiled and loaded before the capture
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run()
        return graph.replay, outputs
