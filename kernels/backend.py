"""Which backend serves a call: the best that the machine has for the tensors' device and dtype, or the one asked for.

What is asked for by name and cannot be had is an error that says why; the automatic choice falls back to the
reference. A backend is imported at its first use, so that importing fastvae needs no compiler, no Triton and no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["backends", "has_kernels", "implementation", "kernels_for", "reason_unavailable", "requested", "use_backend"]

NAMES = ("triton", "cpu", "reference")
AUTOMATIC = "auto"

# What the automatic choice tries before the reference, which is there for all else: float64 (a contract) and devices of
# other makers.
_PREFERRED = {"cuda": ("triton",), "cpu": ("cpu",)}
_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def _from_environment() -> str:
    return os.environ.get("FASTVAE_BACKEND", "").strip() or AUTOMATIC


# The name asked for, or AUTOMATIC. For the whole process, as torch's own switches are: autograd's threads see it too.
requested = _from_environment()

_unavailable: dict[str, str] = {}  # why a backend cannot run on this machine; "" where it can
_resolved: dict[tuple[str, torch.device, torch.dtype], ModuleType] = {}
_resolved_on_cpu: dict[tuple[str, torch.dtype], ModuleType] = {}


def reason_unavailable(name: str) -> str:
    """Why backend ``name`` cannot run on this machine; an empty string if it can."""
    if name not in NAMES:
        source = "FASTVAE_BACKEND" if name == _from_environment() else "backend"
        raise ValueError(f"{source} is {name!r}, expected one of {', '.join(map(repr, NAMES))}")
    if name not in _unavailable:
        try:
            module = importlib.import_module(f"fastvae.kernels.{name}")
            _unavailable[name] = module.unavailable() if hasattr(module, "unavailable") else ""
        except Exception as error:  # a broken Triton fails in many ways; whatever it says is the reason
            _unavailable[name] = f"{type(error).__name__}: {error}"
    return _unavailable[name]


def _reason_unfit(name: str, device_type: str, dtype: torch.dtype) -> str:
    """Why backend ``name``, which this machine has, does not serve this device and dtype; empty if it does."""
    if name == "reference":
        return ""
    if dtype not in _HALF_AND_SINGLE:
        return f"it computes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    devices = importlib.import_module(f"fastvae.kernels.{name}").device_types()
    if device_type not in devices:
        return f"it serves {' and '.join(devices)} tensors, not {device_type} tensors"
    return ""


def implementation(name: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The backend module for tensors of this device and dtype when ``name`` (or AUTOMATIC) was asked for."""
    key = (name, device, dtype)
    module = _resolved.get(key)
    if module is None:
        module = _resolved[key] = importlib.import_module(f"fastvae.kernels.{_resolve(name, device.type, dtype)}")
    return module


def kernels_for(name: str, like: Tensor) -> ModuleType:
    """`implementation` for this tensor. Small latents on the CPU are asked for often: their device is not looked at."""
    if not like.is_cpu:
        device, dtype = like.device, like.dtype
        return _resolved.get((name, device, dtype)) or implementation(name, device, dtype)
    key = (name, like.dtype)
    module = _resolved_on_cpu.get(key)
    if module is None:
        module = _resolved_on_cpu[key] = implementation(name, like.device, like.dtype)
    return module


def _resolve(name: str, device_type: str, dtype: torch.dtype) -> str:
    if name == AUTOMATIC:
        for candidate in _PREFERRED.get(device_type, ()):
            if reason_unavailable(candidate):
                _warn_of_slow_gpu(candidate, device_type)
            elif not _reason_unfit(candidate, device_type, dtype):
                return candidate
        return "reference"
    reason = reason_unavailable(name)
    if reason:
        raise RuntimeError(f"backend {name!r} is not available on this machine: {reason}")
    reason = _reason_unfit(name, device_type, dtype)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot serve this call: {reason}; use 'reference' for it")
    return name


@functools.cache
def _warn_of_slow_gpu(name: str, device_type: str) -> None:
    """Once: a GPU without its kernels is rarely wanted, where a CPU without a compiler often is."""
    if device_type == "cuda":
        warnings.warn(
            f"fastvae runs on the reference backend on this GPU, which is slow: {name} is not available:"
            f" {reason_unavailable(name)}",
            RuntimeWarning,
            stacklevel=2,
        )


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors of this device and dtype go to fused kernels now, or to the reference by name."""
    return _has_kernels(requested, device, dtype)


@functools.cache
def _has_kernels(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        return _resolve(name, device.type, dtype) in (name, *NAMES[:-1])
    except RuntimeError:
        return False


def backends() -> dict[str, dict[str, Any]]:
    """Which backends this machine has, what each is chosen for, and why not the others.

    Returns:
        For each backend, in order of preference: ``available`` (bool), ``reason`` (why it is not available, else an
        empty string) and ``chosen_for`` (a list such as ``["cpu float32", ...]`` of the device types of this machine
        and the dtypes that would go to it now, `use_backend` and ``FASTVAE_BACKEND`` taken into account).

    >>> import fastvae
    >>> fastvae.backends()["reference"]["available"]
    True
    """
    report: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        reason = reason_unavailable(name)
        report[name] = {"available": not reason, "reason": reason, "chosen_for": []}
    for device_type in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        for dtype in (*_HALF_AND_SINGLE, torch.float64):
            with contextlib.suppress(RuntimeError):
                chosen = _resolve(requested, device_type, dtype)
                report[chosen]["chosen_for"].append(f"{device_type} {str(dtype).removeprefix('torch.')}")
    return report


@contextlib.contextmanager
def use_backend(name: Literal["triton", "cpu", "reference"]) -> Iterator[None]:
    """Within the context, every fastvae op runs on backend ``name``: "triton", "cpu" or "reference".

    The environment variable ``FASTVAE_BACKEND`` does the same from outside. The choice holds for the whole process,
    all its threads included, and the backward of an op runs where its forward ran.

    Raises:
        ValueError: ``name`` is none of the three.
        RuntimeError: this machine does not have that backend; the message says why. A tensor whose device or dtype
            that backend does not serve raises when the op is called.

    >>> import torch, fastvae
    >>> with fastvae.use_backend("reference"):
    ...     kl = fastvae.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3))
    >>> kl
    tensor([1.5000, 1.5000])
    """
    global requested
    reason = reason_unavailable(name)
    if reason:
        raise RuntimeError(f"backend {name!r} is not available on this machine: {reason}")
    before = requested
    requested = name
    try:
        yield
    finally:
        requested = before
