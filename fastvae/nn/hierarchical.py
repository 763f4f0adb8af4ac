"""`HierarchicalVAE`: levels of latents, each with a prior learned from the levels above it.

    p(z) = p(z_1) p(z_2 | z_1) ... p(z_L | z_<L),     q(z|x) = q(z_1 | x) q(z_2 | x, z_1) ... q(z_L | x, z_<L)
    log p(x) >= ELBO = E_q[log p(x|z)] - sum_l E_q[KL(q(z_l | x, z_<l) || p(z_l | z_<l))]

(Ladder VAE, arXiv 1602.02282, section 2.2; NVAE, arXiv 2007.03898, equation 1.) Level 1 is the top, drawn first; level
L is next to x. A bottom-up network computes features of x for each level; top-down, a state carries the latents drawn
so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..checks import check_tensor, seed_tensor
from ..distributions import DiagonalGaussian
from ..draw_options import (
    Condition,
    LogWeightOptions,
    SeedAndKLOptions,
    SeedOptions,
    check_kl_names,
    check_names,
)
from ..functional import noise, reparameterize, sample_and_log_prob
from ..kl_options import finish_kl
from ..latent_options import DescribedLatent, Scale, described_latent, shows_options
from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters
from ..size_checks import check_count
from ..torch_internals import exportable
from . import calls
from .decoding import decode, log_prob_of_draws
from .levels import Level, check_levels, draws_of, level_seeds, mlp_levels, rows_of
from .model import LatentVariableModel, LogWeights, check_module
from .posterior import Gaussian, Posterior, draw_with_kl

__all__ = ["HierarchicalOutput", "HierarchicalVAE", "ScoredHierarchicalOutput"]


@exportable
class HierarchicalOutput(NamedTuple):
    """What `HierarchicalVAE.forward` returns. Tuples have one entry for each level, from the top down."""

    z: tuple[Tensor, ...]
    """The draws from the posterior, (B, *latent_shape) each."""
    kl: Tensor
    """The KL in nats, summed over the levels, (B,), 0 or more."""
    kl_per_level: tuple[Tensor, ...]
    """The KL of each level in nats, (B,) each."""
    parameters: Parameters
    """The decoder's output: the parameters of p(x|z)."""


class ScoredHierarchicalOutput(NamedTuple):
    """`HierarchicalOutput` with log p(x|z) in nats, (B,), in the place of the parameters."""

    z: tuple[Tensor, ...]
    kl: Tensor
    kl_per_level: tuple[Tensor, ...]
    log_likelihood: Tensor


