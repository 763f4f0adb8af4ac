"""Missing values: which entries of x count, and how the others are kept out of values and gradients.

With m the mask (1 observed, 0 missing), every log-likelihood here becomes

    log p(x_observed|z) = sum_i m_i log p(x_i|z),

the density of the observed entries alone, as coordinates are independent given z (Mattei & Frellsen, "MIWAE",
arXiv 1812.02633, equation 3, under data missing at random). The kernels know of no mask: x and the parameters of
missing entries are replaced by values at which log p is 0 before they see them, so that a NaN there reaches neither
log p nor a gradient, as it would by 0 times NaN. A mixture of logistics has no such values: its log p of each pixel is
replaced by 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_dense
from ..kernels.likelihood_spec import KINDS
from ..kernels.reference.latents import reduce_kl
from ..torch_internals import any_is_batched, is_transformed

__all__ = ["check_mask", "observed_part", "reduce_observed", "zero_without_data"]


def check_mask(mask: Tensor, x: Tensor, over: Sequence[int]) -> Tensor:
    """The mask with one entry for each value of log p, whose shape is ``over``: x's, or (B, *spatial) of a mixture.

    Raises:
        TypeError, ValueError: it is not a bool tensor on x's device that broadcasts to that shape.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}, expected a bool tensor: True where x is observed")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {str(mask.dtype).removeprefix('torch.')}, expected bool: True where x is observed")
    check_dense("mask", mask)
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, x is on {x.device}; expected the same device")
    shape = tuple(over)
    try:
        fits = tuple(torch.broadcast_shapes(mask.shape, shape)) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {shape} or a shape that broadcasts to it")
    return mask.expand(shape)


def observed_part(
    density: str, x: Tensor, parameters: Mapping[str, Tensor], mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """x and the parameters with `Kind.absent`, at which log p is 0, in the place of missing entries.

    Parameters that rows share, such as the scale of a Gaussian, get a value for each entry first; a gene's dispersion
    and others of `Kind.inert` stay.
    """
    kind = KINDS[density]
    of_x, *of_parameters = kind.absent
    widest = functools.reduce(torch.promote_types, (one.dtype for one in (x, *parameters.values())), torch.float32)
    filled = {}
    for place, ((name, given), absent) in enumerate(zip(parameters.items(), of_parameters, strict=False)):
        own = given.shape == x.shape or given.shape[1:] == x.shape
        if own or place not in kind.inert:
            # Log p is 0 if the value is exact in the dtype of the computation, in which shared gradients are summed.
            given = given if own and absent.is_integer() else given.to(widest)
            given = _with_absent(given if own else given.expand(x.shape), mask, absent)
        filled[name] = given
    return _with_absent(x, mask, of_x), filled


def zero_without_data(log_prob: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """log p of `observed_part`, reduced, and exactly 0 where nothing was observed: there a Bernoulli leaves -9e-27 an
    entry, which is less than the rounding of anything observed."""
    seen = mask
    if reduction == "sample" and mask.dim() > 1:
        seen = mask.flatten(1).any(1)
    elif reduction in ("sum", "batchmean"):
        seen = mask.any()
    return torch.where(seen, log_prob, torch.zeros((), dtype=log_prob.dtype, device=log_prob.device))


def _with_absent(given: Tensor, mask: Tensor, absent: float) -> Tensor:
    """``given`` where the mask is True, else ``absent``."""
    if given.device.type == "cpu" and given.is_floating_point() and not (is_transformed() or any_is_batched([given])):
        blended: Tensor = _Blend.apply(given, mask, absent)
        return blended
    return torch.where(mask, given, torch.full((), absent, dtype=given.dtype, device=given.device))


class _Blend(torch.autograd.Function):
    """torch.where on a CPU, where PyTorch does not vectorise it, in a third of its time.

    With the bits of the numbers read as integers: (given - absent) mask + absent, exact as integers wrap around.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, mask: Tensor, absent: float) -> Tensor:
        ctx.save_for_backward(mask)
        integers, bits = _bits(absent, given.dtype)
        kept = mask.to(integers)
        if bits == 0:
            return (given.view(integers) * kept).view(given.dtype)
        return (given.view(integers) - bits).mul_(kept).add_(bits).view(given.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _with_absent(grads[0], mask, 0.0), None, None


@functools.lru_cache(maxsize=64)
def _bits(number: float, dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """The integer dtype of the size of ``dtype``, and the number's bits in it."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return integers, int(torch.tensor(number, dtype=dtype).view(integers).item())


def reduce_observed(log_prob: Tensor, mask: Tensor, reduction: str, draws: bool) -> Tensor:
    """log p of each entry, (B, ...) or with draws (K, B, ...), reduced over those that the mask has."""
    kept = torch.where(mask, log_prob, torch.zeros((), dtype=log_prob.dtype, device=log_prob.device))
    return reduce_kl(kept, "channel" if draws and reduction == "sample" else reduction)
