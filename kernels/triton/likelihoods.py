"""Log-likelihoods of each coordinate (`fastvae.kernels.likelihood_spec` has the formulas) and their derivatives.

The second and third parameter may each be there for every row, once for all rows, or as one element: a tile of it then
has one row, or one element, and what depends on it alone is computed once for them.

Counts. With s = t + eps, w = s + m, a = t (t + 1 where that is less than 1), b = x + a, c = x (x + 1 where that is less
than 1), g(e) = e - log(1 + e) and the S and D of `special`, a negative binomial is put together so that nothing large
cancels, neither where t is large nor where counts are:

    log p = linear - x g(u) - t g(v) - log(2 pi)/2 + 1/2 log(a r^2 / (b c)) + S(1/b) - S(1/a) - S(1/c)
    u = (t (m + eps - x) + i (m + eps)) / (w c) - j / c     1 + u = (m + eps) b / (w c)
    v = (x s/a - m) / w                                     1 + v = b s/a / w

i and j are 1 where t and x are less than 1, linear = x u + t v + j where one is and else 0, r = t b / (a (x + t)) where
i is 1 and else 1. The derivative by t is -g(v) - i (x/a + m eps/s) / w + D(b) - D(a) + i (1/t - 1/(x + t)). At x = 0,
log p is t log(1 + v), and the derivative has neither D nor what follows.

Zeros take the way of other counts, and are selected at its end. A branch would be for a whole tile, and no tile of 512
counts is all zero where more than one count in a hundred is not.
"""

import triton
import triton.language as tl

from .parameterisation import clamped, log, reciprocal, sigmoid, softplus
from .special import (
    HALF_LOG_2_PI,
    LN_2,
    exp,
    log_excess,
    poisson,
    stirling,
    stirling_slope_rise,
)
from .tiles import ABSENT, load_shared, load_tile

EPS: tl.constexpr = tl.constexpr(1e-8)
LEAST_LOG: tl.constexpr = tl.constexpr(-745.0)


@triton.jit
def is_zero(x):
    return tl.abs(x) < EPS


@triton.jit
def continuous_bernoulli(x, logits, PTX_LEVEL: tl.constexpr):
    """(x - 1/2) l - log(sinh(l/2) / (l/2)), from its series where |l| < 1.

    From PTX_LEVEL 1 on, the logarithm beyond is off by 2.3e-7: it is of 1.58 or more.
    """
    size = tl.abs(logits)
    square = logits * logits
    s = 1 / 181440 - square * (1 / 9676800)
    s = 1 / 2880 - square * s
    near = (x - 0.5) * logits - square * (1 / 24 - square * s)
    beyond = log(size * reciprocal(1.0 - tl.exp(-size), PTX_LEVEL), PTX_LEVEL)
    return tl.where(size < 1.0, near, x * logits - tl.maximum(logits, 0.0) + beyond)


@triton.jit
def continuous_bernoulli_slope(x, logits, PTX_LEVEL: tl.constexpr):
    square = logits * logits
    s = 1 / 30240 - square * (1 / 1209600)
    s = 1 / 720 - square * s
    near = x - 0.5 - logits * (1 / 12 - square * s)
    e = tl.exp(-tl.abs(logits))
    tail = e * reciprocal(1.0 - e, PTX_LEVEL)
    beyond = x - tl.where(logits > 0.0, 1.0 + tail, -tail) + reciprocal(logits, PTX_LEVEL)
    return tl.where(square < 1.0, near, beyond)


@triton.jit
def theta_terms(theta, PTX_LEVEL: tl.constexpr):
    """Whether t is less than 1; s, a, 1/a, s/a."""
    few = theta < 1.0
    s = theta + EPS
    a = tl.where(few, theta + 1.0, theta)
    inverse = reciprocal(a, PTX_LEVEL)
    return few, s, a, inverse, tl.where(few, s * inverse, 1.0)


@triton.jit
def log_of_means(x, mean, a, part, inverse):
    """v and -g(v); ``part`` is s/a, ``inverse`` 1 / w."""
    v = (x * part - mean) * inverse
    return v, log_excess((x + a) * part * inverse, v)


