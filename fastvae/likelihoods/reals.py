"""Likelihoods with a location and a scale, `Gaussian`, `Laplace`, `LogNormal`: one scale, or one for each element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_clamp, check_flag
from ..kernels.head_spec import Activation
from .base import FusedLikelihood, HeadTerms, Parameters, check_parts, check_positive
from .functional import gaussian_log_prob, laplace_log_prob, log_normal_log_prob

__all__ = ["Gaussian", "Laplace", "LogNormal"]


class _LocationScale(FusedLikelihood):
    """The log scale is the module's own, fixed or learned, or an output of the decoder."""

    _differentiable = True
    location_name = "mean"
    scale_name: str
    _function: Callable[..., Tensor]

    def __init__(self, name: str, value: float | None, learned: bool, clamp: Sequence[float] | None) -> None:
        """``value``: whose logarithm is the log scale, or None; errors call it ``name``."""
        super().__init__()
        start = None if value is None else torch.tensor(math.log(check_positive(name, value)))
        if start is None and learned:
            raise ValueError(f"learned is True with a {self.scale_name} from the decoder, expected False")
        if start is not None and clamp is not None:
            raise ValueError(f"clamp was given without a {self.scale_name} from the decoder, expected None")
        self.clamp = None if clamp is None else check_clamp(clamp)
        self.learned = learned
        self.from_decoder = start is None
        if start is not None and check_flag("learned", learned):
            self.register_parameter(self.scale_name, nn.Parameter(start))
        elif start is not None:
            self.register_buffer(self.scale_name, start)

    def parts(self, parameters: Parameters) -> tuple[Tensor, ...]:
        if self.from_decoder:
            return check_parts(parameters, (self.location_name, self.scale_name))
        return *check_parts(parameters, ("parameters",)), getattr(self, self.scale_name)

    def _log_prob(self, mean: Tensor, scale: Tensor, x: Tensor, **options: Any) -> Tensor:
        return self._function(mean, scale, x, clamp=self.clamp, **options)

    def _head_terms(self, x: Tensor) -> HeadTerms:
        scale: Activation | Tensor = "identity" if self.from_decoder else getattr(self, self.scale_name)
        return HeadTerms(self._density, ("identity", scale), clamp=self.clamp)

    def _mean(self, mean: Tensor, scale: Tensor) -> Tensor:
        return mean

    def _clamped(self, scale: Tensor) -> Tensor:
        return scale if self.clamp is None else scale.clamp(*self.clamp)

    def extra_repr(self) -> str:
        return f"from_decoder=True, clamp={self.clamp}" if self.from_decoder else f"learned={self.learned}"


class _Normal(_LocationScale):
    """The log scale is a log variance."""

    logvar: Tensor
    scale_name = "logvar"

    def __init__(
        self, variance: float | None = 1.0, learned: bool = False, *, clamp: Sequence[float] | None = None
    ) -> None:
        super().__init__("variance", variance, learned, clamp)

    def _draw(self, mean: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Tensor:
        eps = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + torch.exp(0.5 * self._clamped(logvar)) * eps


class Gaussian(_Normal):
    """Real-valued data with the decoder's mean f and variance s^2; log p(x|z) is `gaussian_log_prob`, summed.

    (Doersch, arXiv 1606.05908, section 2.) With a number for ``variance``, the decoder's output is f, and all
    coordinates share s^2: ``logvar`` = log s^2 is a Parameter if ``learned``, else a buffer (casting the module to
    bfloat16 rounds it). With None, the decoder's output is the pair (f, logvar), with a variance for each element.

    Args:
        variance: s^2 > 0, its initial value if ``learned``; or None.
        learned: learn log s^2 with the rest of the model.
        clamp: (low, high) for the decoder's logvar, with a gradient of 1 on the bounds.

    >>> import torch
    >>> from fastvae.likelihoods import Gaussian
    >>> Gaussian(variance=0.5).log_prob(torch.zeros(2, 3), torch.zeros(2, 3))   # -3/2 log(2 pi 0.5)
    tensor([-1.7171, -1.7171])
    >>> Gaussian(None, clamp=(-6, 2)).log_prob((torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))
    tensor([-2.7568, -2.7568])
    """

    _density = "gaussian"
    _function = staticmethod(gaussian_log_prob)


class Laplace(_LocationScale):
    """Real-valued data with the decoder's median f and an absolute error, robust to outliers.

    log p(x|z) is `laplace_log_prob`, summed. ``scale`` s, ``learned`` and ``clamp`` as for `Gaussian`, with
    ``logscale`` = log s in the place of logvar.

    >>> import torch
    >>> from fastvae.likelihoods import Laplace
    >>> Laplace(scale=0.5).log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # -2 each: the peak is 1
    tensor([-6., -6.])
    """

    logscale: Tensor
    scale_name = "logscale"
    _density = "laplace"
    _function = staticmethod(laplace_log_prob)

    def __init__(
        self, scale: float | None = 1.0, learned: bool = False, *, clamp: Sequence[float] | None = None
    ) -> None:
        super().__init__("scale", scale, learned, clamp)

    def _draw(self, mean: Tensor, logscale: Tensor, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device) - 0.5
        # At u = -1/2 the logarithm would be infinite.
        drawn = -u.sign() * torch.log1p(-2.0 * u.abs().clamp_max(0.5 - 2**-26))
        return mean + torch.exp(self._clamped(logscale)) * drawn


class LogNormal(_Normal):
    """Positive data: log x has the decoder's mean m and variance s^2; log p(x|z) is `log_normal_log_prob`, summed.

    ``variance`` s^2, of log x, ``learned`` and ``clamp`` as for `Gaussian`; with None the decoder's output is the pair
    (mu, logvar). The mean of x is exp(m + s^2 / 2), its median exp(m).

    >>> import torch
    >>> from fastvae.likelihoods import LogNormal
    >>> LogNormal(variance=0.5).log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # -3/2 log(2 pi 0.5)
    tensor([-1.7171, -1.7171])
    """

    location_name = "mu"
    _density = "log_normal"
    _function = staticmethod(log_normal_log_prob)

    def _mean(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return torch.exp(mu + 0.5 * torch.exp(self._clamped(logvar)))

    def _draw(self, mu: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.exp(super()._draw(mu, logvar, generator))
