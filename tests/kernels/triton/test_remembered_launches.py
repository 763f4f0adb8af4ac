"""Launches are remembered: after the first call the compiled kernel is started without Triton's own launch code.

With the stub driver of the benchmarks, in processes of their own: Triton interprets in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from bench import stub_driver
from tests.fresh import server

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(stub_driver.compiler() is None, reason="there is no C compiler")

BEGIN = """
import json, threading, torch, triton
from bench import host
driver = host.install()
from fastvae.kernels import triton as backend
from fastvae.kernels.latent_spec import LatentInputs, LatentScalars, LatentSpec
from fastvae.kernels.triton import launch, started

jit_runs = []
run = triton.runtime.JITFunction.run
def counted(self, *arguments, **named):
    jit_runs.append(self)
    return run(self, *arguments, **named)
triton.runtime.JITFunction.run = counted

seed = torch.zeros(1, dtype=torch.int64)
def draw(rows=3, row_offset=0, dtype=torch.float32, draw=0, seed=seed):
    return backend.noise(seed, (rows, 20), row_offset, dtype, draw)
"""


@pytest.fixture(scope="module")
def run_python():
    """Each program is a process that has imported Triton without its interpreter, and launched nothing yet."""
    yield from server("import bench.host, fastvae.kernels.triton")


@pytest.fixture
def results_of(run_python):
    def results_of(program: str) -> dict:
        result = run_python(BEGIN + program + "\nprint(json.dumps(results))")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return results_of


def test_a_call_is_started_by_triton_once_and_then_without_it(results_of):
    results = results_of("""
results = {}
for _ in range(5):
    draw()
results["same call"] = [len(jit_runs), driver.launches, driver.kernels]
for number in (1, 2, 16, 2**31, 2**31 + 1, 2**40):
    draw(row_offset=number)
    draw(draw=number % 2**31)
results["other numbers"] = [len(jit_runs), driver.launches, driver.kernels]
seeds = torch.zeros(3, dtype=torch.int64)
for index in range(3):
    draw(seed=seeds[index:][:1])
results["other seeds"] = driver.kernels
draw(rows=4)
results["other shape"] = [len(jit_runs) - 2, driver.kernels]
draw(dtype=torch.bfloat16)
results["other dtype"] = driver.kernels

runs = len(jit_runs)
started.CompiledKernel = ()  # a Triton that does not tell
launch.forget()
for _ in range(3):
    draw()
results["a Triton that does not tell"] = len(jit_runs) - runs

memory = launch.Memory()
for key in range(3 * memory.MOST):
    memory.add((key,), int, key)
results["bounded"] = len(memory._found) <= memory.MOST and memory.get((key,)) == key
""")
    # A seed that is not a multiple of 16 bytes away goes through Triton once more, which has the same kernel for it.
    assert results == {
        "same call": [1, 5, 1],
        "other numbers": [1, 17, 1],
        "other seeds": 1,
        "other shape": [1, 1],
        "other dtype": 2,
        "a Triton that does not tell": 3,
        "bounded": True,
    }


def test_pointers_that_are_not_aligned_have_a_kernel_of_their_own(results_of):
    results = results_of("""
store, spec, scalars = torch.randn(61), LatentSpec(sample=False), LatentScalars()
def call(start):
    mu = store[start:][:60].view(3, 20)
    backend.latent_forward(LatentInputs(mu, store[:60].view(3, 20)), spec, scalars)
    return driver.last
results = [call(0), call(1), call(0), call(1)], len(jit_runs), driver.kernels
""")
    assert results == [[1, 2, 1, 2], 2, 2]


def test_without_the_c_extension_launches_are_remembered_too(results_of):
    results = results_of("""
launch.layouts = launch.launch_arguments = lambda *arguments: None
store, spec, scalars = torch.randn(61), LatentSpec(sample=False), LatentScalars()
def call(start, rows=3):
    mu = store[start:][: 20 * rows].view(rows, 20)
    backend.latent_forward(LatentInputs(mu, store[: 20 * rows].view(rows, 20)), spec, scalars)
    return driver.last_launch()[2] == mu.data_ptr(), driver.last
