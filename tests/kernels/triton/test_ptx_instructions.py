"""The PTX interpreter does what the PTX ISA manual says, by answers worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.kernels.triton.ptx.floats import Accuracy, fma, to_bfloat16
from tests.kernels.triton.ptx.parse import PtxError
from tests.kernels.triton.ptx.snippets import compute

LANES = np.arange(32, dtype=np.uint32)
NAN, INF = float("nan"), float("inf")


def u32(*values):
    return np.array([value & 0xFFFFFFFF for value in values], np.uint32)


def f32(*values):
    return np.array(values, np.float32)


def u64(*values):
    return np.array([value & (2**64 - 1) for value in values], np.uint64)


INTEGERS = [
    ("add.s32 %out, %a, %b;", u32(0xFFFFFFFF, 5), u32(2, -7), u32(1, -2)),
    ("sub.s32 %out, %a, 0x10;", u32(3, 16), u32(0), u32(-13, 0)),
    ("mul.lo.s32 %out, %a, %b;", u32(0xD2511F53, -3), u32(7, 5), u32(0xD2511F53 * 7, -15)),
    ("mul.hi.u32 %out, %a, %b;", u32(0xFFFFFFFF, 0x10000), u32(0xFFFFFFFF, 0x10000), u32(0xFFFFFFFE, 1)),
    ("mul.hi.s32 %out, %a, %b;", u32(-1, 0x40000000), u32(1, 4), u32(-1, 1)),
    ("mad.lo.s32 %out, %a, %b, 3;", u32(4, -1), u32(5, 9), u32(23, -6)),
    ("div.s32 %out, %a, %b;", u32(-7, 7, -7), u32(2, -2, -2), u32(-3, -3, 3)),
    ("div.u32 %out, %a, %b;", u32(-7, 7), u32(2, 9), u32(0x7FFFFFFC, 0)),
    ("rem.s32 %out, %a, %b;", u32(-7, 7, -7), u32(2, -2, -2), u32(-1, 1, -1)),
    ("min.s32 %out, %a, %b;", u32(-1, 1), u32(0, 0), u32(-1, 0)),
    ("min.u32 %out, %a, %b;", u32(-1, 1), u32(0, 0), u32(0, 0)),
    ("max.s32 %out, %a, %b;", u32(-1, 1), u32(0, 0), u32(0, 1)),
    ("abs.s32 %out, %a;", u32(-5, 5), u32(0), u32(5, 5)),
    ("neg.s32 %out, %a;", u32(-5, 5), u32(0), u32(5, -5)),
    ("not.b32 %out, %a;", u32(0, 0xF0F0F0F0), u32(0), u32(-1, 0x0F0F0F0F)),
    ("and.b32 %out, %a, %b;", u32(0b1100), u32(0b1010), u32(0b1000)),
    ("or.b32 %out, %a, %b;", u32(0b1100), u32(0b1010), u32(0b1110)),
    ("xor.b32 %out, %a, %b;", u32(0b1100), u32(0b1010), u32(0b0110)),
    ("shl.b32 %out, %a, %b;", u32(1, 1, 1), u32(31, 32, 33), u32(1 << 31, 0, 0)),
    ("shr.u32 %out, %a, %b;", u32(-1, -1), u32(28, 32), u32(15, 0)),
    ("shr.s32 %out, %a, %b;", u32(-16, -16, 16), u32(2, 99, 99), u32(-4, -1, 0)),
    ("shf.l.wrap.b32 %out, %a, %b, 8;", u32(0x11223344), u32(0x55667788), u32(0x66778811)),
    ("shf.r.wrap.b32 %out, %a, %b, 8;", u32(0x11223344), u32(0x55667788), u32(0x88112233)),
    ("shf.l.clamp.b32 %out, %a, %b, 40;", u32(0x11223344), u32(0x55667788), u32(0x11223344)),
    ("shf.r.clamp.b32 %out, %a, %b, 40;", u32(0x11223344), u32(0x55667788), u32(0x55667788)),
    ("shf.l.wrap.b32 %out, %a, %b, 32;", u32(0x11223344), u32(0x55667788), u32(0x55667788)),
    ("bfe.u32 %out, %a, 4, 8;", u32(0x12345678), u32(0), u32(0x67)),
    ("bfe.s32 %out, %a, 4, 8;", u32(0x12345F78, 0x12345678), u32(0), u32(0xFFFFFFF7, 0x67)),
    ("bfe.s32 %out, %a, 28, 8;", u32(0x90000000), u32(0), u32(0xFFFFFFF9)),
    ("bfi.b32 %out, %a, %b, 8, 4;", u32(0xAB), u32(0xFFFFFFFF), u32(0xFFFFFBFF)),
    ("prmt.b32 %out, %a, %b, 0x5410;", u32(0x33221100), u32(0x77665544), u32(0x55441100)),
    ("prmt.b32 %out, %a, %b, 0x7632;", u32(0x33221100), u32(0x77665544), u32(0x77663322)),
    ("prmt.b32 %out, %a, %b, 0x0008;", u32(0x33221180), u32(0), u32(0x808080FF)),
    ("popc.b32 %out, %a;", u32(0xF0F0), u32(0), u32(8)),
    ("clz.b32 %out, %a;", u32(1, 0), u32(0), u32(31, 32)),
    ("brev.b32 %out, %a;", u32(1), u32(0), u32(0x80000000)),
]


@pytest.mark.parametrize(("body", "a", "b", "expected"), INTEGERS, ids=[case[0] for case in INTEGERS])
def test_integer_instruction(body, a, b, expected):
    np.testing.assert_array_equal(compute(body, a, b), expected)


def test_wide_products_keep_all_64_bits():
    a, b = u32(0xFFFFFFFF, 3, -2), u32(0xFFFFFFFF, 0xD2511F53, 7)
    assert list(compute("mul.wide.u32 %out, %a, %b;", a, b, result="u8")) == [
        (2**32 - 1) ** 2,
        3 * 0xD2511F53,
        (2**32 - 2) * 7,
    ]
    assert list(compute("mul.wide.s32 %out, %a, %b;", a, b, result="i8")) == [1, 3 * (0xD2511F53 - 2**32), -14]
    # A negative constant is its 32 bits.
    assert list(compute("mul.wide.u32 %out, %a, -766435501;", u32(2), result="u8")) == [2 * 0xD2511F53]
    assert list(compute("mad.wide.u32 %out, %a, 4, %b;", u32(0x80000000), u64(5), result="u8")) == [2**33 + 5]
    assert list(compute("mul.lo.s64 %out, %a, %b;", u64(2**40), u64(2**30 + 1), result="u8")) == [2**40]
    assert list(compute("mul.hi.u64 %out, %a, %b;", u64(2**40), u64(2**30), result="u8")) == [64]


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x1D])
def test_lop3_is_its_truth_table(table):
    # The table of a function f is f(0xF0, 0xCC, 0xAA).
    a, b, c = u32(0xF0), u32(0xCC), u32(0xAA)
    assert compute(f"lop3.b32 %out, %a, %b, %c, {table};", a, b, c)[0] & 0xFF == table


FLOATS = [
    ("add.f32 %out, %a, %b;", f32(1, INF), f32(2.0**-24, -INF), f32(1, NAN)),
    ("mul.f32 %out, %a, 0f3F000000;", f32(3), f32(0), f32(1.5)),
    ("sub.rn.f32 %out, %a, %b;", f32(1), f32(3), f32(-2)),
    ("mul.ftz.f32 %out, %a, %b;", f32(1e-30, 1e-40), f32(1e-10, 1e30), f32(0, 0)),
    ("mul.f32 %out, %a, %b;", f32(2.0**-100), f32(2.0**-40), f32(2.0**-140)),
    ("min.f32 %out, %a, %b;", f32(NAN, 1, 0.0), f32(2, NAN, -0.0), f32(2, 1, -0.0)),
    ("max.f32 %out, %a, %b;", f32(NAN, 1, -0.0), f32(2, NAN, 0.0), f32(2, 1, 0.0)),
    ("max.NaN.f32 %out, %a, %b;", f32(NAN, 1), f32(2, 3), f32(NAN, 3)),
    ("abs.f32 %out, %a;", f32(-0.0, -3), f32(0), f32(0.0, 3)),
    ("neg.f32 %out, %a;", f32(0.0, -3), f32(0), f32(-0.0, 3)),
    ("div.rn.f32 %out, %a, %b;", f32(1, 1), f32(3, 0), f32(1 / 3, INF)),
    ("div.full.f32 %out, %a, %b;", f32(1), f32(3), f32(1 / 3)),
    ("sqrt.rn.f32 %out, %a;", f32(2, -1), f32(0), f32(2**0.5, NAN)),
    ("rcp.rn.f32 %out, %a;", f32(3), f32(0), f32(1 / 3)),
    ("ex2.approx.ftz.f32 %out, %a;", f32(-INF, 0, 3, -130), f32(0), f32(0, 1, 8, 0)),
    ("ex2.approx.f32 %out, %a;", f32(-130), f32(0), f32(2.0**-130)),
    ("lg2.approx.ftz.f32 %out, %a;", f32(0, 8, -1, 1e-40), f32(0), f32(-INF, 3, NAN, -INF)),
    ("cos.approx.ftz.f32 %out, %a;", f32(0, 1e9), f32(0), f32(1, NAN)),
    ("sqrt.approx.ftz.f32 %out, %a;", f32(0, 4), f32(0), f32(0, 2)),
    ("selp.f32 %out, %a, %b, %p;", f32(1), f32(2), f32(2)),
]


@pytest.mark.parametrize(("body", "a", "b", "expected"), FLOATS, ids=[case[0] for case in FLOATS])
def test_float_instruction(body, a, b, expected):
    got = compute("setp.ne.s32 %p, 1, 1;" + body, a, b, result="f4")
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(expected[~np.isnan(expected)]))


def test_fma_rounds_once():
    # The product is 1 + 2^-24, halfway between two float32 numbers; rounding to float64 first would lose the addend.
    a, b, c = f32(24929), f32(673 * 2.0**-24), f32(2.0**-80, -(2.0**-80), 0)
    got = compute("fma.rn.f32 %out, %a, %b, %c;", *np.broadcast_arrays(a, b, c), result="f4")
    np.testing.assert_array_equal(got, f32(1 + 2.0**-23, 1, 1))


def test_two_float32_side_by_side():
    pair = np.array([[1.5, -2], [3, 1e-40]], np.float32)
    a, b = pair.view(np.uint64)[:, 0]
    body = "mov.b64 %rd0, %b; fma.rn.ftz.f32x2 %out, %a, %rd0, %rd0;"
    got = compute(body, np.array([a]), np.array([b]), result="u8").view(np.float32)
    np.testing.assert_array_equal(got, f32(7.5, 0))
    got = compute("mul.f32x2 %out, %a, %b;", np.array([a]), np.array([b]), result="u8").view(np.float32)
    np.testing.assert_array_equal(got, pair[0] * pair[1])


def test_fma_is_the_float32_nearest_to_the_exact_value():
    random = np.random.default_rng(0)
    a, b, c = random.standard_normal((3, 3000)).astype(np.float32)
    c = np.ldexp(c, random.integers(-60, 10, c.shape)).astype(np.float32)
    for x, y, z, got in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        neighbours = [np.nextafter(got, np.float32(side)) for side in (-INF, INF)]
        assert all(abs(Fraction(float(got)) - exact) <= abs(Fraction(float(n)) - exact) for n in neighbours)


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        ("lt", [1, 0, 0]),
        ("ltu", [1, 0, 1]),
        ("ge", [0, 1, 0]),
        ("geu", [0, 1, 1]),
        ("eq", [0, 1, 0]),
        ("ne", [1, 0, 0]),
        ("neu", [1, 0, 1]),
        ("num", [1, 1, 0]),
        ("nan", [0, 0, 1]),
    ],
)
def test_setp_with_nan(comparison, expected):
    body = f"setp.{comparison}.f32 %p, %a, %b; selp.b32 %out, 1, 0, %p;"
    assert list(compute(body, f32(1, 2, NAN), f32(2, 2, 2))) == expected


def test_setp_combines_and_makes_the_opposite_too():
    body = """
    setp.gt.s32 %q, %b, 0;
    setp.lt.and.s32 %p|%q, %a, 5, %q;
    selp.b32 %r0, 1, 0, %p; selp.b32 %r1, 2, 0, %q; add.s32 %out, %r0, %r1;
    """
    assert list(compute(body, u32(-1, 9, -1), u32(1, 1, 0))) == [1, 2, 0]
    assert list(compute("setp.lo.u32 %p, %a, 5; selp.b32 %out, 1, 0, !%p;", u32(-1, 4))) == [1, 0]


def test_setp_and_predicate_logic():
    body = """
    setp.eq.s32 %p, %a, 1; setp.eq.s32 %q, %b, 1;
    and.pred %p, %p, %q; not.pred %p, %p; xor.pred %p, %p, %q;
    selp.b32 %out, 1, 0, %p;
    """
    assert list(compute(body, u32(0, 0, 1, 1), u32(0, 1, 0, 1))) == [1, 0, 1, 1]


CONVERSIONS = [
    ("cvt.rn.f32.u32", u32(0xFFFFFFFF, 16777217), "f4", [2.0**32, 16777216]),
    ("cvt.rn.f32.s32", u32(-1), "f4", [-1]),
    ("cvt.rzi.s32.f32", f32(-1.9, 3e9, NAN), "i4", [-1, 2**31 - 1, 0]),
    ("cvt.rni.s32.f32", f32(2.5, 3.5), "i4", [2, 4]),
    ("cvt.rzi.u32.f32", f32(-1, 7.9), "u4", [0, 7]),
    ("cvt.rmi.f32.f32", f32(-1.5), "f4", [-2]),
    ("cvt.u32.u64", u64(2**40 + 7), "u4", [7]),
    ("cvt.u64.u32", u32(-1), "u8", [2**32 - 1]),
    ("cvt.s64.s32", u32(-1), "i8", [-1]),
    ("cvt.u16.u32", u32(0x12345), "u2", [0x2345]),
    ("cvt.s32.s8", u32(0x80), "i4", [-128]),
    ("cvt.f32.bf16", np.array([0x3FC0], np.uint16), "f4", [1.5]),
    ("cvt.f32.f16", np.array([0x3E00], np.uint16), "f4", [1.5]),
    ("cvt.rn.f16.f32", f32(1.5), "u2", [0x3E00]),
    # Halfway cases to even, then up; just above halfway; overflow; NaN.
    (
        "cvt.rn.bf16.f32",
        f32(1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 3.4e38, NAN),
        "u2",
        [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FFF],
    ),
    ("cvt.rz.bf16.f32", f32(1 + 3 * 2.0**-8), "u2", [0x3F81]),
]


@pytest.mark.parametrize(("opcode", "values", "result", "expected"), CONVERSIONS, ids=[c[0] for c in CONVERSIONS])
def test_conversion(opcode, values, result, expected):
    np.testing.assert_array_equal(compute(f"{opcode} %out, %a;", values, result=result), expected)


def test_a_pair_of_bfloat16_has_its_first_source_on_top():
    assert list(compute("cvt.rn.bf16x2.f32 %out, %a, %b;", f32(1.5), f32(-2))) == [0x3FC0C000]


def test_bfloat16_rounding_agrees_with_torch():
    import torch

    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), expected)


def test_vectors_are_packed_and_unpacked_lowest_first():
    body = "mov.b64 {%r0, %r1}, %a; mov.b64 {_, %r2}, %a; sub.s32 %r0, %r0, %r1; mov.b64 %out, {%r2, %r0};"
    assert list(compute(body, u64(5 << 32 | 9), result="u8")) == [4 << 32 | 5]
    assert list(compute("mov.b32 {%h0, %h1}, %a; mov.b32 %out, {%h1, %h0};", u32(0x12345678))) == [0x56781234]


SHUFFLES = [
    ("bfly", 1, 0x1F, LANES ^ 1),
    ("bfly", 16, 0x1F, LANES ^ 16),
    ("down", 3, 0x1F, np.where(LANES < 29, LANES + 3, LANES)),
    ("up", 3, 0, np.where(LANES >= 3, LANES - 3, LANES)),
    ("idx", 5, 0x1F, np.full(32, 5)),
    ("idx", 5, 0x181F, (LANES & 24) + 5),  # segments of eight lanes
    ("down", 6, 0x181F, np.where(LANES % 8 < 2, LANES + 6, LANES)),
]


@pytest.mark.parametrize(("mode", "lane", "clamp", "expected"), SHUFFLES)
def test_shuffle(mode, lane, clamp, expected):
    body = f"shfl.sync.{mode}.b32 %out, %a, {lane}, {clamp}, -1;"
    np.testing.assert_array_equal(compute(body, LANES), expected)


def test_shuffle_tells_which_lanes_were_in_range():
    body = "shfl.sync.down.b32 %r0|%p, %a, 3, 31, -1; selp.b32 %out, 1, 0, %p;"
    np.testing.assert_array_equal(compute(body, LANES), LANES < 29)


def test_a_shuffle_stays_in_its_warp():
    lanes = np.arange(64, dtype=np.uint32)
    np.testing.assert_array_equal(compute("shfl.sync.bfly.b32 %out, %a, 16, 31, -1;", lanes), lanes ^ 16)


def test_matrices_are_loaded_a_row_a_lane_and_given_out_four_bytes_a_lane():
    """Lane l stores its words 4 l .. 4 l + 3, row l; matrix i has rows 8 i + r, lane 4 r + c gets word c of row r."""
    body = """
    mov.u32 %r0, global_smem;
    mad.lo.u32 %r0, %thread, 16, %r0;
    mul.lo.u32 %r1, %thread, 4; add.u32 %r2, %r1, 1; add.u32 %r3, %r1, 2; add.u32 %r4, %r1, 3;
    st.shared.v4.b32 [%r0], {%r1, %r2, %r3, %r4};
    bar.sync 0;
    """
    four = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %out}, [%r0];"
    np.testing.assert_array_equal(compute(body + four, LANES), 4 * 24 + LANES)
    np.testing.assert_array_equal(compute(body + four + "mov.b32 %out, %r2;", LANES), 4 * 8 + LANES)
    one = "xor.b32 %r0, %r0, 16; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%out}, [%r0];"
    np.testing.assert_array_equal(compute(body + one, LANES), LANES ^ 4)


def test_matrices_are_stored_four_bytes_a_lane_into_rows():
    """Lane l gives l of a first matrix and 100 + l of a second, and reads the word l // 2 + 32 (l % 2) of both."""
    body = """
    mov.u32 %r0, global_smem;
    mad.lo.u32 %r1, %thread, 16, %r0;
    add.u32 %r2, %thread, 100;
    stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r1], {%thread, %r2};
    bar.sync 0;
    shr.u32 %r3, %thread, 1; and.b32 %r4, %thread, 1; mad.lo.u32 %r3, %r4, 32, %r3;
    mad.lo.u32 %r3, %r3, 4, %r0;
    ld.shared.b32 %out, [%r3];
    """
    expected = np.where(LANES % 2 == 0, LANES // 2, 100 + LANES // 2)
    np.testing.assert_array_equal(compute(body, LANES), expected)


def test_a_guard_keeps_what_was_there():
    body = "setp.lt.s32 %p, %a, 2; mov.b32 %out, 7; @%p mov.b32 %out, 1; @!%p add.s32 %out, %out, 1;"
    assert list(compute(body, u32(0, 1, 2, 3))) == [1, 1, 8, 8]


def test_a_guarded_load_touches_no_memory_where_it_is_off():
    body = "setp.lt.u32 %p, %a, 1; mov.b32 %out, 9; @%p ld.global.b32 %out, [%inputs]; @!%p ld.global.b32 %out, [0];"
    with pytest.raises(PtxError, match=r"out of bounds: 4 bytes at 0x0"):
        compute(body, u32(0, 1))
    body = "setp.lt.u32 %p, %a, 1; mov.b32 %out, 9; @%p ld.global.b32 %out, [%inputs];"
    assert list(compute(body, u32(0, 1))) == [0, 9]


def test_vector_loads_and_stores_of_every_width():
    values = np.arange(16, dtype=np.uint32) + 0x01020304
    body = """
    mad.wide.u32 %rd0, %thread, 16, %inputs;
    setp.lt.u32 %p, %thread, 4;
    mov.b32 %r0, 0; mov.b32 %r1, 0; mov.b32 %r2, 0; mov.b32 %r3, 0;
    @%p ld.global.L1::evict_first.v4.b32 {%r0, %r1, %r2, %r3}, [%rd0];
    mov.b32 %r4, global_smem; shl.b32 %r5, %thread, 4; add.s32 %r4, %r4, %r5;
    st.shared.v2.b32 [%r4], {%r3, %r2}; st.shared.v2.b32 [%r4 + 8], {%r1, %r0};
    ld.shared.u8 %h0, [%r4 + 1]; ld.shared.b16 %h1, [%r4 + 2]; ld.shared.b64 %rd1, [%r4+8];
    cvt.u32.u16 %r0, %h0; cvt.u32.u16 %r1, %h1; cvt.u32.u64 %r2, %rd1;
    shl.b32 %r1, %r1, 16; xor.b32 %out, %r0, %r1; xor.b32 %out, %out, %r2;
    """
    last, second = values[3::4], values[1::4]
    expected = (last >> 8 & 255) ^ (last & 0xFFFF0000) ^ second
    np.testing.assert_array_equal(compute(body, values)[:4], expected)


def test_signed_loads_extend_the_sign():
    assert list(compute("ld.global.s32 %out, [%inputs];", u32(-5), result="i8")) == [-5]
    assert list(compute("ld.global.b32 %out, [%inputs];", u32(-5), result="i8")) == [2**32 - 5]


def test_a_loop_that_threads_leave_at_different_times():
    body = """
    mov.b32 %r0, 0; mov.b32 %out, 0;
    $again: setp.ge.u32 %p, %r0, %a;
    @%p bra $done;
    add.s32 %out, %out, %r0; add.s32 %r0, %r0, 1;
    bra.uni $again;
    $done:
    """
    counts = u32(0, 3, 1, 5, 5)
    np.testing.assert_array_equal(compute(body, counts), counts * (counts - 1) // 2)


def test_threads_meet_again_after_a_branch():
    body = """
    setp.lt.u32 %p, %a, 16; @%p bra $low;
    mov.b32 %r0, 100; bra $joined;
    $low: mov.b32 %r0, 200;
    $joined: shfl.sync.bfly.b32 %out, %r0, 16, 31, -1;
    """
    np.testing.assert_array_equal(compute(body, LANES), np.where(LANES < 16, 100, 200))


def test_braces_open_a_scope_for_registers():
    body = "{ .reg .b32 t; mov.b32 t, 1; { .reg .b32 t; mov.b32 t, 2; } mov.b32 %out, t; }"
    assert list(compute(body, u32(0))) == [1]


@pytest.mark.parametrize(
    ("name", "bound"), [("sin", 2.0**-20.5), ("cos", 2.0**-20.5), ("ex2", 2.0**-22), ("lg2", 2.0**-22)]
)
def test_approximate_functions_are_as_inaccurate_as_allowed_and_no_more(name, bound):
    x = np.random.default_rng(0).uniform(0.6, 1.0, 10000).astype(np.float32)
    exact = {"sin": np.sin, "cos": np.cos, "ex2": np.exp2, "lg2": np.log2}[name](x.astype(np.float64))
    scale = exact if name == "ex2" else 1.0
    errors = {
        mode: (Accuracy(mode).approximate(name, x) - exact) / scale / bound for mode in ("random", "above", "below")
    }
    rounding = 2.0**-24 / bound
    assert 0.9 < np.abs(errors["random"]).max() <= 1 + rounding
    assert errors["above"].min() >= 1 - rounding
    assert errors["below"].max() <= -1 + rounding
    np.testing.assert_array_equal(Accuracy().approximate(name, x), Accuracy().approximate(name, x))


def test_a_register_that_was_never_written_holds_poison():
    assert list(compute("mov.b32 %out, {%h0, %h1};", u32(0))) == [0xC3C3C3C3]
    assert list(compute("setp.eq.s32 %p, %a, 1; @%p mov.b32 %out, 5;", u32(0, 1))) == [0xC3C3C3C3, 5]


def test_special_registers():
    body = "mov.u32 %r0, %nctaid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %laneid; mad.lo.s32 %out, %r0, %r1, %r2;"
    np.testing.assert_array_equal(compute(body, np.arange(64), blocks=2), [*LANES, *LANES, *LANES + 2, *LANES + 2])
