"""scvi-tools under `fastvae.patch`: sampling in its encoders, their KL, and the negative binomial likelihoods.

The encoders of `scvi.nn` build their posterior from `FusedNormal`, a subclass of torch's Normal whose draws and KL are
fused. ``log_nb_positive`` and ``log_zinb_positive``, from which NegativeBinomial and ZeroInflatedNegativeBinomial
compute ``log_prob``, become one pass forward and one backward; the gradient of a dispersion shared by the cells is
summed over them in that pass. scvi-tools' own code does everything else, warnings about counts included, and runs for
float64, other values of ``eps``, JAX arrays and devices without kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, register_kl
from torch.distributions import kl as torch_kl

from ..kernels.likelihood_spec import EPS
from ..likelihoods import negative_binomial_log_prob, zero_inflated_negative_binomial_log_prob
from . import normal_ops
from .monkeypatch import MonkeyPatch
from .patching import setting_of
from .support import is_supported


def install(monkeypatch: MonkeyPatch) -> None:
    from scvi.distributions import _negative_binomial
    from scvi.nn import _base_components

    monkeypatch.setattr(_base_components, "Normal", FusedNormal)
    for name, fused in (("log_nb_positive", _log_nb), ("log_zinb_positive", _log_zinb)):
        monkeypatch.rebind(_negative_binomial, name, fused(getattr(_negative_binomial, name)))


class FusedNormal(Normal):
    """torch's Normal, with fused draws and KL while scvi-tools is patched."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 as in torch
        z = normal_ops.draw_if_patched("scvi", self, sample_shape)
        return super().rsample(sample_shape) if z is None else z


@register_kl(FusedNormal, Normal)
def _kl(p: FusedNormal, q: Normal) -> Tensor:
    result = normal_ops.kl(p, q) if setting_of("scvi") else None
    return torch_kl._KL_REGISTRY[Normal, Normal](p, q) if result is None else result


def _log_nb(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def log_nb_positive(
        x: Any, mu: Any, theta: Any, eps: float = EPS, log_fn: Any = torch.log, lgamma_fn: Any = torch.lgamma
    ) -> Any:
        theta = _before_expand(theta)
        if not (_are_defaults(eps, log_fn, lgamma_fn) and _is_supported(x, mu, theta)):
            return original(x, mu, theta, eps=eps, log_fn=log_fn, lgamma_fn=lgamma_fn)
        return negative_binomial_log_prob(mu, theta, x, reduction="none").to(_dtype_of(x, mu, theta))

    return log_nb_positive


def _log_zinb(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def log_zinb_positive(
        x: Any, mu: Any, theta: Any, pi: Any, eps: float = EPS, log_fn: Any = torch.log, lgamma_fn: Any = torch.lgamma
    ) -> Any:
        theta = _before_expand(theta)
        if not (_are_defaults(eps, log_fn, lgamma_fn) and _is_supported(x, mu, theta, pi)):
            return original(x, mu, theta, pi, eps=eps, log_fn=log_fn, lgamma_fn=lgamma_fn)
        log_prob = zero_inflated_negative_binomial_log_prob(mu, theta, pi, x, reduction="none")
        return log_prob.to(_dtype_of(x, mu, theta, pi))

    return log_zinb_positive


def _are_defaults(eps: float, log_fn: Any, lgamma_fn: Any) -> bool:
    return eps == EPS and log_fn is torch.log and lgamma_fn is torch.lgamma


def _is_supported(x: Any, mu: Any, *others: Any) -> bool:
    """Whether the fused likelihoods support these: mu of x's shape or with a leading dimension of draws; the others
    broadcast to mu."""
    if setting_of("scvi") is None:
        return False
    if not all(isinstance(tensor, Tensor) for tensor in (x, mu, *others)):
        return False  # JAX arrays
    return (
        mu.dim() > 0
        and mu.shape in (x.shape, mu.shape[:1] + x.shape)
        and all(tensor.device == mu.device for tensor in (x, *others))
        and all(is_supported(tensor) for tensor in (mu, *others))
        and (not x.is_floating_point() or is_supported(x))
        and all(_broadcasts_to(mu.shape, tensor.shape) for tensor in others)
    )


def _broadcasts_to(target: torch.Size, shape: torch.Size) -> bool:
    sizes = zip(shape[::-1], target[::-1], strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in sizes)


def _dtype_of(*tensors: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _before_expand(theta: Any) -> Any:
    """theta before scvi-tools expanded it to one row a cell, so that the fused pass sums its gradient over the cells.

    theta itself where anything but `expand` lies between the two, in memory or in autograd's graph, or where a hook or
    ``retain_grad`` observes the gradient of the expanded tensor.
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
