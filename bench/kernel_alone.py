"""The CPU kernels alone, outputs allocated beforehand, against copying as many bytes as they touch.

python -m bench.kernel_alone [SHAPE ...] [--results bench/results]          4096x256 if none is named

With --results, kernel_alone.json is written there.

Forward touches mu, logvar and z; backward z's gradient, mu, logvar and the two gradients (the KL is a row's worth). A
copy of n bytes reads n and writes n: it moves twice what a kernel that touches n moves, if that is in no cache.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fastvae
from fastvae.files import save_json

from .cases import parse_shape
from .machine import describe_machine
from .timing import interleaved_medians

ARRAYS = {"forward": 3, "backward": 5}


def copy_of(direction: str) -> str:
    return f"copy of {direction}'s bytes"


def jobs(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """The two kernels in float32, and for each a copy of as many bytes, by PyTorch's own threads."""
    from fastvae.kernels.cpu import _kernels

    generator = torch.Generator().manual_seed(0)
    mu, logvar, grad_z = (torch.randn(shape, generator=generator) for _ in range(3))
    z, grad_mu, grad_logvar = (torch.empty(shape) for _ in range(3))
    kl, grad_kl, seed = torch.empty(shape[0]), torch.ones(shape[0]), torch.tensor([7])
    float32, per_sample, threads = 0, 2, torch.get_num_threads()

    def forward() -> None:
        _kernels.forward(mu, logvar, z, kl, seed, float32, 0, per_sample, threads)

    def backward() -> None:
        _kernels.backward(grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar, seed, float32, 0, per_sample, threads)

    forward()
    backward()
    expected_z, expected_kl = fastvae.sample_and_kl(mu, logvar, seed=7)
    torch.testing.assert_close((z, kl), (expected_z, expected_kl), rtol=0, atol=0)
    torch.testing.assert_close(grad_mu, grad_z + mu)
    found: dict[str, Callable[[], object]] = {"forward": forward, "backward": backward}
    for direction, arrays in ARRAYS.items():
        source = torch.zeros(arrays * mu.numel())
        found[copy_of(direction)] = functools.partial(torch.empty_like(source).copy_, source)
    return found


def measure(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of each kernel and of its copy."""
    seconds = interleaved_medians(jobs(shape), rounds=100)
    return [
        {
            "shape": "x".join(map(str, shape)),
            "direction": direction,
            "seconds": float(f"{seconds[direction]:.4g}"),
            "copy_seconds": float(f"{seconds[copy_of(direction)]:.4g}"),
        }
        for direction in ARRAYS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_alone", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", default=["4096x256"], help="of z, such as 4096x256")
    parser.add_argument("--results", type=Path, help="folder for kernel_alone.json")
    options = parser.parse_args(arguments)
    try:
        shapes = [parse_shape(text) for text in options.shapes]
    except ValueError as error:
        parser.error(str(error))
    if not fastvae.backends()["cpu"]["available"]:
        parser.error(f"there are no CPU kernels here: {fastvae.backends()['cpu']['reason']}")
    rows = [row for shape in shapes for row in measure(shape)]
    print(f"{torch.get_num_threads()} CPU threads, float32, medians of interleaved rounds")
    for row in rows:
        print(
            f"{row['shape']:>12} {row['direction']:<8} {1e3 * row['seconds']:.3f} ms, copying the same bytes"
            f" {1e3 * row['copy_seconds']:.3f} ms: {row['seconds'] / row['copy_seconds']:.2f} times as long"
        )
    if options.results is not None:
        save_json(
            {"machine": describe_machine(torch.device("cpu")), "rows": rows}, options.results / "kernel_alone.json"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
