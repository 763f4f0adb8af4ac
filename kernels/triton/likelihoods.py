"""Log-likelihoods of each coordinate (`fastvae.kernels.likelihoods` has the formulas): a kernel forward, one backward.

A program shares out its rows and columns as `gaussian` and `latents` have them, with DOWN where gradients are summed
over the batch. The second and third parameter may each be there for every row (FULL), once for all of them (SHARED), or
as ONE element: a tile of it then has one row, or one element, and what depends on it alone is computed once for them.

Counts. With s = t + eps, a = t (t + 1 where that is less than 1), b = x + a, c = x + 2 and the S of `special`, log p of
a negative binomial is put together so that nothing large cancels, neither where t is large nor where counts are:

    log p = t log((x s/a + s) / (s + m)) + x log(b (m + eps) / (c (s + m)))
            + 2 - log(2 pi)/2 + 1/2 log(a / (b c)) + log(Q(t) Q(x + 1) / Q(x + t)) + S(1/b) - S(1/a) - S(1/c)

with Q(y) = y / (y + 1), which of t and x + t is there only if t is less than 1. At x = 0 the first term is
-t log1p(m / s), and all there is. Near 1 its logarithm comes from the ratio less 1, (x s/a - m) / (s + m). That
logarithm is in the derivative by t, too.

Zeros take the way of other counts, and are selected at its end. A branch would be for a whole tile, and no tile of 512
counts is all zero where more than one count in a hundred is not.

With HARDWARE the logarithm that x multiplies is lg2: off by x 2^-22 where m is near x, as it is for large counts that a
model fits, else by 2 units in the last place. Plain float32, which rounds lgamma(x + t) and lgamma(x + 1), is off by
more from x = 10 on.
"""

import triton
import triton.language as tl

from .functions import load
from .gaussian import ELEMENTWISE, MEAN, SUMS, positions
from .latents import event_of, load_prior, share, store_columns, store_tile, tile_at
from .parameterisation import clamped, log, reciprocal, sigmoid, softplus
from .special import (
    HALF_LOG_2_PI,
    exp,
    log_factorial,
    log_ratio,
    stirling,
    stirling_slope,
)

EPS: tl.constexpr = tl.constexpr(1e-8)
LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def is_zero(x):
    return tl.abs(x) < EPS


@triton.jit
def continuous_bernoulli(x, logits, HARDWARE: tl.constexpr):
    """(x - 1/2) l - log(sinh(l/2) / (l/2)), from its series where |l| < 1.

    With HARDWARE, the logarithm beyond is off by 2.3e-7: it is of 1.58 or more.
    """
    size = tl.abs(logits)
    square = logits * logits
    s = 1 / 181440 - square * (1 / 9676800)
    s = 1 / 2880 - square * s
    near = (x - 0.5) * logits - square * (1 / 24 - square * s)
    beyond = log(size * reciprocal(1.0 - tl.exp(-size), HARDWARE), HARDWARE)
    return tl.where(size < 1.0, near, x * logits - tl.maximum(logits, 0.0) + beyond)


@triton.jit
def continuous_bernoulli_slope(x, logits, HARDWARE: tl.constexpr):
    square = logits * logits
    s = 1 / 30240 - square * (1 / 1209600)
    s = 1 / 720 - square * s
    near = x - 0.5 - logits * (1 / 12 - square * s)
    e = tl.exp(-tl.abs(logits))
    tail = e * reciprocal(1.0 - e, HARDWARE)
    beyond = x - tl.where(logits > 0.0, 1.0 + tail, -tail) + reciprocal(logits, HARDWARE)
    return tl.where(square < 1.0, near, beyond)


@triton.jit
def theta_terms(theta, HARDWARE: tl.constexpr):
    """Whether t is less than 1; s, a, 1/a, s/a."""
    few = theta < 1.0
    s = theta + EPS
    a = tl.where(few, theta + 1.0, theta)
    inverse = reciprocal(a, HARDWARE)
    return few, s, a, inverse, tl.where(few, s * inverse, 1.0)


@triton.jit
def log_of_means(x, mean, s, part, inverse):
    """log((x s/a + s) / (s + m)); ``part`` is s/a, ``inverse`` 1 / (s + m)."""
    return log_ratio((x * part + s) * inverse, (x * part - mean) * inverse)


