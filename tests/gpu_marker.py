"""The marker ``gpu``: what `pytest -m gpu` runs, and what it says where there is no GPU; and the order of files.

conftest.py takes these hooks in. Marked are the tests of the Triton backend and its launches, which run in Triton's
interpreter on a machine without a GPU, and those that take the ``gpu`` fixture, which are skipped there.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

MOST_OF_A_TEST = 8
WITHOUT_GPU = "there is no GPU that PyTorch can use"
FIXTURES = {"gpu", "launches", "counted_launches"}


def mark_gpu_tests(items: Iterable[pytest.Item]) -> None:
    """Mark every test that is parametrised with the Triton backend or takes a fixture of launches or ``gpu``.

    Nearly every combination of parameters is a kernel of its own, which takes a second to compile. Of a test with more
    than MOST_OF_A_TEST combinations, so many are marked, spread evenly; without ``-m gpu`` all of them run.
    """
    of_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        on_triton = any(isinstance(value, str) and value == "triton" for value in parameters)
        if on_triton or not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            of_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for found in of_test.values():
        chosen = min(len(found), MOST_OF_A_TEST)
        for index in range(chosen):
            found[index * len(found) // chosen].add_marker("gpu")


# The files that take longest, in this order, from below tests/.
LONGEST = (
    "kernels/triton/test_ptx_kernels.py",
    "training/test_command_line.py",
    "likelihoods/test_kernels.py",
    "latents/test_torch_compile.py",
    "kernels/triton/test_likelihood_launches.py",
    "training/test_interrupted_runs.py",
    "training/test_processes.py",
    "kernels/triton/test_launches.py",
    "kernels/triton/test_compile.py",
    "latents/test_ops.py",
    "latents/test_latents.py",
    "nn/test_models.py",
    "latents/test_distributions.py",
    "latents/test_latents_behaviour.py",
    "kernels/triton/test_remembered_launches.py",
    "training/test_command_line_errors.py",
)


def put_longest_first(items: list[pytest.Item]) -> None:
    """At the end, a long file would keep a single process busy while the others wait."""

    def place(item: pytest.Item) -> int:
        name = "/".join(item.path.parts[-3:])
        return next((at for at, longest in enumerate(LONGEST) if name.endswith(longest)), len(LONGEST))

    items.sort(key=place)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: runs on a GPU; without one, in Triton's interpreter or not at all")


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_gpu_tests(items)
    put_longest_first(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "gpu" in config.option.markexpr and not torch.cuda.is_available():
        skipped = len(terminalreporter.stats.get("skipped", ()))
        terminalreporter.write_line(
            f"{WITHOUT_GPU}: the Triton kernels ran in Triton's interpreter, tests skipped: {skipped}"
        )
