"""Measures a case: the contenders are checked, then each is timed in turns with eager PyTorch, in each direction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import contenders
from .agreement import refuse_disagreement
from .cases import Case, Function, Tensors, as_tuple
from .memory import saved_bytes
from .timing import Elsewhere, Plan, interleaved_seconds, plan, speed_against

# glibc hands memory back to the system after every large release until it has seen a larger one, up to this size, and
# the pages of all fresh arrays are then faulted in again. A training process is past that; so is the benchmark.
_LARGEST_KEPT_BYTES = 31 * 2**20


class Timing(NamedTuple):
    seconds: list[float]
    """Of one call, in each round."""
    calls: int
    """Calls to a round."""
    speed_against_eager: float
    """How many times as fast as plain PyTorch: the median over rounds of the ratio within the round."""
    elsewhere: float | None
    """Share of the processors that others took meanwhile."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Measurement(NamedTuple):
    case: Case
    timings: dict[tuple[str, str], Timing]
    """By direction and contender."""
    saved_bytes: dict[str, int]
    """By contender: kept for backward beyond the inputs. Empty where there is no backward."""


class Step(NamedTuple):
    """A contender with what it takes and the gradients of what it returns."""

    function: Function
    arguments: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        return self.function(*self.arguments)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.arguments, self.gradients)

    def backward(self) -> Callable[[], tuple[Tensor, ...]]:
        """The gradients alone, of a graph that is made now."""
        outputs = self.forward()
        return lambda: torch.autograd.grad(outputs, self.arguments, self.gradients, retain_graph=True)

    def direction(self, name: str) -> Callable[[], object]:
        return {"forward": lambda: self.forward, "backward": self.backward, "both": lambda: self.both}[name]()


def make_step(case: Case, name: str, tensors: Tensors) -> Step:
    """Contender ``name``, ready to run. Torch's generator is left as it was."""
    arguments = case.arguments(tensors)
    function = contenders.make(case, name, arguments[0].device)
    with torch.random.fork_rng(), torch.no_grad():
        outputs = as_tuple(function(*arguments))
    return Step(function, arguments, case.incoming(tensors, outputs))


def keep_released_memory() -> None:
    torch.empty(_LARGEST_KEPT_BYTES, dtype=torch.uint8)


def make_steps(case: Case, names: Sequence[str], tensors: Tensors) -> dict[str, Step]:
    keep_released_memory()
    return {name: make_step(case, name, tensors) for name in names}


def checked_steps(case: Case, names: Sequence[str], tensors: Tensors) -> dict[str, Step]:
    """The contenders, shown to compute the same: raises Disagreement otherwise."""
    steps = make_steps(case, names, tensors)
    refuse_disagreement(case, {name: step.function for name, step in steps.items()}, tensors)
    return steps


def measure(
    case: Case,
    names: Sequence[str],
    device: torch.device,
    *,
    budget: float = 1.0,
    directions: Sequence[str] | None = None,
    timed: Plan | None = None,
) -> Measurement:
    """Check, then time each contender in turns with eager PyTorch. Torch's generator is left as it was.

    Raises Disagreement where a contender computes something else.

    Args:
        case: what to compute.
        names: of the contenders (`bench.contenders`); "eager" must be among them.
        device: where.
        budget: seconds that a direction should take; large cases take more (`bench.timing.plan`).
        directions: those of the case if None.
        timed: rounds and calls instead of a budget.
    """
    wanted = [direction for direction in case.directions if directions is None or direction in directions]
    timings: dict[tuple[str, str], Timing] = {}
    saved: dict[str, int] = {}
    with torch.random.fork_rng():
        tensors = case.tensors(device)
        steps = checked_steps(case, names, tensors)
        for direction in wanted:
            if direction != "backward":
                timings |= _time(steps, direction, budget, timed)
        if "both" in case.directions:
            saved = {name: saved_bytes(step) for name, step in steps.items()}
        if "backward" in wanted:
            with contenders.graphs_retained():
                steps = make_steps(case, names, tensors)
                timings |= _time(steps, "backward", budget, timed)
    return Measurement(case, timings, saved)


def _time(
    steps: Mapping[str, Step], direction: str, budget: float, timed: Plan | None
) -> dict[tuple[str, str], Timing]:
    """Each contender in turns with plain PyTorch alone: what else ran before would leave it other caches."""
    jobs = {name: step.direction(direction) for name, step in steps.items()}
    timings: dict[tuple[str, str], Timing] = {}
    rivals = [name for name in jobs if name != "eager"]
    for rival in rivals or ["eager"]:
        pair = {name: jobs[name] for name in ("eager", rival)}
        how = timed or plan(pair, budget / max(len(rivals), 1))
        others = Elsewhere()
        seconds = interleaved_seconds(pair, **how._asdict())
        share = others.share()
        for name in pair:
            timing = Timing(seconds[name], how.calls, speed_against(seconds, name), share)
            timings.setdefault((direction, name), timing)
    return timings
