"""The noise stream in Triton: Philox4x32-10 (Salmon et al., SC'11) and Box-Muller, a group of coordinates a thread.

Elementary functions are written out in float32 arithmetic, so that the interpreter, NVIDIA and AMD compute alike: the
logarithm keeps full relative accuracy where u is nearly 1, the angle is reduced in integers and therefore exactly.
"""

import triton
import triton.language as tl

PI_HALF_2_32: tl.constexpr = tl.constexpr(1.5707963267948966 * 2.0**-32)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten Philox rounds over tensors of uint32 counter words: four tensors of uint32 words."""
    for _ in tl.static_range(10):
        # A product of two words as one 64-bit product: its halves are both needed.
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def radius_of(word):
    """sqrt(-2 ln u), u = (word + 0.5) 2^-32; ln(1 + f) = f - f^2/2 + f^3 P(f) on [sqrt(1/2), sqrt(2)): 3.2e-8."""
    x = word.to(tl.float32) + 0.5
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    # For u above sqrt(1/2), f = u - 1 comes from the complement, which keeps the bits that rounding x has lost.
    f = tl.where(exponent == 32, ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * -2.3283064365386963e-10, f)
    p = -0.14267492 + f * 0.08700438
    p = 0.14914769 + f * p
    p = -0.16577584 + f * p
    p = 0.19963063 + f * p
    p = -0.25001338 + f * p
    p = 0.33333910 + f * p
    log1p = f - f * f * (0.5 - f * p)
    return tl.sqrt((log1p + (exponent - 32).to(tl.float32) * 0.693147181) * -2.0)


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
def four_normals(quad, row_low, row_high, k0, k1):
    """The normals of coordinates 4 quad .. 4 quad + 3, as four tensors of the broadcast shape of quad and row.

    Quads differ by column and rows by row only: the first rounds stay on vectors, and out of the loop over columns.
    """
    draw = tl.zeros((1, 1), tl.uint32)
    w0, w1, w2, w3 = philox4x32(quad, row_low, row_high, draw, k0, k1)
    r0 = radius_of(w0)
    cos0, sin0 = cos_sin_of(w1)
    r1 = radius_of(w2)
    cos1, sin1 = cos_sin_of(w3)
    return r0 * cos0, r0 * sin0, r1 * cos1, r1 * sin1


@triton.jit
def noise_tile(seed, row, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """eps (ROWS, COLUMNS) of stream rows ``row`` (int64, (ROWS, 1)) and coordinates from ``first_column`` on.

    GROUP is how many neighbouring coordinates (4 or 8) a thread makes: as many as it loads and stores at once, so that
    putting them side by side moves nothing between threads.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    row_low = row.to(tl.uint32)
    row_high = (row >> 32).to(tl.uint32)
    group = tl.arange(0, COLUMNS // GROUP)[None, :]
    quad = (first_column // 4 + group * (GROUP // 4)).to(tl.uint32)
    n0, n1, n2, n3 = four_normals(quad, row_low, row_high, k0, k1)
    if GROUP == 4:
        normals = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    else:
        m0, m1, m2, m3 = four_normals(quad + 1, row_low, row_high, k0, k1)
        normals = tl.join(tl.join(tl.join(n0, m0), tl.join(n2, m2)), tl.join(tl.join(n1, m1), tl.join(n3, m3)))
    return tl.reshape(normals, (ROWS, COLUMNS))
