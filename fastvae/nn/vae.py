"""`VAE`: an encoder, a decoder, a likelihood and a prior around the fused latent op.

    prior z ~ p(z), N(0, I) by default,   decoder p(x|z),   encoder q(z|x) = N(mu(x), diag exp(logvar(x)))
    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

(Kingma & Welling, arXiv 1312.6114, section 2.2.) The base class of all models is in `fastvae.nn.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from typing_extensions import Unpack

from ..checks import check_tensor
from ..draw_options import Condition, LogWeightOptions, SeedAndKLOptions, check_kl_names, check_names
from ..latent_options import shows_options
from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters
from ..priors import Prior, StandardNormal
from ..size_checks import check_count, latent_shape_of
from ..torch_internals import exportable
from . import calls
from .decoding import decode, log_prob_of_draws
from .model import LatentVariableModel, LogWeights, check_module
from .posterior import EncoderOutput, Gaussian, Posterior, draw_with_kl, draw_with_log_prob, encode

__all__ = ["VAE", "ScoredVAEOutput", "VAEOutput"]


@exportable
class VAEOutput(NamedTuple):
    """What `VAE.forward` returns."""

    z: Tensor
    """The draw from the posterior, (B, *latent_shape)."""
    mu: Tensor
    logvar: Tensor
    kl: Tensor
    """KL(q(z|x) || p(z)) in nats, (B,): 0 or more, unless it is estimated (a prior without closed form)."""
    parameters: Parameters
    """The decoder's output: the parameters of p(x|z)."""