@triton.jit
def negative_binomial(x, mean, theta, PTX_LEVEL: tl.constexpr):
    """log p: n where x is 0."""
    few, s, a, inverse_a, part = theta_terms(theta, PTX_LEVEL)
    inverse = reciprocal(s + mean, PTX_LEVEL)
    below_1 = x < 1.0
    b, c = x + a, tl.where(below_1, x + 1.0, x)
    inverse_b, inverse_c = reciprocal(b, PTX_LEVEL), reciprocal(c, PTX_LEVEL)
    v, at_zero = log_of_means(x, mean, a, part, inverse)
    expected = (mean + EPS) * inverse
    u = (theta * inverse * (mean - x + EPS) + tl.where(few, expected, 0.0)) * inverse_c
    u = tl.where(below_1, u - inverse_c, u)
    shift = tl.where(few, theta * inverse_a * b * reciprocal(x + theta, PTX_LEVEL), 1.0)
    counted = x * log_excess(expected * b * inverse_c, u) + log(tl.sqrt(a * inverse_b * inverse_c) * shift, PTX_LEVEL)
    counted += stirling(inverse_b) - stirling(inverse_a) - stirling(inverse_c) - HALF_LOG_2_PI
    counted += tl.where(below_1, x * u + 1.0, tl.where(few, x * u, 0.0))
    zero = is_zero(x)
    linear = tl.where(few | below_1, theta * v, 0.0)
    return theta * at_zero + linear + tl.where(zero, 0.0, counted)


@triton.jit
def negative_binomial_slopes(x, mean, theta, PTX_LEVEL: tl.constexpr):
    """Derivatives by mean and theta, and the log p of 0 where x is 0."""
    few, s, a, inverse_a, part = theta_terms(theta, PTX_LEVEL)
    inverse = reciprocal(s + mean, PTX_LEVEL)
    of_mean = theta * inverse * ((x - mean - EPS) * reciprocal(mean + EPS, PTX_LEVEL))
    v, at_zero = log_of_means(x, mean, a, part, inverse)
    # 1/t - 1/(x + t)
    shift = tl.where(few, x * reciprocal(theta, PTX_LEVEL) * reciprocal(x + theta, PTX_LEVEL), 0.0)
    rise = stirling_slope_rise(x, inverse_a, reciprocal(x + a, PTX_LEVEL)) + shift
    linear = tl.where(few, (x * inverse_a + mean * EPS * reciprocal(s, PTX_LEVEL)) * inverse, 0.0)
    return of_mean, at_zero - linear + tl.where(is_zero(x), 0.0, rise), theta * (at_zero + v)


@triton.jit
def log_of_probability(p, excess):
    """log p, at least -100, from p and p - 1, of which the one that is exact counts."""
    subnormal = p < 1.1754944e-38
    log_p = excess + log_excess(tl.where(subnormal, p * 4294967296.0, p), excess) - tl.where(subnormal, 32 * LN_2, 0.0)
    return tl.where(p >= 0.0, tl.where(log_p < -100.0, -100.0, log_p), float("nan"))


@triton.jit
def scaled_bernoulli(x, p, d, f):
    q = p * d * f
    came = x > 0.0
    log_p = log_of_probability(tl.where(came, q, 1.0 - q), tl.where(came, q - 1.0, -q))
    return tl.where(x == x, log_p, x)


@triton.jit
def scaled_bernoulli_slopes(x, p, d, f):
    q = p * d * f
    came = tl.where(x == x, tl.where(x > 0.0, 1.0, 0.0), x)
    of_q = (came - q) / tl.maximum((1.0 - q) * q, 1e-12)
    return of_q * d * f, of_q * p * f, of_q * p * d


@triton.jit
def is_outside(x, first, second, third, KIND: tl.constexpr):
    """1 where a value is outside the density's domain, of the kinds in NOTICING; else 0."""
    if KIND == "scaled_bernoulli":
        value = first * second * third
        holds = (value >= 0.0) & (value <= 1.0)
    else:
        holds = (x >= 0.0) & (x < float("inf")) & (tl.floor(x) == x)
    return tl.where(holds, 0, 1)


