"""The hierarchical VAE: levels of latents, each with a prior that is learned from the levels above it.

    p(z) = p(z_1) p(z_2 | z_1) ... p(z_L | z_<L),     q(z|x) = q(z_1 | x) q(z_2 | x, z_1) ... q(z_L | x, z_<L)
    log p(x) >= ELBO = E_q[log p(x|z)] - sum_l E_q[KL(q(z_l | x, z_<l) || p(z_l | z_<l))]

(Ladder VAE, arXiv 1602.02282, section 2.2; NVAE, arXiv 2007.03898, equation 1.) Levels are counted from the top, z_1,
to the one next to x, as they are drawn. Features of x go up, a state that holds all latents above comes down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..arguments import check_tensor, seed_tensor
from ..distributions import DiagonalGaussian
from ..functional import noise, reparameterize, sample_and_log_prob
from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters
from ..options import check_options
from ..shaping import KLShape, check_kl_shape
from ..sizes import check_count
from .decoding import decode, log_prob_of_draws
from .levels import Level, check_levels, draws_of, level_seeds, mlp_levels, rows_of
from .model import LatentVariableModel, LogWeights, Shaping, check_module, check_shaping
from .posterior import Gaussian, Posterior, draw_with_kl

if TYPE_CHECKING:
    from typing_extensions import Unpack


class HierarchicalOutput(NamedTuple):
    """One pass through the model: what `HierarchicalVAE.forward` returns. Tuples have an entry for each level."""

    z: tuple[Tensor, ...]
    """The draws from the posterior, (B, *latent_shape), from the top down."""
    kl: Tensor
    """The KL of all levels together in nats, (B,), 0 or more."""
    kl_per_level: tuple[Tensor, ...]
    """The KL of each level in nats, (B,)."""
    parameters: Parameters
    """The decoder's output, the parameters of p(x|z)."""


