"""log p of rows whose parameters are outputs of linear layers, and its gradients in the place of these outputs.

`fastvae.kernels.head_spec` has the formulas. A program works on one row, a tile at a time: of a softmax first its
sums, then log p and the derivatives, and where a softmax is, its outputs' gradients at the end.
"""

import triton
import triton.language as tl

from .likelihoods import harmless, log_prob, slopes, within
from .parameterisation import sigmoid, softplus
from .tiles import ONE, Place, load_masked, mask_of

LOWEST: tl.constexpr = tl.constexpr(-3e38)


@triton.jit
def load_parameter(
    pointer, stride, at, KIND: tl.constexpr, INDEX: tl.constexpr, ACTIVATION: tl.constexpr, EXTENT: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Outputs of a row, or what is given; 0 for a parameter that the kind does not have."""
    if ACTIVATION is None:
        values = tl.zeros_like(at.column).to(tl.float32)
    elif ACTIVATION != "given":
        values = load_masked(pointer + at.row * stride + at.column, mask_of(at, TILES), TILES.ptx_level)
    elif EXTENT == ONE:
        values = tl.load(pointer + tl.zeros_like(at.column)).to(tl.float32)
    else:
        values = load_masked(pointer + at.column, mask_of(at, TILES), TILES.ptx_level, harmless(KIND, INDEX))
    return values


@triton.jit
def activated(output, to_log_mean, KIND: tl.constexpr, ACTIVATION: tl.constexpr):
    """A parameter from outputs."""
    value = output
    if ACTIVATION == "softmax":
        value = output + to_log_mean
    if ACTIVATION == "softplus":
        value = softplus(value)
    elif ACTIVATION == "exp" or (ACTIVATION == "softmax" and KIND != "poisson"):
        value = tl.exp(value)
    return value


@triton.jit
def to_output(slope, output, value, KIND: tl.constexpr, ACTIVATION: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """The derivative by an output from that by the parameter; of a softmax, by the log mean."""
    if ACTIVATION == "softplus":
        slope = slope * sigmoid(output, PTX_LEVEL)
    elif ACTIVATION == "exp" or (ACTIVATION == "softmax" and KIND != "poisson"):
        slope = slope * value
    return slope


@triton.jit
def store_slope(
    pointer, sums_pointer, slope, output, value, stride, at, KIND: tl.constexpr, ACTIVATION: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """The gradient of an output in its place, that of what is given in a row of its own, to be summed."""
    if ACTIVATION == "given":
        if sums_pointer is not None:
            tl.store(sums_pointer + at.row * at.event + at.column, slope, mask=mask_of(at, TILES))
    elif ACTIVATION is not None:
        of_output = to_output(slope, output, value, KIND, ACTIVATION, TILES.ptx_level)
        pointers = pointer + at.row * stride + at.column
        tl.store(pointers, of_output.to(pointer.dtype.element_ty), mask=mask_of(at, TILES))


@triton.jit
def head_kernel(
    x_ptr,  # (x_rows, event), rows of x_row elements, of any dtype; the same for every x_rows rows of all others
    first_ptr,  # (rows, event), rows of first_row elements; also written if GRADIENTS
    second_ptr,  # likewise; or (event,) or one element, if it is given; None if the kind has no second parameter
    third_ptr,  # likewise
    library_ptr,  # (rows,), of a softmax
    grad_ptr,  # (rows,); None: 1 for each row
    log_prob_ptr,  # (rows,)
    slopes_ptr,  # (rows, event) to keep derivatives by log means in, of a softmax
    sum_second_ptr,  # (rows, event), the gradients of what is given; None if not wanted
    sum_third_ptr,  # likewise
    of_library_ptr,  # (rows,)
    low: tl.float32,
    high: tl.float32,
    event,
    x_rows,
    x_row,
    first_row,
    second_row,
    third_row,
    KIND: tl.constexpr,
    CLAMP: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    SECOND_EXTENT: tl.constexpr,
    THIRD_EXTENT: tl.constexpr,
    GRADIENTS: tl.constexpr,
    TILES: tl.constexpr,
):
    COLUMNS: tl.constexpr = TILES.columns
    PTX_LEVEL: tl.constexpr = TILES.ptx_level
    row = tl.program_id(0).to(tl.int64)
    x_ptr += (tl.program_id(0) % x_rows).to(tl.int64) * x_row
    columns = tl.arange(0, COLUMNS)
    log_sum, to_log_mean = 0.0, 0.0
    if FIRST == "softmax":
        largest = tl.full((COLUMNS,), LOWEST, tl.float32)
        sums = tl.zeros((COLUMNS,), tl.float32)
        for start in tl.range(0, event, COLUMNS):
            inside = start + columns < event
            output = load_masked(first_ptr + row * first_row + start + columns, inside, PTX_LEVEL, -float("inf"))
            larger = tl.maximum(largest, output)
            sums = sums * tl.exp(largest - larger) + tl.exp(output - larger)
            largest = larger
        of_row = tl.max(largest, 0)
        log_sum = of_row + tl.log(tl.sum(sums * tl.exp(largest - of_row), 0))
        to_log_mean = tl.log(tl.load(library_ptr + row)) - log_sum
    grad = 1.0
    if grad_ptr is not None:
        grad = tl.load(grad_ptr + row)
    log_probs = tl.zeros((COLUMNS,), tl.float32)
    totals = tl.zeros((COLUMNS,), tl.float32)
    for start in tl.range(0, event, COLUMNS):
        column = start + columns
        at = Place(row, start, column, None, None, event)
        inside = mask_of(at, TILES)
        x = load_masked(x_ptr + column, inside, PTX_LEVEL)
        a = load_parameter(first_ptr, first_row, at, KIND, 0, FIRST, None, TILES)
        b = load_parameter(second_ptr, second_row, at, KIND, 1, SECOND, SECOND_EXTENT, TILES)
        c = load_parameter(third_ptr, third_row, at, KIND, 2, THIRD, THIRD_EXTENT, TILES)
        first = activated(a, to_log_mean, KIND, FIRST)
        second, third = activated(b, 0.0, KIND, SECOND), activated(c, 0.0, KIND, THIRD)
        values = log_prob(x, first, second, third, low, high, KIND, CLAMP, PTX_LEVEL)
        log_probs += tl.where(inside, values, 0.0)
        if GRADIENTS:
            of_first, of_second, of_third = slopes(x, first, second, third, low, high, KIND, CLAMP, PTX_LEVEL)
            if FIRST == "softmax":
                by_log_mean = to_output(grad * of_first, a, first, KIND, FIRST, PTX_LEVEL)
                totals += tl.where(inside, by_log_mean, 0.0)
                tl.store(slopes_ptr + row * event + column, by_log_mean, mask=inside)
            else:
                of_first = grad * of_first
                store_slope(first_ptr, None, of_first, a, first, first_row, at, KIND, FIRST, TILES)
            of_second = within(grad * of_second, second, low, high, CLAMP)
            store_slope(second_ptr, sum_second_ptr, of_second, b, second, second_row, at, KIND, SECOND, TILES)
            store_slope(third_ptr, sum_third_ptr, grad * of_third, c, third, third_row, at, KIND, THIRD, TILES)
    tl.store(log_prob_ptr + row, tl.sum(log_probs, 0))
    if GRADIENTS and FIRST == "softmax":
        total = tl.sum(totals, 0)
        tl.store(of_library_ptr + row, total / tl.load(library_ptr + row))
        tl.debug_barrier()  # what one thread has kept, another one may read
        for start in tl.range(0, event, COLUMNS):
            column = start + columns
            inside = column < event
            output = load_masked(first_ptr + row * first_row + column, inside, PTX_LEVEL)
            slope = tl.load(slopes_ptr + row * event + column, mask=inside, other=0.0)
            of_output = slope - tl.exp(output - log_sum) * total
            tl.store(first_ptr + row * first_row + column, of_output.to(first_ptr.dtype.element_ty), mask=inside)
