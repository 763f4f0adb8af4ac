"""The PTX interpreter refuses what it does not know and what no correct kernel does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.triton.ptx.parse import PtxError, parse
from tests.kernels.triton.ptx.snippets import compute

THREADS = np.arange(64, dtype=np.uint32)


REFUSED = [
    ("frobnicate.f32 %out, %a;", "unknown instruction: frobnicate.f32"),
    ("add.sat.s32 %out, %a, %a;", r"unknown instruction: add.sat.s32 \(modifier .sat\)"),
    ("add.rz.f32 %out, %a, %a;", "unknown instruction: add.rz.f32"),
    ("fma.f32 %out, %a, %a, %a;", "unknown instruction: fma.f32"),
    ("add.s32 %out, %a, %nothing;", "%nothing is not declared"),
    ("selp.b32 %out, 1, 0, %q;", "%q is read before anything wrote it"),
    ("add.s64 %out, %a, %a;", "%a has 4 bytes, read as .s64"),
    ("mov.b32 %out, 0; bra $nowhere;", "no such label"),
    ("mov.b32 %out, 0; $l: bra $l;", "does not end"),
    ("ld.global.b32 %out, [%outputs];", "load of bytes that nothing wrote"),
    ("mov.b32 %r0, global_smem; ld.shared.b32 %out, [%r0];", "load of bytes that nothing wrote"),
    ("ld.global.b32 %out, [%outputs + 4096];", "out of bounds"),
    ("ld.global.b32 %out, [%inputs + -4];", "out of bounds"),
    ("mov.b32 %r0, global_smem; ld.shared.b32 %out, [%r0 + 1024];", "shared memory: access out of bounds"),
    ("ld.global.b32 %out, [%inputs + 2];", "misaligned access: 4 bytes"),
    ("ld.global.v2.b32 {%out, %r0}, [%inputs + 4];", "misaligned access: 8 bytes"),
    ("mov.b32 %out, 0; st.global.b32 [%inputs], %out;", "only to be read"),
    ("mov.b32 %out, 0; st.global.b32 [%outputs], %thread;", "two threads of block 0 store different values"),
    ("setp.lt.u32 %p, %thread, 3; mov.b32 %out, 0; @%p bra $on; bar.sync 0; $on:", "61 of 64 threads reach a barrier"),
    (
        "setp.lt.u32 %p, %thread, 3; mov.b32 %out, 0; @%p shfl.sync.bfly.b32 %out, %a, 1, 31, -1;",
        "warp 0 does not take",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_no_correct_kernel_does_is_an_error(body, message):
    with pytest.raises(PtxError, match=message):
        compute(body, THREADS)


def test_an_error_names_the_block_the_line_and_the_instruction():
    with pytest.raises(PtxError, match=r"block \(0, 0, 0\), line \d+: ld.global.b32 %out, \[0\]: global memory"):
        compute("ld.global.b32 %out, [0];", THREADS[:1])


def test_an_output_that_was_never_written_is_an_error():
    with pytest.raises(PtxError, match="2 of 4 elements of an output were never written"):
        compute("mov.b32 %out, 0; setp.lt.u32 %p, %a, 2; @%p ret;", THREADS[:4])


def test_blocks_may_not_meet_in_global_memory():
    body = "mov.b32 %out, 1; st.global.b32 [%outputs], %out;"
    with pytest.raises(PtxError, match="race: block 1 stores where another block stored"):
        compute(body, THREADS[:32], blocks=2)
    body = "mov.b32 %out, 1; mov.u32 %r0, %ctaid.x; setp.eq.u32 %p, %r0, 1; @%p ld.global.b32 %out, [%outputs];"
    with pytest.raises(PtxError, match="race: block 1 loads what another block stored"):
        compute(body, THREADS[:32], blocks=2)


EXCHANGE = """
mov.b32 %r0, global_smem; shl.b32 %r1, %thread, 2; add.s32 %r2, %r0, %r1;
xor.b32 %r1, %r1, {lane}; add.s32 %r3, %r0, %r1;
st.shared.b32 [%r2], %a; {first} ld.shared.b32 %out, [%r3]; {second} st.shared.b32 [%r2], %out;
"""


def test_warps_that_exchange_through_shared_memory_need_barriers():
    values = THREADS
    good = EXCHANGE.format(lane=128, first="bar.sync 0;", second="bar.sync 0;")
    np.testing.assert_array_equal(compute(good, values), values ^ 32)
    within_a_warp = EXCHANGE.format(lane=4, first="bar.warp.sync -1;", second="bar.warp.sync -1;")
    np.testing.assert_array_equal(compute(within_a_warp, values), values ^ 1)
    for first, second in (("bar.warp.sync -1;", "bar.sync 0;"), ("bar.sync 0;", "")):
        with pytest.raises(PtxError, match="no barrier between"):
            compute(EXCHANGE.format(lane=128, first=first, second=second), values)


def test_a_module_has_one_entry():
    with pytest.raises(PtxError, match=r"expected one \.entry, found 0"):
        parse(".version 8.7")
