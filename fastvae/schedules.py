"""Schedules over training steps, for beta and capacity of `fastvae.objectives.ELBO`.

A schedule is called with the step, counted from 0, and returns a float. Schedules are frozen dataclasses without state,
so a checkpoint does not need to store them. Invalid arguments raise TypeError or ValueError; the message names the
argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import check_number
from .size_checks import check_count

__all__ = ["constant", "cyclical", "linear_warmup"]


@dataclass(frozen=True)
class constant:
    """The same value at every step.

    >>> from fastvae import schedules
    >>> schedules.constant(0.5)(1000)
    0.5
    """

    value: float

    def __post_init__(self) -> None:
        check_number("value", self.value, -math.inf)

    def __call__(self, step: float) -> float:
        check_number("step", step, 0.0)
        return float(self.value)


@dataclass(frozen=True)
class linear_warmup:
    """Linear from ``start`` at step 0 to ``end`` at step ``steps``, then constant.

    As a weight of the KL: Bowman et al., arXiv 1511.06349; Sonderby et al., arXiv 1602.02282.

    Args:
        steps: 0 or more; with 0 it is ``end`` from the first step.

    >>> from fastvae import schedules
    >>> beta = schedules.linear_warmup(100)
    >>> beta(0), beta(25), beta(100), beta(1000)
    (0.0, 0.25, 1.0, 1.0)
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 0)
        check_number("start", self.start, -math.inf)
        check_number("end", self.end, -math.inf)

    def __call__(self, step: float) -> float:
        check_number("step", step, 0.0)
        return _interpolate(step / self.steps, self.start, self.end) if step < self.steps else float(self.end)


@dataclass(frozen=True)
class cyclical:
    """Repeated ``linear_warmup``: in each period, from ``start`` to ``end`` over a part of it, then ``end``.

        tau = (step mod period) / period        start + (end - start) min(tau / ratio, 1)

    (Fu et al., arXiv 1903.10145, whose ``end`` is 1.)

    Args:
        period: steps of one cycle, 1 or more.
        ratio: the part of the cycle that rises, more than 0 and at most 1.

    >>> from fastvae import schedules
    >>> beta = schedules.cyclical(100, ratio=0.5)
    >>> beta(0), beta(25), beta(50), beta(99), beta(100), beta(125)
    (0.0, 0.5, 1.0, 1.0, 0.0, 0.5)
    """

    period: int
    ratio: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_count("period", self.period, 1)
        if not 0.0 < check_number("ratio", self.ratio, 0.0) <= 1.0:
            raise ValueError(f"ratio is {self.ratio}, expected more than 0 and at most 1")
        check_number("start", self.start, -math.inf)
        check_number("end", self.end, -math.inf)

    def __call__(self, step: float) -> float:
        check_number("step", step, 0.0)
        part = (step % self.period) / self.period / self.ratio
        return _interpolate(part, self.start, self.end) if part < 1.0 else float(self.end)


def _interpolate(part: float, start: float, end: float) -> float:
    return start + (end - start) * part
