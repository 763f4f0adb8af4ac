"""Execution: the threads of a block in lock-step, blocks in turn.

Where threads of a block part at a branch, the group that stands earliest in the text runs until it meets the next one.
A barrier or a warp shuffle that not all of its threads reach together is an error, as is a program that does not end.
"""

from __future__ import annotations

import numpy as np

from .floats import Accuracy
from .instructions import DTYPES, WIDTHS, Jump, compiled
from .memory import Memory, SharedMemory
from .parse import Float, Immediate, Kernel, Operand, Pair, PtxError, Register, Special, Symbol

MAX_STEPS = 200_000


class Block:
    """One block in execution: registers as arrays over its threads, unsigned integers of the register's width."""

    def __init__(
        self,
        kernel: Kernel,
        index: tuple[int, ...],
        grid: tuple[int, ...],
        threads: int,
        parameters: dict[str, np.ndarray],
        memory: Memory,
        shared: SharedMemory,
        accuracy: Accuracy,
    ):
        self.kernel, self.index, self.grid, self.threads = kernel, index, grid, threads
        self.number = index[0] + grid[0] * (index[1] + grid[1] * index[2])
        self.parameters, self.memory, self.shared, self.accuracy = parameters, memory, shared, accuracy
        self.registers: dict[str, np.ndarray] = {}
        self.constants: dict[tuple[Operand, str], np.ndarray] = {}
        self.thread = np.arange(threads)
        self.live = np.ones(threads, bool)
        self.mask = self.live  # the threads that execute the current instruction

    def read(self, operand: Operand, kind: str, wider: bool = False) -> np.ndarray:
        """The operand as an array of the NumPy type of ``kind``; ``wider`` lets a larger register be cut off."""
        if isinstance(operand, Register):
            values = self.registers.get(operand.name)
            if values is None:
                values = self._poison(operand.name)
            if kind == "pred" or values.dtype == bool:
                if kind != "pred" or values.dtype != bool:
                    raise PtxError(f"{operand.name} is read as .{kind}")
                return ~values if operand.negated else values
            if values.itemsize != WIDTHS[kind]:
                if not wider or values.itemsize < WIDTHS[kind]:
                    raise PtxError(f"{operand.name} has {values.itemsize} bytes, read as .{kind}")
                values = values.astype(f"u{WIDTHS[kind]}")
            return values.view(DTYPES[kind])
        key = (operand, kind)
        if key not in self.constants:
            self.constants[key] = self._constant(operand, kind)
        return self.constants[key]

    def _poison(self, name: str) -> np.ndarray:
        """What a register holds that was never written: compilers read such ones, and no result may depend on it."""
        kind = self.kernel.registers[name]
        if kind == "pred":
            raise PtxError(f"{name} is read before anything wrote it")
        return np.full(self.threads, 0xC3C3C3C3C3C3C3C3 >> (64 - 8 * WIDTHS[kind]), f"u{WIDTHS[kind]}")

    def _constant(self, operand: Operand, kind: str) -> np.ndarray:
        if isinstance(operand, Float):
            return np.full(self.threads, operand.value, DTYPES[kind])
        if isinstance(operand, Special):
            value = self._special(operand.name)
        elif isinstance(operand, Symbol) and operand.name in self.kernel.shared:
            value = self._shared_address(operand.name)
        elif isinstance(operand, Immediate):
            value = operand.value
        else:
            raise PtxError(f"not a value: {operand}")
        if kind == "pred":
            return np.full(self.threads, bool(value))
        bits = np.asarray(value & ((1 << (8 * WIDTHS[kind])) - 1)).astype(f"u{WIDTHS[kind]}")
        return np.broadcast_to(bits, self.threads).copy().view(DTYPES[kind])

    def _special(self, name: str) -> int | np.ndarray:
        name, _, axis = name.lstrip("%").partition(".")
        if name in ("laneid", "warpid"):
            return self.thread % 32 if name == "laneid" else self.thread // 32
        dim = "xyz".index(axis)
        if name == "tid":
            return self.thread if dim == 0 else 0
        return {"ntid": (self.threads, 1, 1), "ctaid": self.index, "nctaid": self.grid}[name][dim]

    def _shared_address(self, name: str) -> int:
        """Arrays of a known size come first, in order, each aligned to 16 bytes; the extern one after them."""
        address = self.shared.BASE
        for other, size in self.kernel.shared.items():
            if other == name and size:
                break
            address += -(-size // 16) * 16
        return address

    def write(self, operand: Operand, values: np.ndarray, kind: str) -> None:
        """Write the threads of the mask; a register wider than ``kind`` gets it extended, with its sign if signed."""
        if operand is None:
            return
        if not isinstance(operand, Register):
            raise PtxError(f"not a destination: {operand}")
        declared = self.kernel.registers[operand.name]
        if (declared == "pred") != (kind == "pred"):
            raise PtxError(f"{operand.name} is a .{declared}, written as .{kind}")
        if declared != "pred":
            width = WIDTHS[declared]
            if values.itemsize == width:
                values = values.view(f"u{width}")
            elif values.itemsize < width and values.dtype.kind in "iu":
                values = values.astype(f"u{width}")
            else:
                raise PtxError(f"{operand.name} is a .{declared}, written as .{kind}")
        if not self.mask.all():
            before = self.registers.get(operand.name)
            if before is None:
                before = np.ones_like(values) if kind == "pred" else self._poison(operand.name)
            values = np.where(self.mask, values, before)
        self.registers[operand.name] = values

    def write_pair(self, operand: Operand, values: np.ndarray, kind: str, second: np.ndarray) -> None:
        """d, or d|p with a second result, a predicate."""
        if isinstance(operand, Pair):
            self.write(operand.first, values, kind)
            self.write(operand.second, second, "pred")
        else:
            self.write(operand, values, kind)

    def run(self) -> None:
        """Execute until every thread has returned."""
        kernel, steps = compiled(self.kernel), 0
        groups = {0: self.live}
        while groups:
            at = min(groups)
            active = groups.pop(at)
            until = min(groups, default=len(kernel))
            while at < until:
                guard, act, instruction = kernel[at]
                steps += 1
                try:
                    self.mask = active if guard is None else active & self.read(guard, "pred")
                    result = act(self)
                except PtxError as error:
                    message = f"block {self.index}, line {instruction.line}: {instruction.text}: {error}"
                    raise PtxError(message) from None
                if steps > MAX_STEPS:
                    raise PtxError(f"block {self.index} does not end: {steps} steps")
                at += 1
                if isinstance(result, Jump):
                    stay = active & ~self.mask
                    if result.target is None:
                        self.live = self.live & ~self.mask
                    elif self.mask.any():
                        if stay.any():
                            _add(groups, at, stay)
                            at, active = result.target, self.mask
                            break
                        at = result.target
                        continue
                    active = stay
                    if not active.any():
                        break
            if active.any():
                if at >= len(kernel):
                    raise PtxError(f"block {self.index}: the end of the text without ret")
                _add(groups, at, active)


def _add(groups: dict[int, np.ndarray], at: int, threads: np.ndarray) -> None:
    groups[at] = groups[at] | threads if at in groups else threads


def launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    threads: int,
    shared_bytes: int,
    arguments: list[int],
    memory: Memory,
    accuracy: Accuracy,
) -> None:
    """Run the kernel over ``grid`` with ``arguments`` in the order of its parameters."""
    if len(arguments) != len(kernel.parameters):
        raise PtxError(f"{kernel.name} has {len(kernel.parameters)} parameters, got {len(arguments)} arguments")
    parameters = {}
    for (name, kind), value in zip(kernel.parameters.items(), arguments, strict=True):
        size = WIDTHS[kind]
        parameters[name] = np.frombuffer((value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"), np.uint8)
    x, y, z = (*grid, 1, 1)[:3]
    size = max(shared_bytes, sum(kernel.shared.values()))
    with np.errstate(all="ignore"):
        for number in range(x * y * z):
            index = (number % x, number // x % y, number // (x * y))
            Block(kernel, index, (x, y, z), threads, parameters, memory, SharedMemory(size), accuracy).run()
