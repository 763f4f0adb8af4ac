"""Backward of the mixture of pixels. `mixture` and `tiles` explain its words; the event is the pixels."""

import triton
import triton.language as tl

from .mixture import channel_parameters, joint_log_prob, load_levels, load_number, mix, slopes_of_bin, store_number
from .parameterisation import reciprocal
from .tiles import ELEMENTWISE, load_row_gradient, load_tile, mask_of, positions, share, tile_at


@triton.jit(do_not_specialize=["rows", "tiles_a_program"])
def mixture_backward_kernel(
    grad_ptr,  # (rows, pixels), strided, for ELEMENTWISE; (rows,) for SUMS, of an outer stride; () for MEAN
    x_ptr,  # (rows, CHANNELS, pixels), strided
    parameter_ptr,  # (rows, channels of it, pixels), strided
    grad_parameter_ptr,  # likewise
    low: tl.float32,  # of log scales
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
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO_DIMS: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    UNROLL: tl.constexpr,
    PTX_LEVEL: tl.constexpr,
):
    begin, end = share(rows, event_units, tiles_a_program, False, UNIT, WIDE, ROWS, COLUMNS, ONE_TILE)
    if GRAD != ELEMENTWISE:
        rows_here = tile_at(begin, False, WIDE, ROWS, COLUMNS)[0]
        grad = load_row_gradient(grad_ptr, grad_strides, rows_here, rows, MASK_ROWS, GRAD)
    for step in tl.range(begin, end, COLUMNS, loop_unroll_factor=UNROLL):
        row, first_column = tile_at(step, False, WIDE, ROWS, COLUMNS)
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        inside_event = (column < end) if MASK_COLUMNS else None
        inside = mask_of(row, rows, inside_event, MASK_ROWS)
        x_at = x_ptr + positions(row, column, x_strides, inner, UNIT, TWO_DIMS)
        red, green, blue = load_levels(x_at, x_channel, inside, CHANNELS, UNIT, PTX_LEVEL)
        parameter_at = parameter_ptr + positions(row, column, parameter_strides, inner, UNIT, TWO_DIMS)
        to = grad_parameter_ptr + positions(row, column, grad_parameter_strides, inner, UNIT, TWO_DIMS)
        if GRAD == ELEMENTWISE:
            grad = load_tile(grad_ptr, grad_strides, row, column, inner, inside, UNIT, TWO_DIMS, PTX_LEVEL)
        largest_logit, sum_of_logits, largest, total = mix(
            parameter_at, components, parameter_channel, red, green, blue, low, inside, ROWS, COLUMNS, CHANNELS, UNIT,
            PTX_LEVEL
        )  # fmt: skip
        by_total, by_sum_of_logits = reciprocal(total, PTX_LEVEL), reciprocal(sum_of_logits, PTX_LEVEL)
        for m in tl.range(0, components):
            logit = (
                load_number(parameter_at, 0, m, components, parameter_channel, inside, UNIT, PTX_LEVEL) - largest_logit
            )
            mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, k_0, k_1, k_2 = channel_parameters(
                parameter_at, m, components, parameter_channel, red, green, inside, CHANNELS, UNIT, PTX_LEVEL
            )
            joint = joint_log_prob(
                logit, red, green, blue, mean_0, mean_1, mean_2, scale_0, scale_1, scale_2, low, CHANNELS, PTX_LEVEL
            )
            weight = tl.exp(joint - largest) * by_total  # p(component | x)
            of_logit = grad * (weight - tl.exp(logit) * by_sum_of_logits)
            store_number(to, of_logit, 0, m, components, grad_parameter_channel, inside, UNIT)
            weight *= grad
            of_mean, of_scale = slopes_of_bin(red, mean_0, scale_0, low, PTX_LEVEL)
            store_number(to, weight * of_mean, 1, m, components, grad_parameter_channel, inside, UNIT)
            store_number(
                to,
                tl.where(scale_0 < low, 0.0, weight * of_scale),
                2,
                m,
                components,
                grad_parameter_channel,
                inside,
                UNIT,
            )
            if CHANNELS == 3:
                of_mean, of_scale = slopes_of_bin(green, mean_1, scale_1, low, PTX_LEVEL)
                of_mean *= weight
                of_k = of_mean * red * k_0
                store_number(to, of_k, 3, m, components, grad_parameter_channel, inside, UNIT)
                store_number(to, of_mean, 4, m, components, grad_parameter_channel, inside, UNIT)
                store_number(
                    to,
                    tl.where(scale_1 < low, 0.0, weight * of_scale),
                    5,
                    m,
                    components,
                    grad_parameter_channel,
                    inside,
                    UNIT,
                )
                of_mean, of_scale = slopes_of_bin(blue, mean_2, scale_2, low, PTX_LEVEL)
                of_mean *= weight
                of_k = of_mean * red * k_1
                store_number(to, of_k, 6, m, components, grad_parameter_channel, inside, UNIT)
                store_number(to, of_mean, 7, m, components, grad_parameter_channel, inside, UNIT)
                store_number(
                    to,
                    tl.where(scale_2 < low, 0.0, weight * of_scale),
                    8,
                    m,
                    components,
                    grad_parameter_channel,
                    inside,
                    UNIT,
                )
                of_k = of_mean * green * k_2
                store_number(to, of_k, 9, m, components, grad_parameter_channel, inside, UNIT)
