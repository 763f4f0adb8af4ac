"""The noise stream in Triton: Philox4x32-10 (Salmon et al., SC'11) and Box-Muller, `Tiles.vec` coordinates a thread.

PTX_LEVEL says which PTX instructions the kernels of this package may contain:

    0   none: elementary functions are written out in float32 arithmetic. AMD GPUs and Triton's interpreter take this.
        The logarithm keeps full relative accuracy where u is nearly 1; the angle is reduced in integers, so exactly.
    1   approximate functions of NVIDIA GPUs
    2   and arithmetic on two float32 at once (sm_100 and later)

The PTX ISA publishes the errors of the approximate functions: lg2 2^-22 absolute in (1/2, 2), else relative; sqrt 2^-23
relative; sin, cos 2^-20.5 absolute in [-2 pi, 2 pi]. What that does to a normal r cos t:

    r^2 = -2 ln u   is off by  2 ln 2 2^-22 = 3.3e-7 from lg2 and 6e-8 from rounding u; so r by 4e-7 / (2 r), which only
                    matters where r is small. Where u is within 2^-11 of 1, r^2 is therefore not taken from lg2 but from
                    1 - u, which the complement of the word gives exactly: r^2 = 2 (1 - u), off by 2^-12 of itself.
                    So |dr| is largest at the switch, r = 0.031: 6.3e-6.
    cos t           is off by  2^-20.5 = 6.7e-7 and by the rounding of the angle, 4e-7: by 1.1e-6, times r <= 6.77.

The two peaks lie far apart, and every normal is within 1e-5 of the exact one: `tests/kernels/test_approximations.py`
injects errors of these sizes, and the tests that execute the PTX do so in every kernel.

A temperature T is part of the radius, sqrt(-2 T^2 ln u), which takes no further instruction. T^2 is a float32: below
T = 1e-19 the noise is 0.
"""

import triton
import triton.language as tl

PI_HALF_2_32: tl.constexpr = tl.constexpr(1.5707963267948966 * 2.0**-32)


