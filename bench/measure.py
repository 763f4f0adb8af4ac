"""Measures a case: checks the contenders, then times each in turns with eager PyTorch, in each direction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import contenders
from .agreement import refuse_disagreement
from .cases import DIRECTIONS, Case, Function, Tensors, as_tuple
from .records import Timing
from .timing import Contenders, OtherLoad, Plan, interleaved_seconds, plan, speed_against

# glibc returns large blocks to the system when they are freed, and new arrays then fault in page by page, until a block
# of up to this size has been freed: from then on it keeps such blocks. A training process has reached that state.
_LARGEST_KEPT_BYTES = 31 * 2**20


class Step(NamedTuple):
    """A contender with its arguments and the gradients of its outputs."""

    function: Function
    arguments: tuple[Tensor, ...]
    incoming: tuple[Tensor, ...]

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        return self.function(*self.arguments)

    def gradients(self, outputs: Tensor | tuple[Tensor, ...], *, retain_graph: bool = False) -> tuple[Tensor, ...]:
        wanted = [argument for argument in self.arguments if argument.requires_grad]
        return torch.autograd.grad(outputs, wanted, self.incoming, retain_graph=retain_graph)

    def both(self) -> tuple[Tensor, ...]:
        return self.gradients(self.forward())

    def backward(self) -> Callable[[], tuple[Tensor, ...]]:
        """The gradients alone, of a graph that is made now."""
        outputs = self.forward()
        return lambda: self.gradients(outputs, retain_graph=True)

    def direction(self, name: str) -> Callable[[], object]:
        return self.backward() if name == "backward" else getattr(self, name)

    def saved_bytes(self) -> int:
        """Bytes that the forward pass saves for backward, in storages other than those of its arguments."""
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = self.forward()
        arguments = {argument.untyped_storage().data_ptr() for argument in self.arguments}
        del outputs  # kept until here: storages that are alive have different addresses
        return sum(size for address, size in storages.items() if address not in arguments)


def optimiser_step(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A training step, which returns its loss."""

    def step() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        return value.detach()

    return step


def make_step(case: Case, name: str, tensors: Tensors) -> Step:
    """Contender ``name``, ready to run. Torch's generator is left as it was."""
    arguments = case.arguments(tensors)
    function = contenders.make(case, name, arguments[0].device)
    with torch.random.fork_rng(), torch.no_grad():
        outputs = as_tuple(function(*arguments))
    return Step(function, arguments, case.incoming(tensors, outputs))


def keep_freed_memory() -> None:
    torch.empty(_LARGEST_KEPT_BYTES, dtype=torch.uint8)


def copy_of(byte_count: int, device: torch.device) -> Callable[[], object]:
    """A copy, into memory that is there already, which reads and writes so many bytes in total."""
    source = torch.ones(max(1, byte_count // 2), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def make_steps(case: Case, names: Sequence[str], tensors: Tensors, *, check: bool = True) -> dict[str, Step]:
    """The contenders' steps, after a check that all compute the op; raises Disagreement."""
    keep_freed_memory()
    steps = {name: make_step(case, name, tensors) for name in names}
    if check:
        refuse_disagreement(case, {name: step.function for name, step in steps.items()}, tensors)
    return steps


def measure(
    case: Case,
    names: Sequence[str],
    device: torch.device,
    *,
    budget: float = 1.0,
    directions: Sequence[str] | None = None,
    ahead: int = 1,
    timed: Plan | None = None,
) -> list[Timing]:
    """Check, then time each contender in turns with eager PyTorch. Torch's generator is left as it was.

    Raises Disagreement where a contender computes something else.

    Args:
        case: what to compute.
        names: of the contenders (`bench.contenders`); "eager" must be among them.
        device: where.
        budget: seconds that a direction should take; large cases take more (`bench.timing.plan`).
        directions: those of the case if None.
        ahead: calls before each timing that are not counted.
        timed: rounds and calls instead of a budget and ``ahead``.
    """
    wanted = [direction for direction in case.directions if directions is None or direction in directions]
    rivals = max(len(names) - 1, 1)

    def how(pair: Contenders) -> Plan:
        return timed or plan(pair, budget / rivals, ahead=ahead)

    found: list[Timing] = []
    with torch.random.fork_rng():
        tensors = case.tensors(device)
        steps = make_steps(case, names, tensors)
        for direction in wanted:
            if direction != "backward":
                found += _time(case, steps, direction, how)
        if "backward" in wanted:
            with contenders.graphs_retained():
                found += _time(case, make_steps(case, names, tensors, check=False), "backward", how)
    return sorted(found, key=lambda timing: DIRECTIONS.index(timing.direction))


def _time(case: Case, steps: Mapping[str, Step], direction: str, how: Callable[[Contenders], Plan]) -> Iterable[Timing]:
    """Time each contender in turns with eager PyTorch alone, so that all are timed after the same other work."""
    jobs = {name: step.direction(direction) for name, step in steps.items()}
    found: dict[str, Timing] = {}
    for rival in [name for name in jobs if name != "eager"] or ["eager"]:
        pair = {name: jobs[name] for name in ("eager", rival)}
        planned, others = how(pair), OtherLoad()
        seconds = interleaved_seconds(pair, **planned._asdict())
        share = others.share()
        for name in pair:
            median, speed = statistics.median(seconds[name]), speed_against(seconds, name)
            saved = steps[name].saved_bytes() if direction == "both" else None
            found.setdefault(name, Timing(case, direction, name, median, planned.rounds, speed, share, saved))
    return found.values()
