"""Progress of a long command on stderr: a bar on a terminal, else an estimate and about ten lines."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

__all__ = ["Progress", "duration"]

_QUICK = 10.0
"""Seconds: what ends sooner needs no lines."""


class Progress:
    """How far a command has come, and how long it will take.

    Args:
        total: rows that there are.
        unit: what a row is, in the plural.
    """

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit = total, unit
        self._count = 0
        self._since = time.perf_counter()
        self._said = 0
        self._bar = tqdm(total=total, unit=f" {unit}", leave=False, disable=None)
        self._lines = self._bar.disable

    def done(self, rows: int) -> None:
        """So many more rows are done."""
        self._count += rows
        self._bar.update(rows)
        if self._count >= self.total:
            self._bar.close()
            return
        elapsed = time.perf_counter() - self._since
        left = elapsed * (self.total / self._count - 1)
        tenth = 10 * self._count // self.total
        if self._lines and (tenth > self._said or not self._said) and (self._said or elapsed + left > _QUICK):
            self._said = max(1, tenth)
            text = f"{self._count:,} of {self.total:,} {self.unit}, about {duration(left)} to go"
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
