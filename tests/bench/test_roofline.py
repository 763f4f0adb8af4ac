"""The static roofline reads machine code rightly: listings made by hand, the arithmetic, and one kernel end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.roofline import analysis, gpus, sass
from bench.roofline.analysis import Work, analyse, busy, demand, report, unrolled, work_of


def listing(*lines: str) -> list[sass.Instruction]:
    """A listing as cuobjdump prints it; instruction i is at address 16 i."""
    text = ["\t\tFunction : kernel"]
    for index, line in enumerate(lines):
        text += [f"        /*{16 * index:04x}*/    {line} ;   /* 0x000000ff00007202 */", " /* 0x000fe200 */"]
    return sass.parse("\n".join(text))


LOOP = (
    "MOV R1, RZ",
    "LDG.E.64 R2, desc[UR4][R2.64]",  # the seed
    "LDG.E.128 R8, desc[UR4][R4.64]",  # 0x20: the loop
    "FFMA R8, R8, R9, -1",
    "@P0 FADD R8, R8, R1",
    "STG.E.128 desc[UR4][R6.64], R8",
    "@!P1 BRA 0x20",
    "EXIT",
    "BRA 0x80",
    "NOP",
)


def test_a_line_has_an_address_a_predicate_an_opcode_and_operands():
    branch = listing(*LOOP)[6]
    assert branch == sass.Instruction(0x60, "!P1", "BRA", "0x20")
    assert branch.target == 0x20
    assert branch.conditional


def test_the_loop_is_from_the_target_of_its_branch_to_the_branch():
    loop = sass.Code(listing(*LOOP)).steady_loop()
    assert [i.address for i in loop] == [0x20, 0x30, 0x40, 0x50, 0x60]
    assert sass.global_widths(loop) == {16: 2}


def test_the_whole_code_ends_at_its_last_exit():
    assert [i.name for i in sass.Code(listing(*LOOP)).whole()][-1] == "EXIT"
    assert len(sass.Code(listing(*LOOP)).whole()) == 8


def test_code_without_a_branch_back_has_no_loop():
    straight = [line for line in LOOP if "0x20" not in line]
    code = sass.Code(listing(*straight))
    assert code.steady_loop() is None
    assert len(code.whole()) == 7


def test_a_uniform_branch_closes_a_loop_too():
    lines = [line.replace("@!P1 BRA 0x20", "BRA.U !UP0, 0x20") for line in LOOP]
    assert len(sass.Code(listing(*lines)).steady_loop()) == 5


def test_a_call_that_never_returns_is_the_loops_exit():
    lines = [*LOOP[:6], "@P1 CALL.REL.NOINC 0x80", "BRA 0x20", "EXIT"]
    assert len(sass.Code(listing(*lines)).steady_loop()) == 6


def test_a_slow_path_and_a_function_called_in_a_loop_are_counted():
    lines = (
        "LDG.E R8, desc[UR4][R4.64]",  # 0x00: the loop
        "@P0 BRA 0x40",  # past the call
        "CALL.REL.NOINC 0x80",
        "MOV R2, R3",
        "STG.E desc[UR4][R6.64], R8",
        "@P1 BRA 0x0",
        "EXIT",
        "NOP",
        "IMAD.HI.U32 R3, R2, R2, RZ",  # 0x80: the function
        "RET.REL.NODEC R20",
    )
    code = sass.Code(listing(*lines))
    assert len(code.steady_loop()) == 6 + 2
    assert len(code.shortest(moved=8)) == 5  # round the call, once through, and out


def test_of_two_loops_the_one_that_moves_more_bytes_is_steady():
    lines = (
        "LDG.E R8, desc[UR4][R4.64]",
        "@P0 BRA 0x0",
        "LDG.E.128 R8, desc[UR4][R4.64]",
        "@P0 BRA 0x20",
        "EXIT",
    )
    assert [i.address for i in sass.Code(listing(*lines)).steady_loop()] == [0x20, 0x30]


def test_of_loops_that_move_enough_the_shortest_is_steady():
    """The inner one of a loop over draws within one over columns, whose parameters are loaded outside."""
    lines = (
        "LDG.E.128 R4, desc[UR4][R4.64]",  # 0x00: the loop over columns
        "FFMA R8, R4, R5, R6",  # 0x10: the loop over draws
        "STG.E.128 desc[UR4][R6.64], R8",
        "@P0 BRA 0x10",
        "@P1 BRA 0x0",
        "EXIT",
    )
    code = sass.Code(listing(*lines))
    assert [i.address for i in code.steady_loop(moved=16)] == [0x10, 0x20, 0x30]
    assert len(code.steady_loop(moved=32)) == len(code.steady_loop()) == 5


def test_the_shortest_way_takes_the_copy_that_moves_the_bytes():
    lines = (
        "@P0 BRA 0x50",  # nothing to do
        "@P1 BRA 0x40",  # the other copy
        "LDG.E.128 R8, desc[UR4][R4.64]",
        "BRA 0x50",
        "LDG.E.128 R8, desc[UR4][R4.64]",
        "EXIT",
    )
    code = sass.Code(listing(*lines))
    assert [i.address for i in code.shortest(moved=16)] == [0x00, 0x10, 0x40, 0x50]
    assert len(code.whole()) == 6


@pytest.mark.parametrize("times", [1, 2, 4])
def test_unrolling_is_seen_in_the_bytes_of_a_round(times):
    body = listing(*["LDG.E.128 R8, desc[UR4][R4.64]", "LDG.E.128 R8, desc[UR4][R4.64]"] * times, "STG.E R1, R2")
    assert unrolled(body, Work(4, 100, 8.0, 8, 4, unroll=times)) == times
    assert unrolled(body, Work(4, 100, 8.0, 8, 4, unroll=1)) == 1


@pytest.mark.parametrize(
    ("opcode", "pipe"),
    [
        ("FFMA", "fma"),
        ("FMUL.RZ", "fma"),
        ("IMAD.WIDE.U32", "imul"),
        ("LOP3.LUT", "alu"),
        ("I2FP.F32.S32", "alu"),
        ("I2F.U32", "sfu"),
        ("MUFU.EX2", "sfu"),
        ("LDG.E.128", "lsu"),
        ("SHFL.BFLY", "lsu"),
        ("UIADD3", "uniform"),
        ("R2UR", "uniform"),
        ("BRA.U", "control"),
        ("BAR.SYNC.DEFER_BLOCKING", "control"),
        ("DFMA", "other"),
    ],
)
def test_every_opcode_has_its_pipe(opcode, pipe):
    assert sass.pipe(listing(f"{opcode} R0, R1, R2")[0]) == pipe


@pytest.mark.parametrize(
    ("opcode", "width"),
    [("LDG.E", 4), ("LDG.E.U16", 2), ("LDG.E.U8", 1), ("LDG.E.64", 8), ("STG.E.128", 16), ("LDG.E.ENL2.256", 32)],
)
def test_the_width_of_an_access_is_in_its_opcode(opcode, width):
    assert sass.access_bytes(listing(f"{opcode} R0, desc[UR4][R4.64]")[0]) == width


def test_wide_products_and_packed_operations_take_more_turns():
    turns = demand(
        listing("IMAD.WIDE.U32 R2, R3, R4, RZ", "IMAD R1, R2, R3, RZ", "FFMA2 R4, R2, R8, R6", "FADD R1, R2")
    )
    assert turns == {"issue": 4, "imul": 3, "fma": 3 + 1 + 2 + 1}


@pytest.mark.parametrize(
    ("chip", "bytes_an_element", "budget"),
    [("A100 40GB", 12, 150), ("H100", 12, 106), ("B200", 12, 54), ("H100", 6, 53), ("B200", 6, 27)],
)
def test_the_budget_is_that_of_the_design(chip, bytes_an_element, budget):
    assert gpus.CHIPS[chip].budget(bytes_an_element) == pytest.approx(budget, rel=0.01, abs=0.5)


def test_every_chip_names_its_source():
    assert all(chip.source and chip.target in gpus.ARCHITECTURES for chip in gpus.CHIPS.values())


def test_the_busiest_pipe_binds():
    work = Work(4, 100, 12.0, 12, 4, unroll=1)
    assert busy({"issue": gpus.CHIPS["H100"].budget(12.0)}, work, "H100")["issue"] == pytest.approx(1)
    assert busy({"sfu": 30.0}, work, "H100")["sfu"] == pytest.approx(30 / 106 * 8, rel=0.01)  # 16 lanes of 128


def test_a_kernel_is_counted_by_the_elements_of_its_loop():
    entry = analyse(sass.Code(listing(*LOOP)), {"REG": 32, "LOCAL": 0}, 0, Work(4, 10, 8.0, 8, 4, unroll=1), "sm_90")
    assert entry["steady_state"] == "loop"
    assert entry["instructions"] == 5 / 4
    assert entry["instructions_with_prologue"] == (8 + 9 * 5) / 40
    assert entry["bytes_in_body"] == 8
    assert entry["pipes"]["lsu"] == 2 / 4
    assert entry["chips"]["H100"] | {"busy": None} == {
        "budget": pytest.approx(70.8, abs=0.1),
        "share_of_peak_bandwidth": 1.0,
        "bound": "memory",
        "busiest": "lsu",
        "busy": None,
    }


@pytest.mark.parametrize(("target", "registers", "warps"), [("sm_90", 32, 64), ("sm_90", 96, 20), ("sm_89", 32, 48)])
def test_occupancy_is_bounded_by_registers_and_warps(target, registers, warps):
    assert gpus.ARCHITECTURES[target].occupancy(registers, 0, 4) == warps


def test_occupancy_is_bounded_by_shared_memory():
    assert gpus.ARCHITECTURES["sm_80"].occupancy(32, 40 * 1024, 4) == 4 * 4


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton decides between interpreting and compiling when it is imported."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench", "roofline", *arguments],
        env=kept | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_kernel_is_compiled_and_reported(tmp_path):
    result = run(
        "--json",
        "--op=gaussian_kl_backward",
        "--dtype=float32",
        "--target=sm_90,gfx942",
        TRITON_CACHE_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    entries = {(entry["target"], entry["shape"]): entry for entry in json.loads(result.stdout)}
    long = entries["sm_90", "64x65536"]
    assert long["array_bytes"] == 16
    assert long["bytes_in_body"] >= 16
    assert 5 < long["instructions"] < 20
    assert sum(long["pipes"].values()) == pytest.approx(long["instructions"])
    assert long["unknown_opcodes"] == []
    assert entries["gfx942", "64x65536"]["vgprs"] > 0
    assert entries["gfx942", "64x65536"]["vgpr_spills"] == 0


@pytest.mark.slow
def test_the_plain_latents_keep_to_their_registers(tmp_path):
    options = ("--json", "--op=sample_and_kl,sample_and_kl_backward", "--target=sm_90,sm_100", "--shape=64x65536")
    entries = json.loads(run(*options, TRITON_CACHE_DIR=str(tmp_path)).stdout)
    assert len(entries) == 8
    assert all(32 < entry["registers"] < 90 for entry in entries)
    assert not [
        reason for entry in entries for reason in entry["missed"] if "registers" in reason or "memory" in reason
    ]


def test_more_registers_than_the_goal_are_missed():
    entry = {"target": "sm_90", "op": "sample_and_kl", "dtype": "float32", "registers": 87, "instructions": 1.0}
    entry |= {"goal": 27, "chips": {}, "widths": {"16": 1}, "elements": 1, "array_bytes": 16, "steady_state": "loop"}
    entry |= {"local_accesses": 0, "shared_in_body": 0, "barriers_in_body": 0, "unknown_opcodes": []}
    assert analysis.missed(entry) == ["87 registers > 86"]
    assert analysis.missed(entry | {"registers": 86}) == []


def test_the_interpreter_is_refused(run_python):
    program = "import sys\nfrom bench.__main__ import main\nsys.exit(main(['roofline', '--op=noise']))"
    result = run_python(program, TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr


@pytest.mark.parametrize(
    ("op", "dtype", "total", "of_chunk"),
    [
        ("head_bernoulli", "float32", 12, 8),  # the output and its gradient; x is not of the chunk
        ("head_bernoulli", "bfloat16", 8, 4),
        ("head_negative_binomial", "float32", 36, 28),  # neither x nor the dispersions are
        ("head_negative_binomial", "bfloat16", 28, 20),
    ],
)
def test_what_heads_move_and_what_of_it_stays_in_the_cache(op, dtype, total, of_chunk):
    pytest.importorskip("triton")
    import torch

    from bench.roofline.compiled import op_launch

    work = work_of(op_launch(op, (64, 65536), getattr(torch, dtype), None))
    assert (work.bytes_an_element, work.of_chunk) == (total, of_chunk)
    entry = {"target": "gfx942", "op": op, "dtype": dtype, "shape": "64x65536", "missed": None}
    text = report([entry | {"bytes": work.bytes_an_element, "bytes_of_chunk": work.of_chunk}])
    assert f"stay in the second-level cache: {op} {dtype} {of_chunk / total:.0%}" in text