@triton.jit
def negative_binomial(x, mean, theta, HARDWARE: tl.constexpr):
    """log p: n where x is 0."""
    few, s, a, inverse_a, part = theta_terms(theta, HARDWARE)
    of_theta = log(tl.sqrt(a) * tl.where(few, theta * inverse_a, 1.0), HARDWARE)
    of_theta = of_theta - stirling(inverse_a) + (2.0 - HALF_LOG_2_PI)

    inverse = reciprocal(s + mean, HARDWARE)
    b, c = x + a, x + 2.0
    both = reciprocal(b * c, HARDWARE)  # one division for two
    inverse_b, inverse_c = c * both, b * both
    shift = (x + 1.0) * inverse_c
    shift = tl.where(few, shift * b * reciprocal(x + theta, HARDWARE), shift)
    counted = x * log(b * inverse_c * ((mean + EPS) * inverse), HARDWARE)
    counted += 0.5 * log(shift * shift * both, HARDWARE) + stirling(inverse_b) - stirling(inverse_c) + of_theta
    return theta * log_of_means(x, mean, s, part, inverse) + tl.where(is_zero(x), 0.0, counted)


@triton.jit
def negative_binomial_slopes(x, mean, theta, HARDWARE: tl.constexpr):
    """Derivatives by mean and theta, and the logarithm that t multiplies."""
    few, s, a, inverse_a, part = theta_terms(theta, HARDWARE)
    inverse = reciprocal(s + mean, HARDWARE)
    of_mean = theta * inverse * ((x - (mean + EPS)) * reciprocal(mean + EPS, HARDWARE))
    logarithm = log_of_means(x, mean, s, part, inverse)
    shift = x * reciprocal(theta, HARDWARE) * reciprocal(x + theta, HARDWARE)  # 1/t - 1/(x + t)
    counted = stirling_slope(reciprocal(x + a, HARDWARE)) - stirling_slope(inverse_a) + tl.where(few, shift, 0.0)
    at_zero = logarithm + mean * inverse * (theta * reciprocal(s, HARDWARE))
    return of_mean, at_zero + tl.where(is_zero(x), 0.0, counted - x * inverse), logarithm