class ScoredVAEOutput(NamedTuple):
    """`VAEOutput` with log p(x|z) in nats, (B,), in the place of the parameters."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor
    log_likelihood: Tensor


class VAE(LatentVariableModel):
    """A VAE of any encoder, decoder, likelihood and prior; training minimises ``-vae.elbo(x).elbo.mean()``.

    Args:
        encoder: module with ``encoder(x) -> (mu, logvar)``, both (B, *latent_shape), where logvar is log sigma^2; or
            ``encoder(x) -> moments``, one tensor (B, 2C, ...) that packs both along dimension 1: it is read in place,
            and its gradient is one tensor.
        decoder: module with ``decoder(z) -> parameters``, the parameters of p(x|z) that the likelihood takes.
        likelihood: one of `fastvae.likelihoods`, or a module with the same methods.
        prior: one of `fastvae.priors`; N(0, I) if None.
        latent_shape: shape of one z, needed by `generate`; the prior's, ``encoder.latent_shape`` or
            ``encoder.latent_dim`` if None.

    Seeds, dtypes and errors are as in `fastvae.nn.model.LatentVariableModel`: ``seed`` fixes the draw on every device,
    and ``row_offset`` is the index of row 0 in the global batch.

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
            prior = StandardNormal(shape).to(self._reference_tensor())
        self.prior = prior
        self.latent_shape = shape

    def encode(self, x: Tensor, *, condition: Condition = None) -> Posterior:
        """The posterior q(z|x) of x (B, *event), a floating-point tensor."""
        check_tensor("x", x)
        mu, logvar, _ = self._posterior(x, self._check_condition(condition, x))
        return Posterior(mu, logvar)

    @calls.of_model(VAEOutput, ScoredVAEOutput)
    @shows_options(SeedAndKLOptions)
    def forward(
        self,
        x: Tensor,
        *,
        condition: Condition = None,
        log_likelihood: bool = False,
        **options: Unpack[SeedAndKLOptions],
    ) -> VAEOutput | ScoredVAEOutput | tuple[VAEOutput | ScoredVAEOutput, tuple[Tensor, ...]]:
        """Encode x (B, *event), draw z with its KL in one fused pass, decode z.

        Args:
            condition: for a `ConditionalVAE` only.
            log_likelihood: give log p(x|z) instead of the parameters, fused if the decoder ends in a `LikelihoodHead`.
            options: seeds as in the class; per_coordinate and what reduces and weights the KL as for
                `fastvae.sample_and_kl`.

        Returns:
            VAEOutput, or ScoredVAEOutput with ``log_likelihood``; with ``per_coordinate`` the pair of it and
            (kl_per_coordinate,), (*latent_shape).
        """
        check_tensor("x", x)
        check_kl_names(options)
        c = self._check_condition(condition, x)
        posterior = self._posterior(x, c)
        z, kl, *kl_per_coordinate = draw_with_kl(posterior, self._prior(c), **options)
        made: Any = ScoredVAEOutput if log_likelihood else VAEOutput
        output = made(z, posterior.mu, posterior.logvar, kl, self._decoded(z, c, x if log_likelihood else None))
        return (output, tuple(kl_per_coordinate)) if options.get("per_coordinate") else output

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...

    @shows_options(LogWeightOptions)
    def log_weights(self, x: Tensor, num_samples: int, **options: Unpack[LogWeightOptions]) -> LogWeights:
        """log p(x|z_k) + log p(z_k) - log q(z_k|x) of K draws z_k ~ q(z|x) for each row of x (B, *event).

        `fastvae.objectives.IWAE` computes its bound from these (Burda et al., arXiv 1509.00519, equation 8).

        Args:
            num_samples: K.
            hold_posterior: detach mu and logvar in log q, so that gradients reach them only through z (Tucker et al.,
                arXiv 1810.04152, equation 7).
            all others: as for `forward`; with the same seed, draw 0 is the z of `forward`.
        """
        check_tensor("x", x)
        check_count("num_samples", num_samples, 1)
        check_names("log_weights", options, LogWeightOptions)
        c = self._check_condition(options.pop("condition", None), x)
        z, log_q, log_p = draw_with_log_prob(self._posterior(x, c), self._prior(c), num_samples, **options)
        log_ratio = log_p - log_q
        log_likelihood = log_prob_of_draws(self.likelihood, self.decoder, z, x, c, log_ratio)
        return LogWeights(log_likelihood + log_ratio, (z,))

    def decode(self, z: Tensor, *, condition: Condition = None) -> Tensor:
        """E[x|z] for z (B, *latent_shape)."""
        check_tensor("z", z)
        return self.likelihood.mean(decode(self.decoder, z, self._check_condition(condition, z)))

    def extra_repr(self) -> str:
        return f"latent_shape={self.latent_shape}"

    @property
    def _exact_kl(self) -> bool:
        return not isinstance(self.prior, Prior) or self.prior.closed_form

    def _posterior(self, x: Tensor, condition: Tensor | None) -> EncoderOutput:
        posterior = encode("encoder", self.encoder, x, condition)
        if self.latent_shape is not None and posterior.mu.shape[1:] != self.latent_shape:
            expected = ", ".join(["batch", *map(str, self.latent_shape)])
            raise ValueError(f"encoder returned mu of shape {tuple(posterior.mu.shape)}, expected ({expected})")
        return posterior

    def _prior(self, condition: Tensor | None) -> Prior | Gaussian | None:
        return self.prior if isinstance(self.prior, Prior) else None

    def _decoder_input_at_mean(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self._posterior(x, condition).mu

    def _decoder_input_from_prior(
        self, n: int, seed: Tensor, condition: Tensor | None, temperature: Sequence[float] = ()
    ) -> Tensor:
        if not isinstance(self.prior, Prior):
            raise RuntimeError(
                "the shape of z is unknown; expected VAE(..., latent_shape=...) or an encoder with the attribute"
                " latent_shape or latent_dim"
            )
        # Only where it is not 1: a user's prior need not know the argument.
        options: dict[str, Any] = {"temperature": temperature[0]} if temperature and temperature[0] != 1.0 else {}
        return self.prior.sample(n, seed=seed, **options).to(self._reference_tensor())
