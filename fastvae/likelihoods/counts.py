"""Likelihoods of counts: Poisson, negative binomial and zero-inflated negative binomial."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_dense
from ..kernels.head_spec import Activation
from ..kernels.layout import compute_dtype
from ..kernels.likelihood_spec import EPS
from ..size_checks import positive_sizes
from ..torch_internals import standard_gamma
from .base import FusedLikelihood, HeadTerms, Parameters, check_parts, check_positive
from .functional import negative_binomial_log_prob, poisson_log_prob, zero_inflated_negative_binomial_log_prob
from .masks import check_mask

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


class _Counts(FusedLikelihood):
    """The means of counts are the decoder's output, or its softmax times the library size."""

    library_size: Tensor | None

    def __init__(self, library_size: float | None = None) -> None:
        super().__init__()
        size = None if library_size is None else torch.tensor(check_positive("library_size", library_size))
        self.register_buffer("library_size", size)

    @property
    def takes_library(self) -> bool:
        """Whether means depend on the library size."""
        return self.library_size is not None

    def _parts_given(self, parameters: Parameters, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        observed = check_mask(mask, x, x.shape) if self.takes_library and mask is not None else None
        return self._with_library(self.parts(parameters), x, observed)

    def mean(self, parameters: Parameters, x: Tensor | None = None) -> Tensor:
        """E[x|z], in the shape and dtype of the decoder's first output; with a library size, that of ``x`` if given."""
        parts = self.parts(parameters)
        return self._mean(*self._with_library(parts, x, _not_nan(x))).to(parts[0].dtype)

    def sample(
        self, parameters: Parameters, generator: torch.Generator | None = None, x: Tensor | None = None
    ) -> Tensor:
        """x ~ p(x|z) drawn with ``generator``, in the mean's shape and dtype; ``x`` as for ``mean``."""
        parts = self.parts(parameters)
        return self._sample_of(self._with_library(parts, x, _not_nan(x)), generator).to(parts[0].dtype)

    def _with_library(self, parts: tuple[Tensor, ...], x: Tensor | None, mask: Tensor | None) -> tuple[Tensor, ...]:
        """The parts, with the mean (or log rate) in the place of logits."""
        if self.library_size is None:
            return parts
        if x is not None:
            check_dense("x", x)
        return self._from_log_mean(self._log_mean(parts[0], self.library_size, x, mask)), *parts[1:]

    def _from_log_mean(self, log_mean: Tensor) -> Tensor:
        return torch.exp(log_mean)

    def _beside_mean(self) -> tuple[Activation | Tensor, ...]:
        return ()

    def _head_terms(self, x: Tensor) -> HeadTerms:
        if self.library_size is None:
            return HeadTerms(self._density, ("identity", *self._beside_mean()))
        sizes = x.to(compute_dtype(x.dtype)).flatten(1).sum(1).clamp_min(EPS)
        return HeadTerms(self._density, ("softmax", *self._beside_mean()), sizes)

    @staticmethod
    def _log_mean(logits: Tensor, size: Tensor, x: Tensor | None, mask: Tensor | None) -> Tensor:
        """log(l softmax(logits)), l the sum of the counts x of each row; without x, l is ``size``.

        With a mask, l is the sum of the observed counts and the softmax is over their genes.
        """
        logits = logits.to(compute_dtype(logits.dtype))
        event = tuple(range(1 if x is None else logits.dim() - x.dim() + 1, logits.dim()))
        if x is not None:
            counts = x if mask is None else torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
            size = counts.to(logits.dtype).sum(tuple(range(1, x.dim())), keepdim=True)
        seen = logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        # A row without any count has the mean EPS over all genes, not log 0.
        return logits - torch.logsumexp(seen, event, keepdim=True) + torch.log(size.to(logits.dtype).clamp_min(EPS))

    def extra_repr(self) -> str:
        return "" if self.library_size is None else f"library_size={self.library_size.item():g}"


def _not_nan(x: Tensor | None) -> Tensor | None:
    """The mask of the data that a model is given; None if all are observed."""
    if x is not None:
        check_dense("x", x)
    return None if x is None or not x.is_floating_point() else ~torch.isnan(x)


class Poisson(_Counts):
    """Counts; the decoder's output is the log rate r, and the mean is exp(r). log p(x|z) is `poisson_log_prob`, summed.

    ``library_size`` as for `NegativeBinomial`.

    >>> import torch
    >>> from fastvae.likelihoods import Poisson
    >>> Poisson().log_prob(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([-3., -3.])
    """

    _density = "poisson"
    _log_prob = staticmethod(poisson_log_prob)

    def _from_log_mean(self, log_mean: Tensor) -> Tensor:
        return log_mean

    def _mean(self, log_rate: Tensor) -> Tensor:
        return torch.exp(log_rate)

    def _draw(self, log_rate: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(torch.exp(log_rate), generator=generator)


class _OverdispersedCounts(_Counts):
    """theta is learned, one for each gene, or comes from the decoder."""

    log_theta: Tensor | None
    _others: tuple[str, ...] = ()  # what the decoder gives besides mean and theta

    def __init__(self, features: int | Sequence[int] | None = None, library_size: float | None = None) -> None:
        super().__init__(library_size)
        if features is None:
            self.register_parameter("log_theta", None)
            return
        self.log_theta = nn.Parameter(torch.zeros(positive_sizes("features", features)))

    def parts(self, parameters: Parameters) -> tuple[Tensor, ...]:
        if self.log_theta is None:
            return check_parts(parameters, ("mean", "theta", *self._others))
        mean, *rest = check_parts(parameters, ("mean", *self._others))
        return mean, torch.exp(self.log_theta), *rest

    def _beside_mean(self) -> tuple[Activation | Tensor, ...]:
        others: list[Activation] = ["identity" for _ in self._others]
        return "identity" if self.log_theta is None else torch.exp(self.log_theta), *others

    def _negative_binomial(self, mean: Tensor, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        """Poisson counts whose rate is Gamma distributed with this mean."""
        rate = standard_gamma(theta.expand(mean.shape), generator=generator) * (mean / theta)
        return torch.poisson(rate, generator=generator)

    def extra_repr(self) -> str:
        theta = "theta from the decoder" if self.log_theta is None else f"features={tuple(self.log_theta.shape)}"
        return ", ".join(filter(None, (theta, super().extra_repr())))


class NegativeBinomial(_OverdispersedCounts):
    """Counts with mean m, inverse dispersion theta and variance m + m^2 / theta.

    log p(x|z) is `negative_binomial_log_prob`, summed. With ``features``, the shape of one event, theta is learned as
    exp(log_theta), one for each gene, and the decoder's output is the mean; without, it is the pair (mean, theta).
    Means must be 0 or more: end the decoder with a softplus.

    With ``library_size`` the decoder's first output is logits, from which the mean is

        m = l softmax(logits),    l the sum of the row's counts

    (scVI, Lopez et al. 2018, with the observed library size), so that z need not encode the sequencing depth.
    ``library_size`` is the l of ``mean`` and ``sample`` without ``x``; the median of the training data is a good value.

    >>> import torch
    >>> from fastvae.likelihoods import NegativeBinomial
    >>> likelihood = NegativeBinomial(features=3)   # theta starts at 1
    >>> likelihood.log_prob(torch.ones(2, 3), torch.zeros(2, 3)).detach()
    tensor([-2.0794, -2.0794])
    """

    _density = "negative_binomial"
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

    _density = "zero_inflated_negative_binomial"
    _others = ("zero_logits",)
    _log_prob = staticmethod(zero_inflated_negative_binomial_log_prob)

    def _mean(self, mean: Tensor, theta: Tensor, zero_logits: Tensor) -> Tensor:
        return mean * torch.sigmoid(-zero_logits)

    def _draw(self, mean: Tensor, theta: Tensor, zero_logits: Tensor, generator: torch.Generator | None) -> Tensor:
        counts = self._negative_binomial(mean, theta, generator)
        return counts * torch.bernoulli(torch.sigmoid(-zero_logits), generator=generator)
