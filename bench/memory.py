"""Memory of a step: what is kept for backward beyond the inputs, and the peak.

The peak is that of pages in memory (VmHWM of /proc/self/status) in a process of its own, counted from the moment before
the step: z and the gradients that it returns are in it, with all that is alive at the same time; the inputs and the
incoming gradients, which stood there before, are not. The step has run once by then: code, threads and compilation are
not in it either. Linux with glibc only, and for arrays large enough to stand out from a process.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .cases import Case

SMALLEST_INPUT_BYTES = 10**6

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
_MMAPPED_BYTES = 2**16


class ForwardStep(Protocol):
    @property
    def arguments(self) -> tuple[Tensor, ...]: ...

    def forward(self) -> object: ...


def saved_bytes(step: ForwardStep) -> int:
    """Bytes that the forward pass keeps for backward in storages that are none of its arguments'."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = step.forward()
    arguments = {argument.untyped_storage().data_ptr() for argument in step.arguments}
    del outputs  # which kept the storages alive, and their addresses apart
    return sum(size for address, size in storages.items() if address not in arguments)


def peak_bytes(case: Case, name: str) -> int | None:
    """Peak of forward and backward of contender ``name`` on the CPU; None where it cannot be told."""
    if case.array_bytes * 2 < SMALLEST_INPUT_BYTES or not Path("/proc/self/clear_refs").exists():
        return None
    # A server that has imported torch, and run nothing yet, forks off a fresh process for each measurement.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.measure"])
    with ProcessPoolExecutor(1, mp_context=context) as fresh:
        return fresh.submit(_peak_of_step, case, name).result()


def peak_of_least(case: Case, peak: int) -> float:
    """The inputs and the peak, in units of what no implementation does without: the inputs, z and their gradients."""
    return (2 * case.array_bytes + peak) / (5 * case.array_bytes)


def _peak_of_step(case: Case, name: str) -> int:
    from .measure import make_step  # not at the top: measure imports this file

    # From the first tensor on, released arrays go back to the system at once and are not taken for fresh ones.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAPPED_BYTES)
    step = make_step(case, name, case.tensors(torch.device("cpu")))
    return peak_beyond(step.both)


def peak_beyond(step: Callable[[], object]) -> int:
    """Bytes of the peak of ``step`` beyond what was in memory before, on a second call."""
    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _peak()
    kept = step()
    peak = _peak() - before
    del kept
    return peak


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
