"""Missing values: which entries of x count, and how the others are kept out of values and gradients.

With m the mask (1 observed, 0 missing), every log-likelihood here becomes

    log p(x_observed|z) = sum_i m_i log p(x_i|z),

the density of the observed entries alone, as coordinates are independent given z (Mattei & Frellsen, "MIWAE",
arXiv 1812.02633, equation 3, under data missing at random). x and the parameters of missing entries are replaced by
harmless constants before the kernels see them and the results by 0 afterwards: a NaN there reaches neither log p nor a
gradient, which 0 times NaN would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_dense
from ..kernels.likelihood_spec import KINDS

__all__ = ["check_mask", "observed_part", "reduce_observed"]


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
    density: str, x: Tensor, parameters: Sequence[tuple[str, Tensor]], mask: Tensor
) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """x and the parameters with constants (`Kind.harmless`) in the place of missing entries.

    Parameters with a value of their own for each of these entries are replaced; those that several rows share, such as
    a gene's dispersion, stay, and get a gradient from the rows that are observed.
    """
    of_x, *of_parameters = KINDS[density].harmless
    filled = []
    for (name, given), harmless in zip(parameters, of_parameters, strict=False):
        own = given.shape == x.shape or given.shape[1:] == x.shape
        if own:
            given = torch.where(mask, given, torch.full((), harmless, dtype=given.dtype, device=given.device))
        filled.append((name, given))
    return torch.where(mask, x, torch.full((), of_x, dtype=x.dtype, device=x.device)), filled


def reduce_observed(log_prob: Tensor, mask: Tensor, reduction: str, draws: bool) -> Tensor:
    """log p of each entry, (B, ...) or with draws (K, B, ...), reduced over those that the mask has."""
    kept = torch.where(mask, log_prob, torch.zeros((), dtype=log_prob.dtype, device=log_prob.device))
    if reduction == "none":
        return kept
    first = 2 if draws else 1
    rows = kept.flatten(first).sum(first) if kept.dim() > first else kept
    if reduction == "sample":
        return rows
    total = rows.sum()
    return total if reduction == "sum" else total / len(rows)
