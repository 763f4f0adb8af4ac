"""What likelihoods are made of beside exponentials: logarithms near 1, and gamma functions of counts.

Gamma functions are computed at y >= 1, with 1 added to what may be less, and with minimax polynomials S and D in place
of Stirling's series (off by 1.1e-8 and 2.9e-8):

    lgamma(y)  = (y - 1/2) log y - y + log(2 pi) / 2 + S(1/y)         lgamma(y)  = lgamma(y + 1) - log y
    digamma(y) = log y + D(1/y)                                       digamma(y) = digamma(y + 1) - 1/y

Neither is here by itself: likelihoods need differences of two of them, in which the logarithms, which are large, have
to be put together before they are rounded.
"""

import triton
import triton.language as tl

from .functions import series
from .parameterisation import LOG2_E, reciprocal
from .philox import log1p_excess_near_0, log1p_near_0

LN_2: tl.constexpr = tl.constexpr(0.693147181)
HALF_LOG_2_PI: tl.constexpr = tl.constexpr(0.9189385332046727)


@triton.jit
def exp(x):
    """exp(x) for rates, which may be large: exp2 of a rounded product would be off by |x| 2^-24 of itself."""
    whole = tl.floor(x * LOG2_E + 0.5)
    whole = tl.where(tl.abs(whole - 0.5) < 127.0, whole, 0.0)  # others have no float32 of their own
    rest = (x - whole * 0.693359375) + whole * 2.1219444e-4  # the first product is exact
    scale = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.exp2(rest * LOG2_E) * scale


@triton.jit
def log_excess(ratio, excess):
    """log(ratio) - excess of a normal ratio > 0, which is at most 0; excess = ratio - 1 is exact where ratio is near 1.

    Off by 1e-7 of itself, at every PTX_LEVEL: lg2 would be off by 2^-22, however near 0 the result.
    """
    exponent = (ratio.to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    f = tl.where(exponent == 0, excess, ratio * scale - 1.0)
    return (exponent.to(tl.float32) * LN_2 + (f - excess)) + log1p_excess_near_0(f)


@triton.jit
def stirling(inverse):
    """S: lgamma(y) less its logarithm and what stands beside it, from inverse = 1/y <= 1."""
    square = inverse * inverse
    s = 0.00018382764 - square * 4.3557731e-05
    s = -0.00039073417 + square * s
    s = 0.00075244531 + square * s
    s = -0.0027737368 + square * s
    s = 0.083333217 + square * s
    return inverse * s


@triton.jit
def stirling_slope(square):
    """s of D(y) = digamma(y) - log y = -1/(2y) - s / y^2, from square = 1/y^2 <= 1."""
    s = 0.0010693232 - square * 0.00025009774
    s = -0.0021913035 + square * s
    s = 0.0035395771 + square * s
    s = -0.0082830898 + square * s
    return 0.083331227 + square * s


@triton.jit
def stirling_slope_rise(x, inverse_a, inverse_b):
    """D(b) - D(a), b = x + a, D's leading parts subtracted as one fraction, x / (a b)."""
    square_a = inverse_a * inverse_a
    slope_a, slope_b = stirling_slope(square_a), stirling_slope(inverse_b * inverse_b)
    fall = x * inverse_a * inverse_b
    return fall * (0.5 + (inverse_a + inverse_b) * slope_b) + square_a * (slope_a - slope_b)


@triton.jit
def poisson(x, lograte, PTX_LEVEL: tl.constexpr):
    """log p = x d - c (exp(d) - 1) - 1/2 log(2 pi c) - S(1/c), d = lograte - log c, c = x (x + 1 where x is below 1).

    Its first part is -x (exp(d) - 1 - d) >= 0 where x is 1 or more: nothing large is subtracted from something large.
    """
    below_1 = x < 1.0
    c = tl.where(below_1, x + 1.0, x)
    exponent = (c.to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    whole, rest = exponent.to(tl.float32), c * scale - 1.0
    rest = log1p_near_0(rest)
    d = (lograte - whole * 0.693359375) - (rest - whole * 2.1219444e-4)
    rate = exp(d)
    less = tl.where(tl.abs(d) < 0.5, d * d * series(d), rate - 1.0 - d)
    from_mode = tl.where(below_1, x * d - c * (rate - 1.0), -c * less)
    log_p = from_mode - 0.5 * (whole * LN_2 + rest) - (stirling(reciprocal(c, PTX_LEVEL)) + HALF_LOG_2_PI)
    return tl.where(x == 0.0, -rate, log_p)
