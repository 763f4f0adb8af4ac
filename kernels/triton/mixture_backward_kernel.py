"""Backward of the mixture of pixels. `mixture` and `tiles` explain its words; the event is the pixels."""

import triton
import triton.language as tl

from .mixture import (
    Channels,
    channel_parameters,
    joint_log_prob,
    load_levels,
    load_number,
    mix,
    slopes_of_bin,
    store_number,
)
from .parameterisation import reciprocal
from .tiles import ELEMENTWISE, load_row_gradient, load_tile, place_at, positions, share, tile_at


@triton.jit(do_not_specialize=["rows", "tiles_a_program"])
def mixture_backward_kernel(
    grad_ptr,  # (rows, pixels), strided, for ELEMENTWISE; (rows,) for SUMS, of an outer stride; () for MEAN
    x_ptr,  # (rows, CHANNELS, pixels), strided
    parameter_ptr,  # (rows, channels of it, pixels), strided
    grad_parameter_ptr,  # likewise
    low: tl.float32,  # of log scales
    high: tl.float32,  # of no use
    rows,
    tiles_a_program,
    event_units,
    inner,
    components,
    x_channel,  # from a channel to the next, divided by UNIT
    parameter_channel,
    grad_parameter_channel,
    grad_strides,
    x_strides,
    parameter_strides,
    grad_parameter_strides,
    GRAD: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):
    PTX_LEVEL: tl.constexpr = TILES.ptx_level
    begin, end = share(rows, event_units, tiles_a_program, TILES)
    if GRAD != ELEMENTWISE:
        rows_here = tile_at(begin, TILES)[0]
        grad = load_row_gradient(grad_ptr, grad_strides, rows_here, rows, GRAD, TILES)
    for step in tl.range(begin, end, TILES.columns, loop_unroll_factor=TILES.unroll):
        at = place_at(step, rows, end, inner, TILES)
        levels = load_levels(x_ptr + positions(at, x_strides, TILES), x_channel, at, CHANNELS, TILES)
        pointer = parameter_ptr + positions(at, parameter_strides, TILES)
        parameter = Channels(pointer, parameter_channel, components, at)
        pointer = grad_parameter_ptr + positions(at, grad_parameter_strides, TILES)
        to = Channels(pointer, grad_parameter_channel, components, at)
        if GRAD == ELEMENTWISE:
            grad = load_tile(grad_ptr, grad_strides, at, TILES)
        largest_logit, sum_of_logits, largest, total = mix(parameter, levels, low, CHANNELS, TILES)
        by_total, by_sum_of_logits = reciprocal(total, PTX_LEVEL), reciprocal(sum_of_logits, PTX_LEVEL)
        for m in tl.range(0, components):
            logit = load_number(parameter, 0, m, TILES) - largest_logit
            means, scales, slopes = channel_parameters(parameter, m, levels, CHANNELS, TILES)
            joint = joint_log_prob(logit, levels, means, scales, low, CHANNELS, PTX_LEVEL)
            weight = tl.exp(joint - largest) * by_total  # p(component | x)
            store_number(to, grad * (weight - tl.exp(logit) * by_sum_of_logits), 0, m, TILES)
            weight *= grad
            for channel in tl.static_range(CHANNELS):
                of_mean, of_scale = slopes_of_bin(levels[channel], means[channel], scales[channel], low, PTX_LEVEL)
                of_mean *= weight
                if channel > 0:
                    store_number(to, of_mean * levels[0] * slopes[channel - 1], 3 * channel, m, TILES)
                store_number(to, of_mean, 3 * channel + 1, m, TILES)
                of_scale = tl.where(scales[channel] < low, 0.0, weight * of_scale)
                store_number(to, of_scale, 3 * channel + 2, m, TILES)
                if channel == 2:
                    store_number(to, of_mean * levels[1] * slopes[2], 9, m, TILES)
