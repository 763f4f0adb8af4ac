"""Likelihoods of values in [0, 1]: binary pixels and grey levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.reference.likelihoods import normalizer_gradient
from .base import check_parts, check_sampling
from .functional import bernoulli_log_prob, continuous_bernoulli_log_prob


class Bernoulli(nn.Module):
    """Binary pixels: the decoder's output is the logits l, p(x = 1) = sigmoid(l).

        log p(x|z) = sum( x l - log(1 + exp(l)) )

    (Kingma & Welling, arXiv 1312.6114, appendix C.1.) Targets lie in [0, 1]. Grey levels are allowed, as the cross
    entropy that most VAEs are trained with, but then log_prob is not the log of a normalised density: that is
    `ContinuousBernoulli`. That targets lie in [0, 1] is checked on request alone: it stops the device to look at them.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> Bernoulli().log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # three fair coins: -3 log 2
    tensor([-2.0794, -2.0794])
    """

    takes_draws = True

    def log_prob(self, parameters: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`bernoulli_log_prob` of the logits: (B,) in nats."""
        (logits,) = check_parts(parameters, ("parameters",))
        return bernoulli_log_prob(logits, x, reduction=reduction, check=check)

    def mean(self, parameters: Tensor) -> Tensor:
        """p(x = 1) = sigmoid(logits), in the logits' shape and dtype."""
        (logits,) = check_parts(parameters, ("parameters",))
        return torch.sigmoid(logits)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones, in the logits' shape and dtype. Not differentiable; ``generator`` rules the draw."""
        (logits,) = check_parts(parameters, ("parameters",))
        probabilities = torch.sigmoid(logits.detach().to(check_sampling(logits, generator)))
        return torch.bernoulli(probabilities, generator=generator).to(logits.dtype)


class ContinuousBernoulli(nn.Module):
    """Grey levels in [0, 1]: the Bernoulli's form, normalised; the decoder's output is the logits l.

        log p(x|z) = sum( x l - log(1 + exp(l)) + log C(l) ),   C(l) = l / tanh(l/2), 2 at l = 0

    (Loaiza-Ganem & Cunningham, arXiv 1907.06845.) The mean is not sigmoid(l), but nearer to 1/2.

    >>> import torch
    >>> from fastvae.likelihoods import ContinuousBernoulli
    >>> ContinuousBernoulli().mean(torch.tensor([[-20.0, 0.0, 20.0]]))
    tensor([[0.0500, 0.5000, 0.9500]])
    """

    takes_draws = True

    def log_prob(self, parameters: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
        """`continuous_bernoulli_log_prob` of the logits: (B,) in nats."""
        (logits,) = check_parts(parameters, ("parameters",))
        return continuous_bernoulli_log_prob(logits, x, reduction=reduction, check=check)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x] = 1 / (1 - exp(-l)) - 1 / l, in the logits' shape and dtype."""
        (logits,) = check_parts(parameters, ("parameters",))
        return torch.sigmoid(logits) - normalizer_gradient(logits)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Values in [0, 1], in the logits' shape and dtype. Not differentiable; ``generator`` rules the draw."""
        (logits,) = check_parts(parameters, ("parameters",))
        dtype = check_sampling(logits, generator)
        u = torch.rand(logits.shape, generator=generator, dtype=dtype, device=logits.device)
        # The inverse of the distribution function, log(1 + u (exp(l) - 1)) / l, for -|l|, where nothing overflows; the
        # density for l is that for -l turned around.
        size = logits.detach().to(dtype).abs().clamp_min(1e-4)
        drawn = -torch.log1p(u * torch.expm1(-size)) / size
        return torch.where(logits > 0, 1.0 - drawn, drawn).clamp(0.0, 1.0).to(logits.dtype)
