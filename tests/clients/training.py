"""Training of real models of the libraries that `fastvae.patch` knows, patched and unpatched."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable

import pytest
import torch

import fastvae

# Builds a model with its data and optimiser, and gives the function that does one training step and gives the loss.
Make = Callable[[], Callable[[], torch.Tensor]]

STEPS = 50

# Steps in float32 carry the rounding of all steps before them.
RELATIVE = 2e-5


def losses(make: Make, library: str | None = None, *, noise: str = "fastvae", seed: int = 0) -> list[float]:
    """Of so many training steps, all random numbers from one seed."""
    torch.manual_seed(seed)
    step = make()
    with contextlib.ExitStack() as stack:
        if library is not None:
            stack.enter_context(fastvae.patch(library, noise=noise))
        return [float(step()) for _ in range(STEPS)]


def check_same_losses(make: Make, library: str) -> None:
    """With torch's noise, a patched run is the unpatched one, number by number."""
    unpatched = losses(make)
    assert unpatched[-1] < unpatched[0]  # it does train
    assert losses(make, library, noise="torch") == pytest.approx(unpatched, rel=RELATIVE)
    assert losses(make) == unpatched  # and nothing of the patch stays


def check_same_spread(make: Make, library: str, seeds: int = 8) -> None:
    """With fastvae's noise a run ends where others end: the mean of its last ten losses, by seed."""
    unpatched, patched = ([_last(make, name, seed) for seed in range(seeds)] for name in (None, library))
    spread = statistics.stdev(unpatched)
    error = spread * (2 / seeds) ** 0.5  # of the difference of two means
    assert statistics.mean(patched) == pytest.approx(statistics.mean(unpatched), abs=4 * error)
    assert statistics.stdev(patched) < 3 * spread + 1e-6


def _last(make: Make, library: str | None, seed: int) -> float:
    # The model and its data are the same for all seeds: what differs is the noise of training.
    def make_reseeded() -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        step = make()
        torch.manual_seed(1000 + seed)
        return step

    return statistics.mean(losses(make_reseeded, library)[-10:])
