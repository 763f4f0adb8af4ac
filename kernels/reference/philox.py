"""The noise stream in PyTorch integer arithmetic: Philox4x32-10 (Salmon et al., SC'11) and Box-Muller.

Words are held in int64 tensors, because PyTorch multiplies 32-bit words exactly only there: the product of two words
wraps at 2^64, its low half is the low word and, shifted down by 32, its high half is the high word.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..layout import compute_dtype
from .scratch import scratch

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK32 = 0xFFFFFFFF

# How many counters are computed at a time: enough that PyTorch shares the work among threads, few enough for the cache.
BLOCK_COUNTERS = 262144

Words = tuple[Tensor, Tensor, Tensor, Tensor]


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The two multipliers, and the increments of the key's two words before each round."""
    with torch.inference_mode(False):  # tensors of inference mode could not be used outside of it
        rounds = torch.arange(ROUNDS, device=device).reshape(-1, 1, 1, 1)
        words = [torch.tensor(pair, device=device).reshape(2, 1, 1) for pair in (MULTIPLIERS, KEY_INCREMENTS)]
    return words[0], rounds * words[1]


def philox4x32(counter: Words, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Ten Philox rounds over int64 tensors of words in [0, 2^32), which broadcast to one matrix.

    The first two rounds are done before they broadcast: where a word differs by row or by column only, on vectors.

    Returns:
        Words 0 and 2, and words 1 and 3: each of shape (2, *matrix), in scratch memory.
    """
    shape, device = torch.broadcast_shapes(*(word.shape for word in counter)), counter[0].device
    multipliers, increments = _constants(device)
    keys = (increments + torch.tensor(key, device=device).reshape(2, 1, 1)) & MASK32
    c0, c1, c2, c3 = counter
    for k0, k1 in keys[:2].unbind():
        # A product keeps its high word above the low one; only what is multiplied next must be clean of it.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((product1 >> 32) ^ c1 ^ k0[0]) & MASK32, ((product0 >> 32) ^ c3 ^ k1[0]) & MASK32
        c1, c3 = product1, product0
    # From here on both products of a round are one operation, in place.
    even, product, other = (scratch(f"philox {name}", (2, *shape), torch.int64, device) for name in ("c0 c2", "p", "q"))
    even[0], even[1] = c0, c2
    even0, even1 = even.unbind()
    for round_key in keys[2:].unbind():
        product0, product1 = torch.mul(even, multipliers, out=product).unbind()
        torch.bitwise_right_shift(product1, 32, out=even0).bitwise_xor_(c1)
        torch.bitwise_right_shift(product0, 32, out=even1).bitwise_xor_(c3)
        even.bitwise_xor_(round_key).bitwise_and_(MASK32)
        c1, c3 = product1, product0
        product, other = other, product
    odd0, odd1 = product.unbind()
    torch.bitwise_and(c1, MASK32, out=odd0)
    torch.bitwise_and(c3, MASK32, out=odd1)
    return even, product


def box_muller(even: Tensor, odd: Tensor, dtype: torch.dtype) -> Tensor:
    """Four standard normals a counter: (rows, 4 quads), in ``dtype``, in scratch memory; the logarithm in float64.

    u = (w_even + 0.5) 2^-32,  t = 2 pi w_odd 2^-32,  r = sqrt(-2 ln u),  (r cos t, r sin t)
    """
    shape, device = even.shape, even.device
    _, rows, quads = shape
    normals = scratch("normals", (rows, quads, 2, 2), dtype, device)
    by_pair = normals.permute(2, 0, 1, 3)
    # u - 1 is exact in float64, both where u is tiny and where it is nearly 1; log1p is PyTorch's fastest.
    log_u = scratch("log u", shape, torch.float64, device)
    log_u.copy_(even).mul_(2.0**-32).add_(2.0**-33 - 1.0).log1p_()
    radius, angle, turned = (scratch(name, shape, dtype, device) for name in ("radius", "angle", "turned"))
    radius.copy_(log_u).mul_(-2.0).sqrt_()
    # As a signed word the angle is in [-pi, pi), where float32 holds it best; cos and sin do not mind the turn.
    signed = scratch("signed words", shape, torch.int32, device).copy_(odd)
    angle.copy_(signed).mul_(2.0 * math.pi * 2.0**-32)
    torch.mul(radius, torch.cos(angle, out=turned), out=by_pair[..., 0])
    torch.mul(radius, torch.sin(angle, out=turned), out=by_pair[..., 1])
    return normals.view(rows, 4 * quads)


class _Recent(threading.local):
    """The block of noise that this thread drew last, in its scratch memory, and what determines it."""

    key: tuple[object, ...] | None = None
    eps: Tensor


_recent = _Recent()


class NoiseBlocks:
    """The noise of a (B, *event) array, a block of rows at a time, so that temporaries stay small.

    On the CPU the last block is still in scratch memory when it is asked for again: a backward pass that goes through
    blocks as the forward pass did need not compute the noise of a small latent twice.

    >>> stream = NoiseBlocks(torch.tensor([7]), (2, 5), 0, torch.float32, torch.device("cpu"))
    >>> [(rows, stream.noise(rows).shape) for rows in stream.row_blocks()]
    [(slice(0, 2, None), torch.Size([2, 5]))]
    """

    def __init__(
        self, seed: Tensor | None, shape: Sequence[int], row_offset: int, dtype: torch.dtype, device: torch.device
    ):
        value = 0 if seed is None else int(seed.item())
        self.key = (value & MASK32, (value >> 32) & MASK32)
        self.device = device
        # Apple's GPUs have no float64, which the logarithm needs.
        self.drawn_on = torch.device("cpu") if device.type == "mps" else device
        self.shape, self.row_offset, self.dtype = shape, row_offset, compute_dtype(dtype)
        self.event = math.prod(shape[1:])

    def row_blocks(self) -> Iterator[slice]:
        """Slices of rows, none of which crosses a multiple of 2^32 in the stream."""
        quads = -(-self.event // 4)
        rows_at_once = max(1, BLOCK_COUNTERS // max(1, quads))
        row = 0
        while row < self.shape[0]:
            before_carry = (1 << 32) - ((self.row_offset + row) & MASK32)
            stop = min(self.shape[0], row + min(rows_at_once, before_carry))
            yield slice(row, stop)
            row = stop

    def words(self, rows: slice, columns: slice, draw: int = 0) -> tuple[Tensor, Tensor]:
        """The words of one block of counters, (2, rows, quads) twice: see `philox4x32`."""
        first = self.row_offset + rows.start
        quad, low = columns.start // 4, first & MASK32

        def constant(value: int) -> Tensor:
            return torch.full((1, 1), value, dtype=torch.int64, device=self.drawn_on)

        column = torch.arange(quad, -(-columns.stop // 4), device=self.drawn_on).unsqueeze(0)
        row = torch.arange(low, low + rows.stop - rows.start, device=self.drawn_on).unsqueeze(1)
        return philox4x32((column, row, constant(first >> 32), constant(draw)), self.key)

    def noise(self, rows: slice, draw: int = 0) -> Tensor:
        """eps of a block of rows, (rows, *event), float32 or float64. Read-only: it may be asked for again."""
        shape = (rows.stop - rows.start, *self.shape[1:])
        if self.event <= 4 * BLOCK_COUNTERS:
            return self._columns(rows, slice(0, self.event), draw).reshape(shape)
        eps = torch.empty((shape[0], self.event), dtype=self.dtype, device=self.device)
        for start in range(0, self.event, 4 * BLOCK_COUNTERS):
            columns = slice(start, min(self.event, start + 4 * BLOCK_COUNTERS))
            eps[:, columns] = self._columns(rows, columns, draw)
        return eps.view(shape)

    def _columns(self, rows: slice, columns: slice, draw: int) -> Tensor:
        """Columns from a multiple of four on."""
        first, many = self.row_offset + rows.start, rows.stop - rows.start
        key = (self.key, draw, first, many, columns.start, columns.stop, self.dtype)
        if _recent.key == key and self.drawn_on.type == "cpu":
            return _recent.eps.to(self.device)
        _recent.key = None
        if columns.stop == columns.start:
            return torch.empty((many, 0), dtype=self.dtype, device=self.device)
        eps = box_muller(*self.words(rows, columns, draw), self.dtype)[:, : columns.stop - columns.start]
        if self.drawn_on.type == "cpu":
            _recent.key, _recent.eps = key, eps
        return eps.to(self.device)


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype, draw: int = 0) -> Tensor:
    """eps of one draw, computed in float32 (float64 for float64) and rounded to ``dtype``."""
    eps = torch.empty(shape, dtype=dtype, device=seed.device)
    stream = NoiseBlocks(seed, shape, row_offset, dtype, seed.device)
    for rows in stream.row_blocks():
        eps[rows] = stream.noise(rows, draw)
    return eps
