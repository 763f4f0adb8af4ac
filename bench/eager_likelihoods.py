"""Log-likelihoods of each coordinate as written in plain PyTorch: the baseline for the fused ones.

Each takes x and the parameters, in the order of `fastvae.likelihoods`' functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Op

EPS = 1e-8  # scVI's


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none")


def continuous_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """As torch.distributions has it, with its Taylor series around 1/2."""
    return torch.distributions.ContinuousBernoulli(logits=logits, validate_args=False).log_prob(x)


def gaussian(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * ((x - mean) ** 2 / torch.exp(logvar) + logvar + math.log(2 * math.pi))


def laplace(x: Tensor, mean: Tensor, logscale: Tensor) -> Tensor:
    return -(x - mean).abs() / torch.exp(logscale) - logscale - math.log(2)


def log_normal(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return gaussian(torch.log(x), mu, logvar) - torch.log(x)


def poisson(x: Tensor, log_rate: Tensor) -> Tensor:
    return x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1)


def negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """The formula of scVI (Lopez et al. 2018)."""
    log_total = torch.log(theta + mean + EPS)
    at_zero = theta * (torch.log(theta + EPS) - log_total)
    rise = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return at_zero + x * (torch.log(mean + EPS) - log_total) + rise


def zero_inflated_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor, logits: Tensor) -> Tensor:
    """The formula of scVI: both cases of every count, and masks."""
    softplus, log_total = F.softplus(-logits), torch.log(theta + mean + EPS)
    at_zero = theta * (torch.log(theta + EPS) - log_total) - logits
    zero = F.softplus(at_zero) - softplus
    rise = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    other = at_zero - softplus + x * (torch.log(mean + EPS) - log_total) + rise
    return (x < EPS).to(zero.dtype) * zero + (x >= EPS).to(zero.dtype) * other


def scaled_bernoulli(x: Tensor, probs: Tensor, row_factor: Tensor, event_factor: Tensor) -> Tensor:
    """The formula of PeakVI (Ashuach et al. 2022)."""
    q = probs * row_factor * event_factor
    return -F.binary_cross_entropy(q, (x > 0).to(q.dtype), reduction="none")


def discretized_logistic_mixture(x: Tensor, parameter: Tensor, components: int) -> Tensor:
    """Of each pixel, with the special cases of PixelCNN++ (arXiv 1701.05517) for bins of little probability."""
    y = 2 * x - 1
    channels = x.shape[1]
    logits, rest = parameter[:, :components], parameter[:, components:].unflatten(1, (channels, -1, components))
    means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp_min(-7.0)
    if channels == 3:
        k = torch.tanh(rest[:, :, 2])
        red, green = y[:, 0].unsqueeze(1), y[:, 1].unsqueeze(1)
        of_green, of_blue = k[:, 0] * red, k[:, 1] * red + k[:, 2] * green
        means = means + torch.stack((torch.zeros_like(of_green), of_green, of_blue), 1)
    y = y.unsqueeze(2)
    inverse, centred = torch.exp(-log_scales), y - means
    upper, middle, lower = inverse * (centred + 1 / 255), inverse * centred, inverse * (centred - 1 / 255)
    probability = torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(probability > 1e-5, torch.log(probability.clamp_min(1e-12)), density)
    log_prob = torch.where(y > 0.999, -F.softplus(lower), inside)
    log_prob = torch.where(y < -0.999, upper - F.softplus(upper), log_prob)
    return torch.logsumexp(torch.log_softmax(logits, 1) + log_prob.sum(1), 1)


def per_sample(op: Op) -> Callable[..., Tensor]:
    """The log-likelihood of each sample, (B,); of a masked op, of the observed entries."""
    formula = globals()[op.function.removesuffix("_log_prob")]
    if op.masked:
        # The formula in float64 that contenders are compared with is given the mask in float64 too.
        return lambda x, *given: torch.where(given[-1] > 0, formula(x, *given[:-1]), 0.0).flatten(1).sum(1)
    return lambda x, *parameters: formula(x, *parameters, **op.options).flatten(1).sum(1)