@triton.jit
def log_prob(
    x, first, second, third, low, high, KIND: tl.constexpr, CLAMP: tl.constexpr, PTX_LEVEL: tl.constexpr
):  # fmt: skip
    """log p of a tile of x given its parameters, in nats."""
    if KIND == "bernoulli":
        log_p = x * first - softplus(first)
    elif KIND == "continuous_bernoulli":
        log_p = continuous_bernoulli(x, first, PTX_LEVEL)
    elif KIND == "poisson":
        log_p = poisson(x, first, PTX_LEVEL)
    elif KIND == "gaussian" or KIND == "log_normal":
        logvar = clamped(second, low, high, CLAMP, PTX_LEVEL)
        data = tl.log(x) if KIND == "log_normal" else x
        distance = data - first
        log_p = -0.5 * (distance * distance * tl.exp(-logvar) + logvar) - HALF_LOG_2_PI
        if KIND == "log_normal":
            log_p -= tl.where(data < LEAST_LOG, LEAST_LOG, data)
    elif KIND == "laplace":
        logscale = clamped(second, low, high, CLAMP, PTX_LEVEL)
        log_p = -tl.abs(x - first) * tl.exp(-logscale) - logscale - LN_2
    elif KIND == "scaled_bernoulli":
        log_p = scaled_bernoulli(x, first, second, third)
    else:
        log_p = negative_binomial(x, first, second, PTX_LEVEL)
        if KIND == "zero_inflated_negative_binomial":
            zero = is_zero(x)
            log_p = tl.where(zero, softplus(log_p - third), log_p) - softplus(tl.where(zero, -third, third))
    return log_p


@triton.jit
def within(gradient, given, low, high, CLAMP: tl.constexpr):
    """A gradient, 0 where the clamp holds, whatever came in."""
    return tl.where((given < low) | (given > high), 0.0, gradient) if CLAMP == "hard" else gradient


@triton.jit
def slopes(
    x, first, second, third, low, high, KIND: tl.constexpr, CLAMP: tl.constexpr, PTX_LEVEL: tl.constexpr
):  # fmt: skip
    """Derivatives of log p by its parameters, before the clamp (`within`); 0 for those that the kind does not have."""
    of_second, of_third = 0.0, 0.0
    if KIND == "bernoulli":
        of_first = x - sigmoid(first, PTX_LEVEL)
    elif KIND == "continuous_bernoulli":
        of_first = continuous_bernoulli_slope(x, first, PTX_LEVEL)
    elif KIND == "poisson":
        of_first = x - exp(first)
    elif KIND == "gaussian" or KIND == "log_normal":
        distance = (tl.log(x) if KIND == "log_normal" else x) - first
        of_first = distance * tl.exp(-clamped(second, low, high, CLAMP, PTX_LEVEL))
        of_second = 0.5 * (distance * of_first - 1.0)
    elif KIND == "laplace":
        distance = x - first
        inverse = tl.exp(-clamped(second, low, high, CLAMP, PTX_LEVEL))
        # A distance of 0 or NaN is its own sign.
        of_first = tl.where(distance > 0.0, 1.0, tl.where(distance < 0.0, -1.0, distance)) * inverse
        of_second = tl.abs(distance) * inverse - 1.0
    elif KIND == "scaled_bernoulli":
        of_first, of_second, of_third = scaled_bernoulli_slopes(x, first, second, third)
    else:
        of_first, of_second, log_zero = negative_binomial_slopes(x, first, second, PTX_LEVEL)
        if KIND == "zero_inflated_negative_binomial":
            zero = is_zero(x)
            # The part of a zero's probability that is the negative binomial's.
            counted = tl.where(zero, sigmoid(log_zero - third, PTX_LEVEL), 1.0)
            of_third = tl.where(zero, sigmoid(-third, PTX_LEVEL) - counted, -sigmoid(third, PTX_LEVEL))
            of_first, of_second = counted * of_first, counted * of_second
    return of_first, of_second, of_third


@triton.constexpr_function
def harmless(kind, index):
    """A parameter to compute with where there is none to load."""
    return 1.0 if index == 1 and kind.endswith("negative_binomial") else 0.0


@triton.jit
def load_data(
    pointers, strides, at, KIND: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """A tile of x and of each parameter, 0 for one that the kind does not have."""
    x = load_tile(pointers[0], strides[0], at, TILES)
    first = load_tile(pointers[1], strides[1], at, TILES)
    second, third = 0.0, 0.0
    if SECOND != ABSENT:
        second = load_shared(pointers[2], strides[2], at, SECOND, TILES, harmless(KIND, 1))
    if THIRD != ABSENT:
        third = load_shared(pointers[3], strides[3], at, THIRD, TILES, harmless(KIND, 2))
    return x, first, second, third
