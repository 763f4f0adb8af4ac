"""What a result was measured on: processor, instruction set, versions and date, but no host, user or path."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastvae

from .contenders import chosen_backend


def describe_machine(device: torch.device) -> dict[str, Any]:
    versions = {"fastvae": fastvae.__version__, "torch": torch.__version__, "python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["diffusers"] = metadata.version("diffusers")
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": chosen_backend(device),
        "instruction_set": instruction_set(),
        "system": platform.system(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    } | (graphics(device) if device.type == "cuda" else {})


def instruction_set() -> str:
    """The instruction set of the CPU kernels."""
    try:
        from fastvae.kernels.cpu import _kernels
    except ImportError:
        return "none: the C extension was not built"
    return _kernels.instruction_set() or "none: the processor has none that the C extension was built for"


def fields(path: Path) -> dict[str, str]:
    """The lines "key: value" of a file of /proc, the first of each key; none where there is no such file."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; on x86 with family and model, as virtual machines often shorten the name."""
    said = fields(cpuinfo)
    name = said.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in said and "model" in said:
        name += f" (family {said['cpu family']}, model {said['model']})"
    return name


def graphics(device: torch.device) -> dict[str, str]:
    """What is said of a GPU in addition."""
    import triton

    return {
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda or f"hip {torch.version.hip}",
        "triton": triton.__version__,
        "driver": driver_version(),
    }


def driver_version() -> str:
    """NVIDIA's driver; empty where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.partition("\n")[0].strip()
