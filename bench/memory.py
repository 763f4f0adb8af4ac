"""Peak memory of a step on the CPU.

It is the peak of resident memory (VmHWM of /proc/self/status) in a process of its own, minus what is resident just
before the step. It includes the outputs and gradients that the step returns, but not its inputs nor the incoming
gradients. The step has run once before, so code, threads and compilation are not included. Linux with glibc only, and
for arrays that are large compared with a process's other allocations.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from fastvae.kernels.reference import scratch

from .cases import Case
from .machine import fields
from .measure import make_step

SMALLEST_INPUT_BYTES = 10**6


def peak_bytes(case: Case, name: str) -> int | None:
    """Peak of forward and backward of contender ``name`` on the CPU; None if the arrays are small or not on Linux."""
    if case.array_bytes * 2 < SMALLEST_INPUT_BYTES:
        return None
    return peak_in_new_process("bench.measure", _peak_of_step, case, name)


def peak_in_new_process(module: str, peak: Callable[..., int], *arguments: object) -> int | None:
    """``peak`` of the arguments, in a process forked from a server that has imported the module and run nothing; None
    if not on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with ProcessPoolExecutor(1, mp_context=context) as fresh:
        return fresh.submit(peak, *arguments).result()


def peak_over_minimum(case: Case, peak: int) -> float:
    """The inputs and the peak, in units of the least possible: the inputs, z and their gradients."""
    return (2 * case.array_bytes + peak) / (5 * case.array_bytes)


def _peak_of_step(case: Case, name: str) -> int:
    give_memory_back()
    step = make_step(case, name, case.tensors(torch.device("cpu")))
    return peak_beyond(step.both)


def give_memory_back() -> None:
    """From now on freed arrays go back to the system at once, so that resident memory is what is in use."""
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD of glibc


def peak_beyond(step: Callable[[], object]) -> int:
    """Bytes of the peak of ``step`` beyond what was in memory before, on a second call; temporaries that fastvae keeps
    from call to call are part of it."""
    step()
    scratch.release()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _peak()
    kept = step()
    peak = _peak() - before
    del kept
    return peak


def _peak() -> int:
    return int(fields(Path("/proc/self/status"))["VmHWM"].split()[0]) * 1024
