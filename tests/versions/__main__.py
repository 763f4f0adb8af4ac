"""The suite in environments of other versions.

python -m tests.versions                                       all of `environments.ENVIRONMENTS`, into docs/versions.md
python -m tests.versions oldest clients-newest                these
python -m tests.versions --python PATH [--clients]             an environment that exists, with fastvae installed -e
python -m tests.versions --python PATH --reports A.xml B.xml   the tests ran there already, in parts: --junitxml
python -m tests.versions --newest-clients                      which patch the newest client libraries break; no table
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .environments import CLIENTS, ENVIRONMENTS, FOLDER, NEWEST_CLIENTS, OF_CLIENTS, ROOT, SUITE, Missing, make, probe
from .table import Results, add_row, broken_libraries, read_results, row_of

NAMES = [environment.name for environment in ENVIRONMENTS]


def run_tests(python: Path, tests: tuple[str, ...], workers: str) -> Results:
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = FOLDER / "report.xml"
    report.unlink(missing_ok=True)
    subprocess.run(
        [
            *(python, "-m", "pytest", "-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"),
            *("-p", "no:cacheprovider", "--junitxml", report, *tests),
        ],
        cwd=ROOT,
    )
    if not report.exists():
        raise Missing(f"pytest did not get as far as running tests with {python}")
    return read_results([report])


def tell(name: str, probed: dict, results: Results) -> None:
    print(f"{name}: {results.passed} passed, {results.failed} failed, {results.skipped} skipped")
    for library, count in broken_libraries(results).items():
        print(f"  {library} {probed['versions'].get(library, '')} breaks its patch: {count} tests fail")
    for failure in results.failures:
        print(f"  {failure}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"environments to make: {', '.join(NAMES)}")
    parser.add_argument("--python", type=Path, help="the Python of an environment that exists")
    parser.add_argument("--clients", action="store_true", help="with --python: the tests of the client libraries")
    parser.add_argument("--reports", type=Path, nargs="+", help="with --python: JUnit reports, in place of a run")
    parser.add_argument("--newest-clients", action="store_true", help="what the newest client libraries break")
    parser.add_argument("--extra-index-url", action="append", default=[], help="another place to install from")
    parser.add_argument("--workers", default="2", help="processes that share the tests")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "versions.md")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"NAME is {unknown[0]!r}, expected one of {', '.join(NAMES)}")
    if (given.reports or given.clients) and not given.python:
        parser.error("--reports and --clients go with --python")
    # An environment to make, or the Python of one that exists; and the tests.
    wanted: list[tuple[str, Path | None, tuple[str, ...]]]
    if given.python:
        wanted = [("", given.python, OF_CLIENTS if given.clients else SUITE)]
    else:
        chosen = [NEWEST_CLIENTS] if given.newest_clients else given.names or NAMES
        wanted = [(one.name, None, one.tests) for one in ENVIRONMENTS if one.name in chosen]
    failed, left_out = False, []
    for name, python, tests in wanted:
        try:
            if python is None:
                environment = ENVIRONMENTS[NAMES.index(name)]
                python = make(environment, tuple(given.extra_index_url), upgrade="newest" in name)
            probed = probe(python)
            results = read_results(given.reports) if given.reports else run_tests(python, tests, given.workers)
        except Missing as missing:
            left_out.append(f"{name}: {missing}")
            continue
        tell(name or str(python), probed, results)
        failed = failed or results.failed > 0
        if not given.newest_clients:
            of_clients = tests == OF_CLIENTS
            row = row_of("clients" if of_clients else "suite", probed, results, CLIENTS if of_clients else ())
            add_row(given.output, row)
    for line in left_out:
        print(f"left out: {line}")
    return int(failed or bool(left_out))


if __name__ == "__main__":
    sys.exit(main())
