"""Flat buffers that stand for a GPU's memory and refuse what a correct kernel never does, byte by byte.

An error: an access outside of every allocation or not aligned to its own size, a load of bytes that nothing wrote, a
store to what is only to be read, two blocks meeting in one byte, two threads storing different values to one byte, and,
in shared memory, two warps meeting in one byte with no barrier between.
"""

from __future__ import annotations

import numpy as np

from .parse import PtxError

NOBODY, MANY = -1, -2


class Memory:
    """Global memory: allocations far apart, at addresses that do not fit in 32 bits."""

    BASE = 0x7_0000_0000
    GAP = 4096
    name = "global memory"

    def __init__(self) -> None:
        self.data = np.zeros(0, np.uint8)
        self.accessible = np.zeros(0, bool)
        self.writable = np.zeros(0, bool)
        self.written = np.zeros(0, bool)
        self.writer = np.zeros(0, np.int64)  # the block, or NOBODY

    def allocate(self, size: int, past_alignment: int = 0) -> int:
        """The address of ``size`` new bytes, ``past_alignment`` past a multiple of 512; none of them accessible yet."""
        start = len(self.data) + self.GAP
        start += -start % 512 + past_alignment
        more = start + size + self.GAP - len(self.data)
        for name, filler in (("data", 0xA5), ("accessible", 0), ("writable", 0), ("written", 0), ("writer", NOBODY)):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full(more, filler, old.dtype)]))
        return self.BASE + start

    def view(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> np.ndarray:
        """The positions, shape (*shape, size), of the bytes of elements of ``size`` bytes; strides in elements."""
        at = np.full((1,) * len(shape), address - self.BASE, np.int64)
        for dim, (length, stride) in enumerate(zip(shape, strides, strict=True)):
            index = np.arange(length).reshape([-1 if d == dim else 1 for d in range(len(shape))])
            at = at + index * stride * size
        return at[..., None] + np.arange(size)

    def put(self, positions: np.ndarray, values: np.ndarray) -> None:
        """Input from outside the kernel: readable, not writable. Where positions repeat, the last value stays."""
        self.data[positions] = np.ascontiguousarray(values)[..., None].view(np.uint8)
        self.accessible[positions] = self.written[positions] = True

    def expect(self, positions: np.ndarray) -> None:
        """Room for output: to be written first."""
        self.accessible[positions] = self.writable[positions] = True

    def get(self, positions: np.ndarray, dtype: type) -> np.ndarray:
        """Values that the kernel must all have written."""
        if not self.written[positions].all():
            missing = np.count_nonzero(~self.written[positions].all(-1))
            raise PtxError(f"{missing} of {positions[..., 0].size} elements of an output were never written")
        return self.data[positions].view(dtype)[..., 0]

    def load(self, addresses: np.ndarray, size: int, block: int, threads: np.ndarray) -> np.ndarray:
        """The bytes, shape (threads, size)."""
        at = self._positions(addresses, size)
        if not self.written[at].all():
            raise PtxError(f"{self.name}: load of bytes that nothing wrote{self._first(~self.written[at])}")
        self._loaded(at, block, threads)
        return self.data[at]

    def store(self, addresses: np.ndarray, values: np.ndarray, block: int, threads: np.ndarray) -> None:
        """Store the bytes ``values``, shape (threads, size)."""
        at = self._positions(addresses, values.shape[1])
        if not self.writable[at].all():
            raise PtxError(f"{self.name}: store to memory that is only to be read{self._first(~self.writable[at])}")
        self._stored(at, block, threads)
        self.data[at] = values
        if not np.array_equal(self.data[at], values):
            raise PtxError(f"{self.name}: race: two threads of block {block} store different values to one address")
        self.written[at] = True

    def _positions(self, addresses: np.ndarray, size: int) -> np.ndarray:
        if (addresses % size).any():
            bad = addresses[addresses % size != 0][0]
            raise PtxError(f"{self.name}: misaligned access: {size} bytes at {bad:#x}")
        at = addresses.astype(np.int64)[:, None] - self.BASE + np.arange(size)
        inside = (at >= 0) & (at < len(self.data))
        inside &= self.accessible[np.where(inside, at, 0)] if len(self.data) else False
        if not inside.all():
            bad = addresses[~inside.all(1)][0]
            raise PtxError(f"{self.name}: access out of bounds: {size} bytes at {bad:#x}")
        return at

    def _first(self, wrong: np.ndarray) -> str:
        return (
            f" ({np.count_nonzero(wrong.any(1))} threads, first in lane {np.argmax(wrong.any(1))} of the active ones)"
        )

    def _loaded(self, at: np.ndarray, block: int, threads: np.ndarray) -> None:
        writer = self.writer[at]
        if ((writer != NOBODY) & (writer != block)).any():
            raise PtxError(f"{self.name}: race: block {block} loads what another block stored")

    def _stored(self, at: np.ndarray, block: int, threads: np.ndarray) -> None:
        writer = self.writer[at]
        if ((writer != NOBODY) & (writer != block)).any():
            raise PtxError(f"{self.name}: race: block {block} stores where another block stored")
        self.writer[at] = block


class SharedMemory(Memory):
    """One block's shared memory; ``barrier`` says that all its threads have met."""

    BASE = 0x400
    name = "shared memory"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.data = np.full(size, 0xA5, np.uint8)
        self.accessible, self.writable = np.ones(size, bool), np.ones(size, bool)
        self.written = np.zeros(size, bool)
        self.barrier()

    def barrier(self) -> None:
        """Which warp has loaded and which has stored a byte since the last barrier."""
        self.writer = np.full(len(self.data), NOBODY)
        self.reader = np.full(len(self.data), NOBODY)

    def _loaded(self, at: np.ndarray, block: int, threads: np.ndarray) -> None:
        warp = np.broadcast_to(threads[:, None] // 32, at.shape)
        if ((self.writer[at] != NOBODY) & (self.writer[at] != warp)).any():
            raise PtxError(f"{self.name}: race: no barrier between the store of one warp and the load of another")
        several = (self.reader[at] != NOBODY) & (self.reader[at] != warp)
        self.reader[at] = np.where(several, MANY, warp)
        # Warps that load the same byte in the same instruction.
        self.reader[at] = np.where(self.reader[at] != warp, MANY, self.reader[at])

    def _stored(self, at: np.ndarray, block: int, threads: np.ndarray) -> None:
        warp = np.broadcast_to(threads[:, None] // 32, at.shape)
        for other in (self.reader[at], self.writer[at]):
            if ((other != NOBODY) & (other != warp)).any():
                raise PtxError(f"{self.name}: race: no barrier between two warps that meet in one address")
        self.writer[at] = warp
