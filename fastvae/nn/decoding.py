"""log p(x|z) of K draws of z: the decoder is called with K B rows, the likelihood with parameters (K, B, ...)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters
from ..returned import check_returned, check_rows
from .head import Score, can_fuse, scorer

__all__ = ["decode", "log_prob", "log_prob_of_draws", "log_prob_of_shared_draws"]


def decode(decoder: nn.Module, z: Tensor, condition: Tensor | None = None, score: Score | None = None) -> Any:
    """The parameters of p(x|z), or of p(x|z, c); with ``score`` what it gives, of a decoder that `can_fuse`."""
    given = () if condition is None else (condition,)
    if score is not None:
        return decoder(z, *given, score=score)
    parameters = decoder(z, *given)
    check_rows("decoder", parameters, z)
    return parameters


def log_prob(likelihood: Likelihood, parameters: Parameters, x: Tensor) -> Tensor:
    """log p(x|z) in nats, (B,)."""
    return _checked(likelihood, likelihood.log_prob(parameters, x), x.shape[:1])


def _checked(likelihood: Likelihood, log_prob: Tensor, shape: Sequence[int]) -> Tensor:
    meaning = "one sum for each row of x" if len(shape) == 1 else "one sum for each draw and row of x"
    return check_returned(f"{type(likelihood).__name__}.log_prob", log_prob, shape, meaning)


def log_prob_of_draws(
    likelihood: Likelihood,
    decoder: nn.Module,
    z: Tensor,
    x: Tensor,
    condition: Tensor | None = None,
    log_ratio: Tensor | None = None,
) -> Tensor:
    """log p(x_b|z_kb) in nats, (K, B), for z (K, B, *latent), x (B, *event) and condition (B, ...).

    ``log_ratio``: log p(z) - log q(z|x), (K, B), if importance weights follow.
    """
    draws = z.shape[:2]
    if condition is not None:
        condition = condition.expand(draws[0], *condition.shape).flatten(0, 1)
    if can_fuse(likelihood, decoder, x):
        return decode(decoder, z.flatten(0, 1), condition, scorer(likelihood, x, log_ratio)).unflatten(0, draws)
    parameters = decode(decoder, z.flatten(0, 1), condition)
    return _log_prob(likelihood, _map_parts(parameters, lambda part: part.unflatten(0, draws)), x)


def log_prob_of_shared_draws(likelihood: Likelihood, decoder: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """log p(x_b|z_k) in nats, (K, B), for z (K, *latent) and x (B, *event): each draw is decoded once for all rows."""
    draws = len(z), len(x)
    parameters = decode(decoder, z)
    expanded = _map_parts(parameters, lambda part: part.unsqueeze(1).expand(*draws, *part.shape[1:]))
    return _log_prob(likelihood, expanded, x)


def _log_prob(likelihood: Likelihood, parameters: Parameters, x: Tensor) -> Tensor:
    """(K, B), for parameters (K, B, ...); x is repeated for likelihoods that take no dimension of draws."""
    draws = (parameters if isinstance(parameters, Tensor) else parameters[0]).shape[:2]
    if getattr(likelihood, "takes_draws", False):
        return _checked(likelihood, likelihood.log_prob(parameters, x), draws)
    repeated = x.expand(draws[0], *x.shape).flatten(0, 1)
    flat = _map_parts(parameters, lambda part: part.flatten(0, 1))
    return log_prob(likelihood, flat, repeated).unflatten(0, draws)


def _map_parts(parameters: Parameters, change: Callable[[Tensor], Tensor]) -> Parameters:
    """Apply ``change`` to the parameters that have a batch dimension; those that all rows share stay as they are."""
    if isinstance(parameters, Tensor):
        return change(parameters)
    first = parameters[0]
    return tuple(
        [change(part) if part.dim() == first.dim() and part.shape[0] == first.shape[0] else part for part in parameters]
    )
