"""The CPU kernels alone, with outputs allocated beforehand, against a copy of as many bytes as they read and write.

python -m bench kernel_alone [SHAPE ...] [--results FOLDER]          4096x256 if none is named

Forward reads and writes mu, logvar and z; backward z's gradient, mu, logvar and their gradients (the KL is one number a
row). A copy of n bytes reads n and writes n: where nothing is in a cache, it moves twice as much as the kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import fastvae
from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs, LatentScalars, LatentSpec

from .cases import parse_shape
from .measure import copy_of
from .records import command_line, save, show
from .tables import KERNEL_ALONE
from .timing import interleaved_medians

ARRAYS = {"forward": 3, "backward": 5}


def jobs(shape: tuple[int, ...]) -> dict[tuple[str, str], Callable[[], object]]:
    """The two kernels in float32, and for each a copy by PyTorch of as many bytes."""
    from fastvae.kernels import cpu

    generator = torch.Generator().manual_seed(0)
    mu, logvar, grad_z = (torch.randn(shape, generator=generator) for _ in range(3))
    z, grad_mu, grad_logvar = (torch.empty(shape) for _ in range(3))
    kl, grad_kl = torch.empty(shape[0]), torch.ones(shape[0])
    inputs, scalars = LatentInputs(mu, logvar, seed=torch.tensor([7])), LatentScalars()
    outputs, grads, written = LatentOutputs(z, kl), LatentOutputs(grad_z, grad_kl), (grad_mu, grad_logvar, None, None)
    code = cpu._latent_code(LatentSpec())

    def forward() -> None:
        cpu._kernels.latent_forward(inputs, outputs, code, scalars)

    def backward() -> None:
        cpu._kernels.latent_backward(grads, inputs, written, code, scalars)

    forward()
    backward()
    expected_z, expected_kl = fastvae.sample_and_kl(mu, logvar, seed=7)
    torch.testing.assert_close((z, kl), (expected_z, expected_kl), rtol=0, atol=0)
    torch.testing.assert_close(grad_mu, grad_z + mu)
    copies = {(name, "copy"): copy_of(2 * arrays * mu.nbytes, mu.device) for name, arrays in ARRAYS.items()}
    return {("forward", "kernel"): forward, ("backward", "kernel"): backward} | copies


def measure(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of each kernel and of its copy."""
    seconds = interleaved_medians(jobs(shape), rounds=100)
    name = "x".join(map(str, shape))
    return [
        {"shape": name, "direction": way, "seconds": seconds[way, "kernel"], "copy_seconds": seconds[way, "copy"]}
        for way in ARRAYS
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("kernel_alone", __doc__)
    parser.add_argument(
        "shapes", nargs="*", metavar="SHAPE", type=parse_shape, default=[(4096, 256)], help="of z, such as 4096x256"
    )
    options = parser.parse_args(arguments)
    if not fastvae.backends()["cpu"]["available"]:
        parser.error(f"there are no CPU kernels here: {fastvae.backends()['cpu']['reason']}")
    print(f"{torch.get_num_threads()} CPU threads, float32, medians of interleaved rounds\n")
    rows = show((row for shape in options.shapes for row in measure(shape)), KERNEL_ALONE)
    save(options.results, "kernel_alone", rows)
