"""Training objectives and estimates of log p(x): the ELBO, the importance-weighted bound, importance sampling.

    log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),   z_k ~ q(z|x)
    E[log w_1]  =  ELBO  <=  E[log 1/K sum_k w_k]  =  IWAE_K  <=  log p(x)

(Burda et al., arXiv 1509.00519, theorem 1.) An objective is a frozen dataclass of settings, without parameters, for any
model with the methods of `fastvae.nn.VAE`: ``terms`` for the ELBO, ``log_weights`` for importance weights. The model
may be wrapped by DistributedDataParallel, whose processes then share their gradients, or by torch.compile. All results
are in nats; seeds work as in `fastvae.sample_and_kl`. Invalid arguments raise TypeError or ValueError; the message
names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .checks import check_flag, check_number, check_tensor, seed_tensor
from .deprecated import renamed
from .draw_options import Condition, Generator, ModelOptions, Seed, check_names, condition_given
from .importance_weights import without_small_weights
from .latent_options import Average, Group, described_latent, shows_options
from .returned import check_returned
from .size_checks import check_count, check_row_offset
from .torch_internals import exportable
from .wrapped_models import model_method, through_wrappers

if TYPE_CHECKING:
    from .nn.model import LogWeights

__all__ = [
    "ELBO", "GRADIENTS", "IWAE", "BatchMean", "Gradient", "LogMarginal", "ObjectiveOutput", "Schedule", "iwae_bound",
    "log_marginal", "naive_log_marginal",
]  # fmt: skip

Schedule = Callable[[int], float]
BatchMean = Callable[[Tensor], Tensor]

Gradient = Literal["standard", "dreg"]
GRADIENTS = get_args(Gradient)

if not TYPE_CHECKING:  # for which every name would be there
    __getattr__ = renamed(__name__, {"Objective": "ObjectiveOutput"})


@exportable
class ObjectiveOutput(NamedTuple):
    """What an objective returns for a batch x (B, *event)."""

    loss: Tensor
    """The scalar to minimise."""
    bound: Tensor
    """The lower bound of log p(x) of each sample, (B,), or an unbiased estimate of it."""
    reconstruction: Tensor | None
    """log p(x|z), (B,); None for IWAE."""
    kl: Tensor | None
    """The KL in the bound, averaged over the batch, 0-d, detached; None for IWAE."""
    kl_per_latent: tuple[Tensor | None, ...] | None
    """The KL of each latent, averaged over the batch, detached, one tensor a level; None unless ``per_coordinate``."""


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound, with an optional weight, capacity and free bits of its KL.

        loss = -mean log p(x|z) + beta |mean KL - capacity|          (no absolute value without a capacity)

    (Kingma & Welling, arXiv 1312.6114; beta and capacity: Burgess et al., arXiv 1804.03599.) beta and capacity change
    only the loss. Free bits (Kingma et al., arXiv 1606.04934, section C.8) also enter the bound, which they can only
    lower.

    Args:
        beta: weight of the KL, 0 or more; a number, or a schedule: a function of the step (`fastvae.schedules`).
        capacity: C in nats, 0 or more; a number or a schedule. No capacity if None.
        free_bits, free_bits_group, free_bits_over: as for `fastvae.sample_and_kl`; in a hierarchical model they apply
            to each level, and the group "latent" is one level.
        per_coordinate: also return the KL of each latent, for monitoring (`fastvae.monitors`).

    ``objective(model, x)`` returns an `ObjectiveOutput`; condition, seed, generator and row_offset are passed to the
    model. beta and capacity override the settings for this call; ``step`` is passed to the schedules. ``batch_mean``
    reduces (B,) to 0-d; where several processes share a batch and x is this one's part, it must return the mean over
    the whole batch.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import ELBO
    >>> from fastvae.schedules import linear_warmup
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> objective = ELBO(beta=linear_warmup(1000))
    >>> output = objective(vae, torch.rand(8, 784).round(), step=10)
    >>> output.loss.backward()
    >>> output.bound.shape
    torch.Size([8])
    """

    beta: float | Schedule = 1.0
    capacity: float | Schedule | None = None
    free_bits: float = 0.0
    free_bits_group: Group = "coordinate"
    free_bits_over: Average = "sample"
    per_coordinate: bool = False

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("capacity", self.capacity)):
            if value is not None and not callable(value):
                check_number(name, value, 0.0)
        of_kl = {name: getattr(self, name) for name in ("free_bits", "free_bits_group", "free_bits_over")}
        described_latent("gaussian_kl", 2, {"reduction": "batchmean", **of_kl})
        check_flag("per_coordinate", self.per_coordinate)

    @shows_options(ModelOptions)
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        batch_mean: BatchMean = torch.mean,
        beta: float | Schedule | None = None,
        capacity: float | Schedule | None = None,
        step: int | None = None,
        **options: Unpack[ModelOptions],
    ) -> ObjectiveOutput:
        weight = _value_at(step, "beta", self.beta if beta is None else beta)
        target = _value_at(step, "capacity", self.capacity if capacity is None else capacity)
        terms = through_wrappers(model, "terms")(
            x, **condition_given(options), per_coordinate=self.per_coordinate,
            reduction="sample" if self.free_bits_over == "sample" or not self.free_bits else "batchmean",
            free_bits=self.free_bits, free_bits_group=self.free_bits_group, free_bits_over=self.free_bits_over,
        )  # fmt: skip
        who = f"{type(model).__name__}.terms"
        check_returned(who, terms.reconstruction, x.shape[:1], "log p(x|z) of each row of x")
        if not isinstance(terms.kl, Tensor) or terms.kl.dim():
            check_returned(who, terms.kl, x.shape[:1], "the KL of each row of x")
        kl = batch_mean(terms.kl) if terms.kl.dim() else terms.kl
        assert weight is not None
        penalty = kl if target is None else (kl - target).abs()
        loss = weight * penalty - batch_mean(terms.reconstruction)
        bound = terms.reconstruction - terms.kl
        return ObjectiveOutput(
            loss, bound, terms.reconstruction, kl.detach(), terms.kl_per_latent if self.per_coordinate else None
        )


