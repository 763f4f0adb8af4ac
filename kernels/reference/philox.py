"""The noise stream in PyTorch integer arithmetic: Philox4x32-10 (Salmon et al., SC'11) and Box-Muller.

Words are held in int64 tensors, because PyTorch multiplies 32-bit words exactly only there: the product of two words
wraps at 2^64, its low half is the low word and, shifted down by 32, its high half is the high word.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from .scratch import scratch

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK32 = 0xFFFFFFFF

# How many counters are computed at a time: enough that PyTorch shares the work among threads, few enough for the cache.
BLOCK_COUNTERS = 262144

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten Philox rounds over int64 tensors of words in [0, 2^32); the results are scratch memory.

    The first word may differ by column only, shape (1, columns), and the second by row only, shape (rows, 1), if the
    other two are the same everywhere, shape (1, 1): two rounds then run mostly on vectors, by broadcasting.
    """
    k0, k1 = key
    shape = torch.broadcast_shapes(*(word.shape for word in counter))
    spare = [_scratch_words(f"product {i}", shape, counter[0]) for i in range(4)]
    c0, c1, c2, c3 = counter
    for done in range(ROUNDS):
        # A product keeps its high word above the low one; only what is multiplied next must be clean of it.
        if done < 2:
            product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
            c0, c2 = (product1 >> 32) ^ c1, (product0 >> 32) ^ c3
        else:
            if done == 2:  # from here on words differ everywhere, and the work is done in place
                c0, c2 = (_scratch_words(name, shape, word).copy_(word) for name, word in (("c0", c0), ("c2", c2)))
            product0 = torch.mul(c0, MULTIPLIERS[0], out=spare[0])
            product1 = torch.mul(c2, MULTIPLIERS[1], out=spare[1])
            torch.bitwise_right_shift(product1, 32, out=c0).bitwise_xor_(c1)
            torch.bitwise_right_shift(product0, 32, out=c2).bitwise_xor_(c3)
            spare = spare[2:] + spare[:2]  # these products are the next round's low words
        c0.bitwise_xor_(k0).bitwise_and_(MASK32)
        c2.bitwise_xor_(k1).bitwise_and_(MASK32)
        c1, c3 = product1, product0
        k0 = (k0 + KEY_INCREMENTS[0]) & MASK32
        k1 = (k1 + KEY_INCREMENTS[1]) & MASK32
    return c0, c1.bitwise_and_(MASK32), c2, c3.bitwise_and_(MASK32)


def _scratch_words(name: str, shape: torch.Size, like: Tensor) -> Tensor:
    return scratch(f"philox {name}", shape, torch.int64, like.device)


def box_muller(words: Words, dtype: torch.dtype) -> Tensor:
    """Four standard normals a counter: shape (*words, 4), in ``dtype``, in scratch memory; the logarithm in float64.

    u = (w_even + 0.5) 2^-32,  t = 2 pi w_odd 2^-32,  r = sqrt(-2 ln u),  (r cos t, r sin t)
    """
    shape, device = words[0].shape, words[0].device
    normals = scratch("normals", (*shape, 4), dtype, device)
    log_u = scratch("log u", shape, torch.float64, device)
    radius, angle, turned = (scratch(name, shape, dtype, device) for name in ("radius", "angle", "turned"))
    signed = scratch("signed words", shape, torch.int32, device)
    for pair in (0, 2):
        # u - 1 is exact in float64, both where u is tiny and where it is nearly 1; log1p is PyTorch's fastest.
        log_u.copy_(words[pair]).mul_(2.0**-32).add_(2.0**-33 - 1.0).log1p_()
        radius.copy_(log_u).mul_(-2.0).sqrt_()
        # As a signed word the angle is in [-pi, pi), where float32 holds it best; cos and sin do not mind the turn.
        angle.copy_(signed.copy_(words[pair + 1])).mul_(2.0 * math.pi * 2.0**-32)
        torch.mul(radius, torch.cos(angle, out=turned), out=normals[..., pair])
        torch.mul(radius, torch.sin(angle, out=turned), out=normals[..., pair + 1])
    return normals


