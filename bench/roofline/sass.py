"""Parses NVIDIA machine code (SASS): instructions, control flow, pipes, and bytes of memory accesses.

Listings come from the `cuobjdump` in Triton's package. Kernels and chips are the business of the other files here.
"""

from __future__ import annotations

import heapq
import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of a listing: ``/*01a0*/ @!P0 LDG.E.128 R8, desc[UR16][R42.64] ;``"""

    address: int
    predicate: str  # "!P0"; "" if the instruction always executes
    opcode: str  # with its modifiers: "LDG.E.128"
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        """The address that a branch or call names, if it names one."""
        last = self.operands.rpartition(",")[2].strip()
        return int(last, 16) if re.fullmatch(r"0x[0-9a-f]+", last) else None

    @property
    def conditional(self) -> bool:
        """Whether it has a predicate, in front or among a branch's operands (``BRA.U !UP0, 0x500``)."""
        return bool(self.predicate) or "," in self.operands


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*?)\s*;")


def parse(listing: str) -> list[Instruction]:
    """Instructions of the first function of a `cuobjdump -sass` listing, in order of address."""
    functions = listing.split("Function : ")
    found = _LINE.finditer(functions[1] if len(functions) > 1 else listing)
    return [Instruction(int(line[1], 16), line[2] or "", line[3], line[4]) for line in found]


