"""The suite: ops x shapes x dtypes (`bench.cases.SUITE`) x directions x contenders, for pytest-benchmark.

python -m pytest bench --benchmark-json=suite.json [-k "4096x256 and bfloat16"]        or: make bench

Each case is checked and measured once, each contender in turns with eager PyTorch, before its benchmarks record what
was measured (`bench.replay`). A contender that computes something else fails the case before anything is timed.
"""

from __future__ import annotations

import functools

import pytest
import torch

from .cases import SUITE, Case
from .contenders import contender_names
from .measure import Measurement, measure
from .memory import peak_bytes, peak_of_least
from .replay import replay, replayed

# Memory goes with the size of the elements: one dtype tells.
PEAKS_OF = {(op, "float32") for op in ("sample_and_kl", "sample_and_kl_packed")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = metafunc.config.getoption("device")
    benchmarks = [
        (case, direction, name)
        for case in SUITE
        for direction in case.directions
        for name in contender_names(case, device)
    ]
    names = ["-".join((*str(case).split(), direction, name.replace(" ", "_"))) for case, direction, name in benchmarks]
    metafunc.parametrize(("case", "direction", "contender"), benchmarks, ids=names)


@functools.lru_cache(maxsize=1)  # the benchmarks of a case follow each other
def measured(case: Case, device: torch.device) -> tuple[Measurement, dict[str, int | None]]:
    """All contenders of a case, each timed in turns with eager PyTorch, and their peak memory."""
    names = contender_names(case, device)
    measurement = measure(case, names, device)
    with_peak = (case.op, case.dtype) in PEAKS_OF and device.type == "cpu"
    return measurement, {name: peak_bytes(case, name) for name in names} if with_peak else {}


@pytest.mark.benchmark(timer=replayed)
def test_latent_op(benchmark, pytestconfig, case, direction, contender):
    measurement, peaks = measured(case, pytestconfig.getoption("device"))
    timing = measurement.timings[direction, contender]
    benchmark.group = f"{case} {direction}"
    benchmark.extra_info |= {
        "op": case.op,
        "shape": case.shape_name,
        "dtype": case.dtype,
        "direction": direction,
        "contender": contender,
        "speed_against_eager": timing.speed_against_eager,
        "elsewhere": timing.elsewhere,
    }
    if direction == "both":
        benchmark.extra_info["saved_bytes"] = measurement.saved_bytes[contender]
        peak = peaks.get(contender)
        if peak is not None:
            benchmark.extra_info |= {"peak_bytes": peak, "peak_of_least": peak_of_least(case, peak)}
    replay(benchmark, timing.seconds, timing.calls)