class HierarchicalVAE(LatentVariableModel):
    """A VAE with levels of latents; `of_mlps` builds one of multilayer perceptrons.

    Args:
        bottom_up: modules, one a level; the first is called with x, each other with the features before it. The last
            one's features are for the top level.
        levels: `Level`, from the top down; the first without a prior, all others with one.
        decoder: module with ``decoder(state) -> parameters``, called with the state below the last level.
        likelihood: one of `fastvae.likelihoods`, or a module with the same methods.
        residual: below the top, what the posteriors' modules give is added to mu and the log scale of the prior: with
            zeros the KL is zero (NVAE, arXiv 2007.03898, section 3.2). False: posteriors as they are.
        scale: what the modules give beside mu, "logvar" or "logstd" or, without ``residual``, another one of
            `fastvae.functional`.
        soft_clamp: s: log scales of posteriors and priors become s tanh(. / s); 5 in NVAE. None: as they are.

    Seeds work as in `fastvae.nn.VAE`; from one seed each level has its own, seed + l 0x9E3779B97F4A7C15 modulo 2^64
    with l = 0 at the top. With K draws for each row, below the top draw k of row b is row b K + k of the noise, so that
    the parts of a split batch draw what the whole would.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

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
        scale: str = "logvar",
        soft_clamp: float | None = None,
    ) -> None:
        super().__init__()
        check_levels(bottom_up, levels)
        check_module("decoder", decoder)
        check_module("likelihood", likelihood)
        check_options(scale, None, soft_clamp, 0.0, residual)
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
        """One of multilayer perceptrons with one hidden layer each.

        Args:
            input_shape: shape of one x without the batch, an int for a vector; images are flattened.
            hidden: width of all hidden layers, of the features and of the state.
            latent_dims: size of z on each level, from the top down.
            activation: makes the activation module that follows each hidden layer.
            likelihood, options: as for the class.
        """
        bottom_up, levels, decoder = mlp_levels(input_shape, hidden, latent_dims, activation)
        return cls(bottom_up, levels, decoder, likelihood, **options)

    def encode(self, x: Tensor, *, condition: Tensor | int | None = None) -> tuple[Posterior, ...]:
        """The posterior of each level of x (B, *event), from the top down, where all levels above are at their means.

        mu and logvar are the posterior's own: logvar is log sigma^2 whatever the scale, and nothing is a residual.
        """
        check_tensor("x", x)
        self._check_condition(condition, x)
        return self._along_means(x)[0]

    def forward(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        per_coordinate: bool = False,
        **shaping: Unpack[Shaping],
    ) -> HierarchicalOutput | tuple[HierarchicalOutput, tuple[Tensor, ...]]:
        """Features of x (B, *event) up, then level by level down: draw z with its KL in one fused pass; decode.

        Args:
            condition: None.
            seed, generator, row_offset: see the class.
            per_coordinate: return the KL of each coordinate too, averaged over the batch and detached.
            reduction, free_bits, free_bits_group, free_bits_over: of each level's KL, as for `fastvae.sample_and_kl`.
            beta, capacity: of the sum.

        Returns:
            HierarchicalOutput; with ``per_coordinate`` the pair of it and a tuple, (*latent_shape) for each level.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        check_tensor("x", x)
        self._check_condition(condition, x)
        check_shaping(shaping)
        of_sum, of_levels = _split_shaping(shaping)
        seeds = level_seeds(seed_tensor(seed, generator, x.device), len(self.levels))
        state: Any = None
        zs, kls, each = [], [], []
        for level, features, level_seed in zip(self.levels, self._features(x), seeds, strict=True):
            prior = level.prior_given(state)
            z, kl, *per_latent = draw_with_kl(
                level.posterior_given(features, state), prior, seed=level_seed, row_offset=row_offset,
                per_coordinate=per_coordinate, **of_levels, **self._parameterisation(prior),
            )  # fmt: skip
            state = level.state_below(z, state)
            zs.append(z)
            kls.append(kl)
            each += per_latent
        kl = of_sum.finish(sum(kls[1:], kls[0]), None, len(x), of_levels["reduction"])
        output = HierarchicalOutput(tuple(zs), kl, tuple(kls), decode(self.decoder, state))
        return (output, tuple(each)) if per_coordinate else output

    def log_weights(
        self,
        x: Tensor,
        num_samples: int,
        *,
        condition: Tensor | int | None = None,
        hold_posterior: bool = False,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> LogWeights:
        """log p(x|z_k) + log p(z_k) - log q(z_k|x) of K draws of all levels for each row of x (B, *event).

        Args:
            num_samples: K.
            hold_posterior: False: the doubly reparameterised gradient in this form is for one level of latents.
            all others: as for `forward`.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        check_tensor("x", x)
        check_count("num_samples", num_samples, 1)
        if hold_posterior:
            raise ValueError(
                "hold_posterior is True, expected False: the doubly reparameterised gradient in this form is for one "
                "level of latents, and the posteriors below the top depend on the draws above them"
            )
        self._check_condition(condition, x)
        seeds = level_seeds(seed_tensor(seed, generator, x.device), len(self.levels))
        state: Any = None  # of K draws for B rows, as B K rows
        zs, log_ratios = [], []
        for level, features, level_seed in zip(self.levels, self._features(x), seeds, strict=True):
            if state is None:
                z, log_q, log_p = self._log_probs(level, features, state, level_seed, row_offset, num_samples)
            else:
                rows = features.repeat_interleave(num_samples, 0)
                drawn = self._log_probs(level, rows, state, level_seed, row_offset * num_samples, None)
                z, log_q, log_p = (draws_of(part, num_samples) for part in drawn)
            zs.append(z)
            log_ratios.append(log_p - log_q)
            state = level.state_below(rows_of(z), state)
        log_likelihood = log_prob_of_draws(self.likelihood, self.decoder, draws_of(state, num_samples), x)
        return LogWeights(sum(log_ratios, log_likelihood), tuple(zs))

    def decode(self, z: Sequence[Tensor], *, condition: Tensor | int | None = None) -> Tensor:
        """E[x|z], the mean image of z, a tensor (B, *latent_shape) for each level from the top down."""
        if not isinstance(z, (tuple, list)) or len(z) != len(self.levels):
            came = f"{len(z)} tensors" if isinstance(z, (tuple, list)) else f"a {type(z).__name__}"
            raise TypeError(f"z is {came}, expected {len(self.levels)} tensors, one for each level")
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

    def _features(self, x: Tensor) -> list[Tensor]:
        """From the top down."""
        features = []
        for module in self.bottom_up:
            x = module(x)
            features.append(x)
        return features[::-1]

    def _parameterisation(self, prior: Gaussian | None) -> dict[str, Any]:
        residual = self.residual and prior is not None
        return {"scale": self.scale, "soft_clamp": self.soft_clamp, "residual": residual}

    def _log_probs(
        self,
        level: Level,
        features: Tensor,
        state: Tensor | None,
        seed: Tensor,
        row_offset: int,
        num_samples: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z, log q and log p of one level."""
        mu, logvar, _ = level.posterior_given(features, state)
        prior = level.prior_given(state)
        return sample_and_log_prob(
            mu, logvar, *(prior or ()), num_samples=num_samples, seed=seed, row_offset=row_offset,
            **self._parameterisation(prior),
        )  # fmt: skip

    def _along_means(self, x: Tensor) -> tuple[tuple[Posterior, ...], Tensor]:
        """The posteriors where each z is its posterior's mean, and the state below them."""
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

    def _mean_code(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self._along_means(x)[1]

    def _prior_code(self, n: int, seed: Tensor, condition: Tensor | None) -> Tensor:
        like = self._like()
        state: Any = None
        for level, level_seed in zip(self.levels, level_seeds(seed, len(self.levels)), strict=True):
            prior = level.prior_given(state)
            if prior is not None:
                z = reparameterize(*prior, seed=level_seed, scale=self.scale, soft_clamp=self.soft_clamp)
            elif level.latent_shape is None:
                raise RuntimeError(
                    "the shape of the top level's z is not known; expected Level(..., latent_shape=...) or a posterior"
                    " with latent_shape or latent_dim"
                )
            else:
                z = noise(level_seed, (n, *level.latent_shape), dtype=like.dtype)
            state = level.state_below(z, state)
        return state


def _split_shaping(shaping: Shaping) -> tuple[KLShape, dict[str, Any]]:
    """What is done to the sum over the levels, and the arguments of each level's KL."""
    of_levels: dict[str, Any] = dict(shaping)
    reduction = of_levels.setdefault("reduction", "sample")
    if reduction == "none":
        raise ValueError("reduction is 'none', expected 'sample', 'sum' or 'batchmean': levels differ in shape")
    beta, capacity = of_levels.pop("beta", 1.0), of_levels.pop("capacity", None)
    return check_kl_shape(beta, capacity, 0.0, "latent", "sample", reduction, event_rank=1), of_levels
