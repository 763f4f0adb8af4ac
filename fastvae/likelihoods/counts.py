"""Likelihoods of counts: Poisson, negative binomial, and the zero-inflated one of single-cell models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..sizes import positive_sizes
from .base import Parameters, check_parts, check_sampling
from .functional import (
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)


class Poisson(nn.Module):
    """Counts: the decoder's output is the logarithm r of the rate.

        log p(x|z) = sum( x r - exp(r) - log x! )

    >>> import torch
    >>> from fastvae.likelihoods import Poisson
    >>> Poisson().log_prob(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([-3., -3.])
    """

    takes_draws = True

    def log_prob(self, parameters: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`poisson_log_prob` of the log rates: (B,) in nats."""
        (log_rate,) = check_parts(parameters, ("parameters",))
        return poisson_log_prob(log_rate, x, reduction=reduction, check=check)

    def mean(self, parameters: Tensor) -> Tensor:
        """exp(r), in the log rates' shape and dtype."""
        (log_rate,) = check_parts(parameters, ("parameters",))
        return torch.exp(log_rate)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Counts, in the log rates' shape and dtype. Not differentiable; ``generator`` rules the draw."""
        (log_rate,) = check_parts(parameters, ("parameters",))
        rate = torch.exp(log_rate.detach().to(check_sampling(log_rate, generator)))
        return torch.poisson(rate, generator=generator).to(log_rate.dtype)


class _OverdispersedCounts(nn.Module):
    """theta: learned, one for each gene, or the decoder's."""

    takes_draws = True
    log_theta: Tensor | None

    def __init__(self, features: int | Sequence[int] | None = None) -> None:
        super().__init__()
        if features is None:
            self.register_parameter("log_theta", None)
            return
        self.log_theta = nn.Parameter(torch.zeros(positive_sizes("features", features)))

    def _parts(self, parameters: Parameters, *others: str) -> tuple[Tensor, ...]:
        """The mean, theta, and what else the decoder gives."""
        if self.log_theta is None:
            return check_parts(parameters, ("mean", "theta", *others))
        mean, *rest = check_parts(parameters, ("mean", *others))
        return mean, torch.exp(self.log_theta), *rest

    def extra_repr(self) -> str:
        return "theta from the decoder" if self.log_theta is None else f"features={tuple(self.log_theta.shape)}"


def _counts_of(mean: Tensor, theta: Tensor, generator: torch.Generator | None) -> Tensor:
    """Negative binomial counts: Poisson, of a rate that is drawn from a Gamma distribution of that mean."""
    dtype = check_sampling(mean, generator)
    mean, theta = mean.detach().to(dtype), theta.detach().to(dtype)
    rate = torch._standard_gamma(theta.expand(mean.shape), generator=generator) * (mean / theta)
    return torch.poisson(rate, generator=generator)


class NegativeBinomial(_OverdispersedCounts):
    """Counts of mean m and inverse dispersion theta, of variance m + m^2 / theta.

    log p(x|z) is that of `negative_binomial_log_prob`, summed. With ``features``, the shape of one event, theta is
    learned, one for each gene, as exp(log_theta), and the decoder's output is the mean; with None it is the pair
    (mean, theta). Means are 0 or more: let the decoder end in a softplus, or a softmax times the size of the library.

    Raises:
        TypeError, ValueError: ``features`` is not a shape.

    >>> import torch
    >>> from fastvae.likelihoods import NegativeBinomial
    >>> likelihood = NegativeBinomial(features=3)   # theta starts at 1
    >>> likelihood.log_prob(torch.ones(2, 3), torch.zeros(2, 3)).detach()
    tensor([-2.0794, -2.0794])
    """

    def log_prob(self, parameters: Parameters, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`negative_binomial_log_prob` of mean and theta: (B,) in nats."""
        mean, theta = self._parts(parameters)
        return negative_binomial_log_prob(mean, theta, x, reduction=reduction, check=check)

    def mean(self, parameters: Parameters) -> Tensor:
        """The decoder's mean itself."""
        return self._parts(parameters)[0]

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        """Counts, in the means' shape and dtype. Not differentiable; ``generator`` rules the draw."""
        mean, theta = self._parts(parameters)
        return _counts_of(mean, theta, generator).to(mean.dtype)


class ZeroInflatedNegativeBinomial(_OverdispersedCounts):
    """Negative binomial counts among further zeros, of probability sigmoid(l).

    log p(x|z) is that of `zero_inflated_negative_binomial_log_prob`, summed. The decoder's output is (mean,
    zero_logits) with ``features``, (mean, theta, zero_logits) without; see `NegativeBinomial`.

    >>> import torch
    >>> from fastvae.likelihoods import ZeroInflatedNegativeBinomial
    >>> mean, zero_logits = torch.ones(2, 3), torch.zeros(2, 3)
    >>> ZeroInflatedNegativeBinomial(features=3).mean((mean, zero_logits)).detach()[0]
    tensor([0.5000, 0.5000, 0.5000])
    """

    def log_prob(self, parameters: Parameters, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`zero_inflated_negative_binomial_log_prob` of mean, theta and zero_logits: (B,) in nats."""
        mean, theta, zero_logits = self._parts(parameters, "zero_logits")
        return zero_inflated_negative_binomial_log_prob(mean, theta, zero_logits, x, reduction=reduction, check=check)

    def mean(self, parameters: Parameters) -> Tensor:
        """(1 - sigmoid(l)) m, in the means' shape and dtype."""
        mean, _, zero_logits = self._parts(parameters, "zero_logits")
        return mean * torch.sigmoid(-zero_logits)

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        """Counts, in the means' shape and dtype. Not differentiable; ``generator`` rules the draw."""
        mean, theta, zero_logits = self._parts(parameters, "zero_logits")
        counts = _counts_of(mean, theta, generator)
        kept = torch.bernoulli(torch.sigmoid(-zero_logits.detach().to(counts.dtype)), generator=generator)
        return (counts * kept).to(mean.dtype)
