"""Compiled kernels, started again without the part of Triton that finds and compiles them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

try:
    from triton.compiler import CompiledKernel
    from triton.knobs import runtime as _hooks
except ImportError:  # no kernel is started but by Triton then
    CompiledKernel = ()

# What a compiled kernel's `run` takes first in the releases up to 3.8; in others every launch goes Triton's usual way.
_FIRST_OF_RUN = ["gridX", "gridY", "gridZ", "stream", "function"]


def runs_as_known(compiled: Any) -> bool:
    """Whether `Started` knows how to start it."""
    if not isinstance(compiled, CompiledKernel):
        return False
    known = all(hasattr(compiled, name) for name in ("run", "function", "packed_metadata", "launch_metadata"))
    return known and list(inspect.signature(compiled.run).parameters)[:5] == _FIRST_OF_RUN


class Started:
    """A compiled kernel that Triton has started once, for a grid.

    Its `run` hands its arguments and some constants on to a function in C. This is looked at once; from then on that
    function is called, which saves two microseconds or so, unless `run` has more to do: to allocate scratch memory or
    to call hooks.
    """

    __slots__ = ("_compiled", "_constants", "_first", "_function", "_grid", "_launch", "_metadata", "_run")

    def __init__(self, compiled: Any, grid: tuple[int, ...]) -> None:
        self._compiled, self._grid = compiled, grid
        self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata
        self._launch: Callable[..., object] | None = None
        self._constants: tuple[Any, ...] = ()
        self._first = True

    def again(self, stream: int, arguments: tuple[Any, ...]) -> None:
        before, after = _hooks.launch_enter_hook, _hooks.launch_exit_hook  # of profilers: chains of functions, or None
        if getattr(before, "calls", before) or getattr(after, "calls", after):
            launch_metadata = self._compiled.launch_metadata(self._grid, stream, *arguments)
            self._run(
                *self._grid, stream, self._function, self._metadata, launch_metadata, before, after, *arguments
            )  # fmt: skip
        elif self._launch is not None:
            self._launch(*self._grid, stream, *self._constants, arguments)
        elif self._first:
            self._first = False
            self._look_at_run(stream, arguments)
        else:
            self._run_without_hooks(stream, arguments)

    def _run_without_hooks(self, stream: int, arguments: tuple[Any, ...]) -> None:
        self._run(*self._grid, stream, self._function, self._metadata, None, None, None, *arguments)

    def _look_at_run(self, stream: int, arguments: tuple[Any, ...]) -> None:
        """Start the kernel by `run`, and remember what that calls, if it does what is known of releases 3.7 and 3.8."""
        run, handed_on = self._run, []
        knows = type(run).__name__ == "CudaLauncher" and not getattr(run, "gsan_enabled", False)
        scratch = [getattr(run, name, None) for name in ("global_scratch_size", "profile_scratch_size")]
        if not knows or scratch != [0, 0]:
            self._run_without_hooks(stream, arguments)
            return
        with _looking:
            launch = run.launch

            def look(*given: Any) -> None:
                handed_on.append(given)
                launch(*given)

            run.launch = look
            try:
                self._run_without_hooks(stream, arguments)
            finally:
                run.launch = launch
        if len(handed_on) == 1 and handed_on[0][:4] == (*self._grid, stream) and handed_on[0][-1] == arguments:
            self._constants, self._launch = handed_on[0][4:-1], launch


_looking = threading.Lock()
