"""What a VAE is trained to raise and is judged by: the ELBO, the importance-weighted bound, and log p(x) itself.

    log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),   z_k ~ q(z|x)
    E[log w_1]  =  ELBO  <=  E[log 1/K sum_k w_k]  =  IWAE_K  <=  log p(x)

(Burda et al., arXiv 1509.00519, theorem 1.) Objectives are settings, not modules: they have no parameters and work on
any model with the methods of `fastvae.nn.VAE`: ``terms`` for the ELBO, ``log_weights`` for what has importance weights.
Everything is in nats; seeds work as in `fastvae.sample_and_kl`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import check_flag, check_row_offset, check_tensor, seed_tensor
from .options import check_number
from .shaping import check_kl_shape
from .sizes import check_count

Schedule = Callable[[int], float]
BatchMean = Callable[[Tensor], Tensor]

GRADIENTS = ("standard", "dreg")


class Objective(NamedTuple):
    """What an objective gives for a batch x (B, *event)."""

    loss: Tensor
    """The number to minimise."""
    bound: Tensor
    """The lower bound of log p(x) of each sample, (B,), or an unbiased estimate of it."""
    reconstruction: Tensor | None
    """log p(x|z), (B,); of the ELBO only."""
    kl: Tensor | None
    """The mean over the batch of the KL that the bound has in it, one number, detached; of the ELBO only."""
    kl_per_latent: tuple[Tensor | None, ...] | None
    """The mean over the batch of each latent's KL, one tensor a level of latents, detached; if it was asked for."""


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound, and the losses that weigh its KL otherwise.

        loss = -mean log p(x|z) + beta |mean KL - capacity|          (no | | without a capacity)

    (Kingma & Welling, arXiv 1312.6114; beta and capacity: Burgess et al., arXiv 1804.03599.) beta and capacity change
    the loss alone. Free bits (Kingma et al., arXiv 1606.04934, section C.8) count in the bound as well, which remains a
    lower bound, and a lower one.

    Args:
        beta: weight of the KL, 0 or more; a number, or a schedule, step -> number (`fastvae.schedules`).
        capacity: C in nats, 0 or more; a number or a schedule. No capacity if None.
        free_bits, free_bits_group, free_bits_over: as for `fastvae.sample_and_kl`; in a model with levels of latents
            they hold for each level, and the group "latent" is one level.
        per_coordinate: give the KL of each latent as well, for monitoring (`fastvae.monitors`).

    Called as ``objective(model, x, condition=None, seed=None, generator=None, row_offset=0, batch_mean=torch.mean,
    beta=None, capacity=None, step=None)`` it gives an `Objective`: beta and capacity take the place of its own for this
    call, and ``step`` is what schedules are called with. ``batch_mean`` makes one number of one for each row; where x
    is a part of a batch that several processes share, it is to give the mean over all of it.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import ELBO
    >>> from fastvae.schedules import linear_warmup
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> objective = ELBO(beta=linear_warmup(1000))
    >>> came = objective(vae, torch.rand(8, 784).round(), step=10)
    >>> came.loss.backward()
    >>> came.bound.shape
    torch.Size([8])
    """

    beta: float | Schedule = 1.0
    capacity: float | Schedule | None = None
    free_bits: float = 0.0
    free_bits_group: str = "coordinate"
    free_bits_over: str = "sample"
    per_coordinate: bool = False

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("capacity", self.capacity)):
            if value is not None and not callable(value):
                check_number(name, value, 0.0)
        check_kl_shape(1.0, None, self.free_bits, self.free_bits_group, self.free_bits_over, "batchmean", event_rank=1)
        check_flag("per_coordinate", self.per_coordinate)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        batch_mean: BatchMean = torch.mean,
        beta: float | Schedule | None = None,
        capacity: float | Schedule | None = None,
        step: int | None = None,
    ) -> Objective:
        weight = _at(step, "beta", self.beta if beta is None else beta)
        allowed = _at(step, "capacity", self.capacity if capacity is None else capacity)
        terms = model_method(model, "terms")(
            x, seed=seed, generator=generator, row_offset=row_offset, per_coordinate=self.per_coordinate,
            reduction="sample" if self.free_bits_over == "sample" or not self.free_bits else "batchmean",
            free_bits=self.free_bits, free_bits_group=self.free_bits_group, free_bits_over=self.free_bits_over,
            **_given(condition),
        )  # fmt: skip
        kl = batch_mean(terms.kl) if terms.kl.dim() else terms.kl
        assert weight is not None
        price = kl if allowed is None else (kl - allowed).abs()
        loss = weight * price - batch_mean(terms.reconstruction)
        bound = terms.reconstruction - terms.kl
        return Objective(
            loss, bound, terms.reconstruction, kl.detach(), terms.kl_per_latent if self.per_coordinate else None
        )


@dataclass(frozen=True)
class IWAE:
    """The importance-weighted bound of K draws, log 1/K sum_k w_k; its loss is minus the mean.

    gradient="standard" is the derivative of the bound as it stands (Burda et al., arXiv 1509.00519, section 3). Its
    signal-to-noise ratio for the encoder falls as K grows (Rainforth et al., arXiv 1802.04537). "dreg" is the doubly
    reparameterised one (Tucker et al., arXiv 1810.04152), of the same mean and with a ratio that rises:
    with normalised weights v_k = w_k / sum_j w_j, neither they nor q's own parameters being differentiated,

        encoder:            sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi)
        decoder and prior:  sum_k v_k   (d log w_k / d theta),   as in "standard"

    Only first derivatives of "dreg" are what it says. It is for models with one level of latents. What the encoder
    reaches not through z (a VampPrior's components) it gets as the prior does.

    Args:
        num_samples: K, 1 or more; with 1 the bound is the ELBO, its KL estimated from the draw.
        gradient: "standard" or "dreg".

    Called as ``objective(model, x, condition=None, seed=None, generator=None, row_offset=0, batch_mean=torch.mean)`` it
    gives an `Objective`, without reconstruction and KL; ``batch_mean`` as for `ELBO`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import IWAE
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> came = IWAE(5, gradient="dreg")(vae, torch.rand(8, 784).round())
    >>> came.loss.backward()
    >>> came.bound.shape
    torch.Size([8])
    """

    num_samples: int
    gradient: str = "standard"

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples, 1)
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient is {self.gradient!r}, expected one of {', '.join(map(repr, GRADIENTS))}")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        batch_mean: BatchMean = torch.mean,
    ) -> Objective:
        drawn = model_method(model, "log_weights")(
            x, self.num_samples, hold_posterior=self.gradient == "dreg", seed=seed, generator=generator,
            row_offset=row_offset, **_given(condition),
        )  # fmt: skip
        if self.gradient == "dreg":
            # The bound's own derivative gives each log w_k the weight v_k; on its way to the encoder, one more.
            normalised = torch.softmax(drawn.log_weights.detach(), 0)
            for z in drawn.z:
                _weigh_gradient(z, normalised)
        bound = iwae_bound(drawn.log_weights)
        return Objective(-batch_mean(bound), bound, None, None, None)


def iwae_bound(log_weights: Tensor) -> Tensor:
    """log 1/K sum_k w_k in nats, (B,), of log w (K, B) (Burda et al., arXiv 1509.00519, equation 8).

    Raises:
        TypeError, ValueError: log_weights is not a floating-point tensor, or has no draws.

    >>> import torch
    >>> from fastvae.objectives import iwae_bound
    >>> iwae_bound(torch.tensor([[0.0], [0.0], [0.0]]))
    tensor([0.])
    """
    check_tensor("log_weights", log_weights)
    if len(log_weights) == 0:
        raise ValueError(f"log_weights has shape {tuple(log_weights.shape)}, expected (K, B) with K of 1 or more")
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


class LogMarginal(NamedTuple):
    """An estimate of log p(x) of each sample, and how far it can be trusted; (B,) each."""

    estimate: Tensor
    """log 1/K sum_k w_k in nats; below log p(x) on average, the less the smaller the standard error."""
    standard_error: Tensor
    """Of the estimate, in nats, from the spread of the weights; not a number for K = 1. Too small, like any error from
    a sample, where the draws that matter most were not among the K."""
    effective_samples: Tensor
    """(sum_k w_k)^2 / sum_k w_k^2: from 1, when one draw has all the weight, to K."""


@torch.no_grad()
def log_marginal(
    model: nn.Module,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int = 1024,
    condition: Tensor | int | None = None,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
) -> LogMarginal:
    """log p(x) of each sample by importance sampling from the posterior: log 1/K sum_k w_k (arXiv 1509.00519).

    The sums are kept up as the draws come, so that memory is that of ``chunk`` draws whatever K is. Each row of x is on
    its own: put modules that mix a batch (batch normalisation) in eval mode. No gradients.

    Args:
        model: with ``log_weights``, as `fastvae.nn.VAE` has it.
        x: (B, *event).
        num_samples: K for each row, 1 or more; thousands for a number to publish.
        chunk: draws of z to hold at once, those of all rows together. With 64 or more it changes nothing but the
            rounding: a seed has the same K draws for a row however the work is cut. With less, they are others.
        condition: of a conditional model, (B, ...) or one for all.
        seed, generator, row_offset: as for `fastvae.sample_and_kl`. Up to K = 64 the draws are those of
            ``model.log_weights`` with this seed.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import log_marginal
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli()).eval()
    >>> estimate, standard_error, effective_samples = log_marginal(vae, torch.rand(8, 784).round(), 100)
    >>> estimate.shape
    torch.Size([8])
    """
    log_weights = model_method(model, "log_weights")
    row_offset = check_row_offset(row_offset)

    def draw(rows: slice, count: int, seed: Tensor) -> Tensor:
        first = row_offset + rows.start
        return log_weights(x[rows], count, seed=seed, row_offset=first, **_of_rows(condition, rows)).log_weights

    return _in_chunks(draw, x, num_samples, chunk, condition, seed, generator)


@torch.no_grad()
def naive_log_marginal(
    model: nn.Module,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int = 1024,
    condition: Tensor | int | None = None,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> LogMarginal:
    """log 1/K sum_k p(x|z_k) with z_k ~ p(z): right in the limit, and out of reach in practice.

    The posterior of one x fills a part of the prior that shrinks exponentially with the nats of the code: of
    exp(KL(p(z|x) || p(z))) draws from the prior, about one says anything on x. With fewer the estimate is
    far too low, and its standard error, which knows only of the draws that came, does not tell. `log_marginal` draws
    where the posterior is (Doersch, arXiv 1606.05908, section 2). To show this is what the function is for; what it
    gives is also right for a few nats of code.

    Args:
        model: with ``log_likelihood_under_prior``, as `fastvae.nn.VAE` has it.
        all others: as for `log_marginal`; the rows of x may share their draws.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import naive_log_marginal
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli()).eval()
    >>> naive_log_marginal(vae, torch.rand(8, 784).round(), 100).estimate.shape
    torch.Size([8])
    """
    log_likelihood = model_method(model, "log_likelihood_under_prior")

    def draw(rows: slice, count: int, seed: Tensor) -> Tensor:
        return log_likelihood(x[rows], count, seed=seed, **_of_rows(condition, rows))

    return _in_chunks(draw, x, num_samples, chunk, condition, seed, generator)


# Draws of one row in one call of the model: many enough for its encoder to cost little beside its decoder.
_DRAWS_AT_ONCE = 64
# From one call's seed to the next: 2^64 over the root of 2, odd and signed. Not the step of `fastvae.nn`'s levels, or
# the second call would draw for one level what the first drew for the next.
_SEED_STEP = 0xB504F333F9DE6485 - 2**64


def _in_chunks(
    draw: Callable[[slice, int, Tensor], Tensor],
    x: Tensor,
    num_samples: int,
    chunk: int,
    condition: Tensor | int | None,
    seed: int | Tensor | None,
    generator: torch.Generator | None,
) -> LogMarginal:
    """Log-mean-exp of ``draw(rows, count, seed)``, (count, rows), with ``chunk`` elements or less in a call."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, *event) with a batch of 1 or more")
    if isinstance(condition, Tensor) and condition.shape[:1] != x.shape[:1]:
        raise ValueError(f"condition has shape {tuple(condition.shape)}, x has {tuple(x.shape)}; expected as many rows")
    check_count("num_samples", num_samples, 1)
    check_count("chunk", chunk, 1)
    draws = min(num_samples, chunk, _DRAWS_AT_ONCE)
    counts = [min(draws, num_samples - first) for first in range(0, num_samples, draws)]
    seeds = seed_tensor(seed, generator, x.device) + _SEED_STEP * torch.arange(len(counts), device=x.device)
    parts = []
    for first in range(0, len(x), chunk // draws):
        rows = slice(first, min(first + chunk // draws, len(x)))
        parts.append(_log_mean(draw(rows, count, one) for count, one in zip(counts, seeds, strict=True)))
    return LogMarginal(*map(torch.cat, zip(*parts, strict=True)))


def _log_mean(chunks: Iterator[Tensor]) -> LogMarginal:
    """Of log-weights (draws, rows) that come a few draws at a time and are let go."""
    num_samples = 0
    log_sum = log_sum_of_squares = torch.tensor(-math.inf, dtype=torch.float64)
    for log_weights in chunks:
        dtype, terms = log_weights.dtype, log_weights.double()
        num_samples += len(terms)
        log_sum = torch.logaddexp(log_sum.to(terms.device), torch.logsumexp(terms, 0))
        log_sum_of_squares = torch.logaddexp(log_sum_of_squares.to(terms.device), torch.logsumexp(2.0 * terms, 0))
    effective_samples = torch.exp(2.0 * log_sum - log_sum_of_squares)
    # The delta method: the error of a log is the relative error of the mean weight, sd(w) / (mean(w) sqrt(K)).
    variance = (num_samples / effective_samples - 1.0).clamp_min(0.0) / (num_samples - 1 or math.nan)
    parts = (log_sum - math.log(num_samples), variance.sqrt(), effective_samples)
    return LogMarginal(*(part.to(dtype) for part in parts))


def _weigh_gradient(z: Tensor, weights: Tensor) -> None:
    """Multiply what z (K, B, *latent) passes back by weights (K, B)."""
    if z.requires_grad:
        weights = weights.reshape(weights.shape + (1,) * (z.dim() - 2))
        z.register_hook(lambda gradient: (gradient * weights).to(gradient.dtype))


def _at(step: int | None, name: str, value: float | Schedule | None) -> float | None:
    """The value of a number or a schedule at a step."""
    if callable(value):
        if step is None:
            raise ValueError(f"step is None and {name} is a schedule, expected the step")
        value = value(step)
    return None if value is None else check_number(name, value, 0.0)


def model_method(model: nn.Module, name: str) -> Callable[..., Any]:
    method = getattr(model, name, None)
    if not callable(method):
        raise TypeError(
            f"model is a {type(model).__name__}, expected one with the method {name}, as fastvae.nn.VAE has"
        )
    return method


def _given(condition: Tensor | int | None) -> dict[str, Tensor | int]:
    """Models that are not conditional need not know the argument."""
    return {} if condition is None else {"condition": condition}


def _of_rows(condition: Tensor | int | None, rows: slice) -> dict[str, Tensor | int]:
    return _given(condition[rows] if isinstance(condition, Tensor) else condition)