@triton.jit
def multiply_wide(a, MULTIPLIER: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """High and low word of the 64-bit product of a word and a constant."""
    if PTX_LEVEL:  # one instruction for both words; left to itself the compiler often takes two
        return tl.inline_asm_elementwise(
            "{ .reg .u64 product; mul.wide.u32 product, $2, $3; mov.b64 {$1, $0}, product; }",
            "=r,=r,r,r",
            [a, MULTIPLIER],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    product = a.to(tl.uint64) * MULTIPLIER
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1, PTX_LEVEL: tl.constexpr):
    """Ten Philox rounds over tensors of uint32 counter words: four tensors of uint32 words."""
    for _ in tl.static_range(10):
        high0, low0 = multiply_wide(c0, 0xD2511F53, PTX_LEVEL)
        high1, low1 = multiply_wide(c2, 0xCD9E8D57, PTX_LEVEL)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log1p_near_0(f):
    """ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)): relative error 3.2e-8."""
    return f + log1p_excess_near_0(f)


@triton.jit
def log1p_excess_near_0(f):
    """ln(1 + f) - f = -f^2/2 + f^3 P(f)"""
    p = -0.14267492 + f * 0.08700438
    p = 0.14914769 + f * p
    p = -0.16577584 + f * p
    p = 0.19963063 + f * p
    p = -0.25001338 + f * p
    p = 0.33333910 + f * p
    return f * f * (f * p - 0.5)


@triton.jit
def radius_of(word, squared_temperature):
    """sqrt(-2 T^2 ln u), u = (word + 0.5) 2^-32."""
    x = word.to(tl.float32) + 0.5
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    # For u above sqrt(1/2), f = u - 1 comes from the complement, which keeps the bits that rounding x has lost.
    f = tl.where(exponent == 32, ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * -2.3283064365386963e-10, f)
    return tl.sqrt((log1p_near_0(f) + (exponent - 32).to(tl.float32) * 0.693147181) * (-2.0 * squared_temperature))


@triton.jit
def cos_sin_of(word):
    """cos and sin of 2 pi word 2^-32: nearest quarter turn off in integers, polynomials (3.8e-9) on [-pi/4, pi/4)."""
    quarter = (word + 0x20000000) >> 30
    x = (word << 2).to(tl.int32, bitcast=True).to(tl.float32) * PI_HALF_2_32
    x2 = x * x
    s = x + x * x2 * (-0.16666655 + x2 * (0.0083321603 + x2 * -0.00019515282))
    c = 1.0 + x2 * (-0.5 + x2 * (0.041666646 + x2 * (-0.0013887316 + x2 * 2.4433157e-05)))
    swap = (quarter & 1) != 0
    cosine = tl.where(swap, s, c)
    sine = tl.where(swap, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -cosine, cosine), tl.where((quarter & 2) != 0, -sine, sine)


@triton.jit
def radius_constants(squared_temperature):
    """factor, slope and offset: r^2 = factor lg2(u), near u = 1 slope w + offset, w the even word as a signed integer.

    Products with 1 or a power of 2 are exact, so that a temperature of 1 gives the same bits as no temperature.
    """
    factor = squared_temperature * -1.3862943611198906
    slope = squared_temperature * -4.656612873077393e-10
    offset = squared_temperature * -2.3283064365386963e-10
    return factor, slope, offset


@triton.jit
def normal_pair(even, odd, squared_temperature, PTX_LEVEL: tl.constexpr):
    """r cos t and r sin t of an even and an odd word (uint32)."""
    if PTX_LEVEL:
        factor, slope, offset = radius_constants(squared_temperature)
        return tl.inline_asm_elementwise(
            """
            {
            .reg .f32 u, r, t, s, c;
            .reg .pred near_one;
            cvt.rn.f32.u32 u, $2;
            fma.rn.f32 u, u, 0f2F800000, 0f2F000000;
            lg2.approx.ftz.f32 r, u;
            mul.f32 r, r, $4;
            setp.ge.u32 near_one, $2, 0xFFE00000;
            @near_one cvt.rn.f32.s32 u, $2;
            @near_one fma.rn.f32 r, u, $5, $6;
            sqrt.approx.ftz.f32 r, r;
            cvt.rn.f32.s32 t, $3;
            mul.f32 t, t, 0f30C90FDB;
            cos.approx.ftz.f32 c, t;
            sin.approx.ftz.f32 s, t;
            mul.f32 $0, r, c;
            mul.f32 $1, r, s;
            }
            """,
            "=f,=f,r,r,f,f,f",
            [even, odd, factor, slope, offset],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    radius = radius_of(even, squared_temperature)
    cosine, sine = cos_sin_of(odd)
    return radius * cosine, radius * sine


@triton.jit
def two_normal_pairs(w0, w1, w2, w3, squared_temperature):
    """`normal_pair` of (w0, w1) and of (w2, w3), on GPUs that compute two float32 in one instruction (sm_100)."""
    factor, slope, offset = radius_constants(squared_temperature)
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 u0, u1, r0, r1, t0, t1, s0, s1, c0, c1;
        .reg .b64 both, factor, summand, radii;
        .reg .pred near_one0, near_one1;
        cvt.rn.f32.u32 u0, $4;
        cvt.rn.f32.u32 u1, $6;
        mov.b64 both, {u0, u1};
        mov.b64 factor, 0x2F8000002F800000;
        mov.b64 summand, 0x2F0000002F000000;
        fma.rn.f32x2 both, both, factor, summand;
        mov.b64 {u0, u1}, both;
        lg2.approx.ftz.f32 r0, u0;
        lg2.approx.ftz.f32 r1, u1;
        mov.b64 both, {r0, r1};
        mov.b64 factor, {$8, $8};
        mul.rn.f32x2 both, both, factor;
        mov.b64 {r0, r1}, both;
        setp.ge.u32 near_one0, $4, 0xFFE00000;
        setp.ge.u32 near_one1, $6, 0xFFE00000;
        @near_one0 cvt.rn.f32.s32 u0, $4;
        @near_one0 fma.rn.f32 r0, u0, $9, $10;
        @near_one1 cvt.rn.f32.s32 u1, $6;
        @near_one1 fma.rn.f32 r1, u1, $9, $10;
        sqrt.approx.ftz.f32 r0, r0;
        sqrt.approx.ftz.f32 r1, r1;
        mov.b64 radii, {r0, r1};
        cvt.rn.f32.s32 t0, $5;
        cvt.rn.f32.s32 t1, $7;
        mov.b64 both, {t0, t1};
        mov.b64 factor, 0x30C90FDB30C90FDB;
        mul.rn.f32x2 both, both, factor;
        mov.b64 {t0, t1}, both;
        cos.approx.ftz.f32 c0, t0;
        cos.approx.ftz.f32 c1, t1;
        sin.approx.ftz.f32 s0, t0;
        sin.approx.ftz.f32 s1, t1;
        mov.b64 both, {c0, c1};
        mul.rn.f32x2 both, both, radii;
        mov.b64 {$0, $2}, both;
        mov.b64 both, {s0, s1};
        mul.rn.f32x2 both, both, radii;
        mov.b64 {$1, $3}, both;
        }
        """,
        "=f,=f,=f,=f,r,r,r,r,f,f,f",
        [w0, w1, w2, w3, factor, slope, offset],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def four_normals(quad, row_low, row_high, draw, k0, k1, squared_temperature, PTX_LEVEL: tl.constexpr):
    """The normals of coordinates 4 quad .. 4 quad + 3, as four tensors of the broadcast shape of quad and row.

    Quads differ by column and rows by row only: the first rounds stay on vectors, and out of the loop over columns.
    """
    w0, w1, w2, w3 = philox4x32(quad, row_low, row_high, draw, k0, k1, PTX_LEVEL)
    if PTX_LEVEL == 2:
        return two_normal_pairs(w0, w1, w2, w3, squared_temperature)
    n0, n1 = normal_pair(w0, w1, squared_temperature, PTX_LEVEL)
    n2, n3 = normal_pair(w2, w3, squared_temperature, PTX_LEVEL)
    return n0, n1, n2, n3


@triton.jit
def noise_tile(seed, row, first_column, draw, temperature, TILES: tl.constexpr):
    """temperature * eps (rows, columns) of stream rows ``row`` (int64, (rows, 1)) and columns from ``first_column`` on.

    TILES.vec is how many neighbouring coordinates (4 or 8) a thread makes: as many as it loads and stores at once, so
    that putting them side by side moves nothing between threads.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    row_low = row.to(tl.uint32)
    row_high = (row >> 32).to(tl.uint32)
    draw = tl.full((1, 1), draw, tl.uint32)
    squared = temperature * temperature
    vector = tl.arange(0, TILES.columns // TILES.vec)[None, :]
    quad = (first_column // 4 + vector * (TILES.vec // 4)).to(tl.uint32)
    n0, n1, n2, n3 = four_normals(quad, row_low, row_high, draw, k0, k1, squared, TILES.ptx_level)
    if TILES.vec == 4:
        normals = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    else:
        m0, m1, m2, m3 = four_normals(quad + 1, row_low, row_high, draw, k0, k1, squared, TILES.ptx_level)
        normals = tl.join(tl.join(tl.join(n0, m0), tl.join(n2, m2)), tl.join(tl.join(n1, m1), tl.join(n3, m3)))
    ROWS: tl.constexpr = TILES.rows
    COLUMNS: tl.constexpr = TILES.columns
    return tl.reshape(normals, (ROWS, COLUMNS))
