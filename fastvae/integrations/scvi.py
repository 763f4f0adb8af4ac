"""scvi-tools under `fastvae.patch`: sampling in its encoders, their KL, likelihoods of counts and of accessibility.

`scvi_heads` fuses the likelihoods of counts with the decoder's last layers, `scvi_adam` is about the optimizer.

The encoders of `scvi.nn`, and MULTIVI, build their posterior from `FusedNormal`, a subclass of torch's Normal whose
draws and KL are fused. ``log_nb_positive`` and ``log_zinb_positive`` become one pass forward and one backward, also of
tensors that broadcast; the gradient of a dispersion shared by the cells is summed over them in that pass. In
``log_prob`` of NegativeBinomial and ZeroInflatedNegativeBinomial the same pass notices values that are no counts, of
which scvi-tools warns. The Bernoulli of PEAKVI and MULTIVI, on a product of probabilities, is the scaled Bernoulli.

scvi-tools' own code does everything else, and runs for float64, other values of ``eps``, JAX arrays and devices without
kernels.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints, register_kl
from torch.distributions import kl as torch_kl

from ..autograd import run_likelihood
from ..kernels.head_spec import Density
from ..kernels.likelihood_spec import EPS, NO_BOUNDS, LikelihoodSpec
from ..likelihoods.functional import INTEGERS
from . import normal_ops
from .broadcast import log_prob as broadcast_log_prob
from .deferred import is_waiting, values_of
from .monkeypatch import MonkeyPatch
from .patching import setting_of
from .scvi_adam import with_fused_optimizer
from .scvi_heads import DECODERS, LogProb, are_counts, head_of, with_deferred_layers
from .support import is_supported

__all__ = ["FusedNormal", "install"]

_NB: Final = "negative_binomial"
_ZINB: Final = "zero_inflated_negative_binomial"


def install(monkeypatch: MonkeyPatch) -> None:
    from scvi.distributions import _negative_binomial as counts
    from scvi.module import _multivae, _peakvae
    from scvi.nn import _base_components
    from scvi.train import _trainingplans

    for module in (_base_components, _multivae):
        monkeypatch.setattr(module, "Normal", FusedNormal)
    for name, kind in (("log_nb_positive", _NB), ("log_zinb_positive", _ZINB)):
        monkeypatch.rebind(counts, name, _log_positive(kind, getattr(counts, name)))
    for owner, name, fused in (
        (counts.NegativeBinomial, "log_prob", functools.partial(_log_prob, _NB)),
        (counts.ZeroInflatedNegativeBinomial, "log_prob", functools.partial(_log_prob, _ZINB)),
        (_peakvae.PEAKVAE, "get_reconstruction_loss", _loss_of_peakvi),
        (_multivae.MULTIVAE, "get_reconstruction_loss_accessibility", _loss_of_multivi),
    ):
        monkeypatch.setattr(owner, name, fused(getattr(owner, name)))
    for name in DECODERS:
        decoder = getattr(_base_components, name)
        monkeypatch.setattr(decoder, "forward", with_deferred_layers(decoder.forward))
    plan = _trainingplans.TrainingPlan
    monkeypatch.setattr(plan, "_optimizer_creator_fn", with_fused_optimizer(plan._optimizer_creator_fn))


class FusedNormal(Normal):
    """torch's Normal, with fused draws and KL while scvi-tools is patched."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 as in torch
        z = normal_ops.draw_if_patched("scvi", self, sample_shape)
        return super().rsample(sample_shape) if z is None else z


@register_kl(FusedNormal, Normal)
def _kl(p: FusedNormal, q: Normal) -> Tensor:
    result = normal_ops.kl(p, q) if setting_of("scvi") else None
    return torch_kl._KL_REGISTRY[Normal, Normal](p, q) if result is None else result