@dataclass(frozen=True)
class IWAE:
    """The importance-weighted bound of K draws, log 1/K sum_k w_k; its loss is minus the mean.

    gradient="standard" is the gradient of the bound (Burda et al., arXiv 1509.00519, section 3). Its signal-to-noise
    ratio for the encoder falls as K grows (Rainforth et al., arXiv 1802.04537). "dreg" is the doubly reparameterised
    gradient (Tucker et al., arXiv 1810.04152): the same expectation, with a signal-to-noise ratio that rises with K.
    With normalised weights v_k = w_k / sum_j w_j, and both v_k and the parameters of q detached, it is

        encoder:            sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi)
        decoder and prior:  sum_k v_k   (d log w_k / d theta),   as in "standard"

    "dreg" is right for first derivatives only, and for models with one level of latents. Where the encoder has a path
    to log w_k besides z (the components of a VampPrior), that path gets the prior's gradient.

    Args:
        num_samples: K, 1 or more; with 1 the bound is the ELBO, its KL estimated from the draw.
        gradient: "standard" or "dreg".

    Called as an `ELBO` is, without beta, capacity and step; the result has neither reconstruction nor KL.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import IWAE
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> output = IWAE(5, gradient="dreg")(vae, torch.rand(8, 784).round())
    >>> output.loss.backward()
    >>> output.bound.shape
    torch.Size([8])
    """

    num_samples: int
    gradient: Gradient = "standard"

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples, 1)
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient is {self.gradient!r}, expected one of {', '.join(map(repr, GRADIENTS))}")

    @shows_options(ModelOptions)
    def __call__(
        self, model: nn.Module, x: Tensor, *, batch_mean: BatchMean = torch.mean, **options: Unpack[ModelOptions]
    ) -> ObjectiveOutput:
        held, given = self.gradient == "dreg", condition_given(options)
        run = through_wrappers(model, "log_weights", _reparameterise_twice if held else None)
        weights = run(x, self.num_samples, hold_posterior=held, **given)
        who, shape = f"{type(model).__name__}.log_weights", (self.num_samples, *x.shape[:1])
        check_returned(who, weights.log_weights, shape, "log w of each draw and row of x")
        bound = iwae_bound(weights.log_weights)
        return ObjectiveOutput(-batch_mean(bound), bound, None, None, None)


