"""Which rows each process takes: together all, in an order and with numbers that their number does not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from fastvae.training.batches import BatchLoader, PartSampler, derived_seed
from fastvae.training.samples import Samples


def _parts(rows, batch_size, world_size, *, seed=5, epoch=0):
    """For each process, what its sampler gives in one epoch."""
    samplers = [
        PartSampler(rows, batch_size, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(("rows", "batch_size"), [(100, 25), (101, 25), (103, 50), (10, 10), (4, 3)])
def test_the_processes_share_every_batch_of_one(rows, batch_size, world_size):
    (alone,) = _parts(rows, batch_size, 1)
    together = _parts(rows, batch_size, world_size)
    assert all(len(parts) == len(alone) for parts in together)
    for number, whole in enumerate(alone):
        parts = [of_process[number] for of_process in together]
        shared = [part for part in parts if part.counted]
        assert np.array_equal(np.concatenate([part.rows for part in shared]), whole.rows)
        assert [part.first_row for part in shared] == np.cumsum([0, *[len(part.rows) for part in shared[:-1]]]).tolist()
        assert all(part.batch_rows == len(whole.rows) for part in parts)
        assert sum(part.counted for part in parts) == len(whole.rows)
        assert all(len(part.rows) >= 1 for part in parts)


def test_an_epoch_has_every_row_once_and_the_next_another_order():
    (first,), (second,) = (_parts(50, 20, 1, epoch=epoch) for epoch in (0, 1))
    orders = [np.concatenate([part.rows for part in epoch]) for epoch in (first, second)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(*orders)
    (again,) = _parts(50, 20, 1, epoch=1)
    assert np.array_equal(np.concatenate([part.rows for part in again]), orders[1])


def test_the_seed_rules_the_order():
    one, same, other = (np.concatenate([part.rows for part in _parts(50, 50, 1, seed=seed)[0]]) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_without_a_seed_rows_come_in_order_and_are_numbered_through_the_data():
    (low, high) = _parts(7, 4, 2, seed=None)
    assert [part.first_row for part in low] == [0, 4]
    assert [part.first_row for part in high] == [2, 5]
    assert [row for first, second in zip(low, high, strict=True) for row in (*first.rows, *second.rows)] == [*range(7)]


@pytest.mark.parametrize("done", [0, 2, 3, 5, 7])
def test_from_any_batch_on_a_run_goes_on_as_if_it_had_not_stopped(done):
    position = [0]
    whole = PartSampler(10, 4, seed=1, position=lambda: position[0])
    order = []
    for position[0] in (0, 3, 6):  # three batches an epoch
        order += [part.rows.tolist() for part in whole]
    stopped = PartSampler(10, 4, seed=1, position=lambda: done)
    rest = [part.rows.tolist() for part in stopped]
    assert rest == order[done : 3 * (done // 3) + 3]
    assert len(stopped) == 3


def test_lightning_leaves_the_sampler_in_its_place():
    assert issubclass(PartSampler, DistributedSampler)


def test_a_batch_has_its_rows_its_labels_and_its_place():
    x = np.arange(12, dtype=np.uint8).reshape(6, 2)
    samples = Samples(x, np.arange(6) % 3)
    sampler = PartSampler(6, 4, seed=None, rank=1, world_size=2)
    first, second = BatchLoader(samples, sampler, conditional=True, workers=0)
    torch.testing.assert_close(first.x, torch.tensor([[4.0, 5.0], [6.0, 7.0]]) / 255)
    assert first.condition.tolist() == [2, 0]
    assert (first.first_row, first.batch_rows, first.counted) == (2, 4, 2)
    assert (second.first_row, second.batch_rows, second.counted) == (5, 2, 1)
    (only, _) = BatchLoader(samples, sampler, conditional=False, workers=0)
    assert only.condition is None


def test_readers_ahead_give_the_same_batches():
    samples = Samples(np.arange(40, dtype=np.float32).reshape(20, 2))
    sampler = PartSampler(20, 6, seed=3)
    alone = list(BatchLoader(samples, sampler, conditional=False, workers=0))
    ahead = list(BatchLoader(samples, sampler, conditional=False, workers=1))
    assert all(torch.equal(one.x, other.x) and one[2:] == other[2:] for one, other in zip(alone, ahead, strict=True))


def test_seeds_differ_by_purpose_and_number_and_are_64_bits():
    seeds = [derived_seed(seed, purpose, number) for seed in (0, 1) for purpose in ("a", "b") for number in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**62
    assert derived_seed(0, "a") == seeds[0]
