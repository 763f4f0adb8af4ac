"""``fastvae info``: versions, devices, backends, environment variables, and the backend of a latent op."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
from collections.abc import Sequence

import torch

from . import switches
from .kernels import backend

__all__ = ["DTYPES", "PACKAGES", "info", "lines"]

PACKAGES = ("torch", "triton", "numpy", "lightning", "jsonargparse", "matplotlib", "tensorboard", "torchvision")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def info(arguments: Sequence[str]) -> None:
    """Print versions, devices and backends. Needs none of the optional dependencies."""
    parser = argparse.ArgumentParser(prog="fastvae info", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--shape", type=_shape, default=(128, 20), help="of mu, as 4096x256 (default: 128x20)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    print("\n".join(lines(options.shape, DTYPES[options.dtype], torch.device(options.device))))


def lines(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[str]:
    from . import __version__

    text = [f"fastvae {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    text.append("  " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    text += ["", "devices", *_devices(), "", "backends, in order of preference"]
    for name, state in backend.backends().items():
        if not state["available"]:
            text.append(f"  {name}: not available: {state['reason']}")
        else:
            text.append(f"  {name}: {', '.join(state['chosen_for']) or 'available, not used by default'}")
    text += ["", "environment variables", *switches.lines()]
    title = f"{'x'.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}, on {device}"
    return [*text, "", f"sample_and_kl of {title}", f"  {_backend_of(shape, dtype, device)}"]


def _version(name: str) -> str:
    try:
        # torch.__version__ includes the build: 2.13.0+cpu
        return torch.__version__ if name == "torch" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    text = [f"  cpu: {torch.get_num_threads()} threads for torch's and fastvae's ops"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text.append(f"  cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        text.append("  mps: runs on the reference backend")
    return text


def _backend_of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    try:
        kernels = backend.implementation(backend.requested, device, dtype)
    except (RuntimeError, ValueError) as error:  # FASTVAE_BACKEND names a backend that does not support it
        return f"no backend: {error}"
    name = kernels.__name__.rpartition(".")[2]
    return f"{name}: {kernels.describe(shape, dtype, device)}"


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape, expected sizes as in 4096x256")
    return shape


def _device(text: str) -> str:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device, expected cpu or cuda:0, for example") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text!r} does not exist: {torch.cuda.device_count()} CUDA devices found")
    return text
