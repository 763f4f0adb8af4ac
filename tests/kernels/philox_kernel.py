"""Kernels that lay open the inside of the Triton backend: Philox words of given counters, Box-Muller of given words."""

import triton
import triton.language as tl

from fastvae.kernels.triton.philox import cos_sin_of, philox4x32, radius_of


@triton.jit
def words_kernel(counter_ptr, word_ptr, key_ptr, count, BLOCK: tl.constexpr):
    """counter, word: (count, 4) int64; key: (2,) int64."""
    index = tl.arange(0, BLOCK)
    inside = index < count
    c0 = tl.load(counter_ptr + 4 * index, mask=inside, other=0).to(tl.uint32)
    c1 = tl.load(counter_ptr + 4 * index + 1, mask=inside, other=0).to(tl.uint32)
    c2 = tl.load(counter_ptr + 4 * index + 2, mask=inside, other=0).to(tl.uint32)
    c3 = tl.load(counter_ptr + 4 * index + 3, mask=inside, other=0).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        c0, c1, c2, c3, tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32), False
    )
    tl.store(word_ptr + 4 * index, w0.to(tl.int64), mask=inside)
    tl.store(word_ptr + 4 * index + 1, w1.to(tl.int64), mask=inside)
    tl.store(word_ptr + 4 * index + 2, w2.to(tl.int64), mask=inside)
    tl.store(word_ptr + 4 * index + 3, w3.to(tl.int64), mask=inside)


@triton.jit
def box_muller_kernel(word_ptr, out_ptr):
    """word: an even and an odd word, int64; out: r cos t and r sin t."""
    index = tl.arange(0, 2)
    zero = index * 0
    even = tl.load(word_ptr + zero).to(tl.uint32)
    odd = tl.load(word_ptr + 1 + zero).to(tl.uint32)
    cosine, sine = cos_sin_of(odd)
    radius = radius_of(even, 1.0)
    tl.store(out_ptr + index, tl.where(index == 0, radius * cosine, radius * sine))