def iwae_bound(log_weights: Tensor) -> Tensor:
    """log 1/K sum_k w_k in nats, (B,), from log w (K, B), K of 1 or more (Burda et al., arXiv 1509.00519, equation 8).

    >>> import torch
    >>> from fastvae.objectives import iwae_bound
    >>> iwae_bound(torch.tensor([[0.0], [0.0], [0.0]]))
    tensor([0.])
    """
    check_tensor("log_weights", log_weights)
    if len(log_weights) == 0:
        raise ValueError(f"log_weights has shape {tuple(log_weights.shape)}, expected (K, B) with K of 1 or more")
    return torch.logsumexp(without_small_weights(log_weights), 0) - math.log(len(log_weights))


@exportable
class LogMarginal(NamedTuple):
    """An estimate of log p(x) of each sample, and its accuracy; (B,) each."""

    estimate: Tensor
    """log 1/K sum_k w_k in nats. Biased low; the bias shrinks with the standard error."""
    standard_error: Tensor
    """Of the estimate, in nats, from the variance of the weights; NaN for K = 1. Too small where the K draws missed the
    z with the largest weights."""
    effective_samples: Tensor
    """(sum_k w_k)^2 / sum_k w_k^2: from 1 (one draw has all the weight) to K (all weights are equal)."""


