"""scvi-tools under `fastvae.patch`: sampling in its encoders, their KL, and the negative binomial likelihoods.

The encoders of `scvi.nn` build their posterior from a Normal whose draws and KL are fused; it is torch's Normal to all
who ask. ``log_nb_positive`` and ``log_zinb_positive``, of which NegativeBinomial and ZeroInflatedNegativeBinomial make
their ``log_prob``, are one pass forward and one backward, and of a dispersion that the cells share, the gradient is
summed over them in that pass. Everything else, warnings about counts included, is scvi-tools' own code; what the fused
ops do not fit is too: float64, other values of ``eps``, JAX arrays, devices without kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, register_kl
from torch.distributions import kl as torch_kl

from ..kernels.likelihoods import EPS
from ..likelihoods import negative_binomial_log_prob, zero_inflated_negative_binomial_log_prob
from . import normals
from .patching import setting_of
from .replacements import Replacements
from .served import is_served


def install(replacements: Replacements) -> None:
    from scvi.distributions import _negative_binomial
    from scvi.nn import _base_components

    replacements.attribute(_base_components, "Normal", FusedNormal)
    for name, fused in (("log_nb_positive", _log_nb), ("log_zinb_positive", _log_zinb)):
        replacements.everywhere(_negative_binomial, name, fused(getattr(_negative_binomial, name)))


class FusedNormal(Normal):
    """torch's Normal; draws and KL are fused while scvi-tools is patched."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 as torch has it
        setting = setting_of("scvi")
        z = None
        if setting is not None and setting.noise == "fastvae":
            z = normals.draw(self, torch.Size(sample_shape))
        return super().rsample(sample_shape) if z is None else z


@register_kl(FusedNormal, Normal)
def _kl(p: FusedNormal, q: Normal) -> Tensor:
    found = normals.kl(p, q) if setting_of("scvi") else None
    return torch_kl._KL_REGISTRY[Normal, Normal](p, q) if found is None else found


def _log_nb(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def log_nb_positive(
        x: Any, mu: Any, theta: Any, eps: float = EPS, log_fn: Any = torch.log, lgamma_fn: Any = torch.lgamma
    ) -> Any:
        theta = _as_given(theta)
        if not (_are_usual(eps, log_fn, lgamma_fn) and _fit(x, mu, theta)):
            return original(x, mu, theta, eps=eps, log_fn=log_fn, lgamma_fn=lgamma_fn)
        return negative_binomial_log_prob(mu, theta, x, reduction="none").to(_dtype_of(x, mu, theta))

    return log_nb_positive


def _log_zinb(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def log_zinb_positive(
        x: Any, mu: Any, theta: Any, pi: Any, eps: float = EPS, log_fn: Any = torch.log, lgamma_fn: Any = torch.lgamma
    ) -> Any:
        theta = _as_given(theta)
        if not (_are_usual(eps, log_fn, lgamma_fn) and _fit(x, mu, theta, pi)):
            return original(x, mu, theta, pi, eps=eps, log_fn=log_fn, lgamma_fn=lgamma_fn)
        log_prob = zero_inflated_negative_binomial_log_prob(mu, theta, pi, x, reduction="none")
        return log_prob.to(_dtype_of(x, mu, theta, pi))

    return log_zinb_positive


def _are_usual(eps: float, log_fn: Any, lgamma_fn: Any) -> bool:
    return eps == EPS and log_fn is torch.log and lgamma_fn is torch.lgamma


def _fit(x: Any, mu: Any, *others: Any) -> bool:
    """Whether the fused likelihoods take these: x of mu's shape, or mu of several draws; the others broadcast to mu."""
    if setting_of("scvi") is None:
        return False
    if not all(isinstance(tensor, Tensor) for tensor in (x, mu, *others)):
        return False  # JAX's
    return (
        mu.dim() > 0
        and mu.shape in (x.shape, mu.shape[:1] + x.shape)
        and all(tensor.device == mu.device for tensor in (x, *others))
        and all(is_served(tensor) for tensor in (mu, *others))
        and (not x.is_floating_point() or is_served(x))
        and all(_broadcasts_to(mu.shape, tensor.shape) for tensor in others)
    )


def _broadcasts_to(shape: torch.Size, given: torch.Size) -> bool:
    sizes = zip(given[::-1], shape[::-1], strict=False)
    return len(given) <= len(shape) and all(mine in (1, its) for mine, its in sizes)


def _dtype_of(*tensors: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _as_given(theta: Any) -> Any:
    """theta before scvi-tools expanded it to a row for each cell: its gradient is then summed in the fused pass.

    It is looked for only where nothing but `expand` lies between, in memory and in autograd's graph, and nobody listens
    to the gradient of what was expanded.
    """
    if isinstance(theta, Tensor) and theta.requires_grad and (theta.retains_grad or theta._backward_hooks):
        return theta
    base = theta._base if isinstance(theta, Tensor) else None
    if base is None or base.dim() == 0 or base.shape != theta.shape[theta.dim() - base.dim() :]:
        return theta
    rows = theta.dim() - base.dim()
    same_memory = base.data_ptr() == theta.data_ptr() and theta.stride() == (0,) * rows + base.stride()
    if not same_memory or theta.requires_grad != base.requires_grad:
        return theta
    node = theta.grad_fn
    while node is not None and node.name() == "ExpandBackward0":
        node = node.next_functions[0][0]
    if node is None:
        same_graph = not theta.requires_grad
    elif base.is_leaf:
        same_graph = getattr(node, "variable", None) is base
    else:
        same_graph = node is base.grad_fn
    return base if same_graph else theta
