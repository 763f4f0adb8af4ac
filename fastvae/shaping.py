"""KL shaping: free bits, weight and capacity, as small arithmetic on what the kernels have summed.

Free bits count on a group of coordinates at a time, and on each sample's KL or on its mean over the batch. A group of
one coordinate is cut off inside the kernel; of larger groups, and of means over the batch, the kernel gives the sums,
and what follows are operations on tensors of that size. Autograd sees them: nothing here has a gradient of its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .autograd import latent
from .kernels.family import Options
from .kernels.reference.bounds import at_least
from .options import check_number

GROUPS = ("coordinate", "channel", "latent")
AVERAGES = ("sample", "batch")


class KLShape(NamedTuple):
    beta: float = 1.0
    capacity: float | None = None
    free_bits: float = 0.0
    group: str = "coordinate"
    over: str = "sample"

    def in_kernel(self) -> float:
        """Free bits that the kernel itself takes care of."""
        return self.free_bits if self.group == "coordinate" and self.over == "sample" else 0.0

    def kernel_reduction(self, reduction: str) -> str | None:
        """What the kernel is to sum; None: only the mean over the batch of each coordinate is needed."""
        if not self.free_bits or self.in_kernel():
            return reduction
        if self.over == "batch":
            return None
        return "sample" if self.group == "latent" else "channel"

    def finish(self, kl: Tensor | None, kl_mean: Tensor | None, batch: int, reduction: str) -> Tensor:
        """From what the kernel gave under `kernel_reduction` to the KL under ``reduction``, weight and all."""
        if kl is None:  # free bits on the mean over the batch
            assert kl_mean is not None
            if self.group == "channel":
                kl_mean = kl_mean.flatten(1).sum(1)
            elif self.group == "latent":
                kl_mean = kl_mean.sum()
            kl = at_least(kl_mean, self.free_bits).sum()
            if reduction == "sum":
                kl = kl * batch
        elif self.free_bits and not self.in_kernel():
            kl = at_least(kl, self.free_bits)
            if self.group == "channel":
                kl = kl.sum(1)
            if reduction != "sample":
                kl = kl.sum() if reduction == "sum" else kl.mean()
        if self.capacity is not None:
            kl = (kl - self.capacity).abs()
        return kl if self.beta == 1.0 else self.beta * kl


def check_kl_shape(
    beta: float, capacity: float | None, free_bits: float, group: str, over: str, reduction: str, event_rank: int
) -> KLShape:
    """The shape, each of it checked. Calls repeat theirs: what has passed once is looked up."""
    arguments = (beta, capacity, free_bits, group, over, reduction, event_rank)
    if not torch.compiler.is_compiling():
        try:
            return _checked_kl_shape(*arguments)
        except TypeError:  # it is wrong, and this will be said again
            pass
    return _check_kl_shape(*arguments)


def _check_kl_shape(
    beta: float, capacity: float | None, free_bits: float, group: str, over: str, reduction: str, event_rank: int
) -> KLShape:
    beta = check_number("beta", beta, 0.0)
    free_bits = check_number("free_bits", free_bits, 0.0)
    if group not in GROUPS:
        raise ValueError(f"free_bits_group is {group!r}, expected one of {', '.join(map(repr, GROUPS))}")
    if over not in AVERAGES:
        raise ValueError(f"free_bits_over is {over!r}, expected one of {', '.join(map(repr, AVERAGES))}")
    if capacity is not None:
        capacity = check_number("capacity", capacity, 0.0)
        if reduction == "none":
            raise ValueError("capacity was given with reduction 'none', expected a KL that is summed over the event")
    if event_rank < 2 and group == "channel":
        group = "coordinate"  # a channel of one coordinate
    if event_rank == 0:
        group = "coordinate"
    if free_bits:
        if over == "batch" and reduction not in ("sum", "batchmean"):
            raise ValueError(f"free_bits_over is 'batch' with reduction {reduction!r}, expected 'batchmean' or 'sum'")
        if group != "coordinate" and reduction == "none":
            raise ValueError(f"free_bits_group is {group!r} with reduction 'none', expected a KL that is summed")
    return KLShape(beta, capacity, free_bits, group, over)


_checked_kl_shape = functools.lru_cache(maxsize=256, typed=True)(_check_kl_shape)


def shaped_latent(
    first: Tensor,
    second: Tensor | None,
    dim: int,
    mu: Tensor,
    prior: tuple[Tensor | None, Tensor | None],
    seed: Tensor | None,
    row_offset: int,
    num_samples: int | None,
    reduction: str,
    shape: KLShape,
    options: Options,
    per_coordinate: bool,
) -> tuple[Tensor, ...]:
    """z, the KL as ``shape`` wants it, and the KL per coordinate if that is wanted."""
    summed = shape.kernel_reduction(reduction)
    if shape.free_bits:
        options = options._replace(free_bits=shape.in_kernel())
    z, kl, kl_mean, _, _ = latent(
        first, second, prior, seed, dim, row_offset, num_samples, summed, options,
        kl_mean=per_coordinate or summed is None,
    )  # fmt: skip
    kl = shape.finish(kl, kl_mean, mu.shape[0], reduction)
    return (z, kl, kl_mean.detach()) if per_coordinate else (z, kl)
