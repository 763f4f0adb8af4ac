"""Results of the suite in one environment, and docs/versions.md, the table of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HEAD = """# Tested versions

What the test suite was run with: `make test-versions` makes each environment, runs the tests in it and writes this
table; `python -m tests.versions --help` says how to add an environment that exists. `pyproject.toml` has the ranges
that an installation accepts.

"""
COLUMNS = ("tests", "Python", "torch", "triton", "NumPy", "libraries", "passed", "failed", "skipped", "machine")
VERSIONS = slice(0, 6)  # the cells that make a row another one than the rest
# Test files of tests/clients that are of another library than their name says.
LIBRARY_OF_FILE = {"scvi": "scvi-tools", "scvi_heads": "scvi-tools", "pyro": "pyro-ppl", "pyro_patch": "pyro-ppl"}


class Results(NamedTuple):
    passed: int
    failed: int
    skipped: int
    failures: tuple[str, ...]  # module::test of each


def read_results(reports: Iterable[Path]) -> Results:
    """Of JUnit reports as pytest writes them; several are parts of one run."""
    counts: Counter[str] = Counter()
    failures = []
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            counts[kind] += 1
            if kind == "failed":
                failures.append(f"{case.get('classname')}::{case.get('name')}")
    return Results(counts["passed"], counts["failed"], counts["skipped"], tuple(failures))


def broken_libraries(results: Results) -> dict[str, int]:
    """Of the failed tests of client libraries: the library, and how many."""
    found: Counter[str] = Counter()
    for failure in results.failures:
        if named := re.match(r"tests\.clients\.test_(\w+)", failure):
            found[LIBRARY_OF_FILE.get(named[1], named[1])] += 1
    return dict(found)


def row_of(tests: str, probed: dict, results: Results, libraries: Iterable[str]) -> tuple[str, ...]:
    versions = probed["versions"]
    of_libraries = ", ".join(f"{name} {versions[name]}" for name in libraries if name in versions)
    return (
        tests, probed["python"], *(versions.get(name, "none") for name in ("torch", "triton", "numpy")),
        of_libraries or "none", str(results.passed), str(results.failed), str(results.skipped), probed["machine"],
    )  # fmt: skip


def read_rows(text: str) -> list[tuple[str, ...]]:
    """The rows of a table that `render` wrote."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[1:]]


def render(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return HEAD + "\n".join(lines) + "\n"


def add_row(path: Path, row: tuple[str, ...]) -> None:
    """Put a row into the table; one of the same tests and versions gives way."""
    rows = read_rows(path.read_text()) if path.exists() else []
    rows = [other for other in rows if other[VERSIONS] != row[VERSIONS]]

    def order(cells: tuple[str, ...]) -> tuple[object, ...]:
        return cells[0], *([int(part) for part in re.findall(r"\d+", cell)] for cell in cells[1:5])

    path.write_text(render(sorted([*rows, row], key=order)))
