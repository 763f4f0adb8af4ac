"""Schedules of a weight over training steps: what `fastvae.objectives.ELBO` takes for beta and capacity.

Each is called with the step, counted from 0, and gives a float. They are frozen dataclasses: compared, printed and
pickled by their settings, with no state that a checkpoint would have to hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .options import check_number
from .sizes import check_count


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
    """From ``start`` at step 0 in a straight line to ``end`` at step ``steps``, and ``end`` from there on.

    As a weight of the KL: Bowman et al., arXiv 1511.06349; Sonderby et al., arXiv 1602.02282.

    Args:
        steps: 0 or more; with 0 it is ``end`` from the beginning.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

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
        return _line(step / self.steps, self.start, self.end) if step < self.steps else float(self.end)


@dataclass(frozen=True)
class cyclical:
    """``linear_warmup`` again and again: in each period up for a part of it, then ``end`` until the next begins.

        tau = (step mod period) / period        start + (end - start) min(tau / ratio, 1)

    (Fu et al., arXiv 1903.10145, whose ``end`` is 1.)

    Args:
        period: steps of one cycle, 1 or more.
        ratio: the part of it that goes up, more than 0 and at most 1.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

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
        return _line(part, self.start, self.end) if part < 1.0 else float(self.end)


def _line(part: float, start: float, end: float) -> float:
    return start + (end - start) * part