@shows_options(ModelOptions)
@torch.no_grad()
def log_marginal(
    model: nn.Module,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int = 1024,
    **options: Unpack[ModelOptions],
) -> LogMarginal:
    """log p(x) of each sample by importance sampling from the posterior: log 1/K sum_k w_k (arXiv 1509.00519).

    Draws are processed ``chunk`` at a time and summed, so memory does not grow with K. Rows of x are processed in
    chunks too: put modules that mix the batch (batch normalisation) in eval mode. Computed without gradients.

    Args:
        model: with the method ``log_weights`` of `fastvae.nn.VAE`.
        x: (B, *event).
        num_samples: K for each row, 1 or more; use thousands for a published result.
        chunk: how many draws of z to hold at once, over all rows. From 64 on it changes only the rounding: a seed gives
            a row the same K draws for any chunk. Below 64 the draws differ.
        condition: for a conditional model, (B, ...) or one for all rows.
        seed, generator, row_offset: as for `fastvae.sample_and_kl`. Up to K = 64 the draws are those of
            ``model.log_weights`` with this seed.

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
    check_names("log_marginal", options, ModelOptions)
    row_offset = check_row_offset(options.get("row_offset", 0))

    def draw(rows: slice, count: int, **given: Any) -> Tensor:
        return log_weights(x[rows], count, row_offset=row_offset + rows.start, **given).log_weights

    return _in_chunks(draw, x, num_samples, chunk, options)


@torch.no_grad()
def naive_log_marginal(
    model: nn.Module,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int = 1024,
    condition: Condition = None,
    seed: Seed = None,
    generator: Generator = None,
) -> LogMarginal:
    """log 1/K sum_k p(x|z_k) with z_k ~ p(z): consistent, but useless in practice. For teaching and for tests.

    About one in exp(KL(p(z|x) || p(z))) draws from the prior lands where the posterior of x is. With fewer draws than
    that, the estimate is far too low, and its standard error does not show it. `log_marginal` draws from q(z|x) instead
    (Doersch, arXiv 1606.05908, section 2). For latents of a few nats, the naive estimate works.

    Args:
        model: with the method ``log_likelihood_under_prior`` of `fastvae.nn.VAE`.
        all others: as for `log_marginal`; rows of x may share their draws.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.objectives import naive_log_marginal
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli()).eval()
    >>> naive_log_marginal(vae, torch.rand(8, 784).round(), 100).estimate.shape
    torch.Size([8])
    """
    log_likelihood = model_method(model, "log_likelihood_under_prior")

    def draw(rows: slice, count: int, **given: Any) -> Tensor:
        return log_likelihood(x[rows], count, **given)

    return _in_chunks(draw, x, num_samples, chunk, {"condition": condition, "seed": seed, "generator": generator})


# Draws of one row in one call of the model: enough for the encoder to cost little beside the decoder.
_DRAWS_AT_ONCE = 64
# Added to the seed from one call to the next: 2^64 / sqrt(2), made odd, as a signed int. It must differ from the step
# between the levels of a hierarchical VAE, or two calls would reuse each other's noise on different levels.
_SEED_STEP = 0xB504F333F9DE6485 - 2**64


def _in_chunks(
    draw: Callable[..., Tensor], x: Tensor, num_samples: int, chunk: int, options: ModelOptions
) -> LogMarginal:
    """Log-mean-exp over ``draw(rows, count, seed=, condition=)``, (count, rows), at most ``chunk`` elements a call."""
    condition = options.get("condition")
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, *event) with a batch of 1 or more")
    if isinstance(condition, Tensor) and condition.shape[:1] != x.shape[:1]:
        raise ValueError(f"condition has shape {tuple(condition.shape)}, x has {tuple(x.shape)}; expected equal rows")
    check_count("num_samples", num_samples, 1)
    check_count("chunk", chunk, 1)
    draws = min(num_samples, chunk, _DRAWS_AT_ONCE)
    counts = [min(draws, num_samples - first) for first in range(0, num_samples, draws)]
    seed = seed_tensor(options.get("seed"), options.get("generator"), x.device)
    seeds = seed + _SEED_STEP * torch.arange(len(counts), device=x.device)
    parts = []
    for first in range(0, len(x), chunk // draws):
        rows = slice(first, min(first + chunk // draws, len(x)))
        given = condition_given({"condition": condition[rows] if isinstance(condition, Tensor) else condition})
        drawn = (draw(rows, count, seed=one, **given) for count, one in zip(counts, seeds, strict=True))
        parts.append(_log_mean(drawn))
    return LogMarginal(*map(torch.cat, zip(*parts, strict=True)))


def _log_mean(chunks: Iterator[Tensor]) -> LogMarginal:
    """Running log-mean-exp of chunks of log-weights, (draws, rows) each."""
    num_samples = 0
    log_sum = log_sum_of_squares = torch.tensor(-math.inf, dtype=torch.float64)
    for log_weights in chunks:
        dtype, terms = log_weights.dtype, log_weights.double()
        num_samples += len(terms)
        log_sum = torch.logaddexp(log_sum.to(terms.device), torch.logsumexp(terms, 0))
        log_sum_of_squares = torch.logaddexp(log_sum_of_squares.to(terms.device), torch.logsumexp(2.0 * terms, 0))
    effective_samples = torch.exp(2.0 * log_sum - log_sum_of_squares)
    # Delta method: the standard error of the log is the mean weight's relative one, sd(w) / (mean(w) sqrt(K)).
    variance = (num_samples / effective_samples - 1.0).clamp_min(0.0) / (num_samples - 1 or math.nan)
    parts = (log_sum - math.log(num_samples), variance.sqrt(), effective_samples)
    return LogMarginal(*(part.to(dtype) for part in parts))


def _reparameterise_twice(weights: LogWeights) -> LogWeights:
    """The gradient of logsumexp already has one factor v_k; the gradient that reaches z_k gets the second."""
    normalised = torch.softmax(weights.log_weights.detach(), 0)
    for z in weights.z:
        _scale_gradient(z, normalised)
    return weights


def _scale_gradient(z: Tensor, weights: Tensor) -> None:
    """Multiply the gradient of z (K, B, *latent) by weights (K, B) in backward."""
    if z.requires_grad:
        weights = weights.reshape(weights.shape + (1,) * (z.dim() - 2))
        z.register_hook(lambda gradient: (gradient * weights).to(gradient.dtype))


def _value_at(step: int | None, name: str, value: float | Schedule | None) -> float | None:
    """A number itself, or a schedule's value at the step."""
    if callable(value):
        if step is None:
            raise ValueError(f"step is None, expected an int: {name} is a schedule")
        value = value(step)
    return None if value is None else check_number(name, value, 0.0)