def disassemble(cubin: bytes, tool: str) -> tuple[list[Instruction], dict[str, int]]:
    """The kernel's instructions and resources (``REG``, ``STACK``, ``LOCAL``). ``tool``: path of `cuobjdump`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [tool, "-sass", "-res-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"Function \S+:\s*(REG:.*)", text)
    return parse(text), {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage[1] if usage else "")}


# The pipe that executes an instruction, by the first part of its opcode. docs/roofline.md says which are published.
_PIPES = {
    "fma": "FFMA FMUL FADD FFMA2 FMUL2 FADD2 HFMA2 HMUL2 HADD2 FFMA32I FMUL32I FADD32I FSWZADD",
    "imul": "IMAD IMUL IDP XMAD",
    "alu": "LOP3 LOP IADD3 IADD IADD32I VIADD VIADDMNMX SHF SHL SHR ISETP FSETP HSETP2 SEL FSEL PRMT LEA MOV MOV32I "
    "FMNMX FMNMX3 IMNMX VIMNMX VIMNMX3 HMNMX2 IABS PLOP3 P2R R2P SGXT BMSK VABSDIFF FCHK I2FP CS2R",
    "sfu": "MUFU I2F F2I F2F FRND I2I POPC FLO BREV F2FP F2IP I2IP",
    "lsu": "LDG STG LD ST LDL STL LDS STS LDSM STSM LDC LDGSTS ATOM ATOMG ATOMS RED SHFL S2R MATCH",
    "control": "BRA BRX JMP JMX CALL RET EXIT BSSY BSYNC BREAK BMOV BPT WARPSYNC YIELD NOP BAR DEPBAR ERRBAR MEMBAR "
    "NANOSLEEP KILL VOTE CCTL ACQBULK PREEXIT",
}
_PIPE_OF = {name: pipe for pipe, names in _PIPES.items() for name in names.split()}
PIPES = (*_PIPES, "uniform", "other")


def pipe(instruction: Instruction) -> str:
    """One of PIPES. ``uniform``: executed once a warp, not on the vector pipes; ``other``: an unknown opcode."""
    name = instruction.name
    if name in _PIPE_OF:
        return _PIPE_OF[name]
    return "uniform" if name.startswith("U") or name in ("S2UR", "R2UR", "LDCU", "REDUX") else "other"


def turns(instruction: Instruction) -> dict[str, float]:
    """Issue slots of a lane that an instruction takes on each pipe that it occupies; most take one, on one pipe."""
    name, where = instruction.name, pipe(instruction)
    if where == "imul":  # integers are multiplied on an FMA pipe, and a wide product occupies all of them
        wide = name == "IMAD" and {"WIDE", "HI"} & set(instruction.opcode.split("."))
        return {"imul": 2, "fma": 3} if wide else {"imul": 1, "fma": 1}
    if name in ("FFMA2", "FMUL2", "FADD2", "HFMA2", "HMUL2", "HADD2"):
        return {"fma": 2}
    if name == "F2FP":
        return {"sfu": 0.5}
    if name in ("LDG", "STG"):
        return {"lsu": max(1, access_bytes(instruction) / 4)}  # the first-level cache moves 128 bytes a clock
    return {where: 1}


GLOBAL = ("LDG", "STG", "LD", "ST", "ATOMG", "RED", "LDGSTS")
LOCAL = ("LDL", "STL")
SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS", "LDGSTS")


def access_bytes(instruction: Instruction) -> int:
    """Bytes that a memory access moves for each lane."""
    for modifier in instruction.opcode.split(".")[1:]:
        for width in (256, 128, 64):
            if modifier in (str(width), f"ENL2{width}"):
                return width // 8
        if modifier in ("U8", "S8", "U16", "S16"):
            return int(modifier[1:]) // 8
    return 4


class Code:
    """A kernel's control flow graph."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.instructions = instructions
        self._index = {instruction.address: at for at, instruction in enumerate(instructions)}
        self._calls: dict[int, set[int]] = {}
        self._next = [self._successors(at) for at in range(len(instructions))]
        for at, instruction in enumerate(instructions):
            if instruction.name == "CALL" and instruction.target in self._index:
                self._add_call(at, self._index[instruction.target])
        self._before: list[list[int]] = [[] for _ in instructions]
        for at, following in enumerate(self._next):
            for after in following:
                self._before[after].append(at)

    def _successors(self, at: int) -> list[int]:
        instruction = self.instructions[at]
        onward = [at + 1] if at + 1 < len(self.instructions) else []
        if instruction.name in ("EXIT", "RET"):
            return onward if instruction.predicate else []
        if instruction.name in ("BRA", "JMP") and instruction.target in self._index:
            jump = self._index[instruction.target]
            return [*onward, jump] if instruction.conditional else [jump]
        return onward

    def _add_call(self, at: int, target: int) -> None:
        """Treat a call as its function's body in place, or as a jump if it never returns (ptxas emits both)."""
        function = self._reachable(target, self._next)
        if any(self.instructions[i].name == "RET" for i in function):
            self._calls[at] = function
        else:
            self._next[at] = [*(self._next[at] if self.instructions[at].predicate else []), target]

    @staticmethod
    def _reachable(start: int, edges: list[list[int]], stop: int | None = None) -> set[int]:
        seen, waiting = {start}, [start]
        while waiting:
            here = waiting.pop()
            if here != stop:
                for there in edges[here]:
                    if there not in seen:
                        seen.add(there)
                        waiting.append(there)
        return seen

    def _listed(self, members: Iterable[int]) -> list[Instruction]:
        members = sorted(members)
        called = [i for member in members for i in sorted(self._calls.get(member, ()))]
        return [self.instructions[i] for i in (*members, *called)]

    def whole(self) -> list[Instruction]:
        """All instructions that can be reached from the first one, which excludes the padding after the end."""
        return self._listed(self._reachable(0, self._next))

    def shortest(self, moved: float) -> list[Instruction]:
        """The shortest path from the first instruction to an end that moves so many bytes of global memory a lane.

        It excludes slow paths beside fast ones, and copies of the code that this launch does not use.
        """
        cost = [1 + len(self._calls.get(at, ())) for at in range(len(self.instructions))]
        moves = [global_bytes([instruction]) for instruction in self.instructions]
        start = (0, min(moved, moves[0]))
        came_from: dict[tuple[int, float], tuple[int, float] | None] = {start: None}
        best, waiting = {start: cost[0]}, [(cost[0], start)]
        while waiting:
            spent, here = heapq.heappop(waiting)
            if spent > best[here]:
                continue
            if here[1] >= moved and self.instructions[here[0]].name == "EXIT":
                path = []
                step: tuple[int, float] | None = here
                while step:
                    path.append(step[0])
                    step = came_from[step]
                return self._listed(path)
            for after in self._next[here[0]]:
                there = (after, min(moved, here[1] + moves[after]))
                if spent + cost[after] < best.get(there, math.inf):
                    best[there], came_from[there] = spent + cost[after], here
                    heapq.heappush(waiting, (best[there], there))
        return self.whole()

    def loops(self) -> Iterator[list[Instruction]]:
        """Natural loops: every path through them, and the functions that they call."""
        members: dict[int, set[int]] = {}
        reached = self._reachable(0, self._next)
        for end, following in enumerate(self._next):
            for head in following:
                if head <= end and end in reached:
                    body = self._reachable(end, self._before, stop=head)
                    if head in body and (0 not in body or head == 0):
                        members.setdefault(head, set()).update(body)
        for body in members.values():
            yield self._listed(body)

    def steady_loop(self, moved: float = math.inf) -> list[Instruction] | None:
        """The loop that moves most global memory, counted up to ``moved`` bytes a lane; of equals, the shortest."""
        loops = [loop for loop in self.loops() if global_bytes(loop)]
        return max(loops, key=lambda loop: (min(moved, global_bytes(loop)), -len(loop)), default=None)


def global_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes that a lane moves to and from global memory when every instruction is executed once."""
    return sum(access_bytes(i) for i in instructions if i.name in GLOBAL)


def global_widths(instructions: Iterable[Instruction]) -> Counter[int]:
    """The number of global accesses by width in bytes."""
    return Counter(access_bytes(i) for i in instructions if i.name in GLOBAL)
