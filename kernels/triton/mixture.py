"""The discretized logistic mixture of pixels (`fastvae.kernels.likelihoods` has the formula): forward and backward.

A program goes through the components of each tile of pixels, and keeps of them what a logsumexp needs: the largest so
far, and the sum relative to it. Backward goes through them twice, since a component's weight needs them all.

Of a component, the logarithms of all channels are put together before they are taken. With w = a - b, the channel c has

    log P_c = T_c + log w + log F_c
    T_c     = min(a, 0) - max(b, 0)
    F_c     = (1 - exp(-w)) / w / ((1 + exp(-|a|)) (1 + exp(-|b|)))

but where w >= 1/2, which takes log w and 1/w out, and at the lowest and highest level, which take the infinite one of a
and b out, and w. F_c is never less than 0.09, nor the product of three less than float32 has. With HARDWARE the
logarithm of that is off by 2 units in the last place, or by 2^-22 where it is more than 1/2. The other words are those
of `gaussian`.
"""

import triton
import triton.language as tl

from .functions import load, series
from .gaussian import ELEMENTWISE, MEAN, SUMS, positions
from .latents import share, store_tile, tile_at
from .parameterisation import log, reciprocal, sigmoid, tanh

HALF_A_LEVEL: tl.constexpr = tl.constexpr(1.0 / 255.0)
# Between the highest level but one and the highest, in [-1, 1].
EXTREME: tl.constexpr = tl.constexpr(1.0 - 1.0 / 255.0)
LOG_A_LEVEL: tl.constexpr = tl.constexpr(-4.848116352010439)  # log(2 / 255)
# Below every logarithm that float32 has, but finite: the difference of two of them is 0.
LOWEST: tl.constexpr = tl.constexpr(-3e38)


@triton.jit
def level_of(pointer, inside, MASKED: tl.constexpr, HARDWARE: tl.constexpr):
    """A tile of a channel in [-1, 1]."""
    x = load(pointer, inside, MASKED, HARDWARE)
    return x * 2.0 - 1.0 if pointer.dtype.element_ty.is_floating() else (x * 2.0 - 255.0) * (1.0 / 255.0)


@triton.jit
def load_levels(pointer, channel_units, inside, CHANNELS: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
                HARDWARE: tl.constexpr):  # fmt: skip
    """Red, green and blue of a tile of pixels; with one channel, the last two are 0."""
    red, green, blue = level_of(pointer, inside, MASKED, HARDWARE), 0.0, 0.0
    if CHANNELS == 3:
        channel = tl.cast(channel_units, tl.int64) * UNIT
        green = level_of(pointer + channel, inside, MASKED, HARDWARE)
        blue = level_of(pointer + 2 * channel, inside, MASKED, HARDWARE)
    return red, green, blue


@triton.jit
def load_number(pointer, number, component, components, channel_units, inside, UNIT: tl.constexpr,
                MASKED: tl.constexpr, HARDWARE: tl.constexpr):  # fmt: skip
    """A tile of a component's logit (number 0), or of the mean, log scale or coefficient that stands there."""
    channel = (tl.cast(components, tl.int64) * number + component) * channel_units * UNIT
    return load(pointer + channel, inside, MASKED, HARDWARE)


