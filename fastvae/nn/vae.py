"""The variational autoencoder: an encoder, a decoder, a likelihood and a prior around the fused latent op.

    prior z ~ p(z), N(0, I) by default,   decoder p(x|z),   encoder q(z|x) = N(mu(x), diag exp(logvar(x)))
    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

(Kingma & Welling, arXiv 1312.6114, section 2.2.) What it shares with the other models is in `fastvae.nn.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import check_tensor
from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters
from ..priors import Prior, StandardNormal
from ..sizes import check_count, latent_shape_of
from .decoding import decode, log_prob_of_draws
from .model import LatentVariableModel, LogWeights, Shaping, check_module, check_shaping
from .posterior import Encoded, Gaussian, Posterior, draw_with_kl, draws_with_log_prob, encode

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VAEOutput(NamedTuple):
    """One pass through the model: what `VAE.forward` returns."""

    z: Tensor
    """The draw from the posterior, (B, *latent_shape)."""
    mu: Tensor
    logvar: Tensor
    kl: Tensor
    """KL(q(z|x) || p(z)) in nats, (B,): 0 or more, unless the prior has no closed form for it."""
    parameters: Parameters
    """The decoder's output, the parameters of p(x|z)."""


class VAE(LatentVariableModel):
    """A VAE of any encoder, decoder, likelihood and prior; training minimises ``-vae.elbo(x).elbo.mean()``.

    Args:
        encoder: module with ``encoder(x) -> (mu, logvar)``, both (B, *latent_shape), where logvar is log sigma^2; or
            ``encoder(x) -> moments``, one tensor (B, 2C, ...) whose halves along dimension 1 they are: it is read in
            place, and its gradient written in one piece.
        decoder: module with ``decoder(z) -> parameters``, the parameters of p(x|z) that the likelihood takes.
        likelihood: one of `fastvae.likelihoods`, or a module with the same methods.
        prior: one of `fastvae.priors`; N(0, I) if None.
        latent_shape: shape of one z, which `generate` must know; the prior's, ``encoder.latent_shape`` or
            ``encoder.latent_dim`` if None.

    Seeds work as in `fastvae.sample_and_kl`: ``seed`` (an int, or one int64 element on x's device) fixes the draw on
    every device, ``generator`` or torch's default one rules it otherwise, and ``row_offset``, the index of row 0 in the
    global batch, makes each part of a split batch draw what the whole would have drawn. Results are in the dtype of the
    model, but the kl and the log-likelihood in float32 (float64 for float64).

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> x = torch.rand(8, 784).round()
    >>> loss = -vae.elbo(x).elbo.mean()
    >>> loss.backward()
    >>> vae.generate(3).shape
    torch.Size([3, 784])
    """

    prior: nn.Module | None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        prior: Prior | None = None,
        latent_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder), ("likelihood", likelihood)):
            check_module(name, module)
        if prior is not None and not isinstance(prior, Prior):
            raise TypeError(f"prior is a {type(prior).__name__}, expected a fastvae.priors.Prior or None")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        shape = latent_shape_of(encoder, latent_shape)
        if prior is not None:
            if shape not in (None, prior.latent_shape):
                raise ValueError(f"prior has latent_shape {prior.latent_shape}, expected {shape}, the model's")
            shape = prior.latent_shape
        elif shape is not None:
            prior = StandardNormal(shape).to(self._like())
        self.prior = prior
        self.latent_shape = shape

    def encode(self, x: Tensor, *, condition: Tensor | int | None = None) -> Posterior:
        """The posterior q(z|x) of x (B, *event).

        Raises:
            TypeError, ValueError: x is not a floating-point tensor with a batch dimension, or the encoder did not
                return mu and logvar.
        """
        check_tensor("x", x)
        mu, logvar, _ = self._posterior(x, self._check_condition(condition, x))
        return Posterior(mu, logvar)

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
    ) -> VAEOutput | tuple[VAEOutput, tuple[Tensor, ...]]:
        """Encode x (B, *event), draw z with its KL in one fused pass, decode z.

        Args:
            condition: of each row of x, for a `ConditionalVAE`.
            seed, generator, row_offset: see the class.
            per_coordinate: return the KL of each coordinate too, averaged over the batch and detached.
            reduction, beta, capacity, free_bits, free_bits_group, free_bits_over: of the KL, as for
                `fastvae.sample_and_kl`.

        Returns:
            VAEOutput; with ``per_coordinate`` the pair of it and a tuple of one tensor, (*latent_shape).

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        check_tensor("x", x)
        check_shaping(shaping)
        given = self._check_condition(condition, x)
        posterior = self._posterior(x, given)
        z, kl, *each = draw_with_kl(
            posterior, self._prior(given), seed=seed, generator=generator, row_offset=row_offset,
            per_coordinate=per_coordinate, **shaping,
        )  # fmt: skip
        output = VAEOutput(z, posterior.mu, posterior.logvar, kl, decode(self.decoder, z, given))
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
        """log p(x|z_k) + log p(z_k) - log q(z_k|x) of K draws z_k ~ q(z|x) for each row of x (B, *event).

        (Burda et al., arXiv 1509.00519, equation 8, which `fastvae.objectives.IWAE` makes of it.)

        Args:
            num_samples: K.
            hold_posterior: the gradient of log q and of log p reaches the posterior's mu and logvar through z alone
                (Tucker et al., arXiv 1810.04152, equation 7).
            all others: as for `forward`; the same seed gives draw 0 as there.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        check_tensor("x", x)
        check_count("num_samples", num_samples, 1)
        given = self._check_condition(condition, x)
        z, log_q, log_p = draws_with_log_prob(
            self._posterior(x, given), self._prior(given), num_samples, hold_posterior=hold_posterior,
            seed=seed, generator=generator, row_offset=row_offset,
        )  # fmt: skip
        log_likelihood = log_prob_of_draws(self.likelihood, self.decoder, z, x, given)
        return LogWeights(log_likelihood + log_p - log_q, (z,))

    def decode(self, z: Tensor, *, condition: Tensor | int | None = None) -> Tensor:
        """E[x|z], the mean image of z (B, *latent_shape)."""
        check_tensor("z", z)
        return self.likelihood.mean(decode(self.decoder, z, self._check_condition(condition, z)))

    def extra_repr(self) -> str:
        return f"latent_shape={self.latent_shape}"

    @property
    def _exact_kl(self) -> bool:
        return not isinstance(self.prior, Prior) or self.prior.closed_form

    def _posterior(self, x: Tensor, condition: Tensor | None) -> Encoded:
        posterior = encode("encoder", self.encoder, x, condition)
        if self.latent_shape is not None and posterior.mu.shape[1:] != self.latent_shape:
            expected = ", ".join(["batch", *map(str, self.latent_shape)])
            raise ValueError(f"encoder returned mu of shape {tuple(posterior.mu.shape)}, expected ({expected})")
        return posterior

    def _prior(self, condition: Tensor | None) -> Prior | Gaussian | None:
        return self.prior if isinstance(self.prior, Prior) else None

    def _mean_code(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self._posterior(x, condition).mu

    def _prior_code(self, n: int, seed: Tensor, condition: Tensor | None) -> Tensor:
        if not isinstance(self.prior, Prior):
            raise RuntimeError(
                "the shape of z is not known; expected VAE(..., latent_shape=...) or an encoder with latent_shape or"
                " latent_dim"
            )
        return self.prior.sample(n, seed=seed).to(self._like())
