"""What the kernels compute with logvar.

From PTX_LEVEL 1 on (see `philox`) they use ex2.approx, which the PTX ISA gives as 2^-22 relative, and a few lines of
PTX; at PTX_LEVEL 0 plain arithmetic. With PTX,

    std             = ex2(logvar / (2 ln 2)) is off by 2^-22, and by |logvar| 2^-25 from rounding the exponent
    exp(logvar) - 1 = std^2 - 1 by twice that relative to std^2: 6e-7 near logvar = 0, absolute
    KL              from logvar by 3.6e-7 there, absolute, and by less than 4e-8 where |logvar| < 2^-7; never below zero

which is what float32 rounding does to the usual formula within a factor of four
(`tests/kernels/test_approximations.py`).
"""

import triton
import triton.language as tl

HALF_LOG2_E: tl.constexpr = tl.constexpr(0.5 * 1.4426950408889634)


@triton.jit
def to_float32(values, PTX_LEVEL: tl.constexpr):
    if PTX_LEVEL and values.dtype == tl.bfloat16:
        # A bfloat16 is the upper half of a float32: one instruction each, where the compiler's own cast takes two.
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=r,=r,r",
            [values],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    return values.to(tl.float32)


@triton.jit
def scale_of(logvar, PTX_LEVEL: tl.constexpr):
    """exp(logvar/2) and exp(logvar) - 1; the latter, at PTX_LEVEL 0, by the series where it would cancel.

    From PTX_LEVEL 1 on it is good to 5e-7 absolute, as the gradient that it is for needs, and as eager PyTorch has it.
    """
    if PTX_LEVEL == 2:  # the products of two coordinates at once
        std = tl.inline_asm_elementwise(
            """
            {
            .reg .f32 x0, x1;
            .reg .b64 both, factor;
            mov.b64 both, {$2, $3};
            mov.b64 factor, 0x3F38AA3B3F38AA3B;
            mul.rn.f32x2 both, both, factor;
            mov.b64 {x0, x1}, both;
            ex2.approx.ftz.f32 $0, x0;
            ex2.approx.ftz.f32 $1, x1;
            }
            """,
            "=&f,=&f,f,f",
            [logvar],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        std = tl.exp2(logvar * HALF_LOG2_E)
    expm1 = std * std - 1.0
    if not PTX_LEVEL:
        expm1 = tl.where(tl.abs(logvar) < 0.5, logvar + logvar * logvar * series(logvar), expm1)
    return std, expm1


@triton.jit
def multiply_add(a, b, c, PTX_LEVEL: tl.constexpr):
    """a b + c, of two coordinates at once where the GPU has an instruction for it."""
    if PTX_LEVEL == 2:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b64 a, b, c;
            mov.b64 a, {$2, $3};
            mov.b64 b, {$4, $5};
            mov.b64 c, {$6, $7};
            fma.rn.f32x2 c, a, b, c;
            mov.b64 {$0, $1}, c;
            }
            """,
            "=f,=f,f,f,f,f,f,f",
            [a, b, c],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    return a * b + c


@triton.jit
def series(x):
    """(exp(x) - 1 - x) / x^2 for |x| < 1/2: a minimax polynomial of relative error 2.4e-8."""
    t = 0.0013981998 + x * 0.00019875629
    t = 0.008333452 + x * t
    t = 0.041665796 + x * t
    t = 0.16666666 + x * t
    return 0.5 + x * t


@triton.jit
def kl_terms(large, small, mu, logvar, std, expm1, PTX_LEVEL: tl.constexpr):
    """Add twice the KL of each coordinate, mu^2 + (exp(logvar) - 1 - logvar), to  large + small / 2.

    Near logvar = 0 the part in logvar would cancel and go negative, so it comes from its series there. From PTX_LEVEL
    1 on that is logvar^2 / 2 below 2^-7 (off by less than 8e-8, eager's own rounding), added to ``small`` without the
    half; above, std^2 - 1 - logvar is positive by more than the error of std.
    """
    if PTX_LEVEL == 2:  # mu^2 and -1 - logvar of two coordinates at once
        return tl.inline_asm_elementwise(
            """
            {
            .reg .f32 size, rest0, rest1;
            .reg .b64 sums, values, minus_one;
            .reg .pred small0, small1;
            mov.b64 values, {$8, $9};
            mov.b64 sums, {$0, $1};
            fma.rn.f32x2 sums, values, values, sums;
            mov.b64 {$0, $1}, sums;
            mov.b64 values, {$10, $11};
            mov.b64 minus_one, 0xBF800000BF800000;
            fma.rn.f32x2 values, values, minus_one, minus_one;
            mov.b64 {rest0, rest1}, values;
            abs.f32 size, $10;
            setp.lt.f32 small0, size, 0f3C000000;
            abs.f32 size, $11;
            setp.lt.f32 small1, size, 0f3C000000;
            @small0 fma.rn.f32 $2, $10, $10, $2;
            @small1 fma.rn.f32 $3, $11, $11, $3;
            @!small0 fma.rn.f32 rest0, $12, $12, rest0;
            @!small1 fma.rn.f32 rest1, $13, $13, rest1;
            @!small0 add.f32 $0, $0, rest0;
            @!small1 add.f32 $1, $1, rest1;
            }
            """,
            "=f,=f,=f,=f,0,1,2,3,f,f,f,f,f,f",
            [large, small, mu, logvar, std],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=2,
        )
    if PTX_LEVEL:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .f32 size, rest;
            .reg .pred is_small;
            fma.rn.f32 $0, $4, $4, $0;
            abs.f32 size, $5;
            setp.lt.f32 is_small, size, 0f3C000000;
            sub.f32 rest, 0fBF800000, $5;
            @is_small fma.rn.f32 $1, $5, $5, $1;
            @!is_small fma.rn.f32 rest, $6, $6, rest;
            @!is_small add.f32 $0, $0, rest;
            }
            """,
            "=f,=f,0,1,f,f,f",
            [large, small, mu, logvar, std],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    excess = tl.where(tl.abs(logvar) < 0.5, logvar * logvar * series(logvar), expm1 - logvar)
    return large + mu * mu + excess, small