class HierarchicalVAE(LatentVariableModel):
    """A VAE with levels of latents; `of_mlps` builds one of multilayer perceptrons.

    Args:
        bottom_up: modules, one for each level; the first is called with x, each other with the features of the one
            before. The last one's features are for the top level.
        levels: `Level`, from the top down; the first without a prior, all others with one.
        decoder: module with ``decoder(state) -> parameters``, called with the state below the last level.
        likelihood: one of `fastvae.likelihoods`, or a module with the same methods.
        residual: below the top, add the posterior modules' output to mu and the log scale of the prior, so that an
            output of zeros has a KL of zero (NVAE, arXiv 2007.03898, section 3.2).
        scale: what the modules return besides mu: "logvar" or "logstd", or without ``residual`` any scale of
            `fastvae.functional`.
        soft_clamp: s: bound the log scales of posteriors and priors as s tanh(. / s); 5 in NVAE. None: no bound.

    Seeds and errors are as in `fastvae.nn.VAE`. The seed of level l is seed + l 0x9E3779B97F4A7C15 modulo 2^64, with
    l = 0 at the top. With K draws for each row, draw k of row b below the top uses row b K + k of the noise, so that
    the parts of a split batch draw what the whole batch would.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import HierarchicalVAE
    >>> vae = HierarchicalVAE.of_mlps(784, 200, latent_dims=(8, 16), likelihood=Bernoulli())
    >>> loss = -vae.elbo(torch.rand(4, 784).round()).elbo.mean()
    >>> loss.backward()
    >>> vae.generate(3).shape
    torch.Size([3, 784])
    """

    def __init__(
        self,
        bottom_up: Sequence[nn.Module],
        levels: Sequence[Level],
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        residual: bool = True,
        scale: Scale = "logvar",
        soft_clamp: float | None = None,
    ) -> None:
        super().__init__()
        check_levels(bottom_up, levels)
        check_module("decoder", decoder)
        check_module("likelihood", likelihood)
        described_latent("sample_and_kl", 2, {"scale": scale, "soft_clamp": soft_clamp, "residual": residual})
        self.bottom_up = nn.ModuleList(bottom_up)
        self.levels = cast(Sequence[Level], nn.ModuleList(levels))
        self.decoder = decoder
        self.likelihood = likelihood
        self.residual = residual
        self.scale = scale
        self.soft_clamp = soft_clamp

    @classmethod
    def of_mlps(
        cls,
        input_shape: int | Sequence[int],
        hidden: int,
        latent_dims: Sequence[int],
        likelihood: Likelihood,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        **options: Any,
    ) -> HierarchicalVAE:
        """Build a model whose networks are multilayer perceptrons with one hidden layer.

        Args:
            input_shape: shape of one x without the batch, an int for a vector; images are flattened.
            hidden: width of all hidden layers, of the features and of the state.
            latent_dims: size of z on each level, from the top down.
            activation: makes the activation module that follows each hidden layer.
            likelihood, options: as for the class.
        """
        bottom_up, levels, decoder = mlp_levels(input_shape, hidden, latent_dims, activation)
        return cls(bottom_up, levels, decoder, likelihood, **options)

    def encode(self, x: Tensor, *, condition: Condition = None) -> tuple[Posterior, ...]:
        """The posterior of each level for x (B, *event), from the top down, given the posterior means above it.

        mu and logvar are those of the posterior itself: logvar is log sigma^2 for any ``scale``, also if ``residual``.
        """
        check_tensor("x", x)
        self._check_condition(condition, x)
        return self._along_means(x)[0]

    @calls.of_model(HierarchicalOutput, ScoredHierarchicalOutput)
    @shows_options(SeedAndKLOptions)
    def forward(
        self,
        x: Tensor,
        *,
        condition: Condition = None,
        log_likelihood: bool = False,
        **options: Unpack[SeedAndKLOptions],
    ) -> (
        HierarchicalOutput
        | ScoredHierarchicalOutput
        | tuple[HierarchicalOutput | ScoredHierarchicalOutput, tuple[Tensor, ...]]
    ):
        """Compute features of x (B, *event), draw z with its KL level by level from the top, and decode.

        Args:
            condition: None.
            log_likelihood: as for `fastvae.nn.VAE`.
            seed, generator, row_offset, per_coordinate: as for `fastvae.nn.VAE`.
            reduction, free_bits, free_bits_group, free_bits_over: of each level's KL, as for `fastvae.sample_and_kl`.
            beta, capacity: of the sum over the levels.

        Returns:
            HierarchicalOutput, or ScoredHierarchicalOutput; with ``per_coordinate`` the pair of it and a tuple,
            (*latent_shape) for each level.
        """
        check_tensor("x", x)
        self._check_condition(condition, x)
        check_kl_names(options)
        seeds = self._pop_seeds(options, x.device)
        of_sum, of_levels = _split_options(options)
        state: Any = None
        zs, kls, kl_per_coordinate = [], [], []
        for level, features, level_seed in zip(self.levels, self._features(x), seeds, strict=True):
            prior = level.prior_given(state)
            posterior = level.posterior_given(features, state)
            of_levels |= {"seed": level_seed, **self._parameterisation(prior)}
            z, kl, *of_level = draw_with_kl(posterior, prior, **of_levels)
            state = level.state_below(z, state)
            zs.append(z)
            kls.append(kl)
            kl_per_coordinate += of_level
        kl = finish_kl(sum(kls[1:], kls[0]), None, of_sum, x.shape[0])
        made: Any = ScoredHierarchicalOutput if log_likelihood else HierarchicalOutput
        output = made(tuple(zs), kl, tuple(kls), self._decoded(state, None, x if log_likelihood else None))
        return (output, tuple(kl_per_coordinate)) if options.get("per_coordinate") else output

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...

    @shows_options(LogWeightOptions)
    def log_weights(self, x: Tensor, num_samples: int, **options: Unpack[LogWeightOptions]) -> LogWeights:
        """log p(x|z_k) + log p(z_k) - log q(z_k|x) of K draws of all levels for each row of x (B, *event).

        Args:
            num_samples: K.
            hold_posterior: must be False: the doubly reparameterised gradient supports one level of latents only.
            all others: as for `forward`.
        """
        check_tensor("x", x)
        check_count("num_samples", num_samples, 1)
        check_names("log_weights", options, LogWeightOptions)
        if options.get("hold_posterior"):
            raise ValueError(
                "hold_posterior is True, expected False: the doubly reparameterised gradient supports one level of "
                "latents only, as the posteriors below the top depend on the draws above them"
            )
        self._check_condition(options.get("condition"), x)
        seeds, row_offset = self._pop_seeds(options, x.device), options.get("row_offset", 0)
        state: Any = None  # (B K, ...)
        zs, log_ratios = [], []
        for level, features, level_seed in zip(self.levels, self._features(x), seeds, strict=True):
            top = state is None
            rows = features if top else features.repeat_interleave(num_samples, 0)
            mu, logvar, _ = level.posterior_given(rows, state)
            prior = level.prior_given(state)
            drawn = sample_and_log_prob(
                mu, logvar, *(prior or ()), seed=level_seed, row_offset=row_offset * (1 if top else num_samples),
                num_samples=num_samples if top else None, **self._parameterisation(prior),
            )  # fmt: skip
            z, log_q, log_p = drawn if top else (draws_of(part, num_samples) for part in drawn)
            zs.append(z)
            log_ratios.append(log_p - log_q)
            state = level.state_below(rows_of(z), state)
        log_ratio, state = sum(log_ratios[1:], log_ratios[0]), draws_of(state, num_samples)
        log_likelihood = log_prob_of_draws(self.likelihood, self.decoder, state, x, log_ratio=log_ratio)
        return LogWeights(log_likelihood + log_ratio, tuple(zs))

    def decode(self, z: Sequence[Tensor], *, condition: Condition = None) -> Tensor:
        """E[x|z] for z, one tensor (B, *latent_shape) for each level from the top down."""
        if not isinstance(z, (tuple, list)) or len(z) != len(self.levels):
            actual = f"{len(z)} tensors" if isinstance(z, (tuple, list)) else f"a {type(z).__name__}"
            raise TypeError(f"z is {actual}, expected {len(self.levels)} tensors, one for each level")
        state: Any = None
        for level, of_level in zip(self.levels, z, strict=True):
            check_tensor("z", of_level)
            self._check_condition(condition, of_level)
            state = level.state_below(of_level, state)
        return self.likelihood.mean(decode(self.decoder, state))

    def extra_repr(self) -> str:
        return f"residual={self.residual}, scale={self.scale!r}, soft_clamp={self.soft_clamp}"

    @property
    def _num_levels(self) -> int:
        return len(self.levels)

    def _pop_seeds(self, options: SeedOptions, device: torch.device) -> list[Tensor]:
        """The seed of each level."""
        seed = seed_tensor(options.pop("seed", None), options.pop("generator", None), device)
        return level_seeds(seed, len(self.levels))

    def _features(self, x: Tensor) -> list[Tensor]:
        """The bottom-up features, from the top down."""
        features = []
        for module in self.bottom_up:
            x = module(x)
            features.append(x)
        return features[::-1]

    def _parameterisation(self, prior: Gaussian | None) -> dict[str, Any]:
        residual = self.residual and prior is not None
        return {"scale": self.scale, "soft_clamp": self.soft_clamp, "residual": residual}

    def _along_means(self, x: Tensor) -> tuple[tuple[Posterior, ...], Tensor]:
        """The posteriors where each z is its posterior's mean, and the state below the last level."""
        posteriors: list[Posterior] = []
        state: Any = None
        for level, features in zip(self.levels, self._features(x), strict=True):
            mu, scale, _ = level.posterior_given(features, state)
            prior = level.prior_given(state)
            if self.residual and prior is not None:
                mu, scale = prior[0] + mu, prior[1] + scale
            logvar = DiagonalGaussian(mu, scale, scale=self.scale, soft_clamp=self.soft_clamp).logvar
            posteriors.append(Posterior(mu, logvar))
            state = level.state_below(mu, state)
        return tuple(posteriors), state

    def _decoder_input_at_mean(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self._along_means(x)[1]

    def _decoder_input_from_prior(
        self, n: int, seed: Tensor, condition: Tensor | None, temperature: Sequence[float] = ()
    ) -> Tensor:
        like = self._reference_tensor()
        state: Any = None
        seeds, factors = level_seeds(seed, len(self.levels)), temperature or (1.0,) * len(self.levels)
        for level, level_seed, factor in zip(self.levels, seeds, factors, strict=True):
            prior = level.prior_given(state)
            if prior is not None:
                z = reparameterize(
                    *prior, seed=level_seed, temperature=factor, scale=self.scale, soft_clamp=self.soft_clamp
                )
            elif level.latent_shape is None:
                raise RuntimeError(
                    "the shape of the top level's z is unknown; expected Level(..., latent_shape=...) or a posterior"
                    " with the attribute latent_shape or latent_dim"
                )
            else:
                z = factor * noise(level_seed, (n, *level.latent_shape), dtype=like.dtype)
            state = level.state_below(z, state)
        return state


def _split_options(options: SeedAndKLOptions) -> tuple[DescribedLatent, dict[str, Any]]:
    """beta and capacity, which apply to the sum over the levels, and the keywords of each level."""
    of_levels: dict[str, Any] = dict(options)
    reduction = of_levels.setdefault("reduction", "sample")
    if reduction == "none":
        raise ValueError("reduction is 'none', expected 'sample', 'sum' or 'batchmean': levels differ in shape")
    of_sum: dict[str, Any] = {name: of_levels.pop(name) for name in ("beta", "capacity") if name in of_levels}
    return described_latent("gaussian_kl", 2, {"reduction": reduction, **of_sum}), of_levels