class _Recent(threading.local):
    """The block of noise that this thread drew last, in its scratch memory, and what determines it."""

    key: tuple[object, ...] | None = None
    eps: Tensor


_recent = _Recent()


class Blocks:
    """The noise of a (rows, event) array, cut into blocks whose temporaries stay in the cache.

    On the CPU the last one is still in scratch memory when it is asked for again: backward draws what forward drew, and
    going through the blocks in reverse it need not compute what it meets first.

    >>> stream = Blocks(torch.tensor([7]), 2, 5, 0, torch.float32, torch.device("cpu"))
    >>> [(rows, columns, stream.noise(rows, columns).shape) for rows, columns in stream]
    [(slice(0, 2, None), slice(0, 5, None), torch.Size([2, 5]))]
    """

    def __init__(
        self,
        seed: Tensor | None,
        rows: int,
        event: int,
        row_offset: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        value = 0 if seed is None else int(seed.item())
        self.key = (value & MASK32, (value >> 32) & MASK32)
        self.device = device
        # Apple's GPUs have no float64, which the logarithm needs.
        self.drawn_on = torch.device("cpu") if device.type == "mps" else device
        self.rows, self.event, self.row_offset = rows, event, row_offset
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def __reversed__(self) -> Iterator[tuple[slice, slice]]:
        return reversed(list(self))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Slices of rows and columns. Columns start at multiples of four; no block crosses row 2^32 or a multiple."""
        quads = -(-self.event // 4)
        rows_at_once = max(1, BLOCK_COUNTERS // max(1, quads))
        row = 0
        while quads and row < self.rows:
            before_carry = (1 << 32) - ((self.row_offset + row) & MASK32)
            stop = min(self.rows, row + min(rows_at_once, before_carry))
            for start in range(0, self.event, 4 * BLOCK_COUNTERS):
                yield slice(row, stop), slice(start, min(self.event, start + 4 * BLOCK_COUNTERS))
            row = stop

    def words(self, rows: slice, columns: slice) -> Words:
        """The words of one block of counters, each of shape (rows, quads)."""
        first = self.row_offset + rows.start
        quad, low = columns.start // 4, first & MASK32

        def constant(value: int) -> Tensor:
            return torch.full((1, 1), value, dtype=torch.int64, device=self.drawn_on)

        column = torch.arange(quad, -(-columns.stop // 4), device=self.drawn_on).unsqueeze(0)
        row = torch.arange(low, low + rows.stop - rows.start, device=self.drawn_on).unsqueeze(1)
        return philox4x32((column, row, constant(first >> 32), constant(0)), self.key)

    def noise(self, rows: slice, columns: slice) -> Tensor:
        """eps of one block, float32 or float64. Not to be written to: it may be asked for again."""
        key = (self.key, self.row_offset + rows.start, rows.stop - rows.start, columns.start, columns.stop, self.dtype)
        if _recent.key == key and self.drawn_on.type == "cpu":
            return _recent.eps.to(self.device)
        _recent.key = None
        eps = box_muller(self.words(rows, columns), self.dtype).flatten(1)[:, : columns.stop - columns.start]
        if self.drawn_on.type == "cpu":
            _recent.key, _recent.eps = key, eps
        return eps.to(self.device)


def noise(seed: Tensor, shape: tuple[int, ...], row_offset: int, dtype: torch.dtype) -> Tensor:
    """eps of the stream, computed in float32 (float64 for float64) and rounded to ``dtype``."""
    eps = torch.empty(shape, dtype=dtype, device=seed.device)
    rows, event = shape[0], math.prod(shape[1:])
    flat = eps.view(rows, event)
    stream = Blocks(seed, rows, event, row_offset, dtype, seed.device)
    for block in stream:
        flat[block].copy_(stream.noise(*block))
    return eps