def _log_positive(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """log_nb_positive or log_zinb_positive, by the names of scvi-tools."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def log_positive(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        *tensors, eps, log_fn, lgamma_fn = given.args
        if eps == EPS and log_fn is torch.log and lgamma_fn is torch.lgamma:
            log_prob = _fused(kind, *tensors)
            if log_prob is not None:
                return log_prob
        return original(*args, **kwargs)

    return log_positive


def _log_prob(kind: Density, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """log_prob of (zero-inflated) negative binomials."""

    @functools.wraps(original)
    def log_prob(self: Any, value: Any) -> Tensor:
        if kind == _ZINB:
            log_prob = _log_prob_and_warning(self, kind, value, True, self.mu, self.theta, self.zi_logits)
        else:
            log_prob = _log_prob_and_warning(self, kind, value, self._validate_args, self.mu, self.theta)
        return original(self, value) if log_prob is None else log_prob

    return log_prob


def _log_prob_and_warning(
    distribution: Any, kind: Density, value: Any, validate: bool, *parameters: Any
) -> Tensor | None:
    """`_fused`, and scvi-tools' warning of values outside the support. It reads the device where scvi-tools does."""
    cls = type(distribution)
    own = (
        cls.support is not constraints.nonnegative_integer or cls._validate_sample is not Distribution._validate_sample
    )
    if own or distribution._eps != EPS:
        return None
    mu, theta, *logits = parameters
    head = head_of(kind, value, mu, _before_expand(theta), *logits)
    if head is not None:
        # What a head supports, the likelihood does.
        log_prob: Any = LogProb.of(head, mu.shape, lambda: _fused(kind, value, *parameters))  # type: ignore
        outside = validate and not are_counts(value)
    else:
        noticed = _nothing_noticed(mu) if validate and isinstance(mu, Tensor) else None
        log_prob = _fused(kind, value, *parameters, noticed=noticed)
        outside = log_prob is not None and noticed is not None and bool(noticed.item())
    if outside:
        from scvi import settings

        warnings.warn(
            "The value argument must be within the support of the distribution",
            UserWarning,
            stacklevel=settings.warnings_stacklevel + 1,  # from this function, not the method
        )
    return log_prob


def _fused(kind: str, x: Any, mu: Any, theta: Any, *others: Any, noticed: Tensor | None = None) -> Tensor | None:
    """log p of each element in scvi-tools' dtype; None where no fused op supports the tensors."""
    x, mu, others = values_of(x), values_of(mu), tuple(map(values_of, others))
    theta = _before_expand(values_of(theta))
    if not _is_supported(x, mu, theta, *others):
        return None
    log_prob = broadcast_log_prob(kind, x, (mu, theta, *others), noticed)
    return log_prob.to(functools.reduce(torch.promote_types, [one.dtype for one in (x, mu, theta, *others)]))


def _nothing_noticed(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.bool, device=like.device)


def _loss_of_peakvi(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def get_reconstruction_loss(self: Any, p: Any, d: Any, f: Any, x: Any) -> Tensor:
        loss = _binary_cross_entropy(x, p, d, f)
        return original(self, p, d, f, x) if loss is None else loss

    return get_reconstruction_loss


def _loss_of_multivi(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def get_reconstruction_loss_accessibility(self: Any, x: Any, p: Any, d: Any) -> Tensor:
        factor = 1 if self.region_factors is None else torch.sigmoid(self.region_factors)
        loss = _binary_cross_entropy(x, p, d, factor)
        return original(self, x, p, d) if loss is None else loss

    return get_reconstruction_loss_accessibility


def _binary_cross_entropy(x: Any, p: Any, d: Any, f: Any) -> Tensor | None:
    """Of p d f and x > 0, summed over the regions; None where no fused op supports these, or PyTorch would refuse them.

    Probabilities outside [0, 1] are found on the CPU alone: on a GPU, reading the finding would wait for the device.
    """
    d, f = [one if isinstance(one, Tensor) or not isinstance(p, Tensor) else p.new_full((1, 1), one) for one in (d, f)]
    if not _is_supported(x, p, d, f) or x.dim() != 2 or x.shape != p.shape:
        return None
    if any(one.dtype != torch.float32 for one in (p, d, f)) or torch.is_autocast_enabled(p.device.type):
        return None
    rows, regions = x.shape
    if d.shape not in ((rows, 1), (1, 1)) or f.shape not in ((regions,), (1, regions), (1, 1)):
        return None
    noticed = _nothing_noticed(p) if p.is_cpu else None
    log_prob = run_likelihood(x, (p, d, f), LikelihoodSpec("scaled_bernoulli", "sample"), NO_BOUNDS, noticed)
    return None if noticed is not None and noticed.item() else -log_prob


def _is_supported(x: Any, *parameters: Any) -> bool:
    """Whether the fused likelihoods support these: dense tensors on a device with kernels, whose shapes broadcast."""
    if setting_of("scvi") is None or not all(isinstance(tensor, Tensor) for tensor in (x, *parameters)):
        return False  # JAX arrays
    first = parameters[0]
    if not all(
        tensor.device == first.device and tensor.layout is torch.strided and not tensor.is_nested
        for tensor in (x, *parameters)
    ):
        return False
    if not all(is_supported(tensor) for tensor in parameters) or not (x.dtype in INTEGERS or is_supported(x)):
        return False
    if all(tensor.shape == x.shape for tensor in parameters):
        return x.dim() > 0
    try:
        return len(torch.broadcast_shapes(x.shape, *[tensor.shape for tensor in parameters])) > 0
    except RuntimeError:
        return False  # scvi-tools' own code raises the error


def _before_expand(theta: Any) -> Any:
    """theta before scvi-tools expanded it to one row a cell, so that the fused pass sums its gradient over the cells.

    theta itself where anything but `expand` lies between the two, in memory or in autograd's graph, or where a hook or
    ``retain_grad`` observes the gradient of the expanded tensor.
    """
    if is_waiting(theta) or not isinstance(theta, Tensor):
        return theta
    leading = theta.dim() - 1
    if not theta.requires_grad and leading > 0 and theta.numel() and theta.stride()[:-1] == (0,) * leading:
        return theta[(0,) * leading]  # in inference mode no tensor knows what it was expanded from
    if theta.requires_grad and (theta.retains_grad or theta._backward_hooks):
        return theta
    base = theta._base
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
