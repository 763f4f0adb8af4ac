"""Small faults for the kernels, each of which the driver `check.c` must notice: the proof that its checks are tight.

A fault is a change of text in a copy of one file. Constants are found by their looks; the others are written out here,
and one that no longer fits the text is an error: it wants to be written anew.
"""

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


ONE_TOO_MANY_OR_TOO_FEW = (
    Fault("tiles.h", "memcpy(to, &value, sizeof(float) * (size_t)count)", "memcpy(to, &value, sizeof value)"),
    Fault("tiles.h", "memcpy(&value, from, sizeof(float) * (size_t)count)", "memcpy(&value, from, sizeof value)"),
    Fault(
        "tiles.h", "memcpy(&bits, from + i, sizeof(uint16_t) * (size_t)(n - i))", "memcpy(&bits, from + i, sizeof bits)"
    ),
    Fault("tiles.h", "memcpy(to + i, &bits, sizeof(uint16_t) * (size_t)(n - i))", "memcpy(to + i, &bits, sizeof bits)"),
    Fault("tiles.h", "for (; i < n; i++) {\n        to[i]", "for (; i <= n; i++) {\n        to[i]"),
    Fault("tiles.h", "rest < TILE ? rest : TILE", "rest < TILE ? rest - 1 : TILE"),
    Fault("tiles.h", "rest < c->rows_a_tile ? rest", "rest < c->rows_a_tile ? rest - 1"),
    Fault("run.h", "(c->event + TILE - 1) / TILE", "(c->event + TILE) / TILE"),
    Fault("run.h", "(c->rows + c->rows_a_tile - 1) / c->rows_a_tile", "c->rows / c->rows_a_tile"),
    Fault("threads.h", "tiles * (rank + 1) / size", "tiles * rank / size"),
    Fault("gaussian.h", "if (i < n) forward_vector(a, i, n - i, with_z, with_kl);", ""),
    Fault("gaussian.h", "if (i < n) backward_vector(a, i, n - i, with_z, with_kl);", ""),
    Fault("gaussian.h", "lanes_below + LANES - (n - i)", "lanes_below + LANES - (n - i) + 1"),
)

# Whole vectors are written and read behind a tile: its buffers must have room for them.
TOO_SMALL_A_BUFFER = (
    Fault("noise.h", "#define NOISE_SLACK (4 * GROUP)", "#define NOISE_SLACK 0"),
    Fault("noise.h", "padded[4 * TILE + NOISE_SLACK]", "padded[4 * TILE]"),
    Fault("gaussian.h", ", kl[TILE + LANES]", ", kl[TILE]"),
    Fault("gaussian.h", "grad_kl[TILE + LANES]", "grad_kl[TILE]"),
    Fault("run.h", "malloc(sizeof(float) * (size_t)(c->rows * c->tiles_a_row) + 1)", "malloc((size_t)c->rows + 1)"),
    Fault("run.h", "free(c->tile_kl);", ""),
)

WRONG_PLACE = (
    Fault(
        "tiles.h",
        "int64_t base = (tl.row + r) * t->row + tl.start;\n            float *to",
        "int base = (int)((tl.row + r) * t->row + tl.start);\n            float *to",
    ),
    Fault("tiles.h", "return (float *)t->data + tl.row * t->row", "return (float *)t->data + (int)(tl.row * t->row)"),
    Fault("tiles.h", "(t->inner == 1 || c->inner == 1) && ", ""),
    Fault("tiles.h", "tl.rows == 1 || t->row == c->event", "1"),
    Fault("noise.h", "row_of_quad >> 32, splat64(0)", "splat64(0), splat64(0)"),
    Fault("noise.h", "(row >> 32) * MULTIPLIER1", "0 * MULTIPLIER1"),
    Fault("noise.h", "column->count == count && column->start == start", "column->count == count"),
)

# Gives the right bits all the same, on most processors: only UndefinedBehaviorSanitizer objects.
UNDEFINED = (
    Fault("simd.h", "{ memcpy(to, &value, sizeof value); }", "{ *(vf *)to = value; }"),
    Fault("noise.h", "row + (uint64_t)r,", "(uint64_t)((int64_t)row + r),"),
)

WRONG_ARITHMETIC = (
    Fault("simd.h", "bits + 0x7fff", "bits + 0x8000"),
    Fault("simd.h", "(is_nan & quiet) | ", ""),
    Fault("gaussian.h", "value /= (float)c->rows;", ";"),
    Fault("gaussian.h", "if (c->reduction == BATCHMEAN) value", "value"),
    Fault("run.h", "(float)(total / (double)c->rows)", "(float)total"),
    Fault("vector_math.h", "choose(small, m * m + (m + m), variance_less_1)", "variance_less_1"),
    Fault("vector_math.h", "choose(small, m * m + (r2q + r2q), variance_less_1 - logvar)", "variance_less_1 - logvar"),
    Fault("vector_math.h", "f = choose(equal_integers(exponent, (vi){0} + 32), below_1, f);", ""),
    Fault("philox.h", "#define ROUNDS 10", "#define ROUNDS 9"),
)


def constants(file: str, pattern: str, change: str) -> Iterator[Fault]:
    """Every constant of a file, outside of its comments, with ``change`` in its place."""
    text = (KERNELS / file).read_text()
    comments = [found.span() for found in re.finditer(r"/\*.*?\*/", text, re.DOTALL)]
    for found in re.finditer(pattern, text):
        if not any(start <= found.start() < end for start, end in comments):
            yield Fault(file, found[0], change.format(found[0]), found.start())


FAULTS = (
    *ONE_TOO_MANY_OR_TOO_FEW,
    *TOO_SMALL_A_BUFFER,
    *WRONG_PLACE,
    *UNDEFINED,
    *WRONG_ARITHMETIC,
    *constants("vector_math.h", r"\b(?!0\.0f)\d+\.\d+(e-\d+)?f", "(0.5f * {})"),
    *constants("vector_math.h", r"\b0x1p-\d+f", "(0.5f * {})"),
    *constants("philox.h", r"\b0x[0-9A-F]{8}u", "({} ^ 2u)"),
)
