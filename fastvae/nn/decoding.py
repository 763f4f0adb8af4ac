"""From draws of z to log p(x|z): decoders see rows, likelihoods see K draws for each row of x."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters


def decode(decoder: nn.Module, z: Tensor, condition: Tensor | None = None) -> Parameters:
    """The parameters of p(x|z), or of p(x|z, c), a row for each row of z."""
    return decoder(z) if condition is None else decoder(z, condition)


def log_prob_of_draws(
    likelihood: Likelihood, decoder: nn.Module, z: Tensor, x: Tensor, condition: Tensor | None = None
) -> Tensor:
    """log p(x_b|z_kb) in nats, (K, B), of z (K, B, *latent), x (B, *event) and the condition (B, ...) of each x."""
    draws = z.shape[:2]
    if condition is not None:
        condition = condition.expand(draws[0], *condition.shape).flatten(0, 1)
    parameters = decode(decoder, z.flatten(0, 1), condition)
    return _log_prob(likelihood, _each(parameters, lambda part: part.unflatten(0, draws)), x)


def log_prob_of_shared_draws(likelihood: Likelihood, decoder: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """log p(x_b|z_k) in nats, (K, B), of z (K, *latent) and x (B, *event): a draw is decoded once for all of x."""
    draws = len(z), len(x)
    parameters = decode(decoder, z)
    return _log_prob(likelihood, _each(parameters, lambda part: part.unsqueeze(1).expand(*draws, *part.shape[1:])), x)


def _log_prob(likelihood: Likelihood, parameters: Parameters, x: Tensor) -> Tensor:
    """(K, B), of parameters (K, B, ...)."""
    if getattr(likelihood, "takes_draws", False):
        return likelihood.log_prob(parameters, x)
    draws = (parameters if isinstance(parameters, Tensor) else parameters[0]).shape[:2]
    repeated = x.expand(draws[0], *x.shape).flatten(0, 1)
    return likelihood.log_prob(_each(parameters, lambda part: part.flatten(0, 1)), repeated).unflatten(0, draws)


def _each(parameters: Parameters, change: Callable[[Tensor], Tensor]) -> Parameters:
    """Change the parts that have the first one's rows; one that all rows share, of the event's shape, stays."""
    if isinstance(parameters, Tensor):
        return change(parameters)
    first = parameters[0]
    return tuple(
        [change(part) if part.dim() == first.dim() and len(part) == len(first) else part for part in parameters]
    )
