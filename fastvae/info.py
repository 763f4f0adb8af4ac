"""``fastvae info``: versions, devices, backends, and what a latent op of some shape would run on."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
from collections.abc import Sequence

import torch

from .kernels import selection

PACKAGES = ("torch", "triton", "numpy", "lightning", "jsonargparse", "matplotlib", "tensorboard", "torchvision")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def info(arguments: Sequence[str]) -> None:
    """Print what is asked for; needs nothing but fastvae itself."""
    parser = argparse.ArgumentParser(
        prog="fastvae info", description="Versions, devices, backends, and what runs where."
    )
    parser.add_argument("--shape", type=_shape, default=(128, 20), help="of mu, such as 4096x256 (default: 128x20)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    print("\n".join(lines(options.shape, DTYPES[options.dtype], torch.device(options.device))))


def lines(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[str]:
    """What is printed, line by line."""
    from . import __version__

    found = [f"fastvae {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    found.append("  " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    found += ["", "devices", *_devices(), "", "backends, the best first"]
    for name, state in selection.backends().items():
        if not state["available"]:
            found.append(f"  {name}: not available: {state['reason']}")
        else:
            found.append(f"  {name}: {', '.join(state['chosen_for']) or 'available, chosen for nothing'}")
    title = f"{'x'.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}, on {device}"
    return [*found, "", f"sample_and_kl of {title}", f"  {_choice(shape, dtype, device)}"]


def _version(name: str) -> str:
    try:
        # PyTorch itself knows which build it is: 2.13.0+cpu
        return torch.__version__ if name == "torch" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    described = [f"  cpu: {torch.get_num_threads()} threads for torch's and fastvae's ops"]
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        described.append(f"  cuda:{index}: {of.name}, {of.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        described.append("  mps: served by the reference backend")
    return described


def _choice(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    try:
        backend = selection.implementation(selection.requested, device, dtype)
    except (RuntimeError, ValueError) as error:  # what FASTVAE_BACKEND asks for
        return f"nothing: {error}"
    name = backend.__name__.rpartition(".")[2]
    return f"{name}: {backend.describe(shape, dtype, device)}"


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape, expected sizes such as 4096x256")
    return shape


def _device(text: str) -> str:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device, expected such as cpu or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text!r} is not there: {torch.cuda.device_count()} CUDA devices were found")
    return text
