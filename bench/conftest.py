"""How the suite runs under pytest-benchmark: on which device, and what its JSON says of the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .cases import parse_device
from .contenders import missing
from .machine import describe_machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", type=parse_device, default=torch.device("cpu"), help="where to measure: cpu or cuda")


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict:
    """In place of pytest-benchmark's own, which names the host."""
    left_out = {name: missing(name) for name in ("torch.compile", "diffusers")}
    return describe_machine(config.getoption("device")) | {"left_out": {k: why for k, why in left_out.items() if why}}


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict:
    """Nothing: a result is written before the commit that it belongs to."""
    return {"id": "not recorded"}


# What `pytest-benchmark compare` shows. Single durations and more quantiles would make the file several times as large.
_STATS = ("min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Keep what is read again, in five digits; leave out the options of a timer that is not used."""
    for entry in output_json["benchmarks"]:
        entry["stats"] = {key: _short(entry["stats"][key]) for key in _STATS}
        entry["extra_info"] = {key: _short(value) for key, value in entry["extra_info"].items()}
        entry |= {"options": {}, "params": {}}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