@triton.jit
def store_number(pointer, values, number, component, components, channel_units, inside, UNIT: tl.constexpr):
    channel = (tl.cast(components, tl.int64) * number + component) * channel_units * UNIT
    tl.store(pointer + channel, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def bin_of(level, mean, log_scale, LOW: tl.constexpr):
    """1 / scale and w; a and b; which of them are infinite; 1 - exp(-w) over w, or itself; whether it is over w."""
    inverse = tl.exp(-tl.where(log_scale < LOW, LOW, log_scale))
    centred = level - mean
    width = 2.0 * HALF_A_LEVEL * inverse
    upper, lower = (centred + HALF_A_LEVEL) * inverse, (centred - HALF_A_LEVEL) * inverse
    narrow = width < 0.5
    part = tl.where(narrow, 1.0 - width * series(-width), 1.0 - tl.exp(-width))
    return inverse, width, upper, lower, level > EXTREME, level < -EXTREME, part, narrow


@triton.jit
def log_prob_of_bin(level, mean, log_scale, LOW: tl.constexpr, HARDWARE: tl.constexpr):
    """T, log w and F of a channel."""
    _, _, upper, lower, highest, lowest, part, narrow = bin_of(level, mean, log_scale, LOW)
    below = tl.where(highest, 1.0, 1.0 + tl.exp(-tl.abs(upper)))
    above = tl.where(lowest, 1.0, 1.0 + tl.exp(-tl.abs(lower)))
    term = tl.where(highest, 0.0, tl.minimum(upper, 0.0)) - tl.where(lowest, 0.0, tl.maximum(lower, 0.0))
    edge = highest | lowest
    log_width = LOG_A_LEVEL - tl.where(log_scale < LOW, LOW, log_scale)
    log_width = tl.where(edge, 0.0, tl.where(narrow, log_width, 0.0))
    return term, log_width, tl.where(edge, 1.0, part) * reciprocal(below * above, HARDWARE)


@triton.jit
def channel_parameters(
    pointer, component, components, channel_units, red, green, inside,
    CHANNELS: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Means and log scales of red, green and blue, and tanh of the three coefficients; 0 for what is not there."""
    mean_0 = load_number(pointer, 1, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
    scale_0 = load_number(pointer, 2, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
    mean_1, mean_2, scale_1, scale_2, k_0, k_1, k_2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if CHANNELS == 3:
        k_0 = load_number(pointer, 3, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        mean_1 = load_number(pointer, 4, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        scale_1 = load_number(pointer, 5, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        k_1 = load_number(pointer, 6, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        mean_2 = load_number(pointer, 7, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        scale_2 = load_number(pointer, 8, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        k_2 = load_number(pointer, 9, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        k_0, k_1, k_2 = tanh(k_0, HARDWARE), tanh(k_1, HARDWARE), tanh(k_2, HARDWARE)
        mean_1 += k_0 * red
        mean_2 += k_1 * red + k_2 * green
    return mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, k_0, k_1, k_2


@triton.jit
def joint_log_prob(
    logit, red, green, blue, mean_0, mean_1, mean_2, scale_0, scale_1, scale_2,
    CHANNELS: tl.constexpr, LOW: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """The logit plus log P of all channels: T, which may be large, comes last, so that it alone is rounded as such."""
    term, log_width, factor = log_prob_of_bin(red, mean_0, scale_0, LOW, HARDWARE)
    if CHANNELS == 3:
        green_term, green_log_width, green_factor = log_prob_of_bin(green, mean_1, scale_1, LOW, HARDWARE)
        blue_term, blue_log_width, blue_factor = log_prob_of_bin(blue, mean_2, scale_2, LOW, HARDWARE)
        term += green_term + blue_term
        log_width += green_log_width + blue_log_width
        factor *= green_factor * blue_factor
    return term + (logit + log_width + log(factor, HARDWARE))


@triton.jit
def add_exp(largest, total, value):
    """The largest of the values so far, and the sum of their exponentials relative to it, with one value more."""
    larger = tl.maximum(largest, value)
    return larger, total * tl.exp(largest - larger) + tl.exp(value - larger)


@triton.jit
def mix(
    pointer, components, channel_units, red, green, blue, inside,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, LOW: tl.constexpr, UNIT: tl.constexpr,
    MASKED: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Over components of the logits, and of the logits plus log P: the largest, and the sum as `add_exp` has it."""
    largest_logit = tl.full((ROWS, COLUMNS), LOWEST, tl.float32)
    largest = largest_logit
    sum_of_logits = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = sum_of_logits
    for component in tl.range(0, components):
        logit = load_number(pointer, 0, component, components, channel_units, inside, UNIT, MASKED, HARDWARE)
        mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, _, _, _ = channel_parameters(
            pointer, component, components, channel_units, red, green, inside, CHANNELS, UNIT, MASKED, HARDWARE
        )
        joint = joint_log_prob(
            logit, red, green, blue, mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, CHANNELS, LOW, HARDWARE
        )
        largest_logit, sum_of_logits = add_exp(largest_logit, sum_of_logits, logit)
        largest, total = add_exp(largest, total, joint)
    return largest_logit, sum_of_logits, largest, total


@triton.jit
def mixture_forward_kernel(
    x_ptr,  # (rows, CHANNELS, pixels), strided
    parameter_ptr,  # (rows, channels of it, pixels), strided
    out_ptr,  # (rows, pixels), strided, for ELEMENTWISE; (rows, programs a row) for SUMS
    rows,
    event_units,
    inner,
    tiles_a_program,
    components,
    x_channel, parameter_channel,  # from a channel to the next, divided by UNIT
    x_row, x_outer, x_inner,
    parameter_row, parameter_outer, parameter_inner,
    out_row, out_outer, out_inner,
    OUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOW: tl.constexpr,
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
        inside = ((row < rows) & (column < end)) if MASKED else None
        x_at = x_ptr + positions(row, column, x_row, x_outer, x_inner, inner, UNIT, TWO_DIMS)
        red, green, blue = load_levels(x_at, x_channel, inside, CHANNELS, UNIT, MASKED, HARDWARE)
        parameter_at = parameter_ptr + positions(
            row, column, parameter_row, parameter_outer, parameter_inner, inner, UNIT, TWO_DIMS
        )
        largest_logit, sum_of_logits, largest, total = mix(
            parameter_at, components, parameter_channel, red, green, blue, inside, ROWS, COLUMNS, CHANNELS, LOW, UNIT,
            MASKED, HARDWARE
        )  # fmt: skip
        values = (largest - largest_logit) + (log(total, HARDWARE) - log(sum_of_logits, HARDWARE))
        if OUT == ELEMENTWISE:
            store_tile(out_ptr, values, row, column, out_row, out_outer, out_inner, inner, inside, UNIT, TWO_DIMS)
        else:
            sums += tl.where(inside, values, 0.0) if MASKED else values
    if OUT == SUMS:
        row, _ = tile_at(begin, False, WIDE, ROWS, COLUMNS)
        out_at = out_ptr + row * tl.num_programs(1) + tl.program_id(1)
        tl.store(out_at, tl.sum(sums, axis=1, keep_dims=True), mask=row < rows)


@triton.jit
def slopes_of_bin(level, mean, log_scale, LOW: tl.constexpr, HARDWARE: tl.constexpr):
    """Derivatives of log P of a channel by its mean and log scale."""
    inverse, width, upper, lower, highest, lowest, part, narrow = bin_of(level, mean, log_scale, LOW)
    by_upper = tl.where(highest, 0.0, sigmoid(-upper, HARDWARE))
    by_lower = tl.where(lowest, 0.0, sigmoid(lower, HARDWARE))
    # w / expm1(w)
    rest = tl.exp(-width) * reciprocal(part, HARDWARE)
    by_log_width = tl.where(highest | lowest, 0.0, tl.where(narrow, rest, width * rest))
    of_scale = by_lower * lower - by_upper * upper - by_log_width
    return (by_lower - by_upper) * inverse, tl.where(log_scale < LOW, 0.0, of_scale)


@triton.jit
def mixture_backward_kernel(
    grad_ptr,  # (rows, pixels), strided, for ELEMENTWISE; (rows,) with stride grad_outer for SUMS; () for MEAN
    x_ptr,  # (rows, CHANNELS, pixels), strided
    parameter_ptr,  # (rows, channels of it, pixels), strided
    grad_parameter_ptr,  # likewise
    rows,
    event_units,
    inner,
    tiles_a_program,
    components,
    x_channel, parameter_channel, grad_parameter_channel,  # from a channel to the next, divided by UNIT
    grad_row, grad_outer, grad_inner,
    x_row, x_outer, x_inner,
    parameter_row, parameter_outer, parameter_inner,
    grad_parameter_row, grad_parameter_outer, grad_parameter_inner,
    GRAD: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOW: tl.constexpr,
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
    if GRAD == MEAN:
        grad = tl.load(grad_ptr) / (rows * 1.0)  # a single row comes as a constant, which has no .to()
    for step in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, False, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside = ((row < rows) & (column < end)) if MASKED else None
        x_at = x_ptr + positions(row, column, x_row, x_outer, x_inner, inner, UNIT, TWO_DIMS)
        red, green, blue = load_levels(x_at, x_channel, inside, CHANNELS, UNIT, MASKED, HARDWARE)
        parameter_at = parameter_ptr + positions(
            row, column, parameter_row, parameter_outer, parameter_inner, inner, UNIT, TWO_DIMS
        )
        to = grad_parameter_ptr + positions(
            row, column, grad_parameter_row, grad_parameter_outer, grad_parameter_inner, inner, UNIT, TWO_DIMS
        )
        if GRAD == ELEMENTWISE:
            grad_at = positions(row, column, grad_row, grad_outer, grad_inner, inner, UNIT, TWO_DIMS)
            grad = load(grad_ptr + grad_at, inside, MASKED, HARDWARE)
        if GRAD == SUMS:
            grad = tl.load(grad_ptr + row * grad_outer, mask=row < rows, other=0.0)
        largest_logit, sum_of_logits, largest, total = mix(
            parameter_at, components, parameter_channel, red, green, blue, inside, ROWS, COLUMNS, CHANNELS, LOW, UNIT,
            MASKED, HARDWARE
        )  # fmt: skip
        by_total, by_sum_of_logits = reciprocal(total, HARDWARE), reciprocal(sum_of_logits, HARDWARE)
        for m in tl.range(0, components):
            logit = load_number(parameter_at, 0, m, components, parameter_channel, inside, UNIT, MASKED, HARDWARE)
            mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, k_0, k_1, k_2 = channel_parameters(
                parameter_at, m, components, parameter_channel, red, green, inside, CHANNELS, UNIT, MASKED, HARDWARE
            )
            joint = joint_log_prob(
                logit, red, green, blue, mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, CHANNELS, LOW, HARDWARE
            )
            weight = tl.exp(joint - largest) * by_total  # p(component | x)
            of_logit = grad * (weight - tl.exp(logit - largest_logit) * by_sum_of_logits)
            store_number(to, of_logit, 0, m, components, grad_parameter_channel, inside, UNIT)
            weight *= grad
            of_mean, of_scale = slopes_of_bin(red, mean_0, scale_0, LOW, HARDWARE)
            store_number(to, weight * of_mean, 1, m, components, grad_parameter_channel, inside, UNIT)
            store_number(to, weight * of_scale, 2, m, components, grad_parameter_channel, inside, UNIT)
            if CHANNELS == 3:
                of_mean, of_scale = slopes_of_bin(green, mean_1, scale_1, LOW, HARDWARE)
                of_mean *= weight
                of_k = of_mean * red * (1.0 - k_0 * k_0)
                store_number(to, of_k, 3, m, components, grad_parameter_channel, inside, UNIT)
                store_number(to, of_mean, 4, m, components, grad_parameter_channel, inside, UNIT)
                store_number(to, weight * of_scale, 5, m, components, grad_parameter_channel, inside, UNIT)
                of_mean, of_scale = slopes_of_bin(blue, mean_2, scale_2, LOW, HARDWARE)
                of_mean *= weight
                of_k = of_mean * red * (1.0 - k_1 * k_1)
                store_number(to, of_k, 6, m, components, grad_parameter_channel, inside, UNIT)
                store_number(to, of_mean, 7, m, components, grad_parameter_channel, inside, UNIT)
                store_number(to, weight * of_scale, 8, m, components, grad_parameter_channel, inside, UNIT)
                of_k = of_mean * green * (1.0 - k_2 * k_2)
                store_number(to, of_k, 9, m, components, grad_parameter_channel, inside, UNIT)
