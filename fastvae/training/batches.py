"""The batches of a run: which rows, in which order, and which of them each process takes.

"Batch" means the global batch, of all processes together. The order of its rows depends on the seed and the epoch
alone. Each process takes one contiguous part and knows the number of its first row, the `row_offset` of every draw, so
that the order of the data and the noise are the same on 1, 2 or 64 devices. All random numbers are derived from the
seed of the run and the number of the batch, never from a generator's state: a resumed run draws what an uninterrupted
one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .samples import Samples

__all__ = ["Batch", "BatchLoader", "PartSampler", "derived_seed"]


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """64 bits that depend on all three: BLAKE2b of them."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=8).digest(), "little")


class Batch(NamedTuple):
    """One process's part of a batch."""

    x: Tensor
    """(b, *event), float32."""
    condition: Tensor | None
    """Of each row, for a conditional model."""
    first_row: int
    """Number of row 0: in the whole batch while training, in the whole data set while validating."""
    batch_rows: int
    """Rows of the whole batch."""
    counted: int
    """How many of these rows count: all of them; or 0, where the batch has fewer rows than there are processes and this
    one gets a copy of a row, as every process has to take part in every step."""


class Part(NamedTuple):
    """What a `PartSampler` gives: `Batch` without its tensors."""

    rows: np.ndarray
    first_row: int
    batch_rows: int
    counted: int


class PartSampler(DistributedSampler):
    """One process's part of each batch. A DistributedSampler, so that Lightning does not put one in its place.

    Args:
        rows: of the data set.
        batch_size: rows of a whole batch; the last one of an epoch has what remains.
        seed: of the order, a new one each epoch; None for the order of the data set, with rows numbered through it.
        rank, world_size: which process of how many.
        position: returns the number of batches done so far, over all epochs; a run that is resumed in the middle of an
            epoch continues there. Without it, ``set_epoch`` sets the epoch.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] | None = None,
    ) -> None:
        # DistributedSampler's own __init__ asks for its data set and rounds: nothing of it is used.
        self.epoch = 0
        self.rows, self.batch_size, self.order_seed = rows, batch_size, seed
        self.part, self.parts = rank, world_size
        self.position = position

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = divmod(self.position(), len(self)) if self.position is not None else (self.epoch, 0)
        order = self._order(epoch)
        for number in range(first, len(self)):
            yield self._part_of(order, number * self.batch_size)

    def _order(self, epoch: int) -> np.ndarray:
        if self.order_seed is None:
            return np.arange(self.rows)
        generator = torch.Generator().manual_seed(derived_seed(self.order_seed, "order", epoch))
        return torch.randperm(self.rows, generator=generator).numpy()

    def _part_of(self, order: np.ndarray, start: int) -> Part:
        rows = order[start : start + self.batch_size]
        low, high = (len(rows) * part // self.parts for part in (self.part, self.part + 1))
        numbered_from = 0 if self.order_seed is not None else start
        if low == high:
            return Part(rows[:1], numbered_from, len(rows), 0)
        return Part(rows[low:high], numbered_from + low, len(rows), high - low)


class _Parts(Dataset):
    def __init__(self, samples: Samples, conditional: bool) -> None:
        self.samples, self.conditional = samples, conditional

    def __getitem__(self, part: Part) -> Batch:
        condition = None
        if self.conditional:
            assert self.samples.given is not None
            condition = torch.from_numpy(self.samples.given[part.rows])
        return Batch(self.samples.rows(part.rows), condition, part.first_row, part.batch_rows, part.counted)


class BatchLoader(DataLoader):
    """A DataLoader of `Batch`, with no state of its own to save: the data module restores the place in the data."""

    def __init__(self, samples: Samples, sampler: PartSampler, *, conditional: bool, workers: int) -> None:
        super().__init__(
            _Parts(samples, conditional), sampler=sampler, batch_size=None, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    # Lightning resumes in the middle of an epoch only with loaders that have these two methods.

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
