"""`DiscretizedLogisticMixture`, the likelihood of 8-bit images in PixelCNN++."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.likelihood_spec import MIXTURE, channels_of_mixture
from ..kernels.reference.mixture import Components, mixed_means, split
from ..size_checks import check_count
from .base import FusedLikelihood, HeadTerms
from .functional import LOWEST_LOG_SCALE, discretized_logistic_mixture_log_prob

__all__ = ["DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture(FusedLikelihood):
    """8-bit images: a discretised mixture of logistics for each pixel, as in PixelCNN++, NVAE and VDVAE.

    log p(x|z) is `discretized_logistic_mixture_log_prob`. The decoder's output has ``parameter_channels`` channels, in
    the order given there. Means, before discretisation, and draws, levels k / 255, are in [0, 1], in the decoder's
    dtype, (B, channels, *spatial).

    Args:
        components: the number of logistics in each pixel's mixture.
        channels: of the images, 1 or 3.

    >>> import torch
    >>> from fastvae.likelihoods import DiscretizedLogisticMixture
    >>> likelihood = DiscretizedLogisticMixture(components=10)
    >>> likelihood.parameter_channels
    100
    >>> likelihood.log_prob(torch.zeros(2, 100, 8, 8), torch.rand(2, 3, 8, 8)).shape
    torch.Size([2])
    """

    _density = MIXTURE

    def __init__(self, components: int = 10, channels: int = 3) -> None:
        super().__init__()
        check_count("components", components, 1)
        check_count("channels", channels, 1)
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}, expected 1 or 3")
        self.components = int(components)
        self.channels = int(channels)
        self.parameter_channels = channels_of_mixture(self.channels, self.components)

    def _log_prob(self, parameters: Tensor, x: Tensor, **options: Any) -> Tensor:
        return discretized_logistic_mixture_log_prob(parameters, x, components=self.components, **options)

    def _head_terms(self, x: Tensor) -> HeadTerms:
        return HeadTerms(MIXTURE, ("identity",), components=self.components)

    def _split(self, given: Tensor) -> Components:
        if given.dim() < 2 or given.shape[1] != self.parameter_channels:
            raise ValueError(
                f"parameters has shape {tuple(given.shape)}, expected (batch, {self.parameter_channels}, *spatial)"
            )
        return split(given.to(torch.promote_types(given.dtype, torch.float32)), self.channels, self.components)

    def _mean(self, parameters: Tensor) -> Tensor:
        parts = self._split(parameters)
        means = parts.means
        if parts.coefficients is not None:
            # The mean of each component: green and blue are linear in the channels before them.
            factors = torch.tanh(parts.coefficients)
            green = means[:, 1] + factors[:, 0] * means[:, 0]
            blue = means[:, 2] + factors[:, 1] * means[:, 0] + factors[:, 2] * green
            means = torch.stack((means[:, 0], green, blue), 1)
        mixed = (torch.softmax(parts.logits, 1).unsqueeze(1) * means).sum(2)
        return (0.5 * mixed + 0.5).clamp(0.0, 1.0).to(parameters.dtype)

    def _draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        parts = self._split(parameters)
        chosen = _one_of(parts.logits, generator)
        levels: list[Tensor] = []
        for channel in range(self.channels):
            before = torch.stack([*levels, *[torch.zeros_like(parts.logits[:, 0])] * (self.channels - channel)], 1)
            mean = (mixed_means(before, parts)[:, channel] * chosen).sum(1)
            scale = torch.exp((parts.log_scales[:, channel] * chosen).sum(1).clamp_min(LOWEST_LOG_SCALE))
            u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            drawn = (mean + scale * torch.logit(u, eps=2**-24)).clamp(-1.0, 1.0)
            levels.append(torch.round(127.5 * (drawn + 1.0)) / 127.5 - 1.0)
        return 0.5 * torch.stack(levels, 1) + 0.5


def _one_of(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One component of each pixel, sampled with the mixture's weights: one-hot, (B, M, ...)."""
    last = logits.movedim(1, -1)
    index = torch.multinomial(torch.softmax(last, -1).reshape(-1, last.shape[-1]), 1, generator=generator)
    return F.one_hot(index.view(last.shape[:-1]), last.shape[-1]).movedim(-1, 1).to(logits.dtype)
