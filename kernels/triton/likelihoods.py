"""Log-likelihoods of each coordinate (`fastvae.kernels.likelihood_spec` has the formulas) and their derivatives.

The second and third parameter may each be there for every row, once for all rows, or as one element: a tile of it then
has one row, or one element, and what depends on it alone is computed once for them.

Counts. With s = t + eps, a = t (t + 1 where that is less than 1), b = x + a, c = x + 2 and the S of `special`, log p of
a negative binomial is put together so that nothing large cancels, neither where t is large nor where counts are:

    log p = t log((x s/a + s) / (s + m)) + x log(b (m + eps) / (c (s + m)))
            + 2 - log(2 pi)/2 + 1/2 log(a / (b c)) + log(Q(t) Q(x + 1) / Q(x + t)) + S(1/b) - S(1/a) - S(1/c)

with Q(y) = y / (y + 1), which of t and x + t is there only if t is less than 1. At x = 0 the first term is
-t log1p(m / s), and all there is. Near 1 its logarithm comes from the ratio less 1, (x s/a - m) / (s + m). That
logarithm is in the derivative by t, too.

Zeros take the way of other counts, and are selected at its end. A branch would be for a whole tile, and no tile of 512
counts is all zero where more than one count in a hundred is not.

From PTX_LEVEL 1 on, the logarithm that x multiplies is lg2: off by x 2^-22 where m is near x, as it is for large counts
that a model fits, else by 2 units in the last place. Plain float32, which rounds lgamma(x + t) and lgamma(x + 1), is
off by more from x = 10 on.
"""

import triton
import triton.language as tl

from .parameterisation import clamped, log, reciprocal, sigmoid, softplus
from .special import (
    HALF_LOG_2_PI,
    exp,
    log_factorial,
    log_ratio,
    stirling,
    stirling_slope,
)
from .tiles import ABSENT, load_shared, load_tile

EPS: tl.constexpr = tl.constexpr(1e-8)
LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)


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
def log_of_means(x, mean, s, part, inverse):
    """log((x s/a + s) / (s + m)); ``part`` is s/a, ``inverse`` 1 / (s + m)."""
    return log_ratio((x * part + s) * inverse, (x * part - mean) * inverse)


@triton.jit
def negative_binomial(x, mean, theta, PTX_LEVEL: tl.constexpr):
    """log p: n where x is 0."""
    few, s, a, inverse_a, part = theta_terms(theta, PTX_LEVEL)
    of_theta = log(tl.sqrt(a) * tl.where(few, theta * inverse_a, 1.0), PTX_LEVEL)
    of_theta = of_theta - stirling(inverse_a) + (2.0 - HALF_LOG_2_PI)

    inverse = reciprocal(s + mean, PTX_LEVEL)
    b, c = x + a, x + 2.0
    both = reciprocal(b * c, PTX_LEVEL)  # one division for two
    inverse_b, inverse_c = c * both, b * both
    shift = (x + 1.0) * inverse_c
    shift = tl.where(few, shift * b * reciprocal(x + theta, PTX_LEVEL), shift)
    counted = x * log(b * inverse_c * ((mean + EPS) * inverse), PTX_LEVEL)
    counted += 0.5 * log(shift * shift * both, PTX_LEVEL) + stirling(inverse_b) - stirling(inverse_c) + of_theta
    return theta * log_of_means(x, mean, s, part, inverse) + tl.where(is_zero(x), 0.0, counted)


@triton.jit
def negative_binomial_slopes(x, mean, theta, PTX_LEVEL: tl.constexpr):
    """Derivatives by mean and theta, and the logarithm that t multiplies."""
    few, s, a, inverse_a, part = theta_terms(theta, PTX_LEVEL)
    inverse = reciprocal(s + mean, PTX_LEVEL)
    of_mean = theta * inverse * ((x - (mean + EPS)) * reciprocal(mean + EPS, PTX_LEVEL))
    logarithm = log_of_means(x, mean, s, part, inverse)
    shift = x * reciprocal(theta, PTX_LEVEL) * reciprocal(x + theta, PTX_LEVEL)  # 1/t - 1/(x + t)
    counted = stirling_slope(reciprocal(x + a, PTX_LEVEL)) - stirling_slope(inverse_a) + tl.where(few, shift, 0.0)
    at_zero = logarithm + mean * inverse * (theta * reciprocal(s, PTX_LEVEL))
    return of_mean, at_zero + tl.where(is_zero(x), 0.0, counted - x * inverse), logarithm


