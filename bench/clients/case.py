"""What each library's module gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Case(NamedTuple):
    """A training step of a library; ``make`` builds model, data and optimiser, and gives the step.

    The step gives what is compared before anything is timed: its loss.
    """

    library: str  # as fastvae.patch knows it
    name: str
    make: Callable[[], Callable[[], torch.Tensor]]
