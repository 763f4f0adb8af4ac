"""Every test that takes the ``backend`` fixture runs on each backend: one body of tests over all of them.

Without a GPU the Triton backend runs in Triton's interpreter, which is chosen by a variable read when Triton is first
imported; so it is set here, before anything imports it.
"""

from __future__ import annotations

import gc
import os

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# For each process of tests, inductor would start a pool of further ones that import torch and compile next to nothing.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for each other's
    torch.set_num_threads(1)

import fastvae
from fastvae.kernels.backend import reason_unavailable

from .fresh import run_python  # noqa: F401  (a fixture)
from .gpu_marker import (  # noqa: F401  (pytest finds its hooks here)
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_terminal_summary,
)
from .interpreter import speed_up

if "TRITON_INTERPRET" in os.environ:
    speed_up()


def pytest_collection_finish() -> None:
    """Each garbage collection would go through the modules and collected tests, which stay to the end."""
    gc.collect()
    gc.freeze()


# Tests are of results: a machine that pauses is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

BACKENDS = ("reference", "cpu", "triton")


def backend_device(name: str) -> torch.device:
    return torch.device("cuda" if name == "triton" and torch.cuda.is_available() else "cpu")


def interpreter_truncates(backend: str, dtype: torch.dtype) -> bool:
    """Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds: it cannot show that rounding."""
    return backend == "triton" and dtype == torch.bfloat16 and "TRITON_INTERPRET" in os.environ


def without_triton() -> str:
    """Why the Triton backend does not run here, such as on a GPU without a C compiler, or in the interpreter under a
    NumPy that is too new for it; empty if it does."""
    return reason_unavailable("triton")


def skip_without_triton() -> None:
    if reason := without_triton():
        pytest.skip(reason)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of the backend that every fastvae op of the test runs on."""
    if request.param == "triton":
        skip_without_triton()
    with fastvae.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend) -> torch.device:
    return backend_device(backend)


@pytest.fixture(autouse=True)
def fixed_torch_seed():
    """Every test draws its inputs from the same state, and leaves torch's generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        yield


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fresh tensors are full of NaN, so that an output which no kernel wrote cannot pass by luck."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty
    new_empty_strided = torch.Tensor.new_empty_strided

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch, "empty", poison(empty))
    monkeypatch.setattr(torch, "empty_like", poison(empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty_strided", poison(new_empty_strided))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(new_empty))
