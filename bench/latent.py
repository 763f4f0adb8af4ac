"""The latent op, forward and backward, against plain PyTorch on the CPU, in a process that does nothing else.

python -m bench.latent [BATCHxLATENT ...]         4096x256 and 65536x256 if none is named
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import fastvae

from . import eager
from .timing import interleaved_medians


def reference(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    with fastvae.use_backend("reference"):
        return fastvae.sample_and_kl(mu, logvar)


CONTENDERS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "eager": eager.sample_and_kl,
    "fastvae": fastvae.sample_and_kl,
    "reference": reference,
}


def measure(batch: int, latent: int) -> dict[str, float]:
    """Seconds of each contender, after a look at whether they agree."""
    mu, logvar = (torch.randn(batch, latent).requires_grad_() for _ in range(2))
    grad_z, grad_kl = torch.randn(batch, latent), torch.randn(batch)
    exact = fastvae.gaussian_kl(mu.double(), logvar.double())
    for contender in CONTENDERS.values():
        torch.testing.assert_close(contender(mu, logvar)[1].double(), exact, rtol=1e-4, atol=1e-4)

    def step(contender: Callable) -> Callable[[], object]:
        return lambda: torch.autograd.grad(contender(mu, logvar), (mu, logvar), (grad_z, grad_kl))

    rounds = 40 if batch * latent < 4_000_000 else 7
    return interleaved_medians({name: step(contender) for name, contender in CONTENDERS.items()}, rounds=rounds)


def main() -> None:
    print(f"{torch.get_num_threads()} CPU threads, float32, forward and backward, medians of interleaved rounds")
    for shape in sys.argv[1:] or ("4096x256", "65536x256"):
        seconds = measure(*map(int, shape.split("x")))
        times = "   ".join(f"{name} {1e3 * value:.3f} ms" for name, value in seconds.items())
        ratios = ", ".join(f"{name} x{seconds['eager'] / seconds[name]:.2f}" for name in ("fastvae", "reference"))
        print(f"{shape:>12}: {times}   against eager: {ratios}")


if __name__ == "__main__":
    main()
