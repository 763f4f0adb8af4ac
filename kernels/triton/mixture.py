"""The discretized logistic mixture of pixels (`fastvae.kernels.likelihood_spec` has the formula).

A kernel goes through the components of each tile of pixels, and keeps of them what a logsumexp needs: the largest so
far, and the sum relative to it. Backward goes through them twice, since a component's weight needs them all.

Of a component, the logarithms of all channels are put together before they are taken. With w = a - b, the channel c has

    log P_c = T_c + log w + log F_c
    T_c     = min(a, 0) - max(b, 0)
    F_c     = (1 - exp(-w)) / w / ((1 + exp(-|a|)) (1 + exp(-|b|)))

but where w >= 1/2, which takes log w and 1/w out, and at the lowest and highest level, which take the infinite one of a
and b out, and w. F_c is never less than 0.09, nor the product of three less than float32 has. From PTX_LEVEL 1 on, the
logarithm of that is off by 2 units in the last place, or by 2^-22 where it is more than 1/2.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .functions import series
from .parameterisation import log, reciprocal, sigmoid, tanh, tanh_slope
from .tiles import filled, load_masked, mask_of

HALF_A_LEVEL: tl.constexpr = tl.constexpr(1.0 / 255.0)
# Between the highest level but one and the highest, in [-1, 1].
EXTREME: tl.constexpr = tl.constexpr(1.0 - 1.0 / 255.0)
LOG_A_LEVEL: tl.constexpr = tl.constexpr(-4.848116352010439)  # log(2 / 255)
# Below every logarithm that float32 has, but finite: the difference of two of them is 0.
LOWEST: tl.constexpr = tl.constexpr(-3e38)


class Channels(NamedTuple):
    """Where the channels of the parameter stand for a tile of pixels, or those of its gradient."""

    pointer: Any  # to the first one
    units: Any  # from a channel to the next, divided by the unit
    components: Any
    at: Any  # the place of the tile


@triton.jit
def level_of(pointer, at, TILES: tl.constexpr):
    """A tile of a channel in [-1, 1]."""
    x = load_masked(pointer, mask_of(at, TILES), TILES.ptx_level)
    return x * 2.0 - 1.0 if pointer.dtype.element_ty.is_floating() else (x * 2.0 - 255.0) * (1.0 / 255.0)


@triton.jit
def load_levels(pointer, channel_units, at, CHANNELS: tl.constexpr, TILES: tl.constexpr):
    """Red, green and blue of a tile of pixels; with one channel, the last two are 0."""
    red, green, blue = level_of(pointer, at, TILES), 0.0, 0.0
    if CHANNELS == 3:
        channel = tl.cast(channel_units, tl.int64) * TILES.unit
        green = level_of(pointer + channel, at, TILES)
        blue = level_of(pointer + 2 * channel, at, TILES)
    return red, green, blue


@triton.jit
def number_at(of, number, component, TILES: tl.constexpr):
    """Of a component its logit (number 0), or the mean, log scale or coefficient that stands there."""
    return of.pointer + (tl.cast(of.components, tl.int64) * number + component) * of.units * TILES.unit


@triton.jit
def load_number(of, number, component, TILES: tl.constexpr):
    return load_masked(number_at(of, number, component, TILES), mask_of(of.at, TILES), TILES.ptx_level)


@triton.jit
def store_number(to, values, number, component, TILES: tl.constexpr):
    pointer = number_at(to, number, component, TILES)
    tl.store(pointer, values.to(pointer.dtype.element_ty), mask=mask_of(to.at, TILES))


@triton.jit
def bin_of(level, mean, log_scale, low):
    """1 / scale and w; a and b; which of them are infinite; 1 - exp(-w) over w, or itself; whether it is over w."""
    inverse = tl.exp(-tl.where(log_scale < low, low, log_scale))
    centred = level - mean
    width = 2.0 * HALF_A_LEVEL * inverse
    upper, lower = (centred + HALF_A_LEVEL) * inverse, (centred - HALF_A_LEVEL) * inverse
    narrow = width < 0.5
    part = tl.where(narrow, 1.0 - width * series(-width), 1.0 - tl.exp(-width))
    return inverse, width, upper, lower, level > EXTREME, level < -EXTREME, part, narrow


@triton.jit
def log_prob_of_bin(level, mean, log_scale, low, PTX_LEVEL: tl.constexpr):
    """T, log w and F of a channel."""
    _, _, upper, lower, highest, lowest, part, narrow = bin_of(level, mean, log_scale, low)
    below = tl.where(highest, 1.0, 1.0 + tl.exp(-tl.abs(upper)))
    above = tl.where(lowest, 1.0, 1.0 + tl.exp(-tl.abs(lower)))
    term = tl.where(highest, 0.0, tl.minimum(upper, 0.0)) - tl.where(lowest, 0.0, tl.maximum(lower, 0.0))
    edge = highest | lowest
    log_width = LOG_A_LEVEL - tl.where(log_scale < low, low, log_scale)
    log_width = tl.where(edge, 0.0, tl.where(narrow, log_width, 0.0))
    return term, log_width, tl.where(edge, 1.0, part) * reciprocal(below * above, PTX_LEVEL)


@triton.jit
def channel_parameters(of, component, levels, CHANNELS: tl.constexpr, TILES: tl.constexpr):
    """Means and log scales of red, green and blue; derivatives of tanh of the coefficients; 0 for what is not there."""
    mean_0, scale_0 = load_number(of, 1, component, TILES), load_number(of, 2, component, TILES)
    mean_1, mean_2, scale_1, scale_2, k_0, k_1, k_2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if CHANNELS == 3:
        k_0 = load_number(of, 3, component, TILES)
        mean_1, scale_1 = load_number(of, 4, component, TILES), load_number(of, 5, component, TILES)
        k_1 = load_number(of, 6, component, TILES)
        mean_2, scale_2 = load_number(of, 7, component, TILES), load_number(of, 8, component, TILES)
        k_2 = load_number(of, 9, component, TILES)
        mean_1 += tanh(k_0, TILES.ptx_level) * levels[0]
        mean_2 += tanh(k_1, TILES.ptx_level) * levels[0] + tanh(k_2, TILES.ptx_level) * levels[1]
        k_0, k_1 = tanh_slope(k_0, TILES.ptx_level), tanh_slope(k_1, TILES.ptx_level)
        k_2 = tanh_slope(k_2, TILES.ptx_level)
    return (mean_0, mean_1, mean_2), (scale_0, scale_1, scale_2), (k_0, k_1, k_2)


@triton.jit
def joint_log_prob(logit, levels, means, scales, low, CHANNELS: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """The logit plus log P of all channels: T, which may be large, comes last, so that it alone is rounded as such."""
    LAST: tl.constexpr = CHANNELS - 1
    term, log_width, factor = log_prob_of_bin(levels[LAST], means[LAST], scales[LAST], low, PTX_LEVEL)
    for channel in tl.static_range(LAST - 1, -1, -1):
        more, wider, times = log_prob_of_bin(levels[channel], means[channel], scales[channel], low, PTX_LEVEL)
        term, log_width, factor = more + term, wider + log_width, times * factor
    return term + (logit + log_width + log(factor, PTX_LEVEL))


@triton.jit
def add_exp(largest, total, value):
    """The largest of the values so far, and the sum of their exponentials relative to it, with one value more."""
    larger = tl.maximum(largest, value)
    return larger, total * tl.exp(largest - larger) + tl.exp(value - larger)


@triton.jit
def mix(of, levels, low, CHANNELS: tl.constexpr, TILES: tl.constexpr):
    """Over components of the logits, and of the logits plus log P: the largest, and the sum as `add_exp` has it.

    The largest logit is found first, and log P is added to what a logit is less than it: what all logits have in common
    must not round the sums. So the largest sum of both is relative to it, too.
    """
    largest_logit = filled(LOWEST, TILES)
    for component in tl.range(0, of.components):
        largest_logit = tl.maximum(largest_logit, load_number(of, 0, component, TILES))
    largest = filled(LOWEST, TILES)
    sum_of_logits = filled(0.0, TILES)
    total = sum_of_logits
    for component in tl.range(0, of.components):
        logit = load_number(of, 0, component, TILES) - largest_logit
        means, scales, _ = channel_parameters(of, component, levels, CHANNELS, TILES)
        joint = joint_log_prob(logit, levels, means, scales, low, CHANNELS, TILES.ptx_level)
        sum_of_logits += tl.exp(logit)
        largest, total = add_exp(largest, total, joint)
    return largest_logit, sum_of_logits, largest, total


@triton.jit
def slopes_of_bin(level, mean, log_scale, low, PTX_LEVEL: tl.constexpr):
    """Derivatives of log P of a channel by its mean and log scale, this one as if the latter had no bound."""
    inverse, width, upper, lower, highest, lowest, part, narrow = bin_of(level, mean, log_scale, low)
    by_upper = tl.where(highest, 0.0, sigmoid(-upper, PTX_LEVEL))
    by_lower = tl.where(lowest, 0.0, sigmoid(lower, PTX_LEVEL))
    # w / expm1(w)
    rest = tl.exp(-width) * reciprocal(part, PTX_LEVEL)
    by_log_width = tl.where(highest | lowest, 0.0, tl.where(narrow, rest, width * rest))
    return (by_lower - by_upper) * inverse, by_lower * lower - by_upper * upper - by_log_width
