"""`MissingAsNaN`: a likelihood of data in which NaN stands for a missing value."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..checks import check_dense
from .base import Likelihood, Parameters, mean_given, sample_given
from .functional import LikelihoodOptions

__all__ = ["MissingAsNaN"]


class MissingAsNaN(nn.Module):
    """A likelihood for data in which NaN says that a value is missing: such entries have no part in log p(x|z).

    Args:
        likelihood: one of `fastvae.likelihoods`, whose ``log_prob`` takes ``mask=``.

    ``mean`` and ``sample`` are those of the likelihood, for all entries: what a model makes of a missing one. The
    encoder has to take such data too; ``fastvae train --missing nan`` gives it 0, the mean of standardised data.

    Raises:
        TypeError: ``likelihood`` is not a module.

    >>> import torch
    >>> from fastvae.likelihoods import Gaussian, MissingAsNaN
    >>> likelihood = MissingAsNaN(Gaussian(0.5))
    >>> likelihood.log_prob(torch.zeros(1, 3), torch.tensor([[0.0, torch.nan, 0.0]]))   # -2/2 log(2 pi 0.5)
    tensor([-1.1447])
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        if not isinstance(likelihood, nn.Module):
            raise TypeError(f"likelihood is a {type(likelihood).__name__}, expected a torch.nn.Module")
        self.likelihood: Likelihood = likelihood
        self.takes_draws = getattr(likelihood, "takes_draws", False)
        self.takes_library = getattr(likelihood, "takes_library", False)

    def log_prob(self, parameters: Parameters, x: Tensor, **options: Unpack[LikelihoodOptions]) -> Tensor:
        """log p of the entries of x that are not NaN: (B,) in nats. A mixture's pixel is missing if any channel is."""
        check_dense("x", x)
        mask = ~torch.isnan(x)
        if hasattr(self.likelihood, "parameter_channels"):
            mask = mask.all(1)
        given = options.pop("mask", None)
        options["mask"] = mask if given is None else mask & given
        log_prob: Callable[..., Tensor] = self.likelihood.log_prob
        return log_prob(parameters, x, **options)

    def mean(self, parameters: Parameters, x: Tensor | None = None) -> Tensor:
        """The likelihood's E[x|z], of every entry."""
        return mean_given(self.likelihood, parameters, x)

    def sample(
        self, parameters: Parameters, generator: torch.Generator | None = None, x: Tensor | None = None
    ) -> Tensor:
        """The likelihood's x ~ p(x|z), of every entry."""
        if x is None:
            return self.likelihood.sample(parameters, generator)
        return sample_given(self.likelihood, parameters, x, generator)
