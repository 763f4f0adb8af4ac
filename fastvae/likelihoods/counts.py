"""Likelihoods of counts: Poisson, negative binomial and zero-inflated negative binomial."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..size_checks import positive_sizes
from ..torch_internals import standard_gamma
from .base import FusedLikelihood, Parameters, check_parts
from .functional import (
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)


class Poisson(FusedLikelihood):
    """Counts; the decoder's output is the log rate r, and the mean is exp(r). log p(x|z) is `poisson_log_prob`, summed.

    >>> import torch
    >>> from fastvae.likelihoods import Poisson
    >>> Poisson().log_prob(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([-3., -3.])
    """

    _log_prob = staticmethod(poisson_log_prob)

    def _mean(self, log_rate: Tensor) -> Tensor:
        return torch.exp(log_rate)

    def _draw(self, log_rate: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(torch.exp(log_rate), generator=generator)


class _OverdispersedCounts(FusedLikelihood):
    """theta is learned, one for each gene, or comes from the decoder."""

    log_theta: Tensor | None
    _others: tuple[str, ...] = ()  # what the decoder gives besides mean and theta

    def __init__(self, features: int | Sequence[int] | None = None) -> None:
        super().__init__()
        if features is None:
            self.register_parameter("log_theta", None)
            return
        self.log_theta = nn.Parameter(torch.zeros(positive_sizes("features", features)))

    def parts(self, parameters: Parameters) -> tuple[Tensor, ...]:
        if self.log_theta is None:
            return check_parts(parameters, ("mean", "theta", *self._others))
        mean, *rest = check_parts(parameters, ("mean", *self._others))
        return mean, torch.exp(self.log_theta), *rest

    def _negative_binomial(self, mean: Tensor, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        """Poisson counts whose rate is Gamma distributed with this mean."""
        rate = standard_gamma(theta.expand(mean.shape), generator=generator) * (mean / theta)
        return torch.poisson(rate, generator=generator)

    def extra_repr(self) -> str:
        return "theta from the decoder" if self.log_theta is None else f"features={tuple(self.log_theta.shape)}"


class NegativeBinomial(_OverdispersedCounts):
    """Counts with mean m, inverse dispersion theta and variance m + m^2 / theta.

    log p(x|z) is `negative_binomial_log_prob`, summed. With ``features``, the shape of one event, theta is learned as
    exp(log_theta), one for each gene, and the decoder's output is the mean; without, it is the pair (mean, theta).
    Means must be 0 or more: end the decoder with a softplus, or a softmax times the library size.

    >>> import torch
    >>> from fastvae.likelihoods import NegativeBinomial
    >>> likelihood = NegativeBinomial(features=3)   # theta starts at 1
    >>> likelihood.log_prob(torch.ones(2, 3), torch.zeros(2, 3)).detach()
    tensor([-2.0794, -2.0794])
    """

    _log_prob = staticmethod(negative_binomial_log_prob)

    def _mean(self, mean: Tensor, theta: Tensor) -> Tensor:
        return mean

    _draw = _OverdispersedCounts._negative_binomial


class ZeroInflatedNegativeBinomial(_OverdispersedCounts):
    """Negative binomial counts, replaced by 0 with probability sigmoid(l); their mean is (1 - sigmoid(l)) m.

    log p(x|z) is `zero_inflated_negative_binomial_log_prob`, summed. The decoder's output is (mean, zero_logits) with
    ``features``, (mean, theta, zero_logits) without; see `NegativeBinomial`.

    >>> import torch
    >>> from fastvae.likelihoods import ZeroInflatedNegativeBinomial
    >>> mean, zero_logits = torch.ones(2, 3), torch.zeros(2, 3)
    >>> ZeroInflatedNegativeBinomial(features=3).mean((mean, zero_logits)).detach()[0]
    tensor([0.5000, 0.5000, 0.5000])
    """

    _others = ("zero_logits",)
    _log_prob = staticmethod(zero_inflated_negative_binomial_log_prob)

    def _mean(self, mean: Tensor, theta: Tensor, zero_logits: Tensor) -> Tensor:
        return mean * torch.sigmoid(-zero_logits)

    def _draw(self, mean: Tensor, theta: Tensor, zero_logits: Tensor, generator: torch.Generator | None) -> Tensor:
        counts = self._negative_binomial(mean, theta, generator)
        return counts * torch.bernoulli(torch.sigmoid(-zero_logits), generator=generator)