@triton.jit
def log_prob(
    x, first, second, third, KIND: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    """log p of a tile of x given its parameters, in nats."""
    if KIND == "bernoulli":
        log_p = x * first - softplus(first)
    elif KIND == "continuous_bernoulli":
        log_p = continuous_bernoulli(x, first, HARDWARE)
    elif KIND == "poisson":
        log_p = x * first - exp(first) - tl.where(is_zero(x), 0.0, log_factorial(x, HARDWARE))
    elif KIND == "gaussian":
        logvar = clamped(second, CLAMP, LOW, HIGH, HARDWARE)
        distance = x - first
        log_p = -0.5 * (distance * distance * tl.exp(-logvar) + logvar) - HALF_LOG_2_PI
    elif KIND == "laplace":
        logscale = clamped(second, CLAMP, LOW, HIGH, HARDWARE)
        log_p = -tl.abs(x - first) * tl.exp(-logscale) - logscale - LOG_2
    else:
        log_p = negative_binomial(x, first, second, HARDWARE)
        if KIND == "zero_inflated_negative_binomial":
            zero = is_zero(x)
            log_p = tl.where(zero, softplus(log_p - third), log_p) - softplus(tl.where(zero, -third, third))
    return log_p


@triton.jit
def within(slope, given, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """A derivative, 0 where the clamp holds."""
    return tl.where((given < LOW) | (given > HIGH), 0.0, slope) if CLAMP == "hard" else slope


@triton.jit
def slopes(
    x, first, second, third, KIND: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    """Derivatives of log p by its parameters; 0 for those that the kind does not have."""
    of_second, of_third = 0.0, 0.0
    if KIND == "bernoulli":
        of_first = x - sigmoid(first, HARDWARE)
    elif KIND == "continuous_bernoulli":
        of_first = continuous_bernoulli_slope(x, first, HARDWARE)
    elif KIND == "poisson":
        of_first = x - exp(first)
    elif KIND == "gaussian":
        of_first = (x - first) * tl.exp(-clamped(second, CLAMP, LOW, HIGH, HARDWARE))
        of_second = within(0.5 * ((x - first) * of_first - 1.0), second, CLAMP, LOW, HIGH)
    elif KIND == "laplace":
        distance = x - first
        inverse = tl.exp(-clamped(second, CLAMP, LOW, HIGH, HARDWARE))
        # A distance of 0 or NaN is its own sign.
        of_first = tl.where(distance > 0.0, 1.0, tl.where(distance < 0.0, -1.0, distance)) * inverse
        of_second = within(tl.abs(distance) * inverse - 1.0, second, CLAMP, LOW, HIGH)
    else:
        of_first, of_second, logarithm = negative_binomial_slopes(x, first, second, HARDWARE)
        if KIND == "zero_inflated_negative_binomial":
            zero = is_zero(x)
            # The part of a zero's probability that is the negative binomial's.
            counted = tl.where(zero, sigmoid(second * logarithm - third, HARDWARE), 1.0)
            of_third = tl.where(zero, sigmoid(-third, HARDWARE) - counted, -sigmoid(third, HARDWARE))
            of_first, of_second = counted * of_first, counted * of_second
    return of_first, of_second, of_third


@triton.constexpr_function
def harmless(kind, index):
    """A parameter to compute with where there is none to load."""
    return 1.0 if index == 1 and kind.endswith("negative_binomial") else 0.0


@triton.jit
def load_data(
    x_ptr, first_ptr, second_ptr, third_ptr, row, column,
    x_row, x_outer, x_inner, first_row, first_outer, first_inner,
    second_row, second_outer, second_inner, third_row, third_outer, third_inner,
    inner, inside, inside_event,
    KIND: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
    UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, MASKED: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """A tile of x and of each parameter, 0 for one that the kind does not have."""
    x_at = x_ptr + positions(row, column, x_row, x_outer, x_inner, inner, UNIT, TWO_DIMS)
    x = load(x_at, inside, MASKED, HARDWARE)
    first_at = first_ptr + positions(row, column, first_row, first_outer, first_inner, inner, UNIT, TWO_DIMS)
    first = load(first_at, inside, MASKED, HARDWARE)
    second, third = 0.0, 0.0
    if second_ptr is not None:
        second = load_prior(
            second_ptr, row, column, second_row, second_outer, second_inner, inner, inside, inside_event,
            harmless(KIND, 1), SECOND, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
    if third_ptr is not None:
        third = load_prior(
            third_ptr, row, column, third_row, third_outer, third_inner, inner, inside, inside_event,
            harmless(KIND, 2), THIRD, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
    return x, first, second, third


@triton.jit
def likelihood_forward_kernel(
    x_ptr,  # (rows, event), strided, of any dtype
    first_ptr,  # (rows, event), strided
    second_ptr,  # (rows, event), strided, or one row or one element of it; None if the kind has but one parameter
    third_ptr,  # likewise
    out_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows, programs a row) for SUMS
    rows,
    event_units,
    inner,
    tiles_a_program,
    x_row, x_outer, x_inner,
    first_row, first_outer, first_inner,
    second_row, second_outer, second_inner,
    third_row, third_outer, third_inner,
    out_row, out_outer, out_inner,
    OUT: tl.constexpr,
    KIND: tl.constexpr,
    CLAMP: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    begin, end = share(rows, event_units, tiles_a_program, False, UNIT, WIDE, ROWS, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, False, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < end) if MASKED else None
        inside = ((row < rows) & inside_event) if MASKED else None
        x, first, second, third = load_data(
            x_ptr, first_ptr, second_ptr, third_ptr, row, column,
            x_row, x_outer, x_inner, first_row, first_outer, first_inner,
            second_row, second_outer, second_inner, third_row, third_outer, third_inner,
            inner, inside, inside_event, KIND, SECOND, THIRD, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
        values = log_prob(x, first, second, third, KIND, CLAMP, LOW, HIGH, HARDWARE)
        if OUT == ELEMENTWISE:
            store_tile(out_ptr, values, row, column, out_row, out_outer, out_inner, inner, inside, UNIT, TWO_DIMS)
        else:
            sums += tl.where(inside, values, 0.0) if MASKED else values
    if OUT == SUMS:
        row, _ = tile_at(begin, False, WIDE, ROWS, COLUMNS)
        out_at = out_ptr + row * tl.num_programs(1) + tl.program_id(1)
        tl.store(out_at, tl.sum(sums, axis=1, keep_dims=True), mask=row < rows)


@triton.jit
def store_gradient(
    pointer, gradient, sums, row, column, row_units, outer_stride, inner_stride, inner, inside,
    SUM: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write a parameter's gradient if it is wanted, or add it to the sums of its columns, which are given back."""
    if SUM:
        sums += tl.where(inside, gradient, 0.0) if MASKED else gradient
    elif pointer is not None:
        store_tile(pointer, gradient, row, column, row_units, outer_stride, inner_stride, inner, inside, UNIT, TWO_DIMS)
    return sums


@triton.jit
def likelihood_backward_kernel(
    grad_ptr,  # (rows, event), strided, for ELEMENTWISE; (rows,) with stride grad_outer for SUMS; () for MEAN
    x_ptr,  # (rows, event), strided, of any dtype
    first_ptr,  # (rows, event), strided
    second_ptr,  # (rows, event), strided, or one row or one element of it; None if the kind has but one parameter
    third_ptr,  # likewise
    grad_first_ptr,  # (rows, event), strided; None if not wanted
    grad_second_ptr,  # (rows, event), strided, or for SUM_SECOND (programs a column, event); None if not wanted
    grad_third_ptr,  # likewise
    rows,
    event_units,
    inner,
    tiles_a_program,
    grad_row, grad_outer, grad_inner,
    x_row, x_outer, x_inner,
    first_row, first_outer, first_inner,
    second_row, second_outer, second_inner,
    third_row, third_outer, third_inner,
    grad_first_row, grad_first_outer, grad_first_inner,
    grad_second_row, grad_second_outer, grad_second_inner,
    grad_third_row, grad_third_outer, grad_third_inner,
    GRAD: tl.constexpr,
    SUM_SECOND: tl.constexpr,
    SUM_THIRD: tl.constexpr,
    KIND: tl.constexpr,
    CLAMP: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    DOWN: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
    HARDWARE: tl.constexpr,
):  # fmt: skip
    begin, end = share(rows, event_units, tiles_a_program, DOWN, UNIT, WIDE, ROWS, COLUMNS)
    event = event_of(event_units, UNIT, WIDE)
    if GRAD == MEAN:
        grad = tl.load(grad_ptr) / (rows * 1.0)  # a single row comes as a constant, which has no .to()
    second_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    third_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(begin, end, 1 if DOWN else COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, DOWN, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < event) if MASKED else None
        inside = ((row < rows) & inside_event) if MASKED else None
        x, first, second, third = load_data(
            x_ptr, first_ptr, second_ptr, third_ptr, row, column,
            x_row, x_outer, x_inner, first_row, first_outer, first_inner,
            second_row, second_outer, second_inner, third_row, third_outer, third_inner,
            inner, inside, inside_event, KIND, SECOND, THIRD, UNIT, TWO_DIMS, MASKED, HARDWARE
        )  # fmt: skip
        if GRAD == ELEMENTWISE:
            grad_at = positions(row, column, grad_row, grad_outer, grad_inner, inner, UNIT, TWO_DIMS)
            grad = load(grad_ptr + grad_at, inside, MASKED, HARDWARE)
        if GRAD == SUMS:
            grad = tl.load(grad_ptr + row * grad_outer, mask=row < rows, other=0.0)
        of_first, of_second, of_third = slopes(x, first, second, third, KIND, CLAMP, LOW, HIGH, HARDWARE)
        if grad_first_ptr is not None:
            store_tile(
                grad_first_ptr, grad * of_first, row, column, grad_first_row, grad_first_outer, grad_first_inner,
                inner, inside, UNIT, TWO_DIMS
            )  # fmt: skip
        second_sums = store_gradient(
            grad_second_ptr, grad * of_second, second_sums, row, column, grad_second_row, grad_second_outer,
            grad_second_inner, inner, inside, SUM_SECOND, UNIT, TWO_DIMS, MASKED
        )  # fmt: skip
        third_sums = store_gradient(
            grad_third_ptr, grad * of_third, third_sums, row, column, grad_third_row, grad_third_outer,
            grad_third_inner, inner, inside, SUM_THIRD, UNIT, TWO_DIMS, MASKED
        )  # fmt: skip
    if SUM_SECOND:
        store_columns(grad_second_ptr, second_sums, event_units, UNIT, WIDE, COLUMNS)
    if SUM_THIRD:
        store_columns(grad_third_ptr, third_sums, event_units, UNIT, WIDE, COLUMNS)