results = [call(0), call(1), call(0), call(1), call(0, rows=2), call(0, rows=2)], len(jit_runs), driver.kernels
""")
    kernels = [1, 2, 1, 2, 1, 1]
    assert results == [[[True, kernel] for kernel in kernels], 3, 2]


def test_the_current_device_and_stream_are_asked_for_at_every_launch(results_of):
    results = results_of("""
stream, guarded, seen = 7, [], []
active = triton.runtime.driver.active
active.get_current_stream = lambda device: stream
again = started.Started.again
started.Started.again = lambda self, stream, arguments: (seen.append(stream), again(self, stream, arguments))

class Guard:
    def __init__(self, device): self.index = device.index
    def __enter__(self): guarded.append(self.index)
    def __exit__(self, *error): guarded.append(-1)
torch.cuda.device = Guard

eps = draw()
templates = [found for memory in launch._memories for found in memory.values()]
(template,) = templates
def start(index):
    template.device = torch.device("cuda", index)
    template.start((eps, seed), (0, 0))
start(0)
stream = 8
start(0)
start(1)
results = {"streams": seen, "guarded": guarded}
""")
    assert results == {"streams": [7, 8, 8], "guarded": [1, -1]}


def test_what_is_handed_to_the_driver_is_that_of_the_call(results_of):
    results = results_of("""
import functools
from triton.backends.nvidia.driver import CudaLauncher
calls, stream, results = [], 0, []
run_by_triton = CudaLauncher.__call__
@functools.wraps(run_by_triton)  # its signature is looked at
def counted_call(self, *arguments):
    calls.append(1)
    return run_by_triton(self, *arguments)
CudaLauncher.__call__ = counted_call
triton.runtime.driver.active.get_current_stream = lambda device: stream
for stream in (2**40 + 1, 2, 3, 4):
    eps = draw(rows=700, row_offset=stream)
    given = eps.data_ptr(), seed.data_ptr(), stream
    results.append([driver.last_launch() == (stream, -(-700 // 16), *given), len(calls)])
""")
    assert [same for same, _ in results[1:]] == [True] * 3  # the first is Triton's own
    known = triton.__version__.split(".")[:2] in (["3", "7"], ["3", "8"])
    assert [calls for _, calls in results] == ([1, 2, 2, 2] if known else [1, 2, 3, 4])


def test_hooks_of_profilers_are_called_at_every_launch(results_of):
    results = results_of("""
seen, hooks = [], triton.knobs.runtime
def before(metadata): seen.append("before " + metadata.get()["name"])
def after(metadata): seen.append("after " + metadata.get()["name"])
draw()
draw()
hooks.launch_enter_hook.add(before)
hooks.launch_exit_hook.add(after)
draw()
hooks.launch_enter_hook.remove(before)
draw()
hooks.launch_exit_hook.remove(after)
draw()
results = seen, len(jit_runs), driver.launches
""")
    assert results == [["before noise_kernel", "after noise_kernel", "after noise_kernel"], 1, 5]


def test_threads_may_launch_at_the_same_time(results_of):
    results = results_of("""
errors = []
def work():
    try:
        for rows in range(1, 60):
            draw(rows=rows)
    except Exception as error:
        errors.append(str(error))
draw()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
results = errors, driver.launches, driver.kernels
""")
    assert results == [[], 1 + 8 * 59, 1]


@pytest.mark.parametrize(("shape", "kernels"), [("128x10", 1), ("40x4096", 2)])
def test_a_training_run_of_any_batches_and_numbers_takes_two_kernels_at_most(results_of, shape, kernels):
    rows, event = map(int, shape.split("x"))
    results = results_of(f"""
asked = host.asked_for(lambda: host.training_run({rows}, {event}))
results = {{name: [one.kernels, one.launchers] for name, one in asked.items()}}
""")
    assert len(results) == 5
    assert all(max(counts) <= kernels for counts in results.values()), results


def test_without_a_c_compiler_the_backend_says_so(tmp_path):
    """Where there is a GPU: Triton builds its driver at the first launch."""
    library = stub_driver.build(tmp_path)
    program = """
import torch
torch.cuda.is_available = lambda: True
from fastvae.kernels import triton
print(triton.unavailable())
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CC")}
    environment |= {
        "PATH": "",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_LIBCUDA_PATH": str(library.parent),
    }
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "needs a C compiler and Python.h" in result.stdout
    assert "C compiler" in result.stdout.split(": ", 1)[1]