@triton.jit
def log_of_probability(p, excess):
    """log p, at least -100, from p and p - 1, of which the one that is exact counts."""
    subnormal = p < 1.1754944e-38
    log_p = log_ratio(tl.where(subnormal, p * 4294967296.0, p), excess) - tl.where(subnormal, 32 * LOG_2, 0.0)
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
        log_p = x * first - exp(first) - tl.where(is_zero(x), 0.0, log_factorial(x, PTX_LEVEL))
    elif KIND == "gaussian":
        logvar = clamped(second, low, high, CLAMP, PTX_LEVEL)
        distance = x - first
        log_p = -0.5 * (distance * distance * tl.exp(-logvar) + logvar) - HALF_LOG_2_PI
    elif KIND == "laplace":
        logscale = clamped(second, low, high, CLAMP, PTX_LEVEL)
        log_p = -tl.abs(x - first) * tl.exp(-logscale) - logscale - LOG_2
    elif KIND == "scaled_bernoulli":
        log_p = scaled_bernoulli(x, first, second, third)
    else:
        log_p = negative_binomial(x, first, second, PTX_LEVEL)
        if KIND == "zero_inflated_negative_binomial":
            zero = is_zero(x)
            log_p = tl.where(zero, softplus(log_p - third), log_p) - softplus(tl.where(zero, -third, third))
    return log_p


@triton.jit
def within(slope, given, low, high, CLAMP: tl.constexpr):
    """A derivative, 0 where the clamp holds."""
    return tl.where((given < low) | (given > high), 0.0, slope) if CLAMP == "hard" else slope


@triton.jit
def slopes(
    x, first, second, third, low, high, KIND: tl.constexpr, CLAMP: tl.constexpr, PTX_LEVEL: tl.constexpr
):  # fmt: skip
    """Derivatives of log p by its parameters; 0 for those that the kind does not have."""
    of_second, of_third = 0.0, 0.0
    if KIND == "bernoulli":
        of_first = x - sigmoid(first, PTX_LEVEL)
    elif KIND == "continuous_bernoulli":
        of_first = continuous_bernoulli_slope(x, first, PTX_LEVEL)
    elif KIND == "poisson":
        of_first = x - exp(first)
    elif KIND == "gaussian":
        of_first = (x - first) * tl.exp(-clamped(second, low, high, CLAMP, PTX_LEVEL))
        of_second = within(0.5 * ((x - first) * of_first - 1.0), second, low, high, CLAMP)
    elif KIND == "laplace":
        distance = x - first
        inverse = tl.exp(-clamped(second, low, high, CLAMP, PTX_LEVEL))
        # A distance of 0 or NaN is its own sign.
        of_first = tl.where(distance > 0.0, 1.0, tl.where(distance < 0.0, -1.0, distance)) * inverse
        of_second = within(tl.abs(distance) * inverse - 1.0, second, low, high, CLAMP)
    elif KIND == "scaled_bernoulli":
        of_first, of_second, of_third = scaled_bernoulli_slopes(x, first, second, third)
    else:
        of_first, of_second, logarithm = negative_binomial_slopes(x, first, second, PTX_LEVEL)
        if KIND == "zero_inflated_negative_binomial":
            zero = is_zero(x)
            # The part of a zero's probability that is the negative binomial's.
            counted = tl.where(zero, sigmoid(second * logarithm - third, PTX_LEVEL), 1.0)
            of_third = tl.where(zero, sigmoid(-third, PTX_LEVEL) - counted, -sigmoid(third, PTX_LEVEL))
            of_first, of_second = counted * of_first, counted * of_second
    return of_first, of_second, of_third


@triton.constexpr_function
def harmless(kind, index):
    """A parameter to compute with where there is none to load."""
    return 1.0 if index == 1 and kind.endswith("negative_binomial") else 0.0


@triton.jit
def load_data(
    pointers, strides, row, column, inner, inside, inside_event,
    KIND: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr,
    PTX_LEVEL: tl.constexpr,
):  # fmt: skip
    """A tile of x and of each parameter, 0 for one that the kind does not have."""
    x = load_tile(pointers[0], strides[0], row, column, inner, inside, UNIT, TWO_DIMS, PTX_LEVEL)
    first = load_tile(pointers[1], strides[1], row, column, inner, inside, UNIT, TWO_DIMS, PTX_LEVEL)
    second, third = 0.0, 0.0
    if SECOND != ABSENT:
        second = load_shared(
            pointers[2], strides[2], row, column, inner, inside, inside_event, SECOND, UNIT, TWO_DIMS, PTX_LEVEL,
            harmless(KIND, 1)
        )  # fmt: skip
    if THIRD != ABSENT:
        third = load_shared(
            pointers[3], strides[3], row, column, inner, inside, inside_event, THIRD, UNIT, TWO_DIMS, PTX_LEVEL,
            harmless(KIND, 2)
        )  # fmt: skip
    return x, first, second, third
