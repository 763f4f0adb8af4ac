"""A change of text in a copy of one of the kernels' files, where the driver `check.c` must notice it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .build import KERNELS


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    position: int | None = None  # where the old text begins; None: wherever it is, once

    def __str__(self) -> str:
        return " ".join(f"{self.file}: {self.old} -> {self.new}".split())

    def plant(self, kernels: Path) -> None:
        """Bring the fault into a copy of the kernels."""
        path = kernels / self.file
        text = path.read_text()
        if self.position is None:
            assert text.count(self.old) == 1, f"{self.file} has {text.count(self.old)} times, expected once: {self.old}"
        start = text.index(self.old, self.position or 0)
        path.write_text(text[:start] + self.new + text[start + len(self.old) :])


# Where one formula takes over from another, either is right around there: changes of these are larger, above.
BETWEEN_FORMULAS = ("0.625f",)


def constants(file: str, pattern: str, change: str) -> Iterator[Fault]:
    """Every constant of a file, outside of its comments, with ``change`` in its place."""
    text = (KERNELS / file).read_text()
    comments = [found.span() for found in re.finditer(r"/\*.*?\*/", text, re.DOTALL)]
    for found in re.finditer(pattern, text):
        if found[0] not in BETWEEN_FORMULAS and not any(start <= found.start() < end for start, end in comments):
            yield Fault(file, found[0], change.format(found[0]), found.start())
