"""What a result was measured on: processor, instruction set, versions and date. Never whose machine, or where on it."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastvae

from .contenders import chosen_backend


def describe_machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": chosen_backend(device),
        "instruction_set": instruction_set(),
        "system": platform.system(),
        "versions": {
            "fastvae": fastvae.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        | versions("diffusers", "pytest-benchmark"),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def instruction_set() -> str:
    """What the CPU kernels run with."""
    try:
        from fastvae.kernels.cpu import _kernels
    except ImportError:
        return "none: the C extension was not built"
    return _kernels.instruction_set() or "none: the processor has none that the C extension was built for"


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; on x86 with family and model, for clouds cut the name short."""
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
