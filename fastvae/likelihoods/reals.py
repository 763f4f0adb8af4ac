"""Likelihoods of real values: Gaussian and Laplace, with one scale, fixed or learned, or one for each element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..options import check_clamp
from .base import Parameters, check_parts, check_positive, check_sampling, register
from .functional import gaussian_log_prob, laplace_log_prob


class _LocationScale(nn.Module):
    """The parts of the decoder's output, and the logarithm of the scale: ours, or the decoder's."""

    takes_draws = True
    scale_name: str

    def __init__(self, start: float | None, learned: bool, clamp: Sequence[float] | None) -> None:
        super().__init__()
        if start is None and learned:
            raise ValueError(f"learned is True with the decoder's own {self.scale_name}, expected False")
        if start is not None and clamp is not None:
            raise ValueError(f"clamp was given without the decoder's own {self.scale_name}, expected None")
        self.clamp = None if clamp is None else check_clamp(clamp)
        self.learned = learned
        self.from_decoder = start is None
        if start is not None:
            register(self, self.scale_name, torch.tensor(start), learned)

    def parts(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """The mean, and the logarithm of the scale: for each element, or one."""
        if not self.from_decoder:
            (mean,) = check_parts(parameters, ("parameters",))
            return mean, getattr(self, self.scale_name)
        mean, scale = check_parts(parameters, ("mean", self.scale_name))
        return mean, scale

    def _clamped_scale(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        mean, scale = self.parts(parameters)
        return mean, scale if self.clamp is None else scale.clamp(*self.clamp)

    def mean(self, parameters: Parameters) -> Tensor:
        """The decoder's mean itself."""
        return self.parts(parameters)[0]

    def extra_repr(self) -> str:
        return f"from_decoder=True, clamp={self.clamp}" if self.from_decoder else f"learned={self.learned}"


class Gaussian(_LocationScale):
    """Real-valued data around the decoder's mean f, of variance s^2.

        log p(x|z) = -1/2 sum( (x - f)^2 / s^2 + log(2 pi s^2) )

    (Doersch, arXiv 1606.05908, section 2.) With a number for ``variance`` the decoder's output is f, and s^2 is the
    same for all coordinates: ``logvar`` = log s^2 is a Parameter if ``learned``, else a buffer; like every parameter it
    takes the dtype that the module is cast to, so that bfloat16 keeps 8 bits of it. With None the decoder's output is
    the pair (f, logvar), which has a variance for each element.

    Args:
        variance: s^2 > 0, where learning starts if ``learned``; or None.
        learned: learn log s^2 with the rest of the model.
        clamp: (low, high) for the decoder's logvar, with a gradient of 1 on the bounds.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch
    >>> from fastvae.likelihoods import Gaussian
    >>> Gaussian(variance=0.5).log_prob(torch.zeros(2, 3), torch.zeros(2, 3))   # -3/2 log(2 pi 0.5)
    tensor([-1.7171, -1.7171])
    >>> Gaussian(None, clamp=(-6, 2)).log_prob((torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))
    tensor([-2.7568, -2.7568])
    """

    logvar: Tensor
    scale_name = "logvar"

    def __init__(
        self, variance: float | None = 1.0, learned: bool = False, *, clamp: Sequence[float] | None = None
    ) -> None:
        super().__init__(None if variance is None else math.log(check_positive("variance", variance)), learned, clamp)

    def log_prob(self, parameters: Parameters, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`gaussian_log_prob` of the mean and logvar: (B,) in nats."""
        mean, logvar = self.parts(parameters)
        return gaussian_log_prob(mean, logvar, x, clamp=self.clamp, reduction=reduction, check=check)

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        """f + s eps in the means' shape and dtype. Differentiable; ``generator`` rules the draw."""
        mean, logvar = self._clamped_scale(parameters)
        dtype = check_sampling(mean, generator)
        eps = torch.randn(mean.shape, generator=generator, dtype=dtype, device=mean.device)
        return (mean.to(dtype) + torch.exp(0.5 * logvar.to(dtype)) * eps).to(mean.dtype)


class Laplace(_LocationScale):
    """Real-valued data around the decoder's f, the absolute error instead of the squared one.

        log p(x|z) = -sum( |x - f| / s + log(2 s) )

    ``scale`` s, ``learned`` and ``clamp`` as for `Gaussian`, with ``logscale`` = log s in the place of logvar.

    >>> import torch
    >>> from fastvae.likelihoods import Laplace
    >>> Laplace(scale=0.5).log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # -2 each: the peak is 1
    tensor([-6., -6.])
    """

    logscale: Tensor
    scale_name = "logscale"

    def __init__(
        self, scale: float | None = 1.0, learned: bool = False, *, clamp: Sequence[float] | None = None
    ) -> None:
        super().__init__(None if scale is None else math.log(check_positive("scale", scale)), learned, clamp)

    def log_prob(self, parameters: Parameters, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`laplace_log_prob` of the mean and logscale: (B,) in nats."""
        mean, logscale = self.parts(parameters)
        return laplace_log_prob(mean, logscale, x, clamp=self.clamp, reduction=reduction, check=check)

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        """Draws in the means' shape and dtype. Differentiable; ``generator`` rules the draw."""
        mean, logscale = self._clamped_scale(parameters)
        dtype = check_sampling(mean, generator)
        u = torch.rand(mean.shape, generator=generator, dtype=dtype, device=mean.device) - 0.5
        # Where u is -1/2 the logarithm would be infinite.
        drawn = -u.sign() * torch.log1p(-2.0 * u.abs().clamp_max(0.5 - 2**-26))
        return (mean.to(dtype) + torch.exp(logscale.to(dtype)) * drawn).to(mean.dtype)
