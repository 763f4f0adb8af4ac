"""A kernel that is wrong is found out: faults put into the PTX that is executed, one at a time, each one noticed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels.triton.ptx import launched, machine
from tests.kernels.triton.ptx.cases import Case
from tests.kernels.triton.ptx.parse import Immediate, Instruction, PtxError, parse

RAGGED = Case("sample_and_kl", "float32", "contiguous", (7, 10))
LONG = Case("sample_and_kl", "float32", "contiguous", (2, 1030))
SHORT = Case("sample_and_kl", "bfloat16", "contiguous", (130, 3))
ALIGNED = Case("sample_and_kl_backward", "float32", "contiguous", (8, 64))
PACKED = Case("sample_and_kl", "bfloat16", "contiguous", (8, 64))
LATE = Case("noise", "float32", "contiguous", (7, 10), row_offset=2**32 - 3)
MANY = Case("noise", "float32", "contiguous", (4, 4096), large=True)

# What goes wrong, where, what is replaced by what, and how it is noticed. It is replaced everywhere: compilers unroll
# loops, and the copy that comes first need not be one that runs.
FAULTS = [
    ("a shuffle takes the wrong lane", LONG, r"(shfl\.sync\.bfly\.b32\s+%\w+, %\w+), \d+,", r"\1, 3,", "kl: |race"),
    ("a shuffle mixes halves of a warp", LONG, r"(shfl\.sync\.bfly\.b32[^;]*), 31,", r"\1, 15,", "kl: |race"),
    ("a shuffle leaves a lane out", LONG, r"(shfl\.sync\.bfly\.b32[^;]*), -1;", r"\1, 0x7FFFFFFF;", "take part"),
    ("a barrier is missing", LONG, r"bar\.sync\s+0;", "", "no barrier between"),
    ("a store lost its guard", RAGGED, r"@%p\d+ (st\.global)", r"\1", "out of bounds|race|only to be read"),
    ("a load lost its guard", RAGGED, r"@%p\d+ (ld\.global)", r"\1", "out of bounds|nothing wrote"),
    ("a guard is the wrong way round", RAGGED, r"@(%p\d+ st\.global)", r"@!\1", "out of bounds|race|never written"),
    ("a bound is one too high", RAGGED, r"setp\.lt\.(\w+\s+%p\d+, %\w+, %)", r"setp.le.\1", "out of bounds|race|: "),
    ("a store is missing", RAGGED, r"@%p\d+ st\.global[^;]*;", "", "never written"),
    ("rows are counted from the wrong block", SHORT, r"%ctaid\.x", "%ctaid.z", "race|never written"),
    (
        "elements change places in a vector",
        ALIGNED,
        r"(st\.global\.v4\.b32 [^{]*\{ )(%r\d+), (%r\d+)",
        r"\1\3, \2",
        ": ",
    ),
    ("a vector is not aligned", ALIGNED, r"(ld\.global\.v4\.b32 [^\[]*\[ %rd\d+ \+ )0", r"\g<1>4", "misaligned"),
    (
        "a pair of bfloat16 changes places",
        PACKED,
        r"(cvt\.rn\.bf16x2\.f32\s+%r\d+), (%r\d+), (%r\d+)",
        r"\1, \3, \2",
        "z: ",
    ),
    ("bfloat16 is cut off, not rounded", PACKED, r"cvt\.rn\.bf16x2\.f32", "cvt.rz.bf16x2.f32", "z: "),
    ("half of a product is signed", LATE, r"mul\.wide\.u32", "mul.wide.s32", "eps: "),
    ("the cosine is a sine", LATE, r"cos\.approx", "sin.approx", "eps: "),
    (
        "the angle has the wrong unit",
        LATE,
        r"cos\.approx(.*?), (\w+);",
        r"add.f32 \2, \2, \2; cos.approx\1, \2;",
        "eps: ",
    ),
    ("a square root is missing", LATE, r"sqrt\.approx\.ftz\.f32\s+(\w+), (\w+)", r"mov.b32 \1, \2", "eps: "),
    ("a Philox multiplier has a wrong bit", LATE, r"3528531795|-766435501|0xD2511F53", "3528531793", "eps: "),
    (
        "the radius is wrong for one draw in 2048",
        MANY,
        r"(@near_one fma\.rn\.f32 r, u[^;]*;)",
        r"\1 @near_one mul.f32 r, r, 0f3FC00000;",
        "eps: ",
    ),
    ("the exponent lacks its last bits", RAGGED, r"0f3F38AA3B", "0f3F38A000", "z: "),
    (
        "a sum loses a term",
        RAGGED,
        r"fma\.rn\.f32(\s+%?\w+, %?\w+, %?\w+), %?r?\d*\w*;",
        r"mul.f32\1;",
        "(z|kl): |negative",
    ),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    cases = [("sm_90", case) for case in dict.fromkeys(fault[1] for fault in FAULTS)]
    found = launched.dump(cases, tmp_path_factory.mktemp("ptx"))
    return {case: description for (_, case), description in found.items()}


@pytest.mark.parametrize("case", dict.fromkeys(fault[1] for fault in FAULTS), ids=str)
def test_the_kernel_without_the_fault_is_right(compiled, case):
    launched.assert_right(launched.execute(compiled[case]))


@pytest.mark.parametrize(("fault", "case", "pattern", "replacement", "notice"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_is_noticed(compiled, fault, case, pattern, replacement, notice):
    text = Path(compiled[case]["ptx"]).read_text()
    faulty = re.sub(pattern, replacement, text)
    assert faulty != text, f"the PTX has no such place: {pattern}"
    with pytest.raises((PtxError, AssertionError), match=notice):
        launched.assert_right(launched.execute(compiled[case], ptx=faulty))


OTHER = {"add": "sub", "sub": "add", "and": "or", "or": "and", "xor": "or", "min": "max", "max": "min", "shl": "shr"}
OTHER |= {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq", "sin": "cos", "cos": "sin"}


def changes(instruction: Instruction) -> Iterator[Instruction]:
    """The instruction with another opcode, a changed constant, its sources exchanged, or its guard turned round."""
    parts, operands = instruction.opcode.split("."), instruction.operands
    if parts[0] in ("bar", "ld"):
        return
    if instruction.guard is not None:
        yield instruction._replace(guard=instruction.guard._replace(negated=not instruction.guard.negated))
    if parts[0] in ("selp", "sub", "shl", "shr", "setp", "prmt"):
        yield instruction._replace(operands=(operands[0], operands[2], operands[1], *operands[3:]))
    for at, part in enumerate(parts):
        if part in OTHER:
            yield instruction._replace(opcode=".".join([*parts[:at], OTHER[part], *parts[at + 1 :]]))
    for at, operand in enumerate(operands):
        if isinstance(operand, Immediate):
            changed = Immediate(operand.value + 1 if abs(operand.value) < 2**16 else operand.value ^ 1 << 22)
            yield instruction._replace(operands=(*operands[:at], changed, *operands[at + 1 :]))


@pytest.mark.slow
@pytest.mark.parametrize("case", [RAGGED, SHORT, ALIGNED, LATE], ids=str)
def test_most_changes_of_one_instruction_are_noticed(compiled, monkeypatch, case):
    # Not all: some change nothing (the bound between two formulas that agree there, a bit that is masked off later).
    monkeypatch.setattr(machine, "MAX_STEPS", 20_000)
    kernel = parse(Path(compiled[case]["ptx"]).read_text())
    noticed = []
    for at, instruction in enumerate(kernel.instructions):
        for changed in changes(instruction):
            instructions = [*kernel.instructions[:at], changed, *kernel.instructions[at + 1 :]]
            try:
                launched.assert_right(
                    launched.execute(compiled[case], kernel=kernel._replace(instructions=instructions))
                )
                noticed.append(False)
            except (PtxError, AssertionError):
                noticed.append(True)
    assert len(noticed) > 100
    assert sum(noticed) / len(noticed) > 0.7
