"""Which tests `pytest -m gpu` runs, and that it says so where there is no GPU."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import torch

from .gpu_marker import LONGEST, MOST_OF_A_TEST, WITHOUT_GPU, mark_gpu_tests, put_longest_first

ROOT = Path(__file__).parent.parent

CONFTEST = """
from tests.gpu_marker import pytest_collection_modifyitems, pytest_configure, pytest_terminal_summary
"""
TESTS = """
import pytest

@pytest.fixture
def gpu():
    pytest.skip("none here")

@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_of_backends(backend):
    pass

def test_of_the_device(gpu):
    pass

def test_of_something_else():
    pass
"""


class Item:
    def __init__(self, *fixtures: str, **parameters: object) -> None:
        self.fixturenames = fixtures
        self.nodeid = f"test_{id(self)}"
        self.markers: list[str] = []
        if parameters:
            self.callspec = SimpleNamespace(params=parameters)

    def add_marker(self, marker: str) -> None:
        self.markers.append(marker)


def test_the_triton_variant_and_users_of_the_device_are_marked_and_nothing_else():
    marked = [
        Item("backend", backend="triton"),
        Item(name="triton", value=torch.zeros(3)),
        Item("gpu"),
        Item("launches"),
    ]
    others = [Item(), Item("backend", backend="cpu"), Item(dtype=torch.float32, tensor=torch.zeros(3))]
    mark_gpu_tests([*marked, *others])
    assert [item.markers for item in marked] == [["gpu"]] * 4
    assert [item.markers for item in others] == [[]] * 3


def test_of_a_test_with_many_combinations_so_many_are_marked_that_compiling_them_takes_little_time():
    items = [Item(backend="triton", index=index) for index in range(3 * MOST_OF_A_TEST + 1)]
    for index, item in enumerate(items):
        item.nodeid = f"test_of_all[{index}]"
    mark_gpu_tests(items)
    chosen = [index for index, item in enumerate(items) if item.markers]
    assert len(chosen) == MOST_OF_A_TEST
    assert {after - before for before, after in itertools.pairwise(chosen)} <= {3, 4}


def test_the_longest_files_come_first_and_there_are_such_files():
    assert all((ROOT / "tests" / name).exists() for name in LONGEST)
    names = ("tests/test_files.py", f"tests/{LONGEST[1]}", "tests/nn/test_vae.py", f"tests/{LONGEST[0]}")
    items = [SimpleNamespace(path=ROOT / name) for name in names]
    put_longest_first(items)
    expected = [f"tests/{LONGEST[0]}", f"tests/{LONGEST[1]}", names[0], names[2]]
    assert [str(item.path.relative_to(ROOT)) for item in items] == expected


def test_choosing_the_marker_runs_the_triton_variants_and_says_what_was_skipped(tmp_path, run_python):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ["--rootdir", str(tmp_path), "--strict-markers", "-v", "-m", "gpu", str(tmp_path)]
    program = f"""
import os, sys, pytest
sys.path.insert(0, {str(ROOT)!r})
os.chdir({str(tmp_path)!r})
sys.exit(pytest.main({options}))
"""
    result = run_python(program, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed, 1 skipped, 2 deselected" in result.stdout
    assert "test_of_backends[triton] PASSED" in result.stdout
    assert WITHOUT_GPU in result.stdout
    assert "tests skipped: 1" in result.stdout
