"""What each instruction does, after the PTX ISA manual; a modifier that is not listed here is as unknown as an opcode.

An instruction is compiled once to a function of the `Block` that executes it. The table of them is filled by
`arithmetic`, `conversions` and `movement`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .floats import flush
from .parse import Instruction, Kernel, PtxError, Register

DTYPES: dict[str, Any] = {
    **{f"{letter}{8 * size}": np.dtype(f"u{size}") for letter in "bu" for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"f{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "pred": np.dtype(bool),
    "bf16": np.dtype("u2"),
    "bf16x2": np.dtype("u4"),
    "f16x2": np.dtype("u4"),
    "f32x2": np.dtype("u8"),
}
WIDTHS = {kind: dtype.itemsize for kind, dtype in DTYPES.items()}

Action = Callable[[Any], Any]


class Jump(NamedTuple):
    target: int | None  # None: the thread is done


class Decoded(NamedTuple):
    """An instruction, its opcode taken apart: types and modifiers, each in order."""

    instruction: Instruction
    kernel: Kernel
    types: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def operands(self) -> tuple[Any, ...]:
        return self.instruction.operands

    @property
    def kind(self) -> str:
        return self.types[0] if self.types else ""

    def unknown(self) -> PtxError:
        return PtxError(f"unknown instruction: {self.instruction.opcode}")

    def flag(self, *choices: str) -> str:
        """Which one of these modifiers is there; an empty string if none."""
        return next((flag for flag in self.flags if flag in choices), "")


TABLE: dict[str, tuple[frozenset[str], Callable[[Decoded], Action]]] = {}
_cache: dict[int, tuple[Kernel, list[tuple[Register | None, Action, Instruction]]]] = {}


def instruction(names: str, flags: str = "") -> Callable[[Callable[[Decoded], Action]], Callable[[Decoded], Action]]:
    """Register what compiles these opcodes, and the modifiers it knows."""

    def register(build: Callable[[Decoded], Action]) -> Callable[[Decoded], Action]:
        for name in names.split():
            TABLE[name] = (frozenset(flags.split()), build)
        return build

    return register


def compiled(kernel: Kernel) -> list[tuple[Register | None, Action, Instruction]]:
    """Every instruction of the kernel with its guard and what it does."""
    if id(kernel) not in _cache or _cache[id(kernel)][0] is not kernel:
        actions = []
        for one in kernel.instructions:
            try:
                actions.append((one.guard, _compile(one, kernel), one))
            except PtxError as error:
                raise PtxError(f"line {one.line}: {one.text}: {error}") from None
            except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                raise PtxError(f"line {one.line}: unknown form of an instruction: {one.text}") from error
        _cache.clear()
        _cache[id(kernel)] = (kernel, actions)
    return _cache[id(kernel)][1]


def _compile(one: Instruction, kernel: Kernel) -> Action:
    base, *rest = one.opcode.split(".")
    if base not in TABLE:
        raise PtxError(f"unknown instruction: {one.opcode}")
    known, build = TABLE[base]
    types = tuple(part for part in rest if part in DTYPES)
    flags = tuple(part for part in rest if part not in DTYPES)
    unknown = [flag for flag in flags if flag not in known]
    if unknown:
        raise PtxError(f"unknown instruction: {one.opcode} (modifier .{unknown[0]})")
    return build(Decoded(one, kernel, types, flags))


def elementwise(names: str, flags: str = "") -> Callable[[Callable[[Decoded], Any]], Any]:
    """Register an instruction by a function from its decoded form to (types of the sources, type of the result, f)."""

    def register(describe: Callable[[Decoded], Any]) -> Any:
        def build(decoded: Decoded) -> Action:
            kinds, result, compute = describe(decoded)
            destination, *sources = decoded.operands
            if len(sources) != len(kinds):
                raise PtxError(f"expected {len(kinds)} sources, found {len(sources)}")
            pairs, ftz = list(zip(sources, kinds, strict=True)), "ftz" in decoded.flags
            dtype, wider = DTYPES[result], decoded.instruction.opcode.startswith("cvt")

            def act(block: Any) -> None:
                values = [block.read(source, kind, wider) for source, kind in pairs]
                if ftz:
                    values = [flush(value) if value.dtype == np.float32 else value for value in values]
                outcome = np.asarray(compute(*values))
                if ftz and outcome.dtype == np.float32:
                    outcome = flush(outcome)
                block.write(destination, outcome if outcome.dtype == dtype else outcome.astype(dtype), result)

            return act

        return instruction(names, flags)(build)

    return register


def only(decoded: Decoded, letters: str) -> str:
    """The instruction's type, if it is of one of these families: s, u, b, f, p(red)."""
    if decoded.kind[:1] not in letters or decoded.kind in ("f16", "bf16") or decoded.kind.endswith("x2"):
        raise decoded.unknown()
    return decoded.kind


from . import arithmetic, conversions, movement  # noqa: E402, F401 - they fill the table
