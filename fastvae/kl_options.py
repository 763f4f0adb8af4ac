"""What is left of a KL after the kernel: free bits on groups of coordinates, capacity and weight.

Free bits count on a group of coordinates at a time, and on each sample's KL or on its mean over the batch. A group of
one coordinate is cut off inside the kernel. Of larger groups, and of means over the batch, the kernel gives the sums,
and what follows are operations on tensors of that size, which autograd differentiates.
"""

from __future__ import annotations

from torch import Tensor

from .kernels.reference.functions import at_least
from .latent_options import DescribedLatent, is_one

__all__ = ["finish", "finish_kl"]


def finish(outputs: tuple[Tensor | None, ...], described: DescribedLatent, like: Tensor) -> tuple[Tensor, ...]:
    """z and the KL with what the kernel leaves to do, and the KL of each coordinate if it is wanted.

    Args:
        outputs: the first two or more `LatentOutputs`.
        like: has as many rows as mu.
    """
    z, kl, *others = outputs
    kl_mean = others[0] if others else None
    finished = z, finish_kl(kl, kl_mean, described, like.shape[0])
    return (*finished, kl_mean.detach()) if described.spec.per_coordinate else finished  # type: ignore


def finish_kl(kl: Tensor | None, kl_mean: Tensor | None, described: DescribedLatent, batch: int) -> Tensor:
    """The KL under ``spec.reduction``, from the kernel's outputs under ``spec.kernel_reduction``."""
    spec, free_bits = described.spec, described.scalars.free_bits
    if spec.free_bits_over_batch:
        assert kl_mean is not None
        if spec.free_bits == "channel":
            kl_mean = kl_mean.flatten(1).sum(1)
        elif spec.free_bits == "latent":
            kl_mean = kl_mean.sum()
        kl = at_least(kl_mean, free_bits).sum()
        if spec.reduction == "sum":
            kl = kl * batch
    elif spec.free_bits in ("channel", "latent"):
        assert kl is not None
        kl = at_least(kl, free_bits)
        if spec.free_bits == "channel":
            kl = kl.sum(1)
        if spec.reduction != "sample":
            kl = kl.sum() if spec.reduction == "sum" else kl.mean()
    assert kl is not None
    if described.capacity is not None:
        kl = (kl - described.capacity).abs()
    return kl if is_one(described.beta) else described.beta * kl
