"""Likelihoods of values in [0, 1]: `Bernoulli` and `ContinuousBernoulli`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.reference.likelihoods import normalizer_gradient
from .base import FusedLikelihood
from .functional import bernoulli_log_prob, continuous_bernoulli_log_prob

__all__ = ["Bernoulli", "ContinuousBernoulli"]


class Bernoulli(FusedLikelihood):
    """Binary pixels; the decoder's output is the logits l, p(x = 1) = sigmoid(l), which is also the mean.

    log p(x|z) is `bernoulli_log_prob`, summed. With grey levels it is minus the cross entropy that most VAEs are
    trained with, but not the log of a normalised density: use `ContinuousBernoulli` for that.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> Bernoulli().log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # three fair coins: -3 log 2
    tensor([-2.0794, -2.0794])
    """

    _density = "bernoulli"
    _log_prob = staticmethod(bernoulli_log_prob)

    def _mean(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(logits), generator=generator)


class ContinuousBernoulli(FusedLikelihood):
    """Grey levels in [0, 1], with the Bernoulli's density normalised; the decoder's output is the logits l.

    log p(x|z) is `continuous_bernoulli_log_prob`, summed. The mean, 1 / (1 - exp(-l)) - 1 / l, is not sigmoid(l) but
    closer to 1/2 (Loaiza-Ganem & Cunningham, arXiv 1907.06845).

    >>> import torch
    >>> from fastvae.likelihoods import ContinuousBernoulli
    >>> ContinuousBernoulli().mean(torch.tensor([[-20.0, 0.0, 20.0]]))
    tensor([[0.0500, 0.5000, 0.9500]])
    """

    _density = "continuous_bernoulli"
    _log_prob = staticmethod(continuous_bernoulli_log_prob)

    def _mean(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) - normalizer_gradient(logits)

    def _draw(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        # The inverse CDF, log(1 + u (exp(l) - 1)) / l, at -|l|, where nothing overflows; the density for l mirrors
        # that for -l.
        magnitude = logits.abs().clamp_min(1e-4)
        drawn = -torch.log1p(u * torch.expm1(-magnitude)) / magnitude
        return torch.where(logits > 0, 1.0 - drawn, drawn).clamp(0.0, 1.0)
