"""`LatentVariableModel`, the base class of all models: the bound and its terms, reconstruction and generation.

    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

(Kingma & Welling, arXiv 1312.6114, section 2.2.) Results are in nats and per sample: row b belongs to row b of x, and
the caller reduces over the batch. The exception is `LossTerms.kl`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..checks import check_number, check_tensor, seed_tensor
from ..draw_options import Condition, Generator, ModelAndKLOptions, ModelOptions, Seed, check_names
from ..latent_options import shows_options
from ..likelihoods import Likelihood
from ..likelihoods.base import mean_given
from ..size_checks import check_count
from ..torch_internals import exportable
from .decoding import decode, log_prob, log_prob_of_shared_draws
from .head import can_fuse, scorer

__all__ = ["ELBOTerms", "LatentVariableModel", "LogWeights", "LossTerms", "check_module"]


@exportable
class ELBOTerms(NamedTuple):
    """The bound and its two terms, in nats, (B,) each: elbo = reconstruction - kl."""

    elbo: Tensor
    reconstruction: Tensor
    """log p(x|z) at one z drawn from q(z|x)."""
    kl: Tensor
    """KL(q(z|x) || p(z)), summed over all latents: 0 or more, unless it is estimated (a prior without closed form)."""


@exportable
class LossTerms(NamedTuple):
    """The two terms of a training loss, and the KL of each latent."""

    reconstruction: Tensor
    """log p(x|z) at one z drawn from q(z|x), in nats, (B,)."""
    kl: Tensor
    """The KL in nats, summed over all latents, after free bits, capacity and beta; 0-d for reduction "batchmean"."""
    kl_per_latent: tuple[Tensor | None, ...]
    """The KL of each latent in nats, averaged over the batch, detached, before free bits, capacity and beta: for each
    level a tensor of its z's shape, or None if not requested or without a closed form."""


@exportable
class LogWeights(NamedTuple):
    """Importance weights of K draws for each row of x."""

    log_weights: Tensor
    """log p(x|z_k) + log p(z_k) - log q(z_k|x) in nats, (K, B)."""
    z: tuple[Tensor, ...]
    """The draws of each level, (K, B, *latent_shape)."""


class LatentVariableModel(nn.Module):
    """A decoder and a likelihood; a subclass adds the posterior and the prior.

    Seeds work as in `fastvae.sample_and_kl`: ``seed`` (an int, or one int64 element on x's device) fixes the draw on
    every device; without it, a seed is drawn from ``generator`` or torch's default generator. ``row_offset``, the index
    of row 0 in the global batch, makes each part of a split batch draw what the whole batch would have drawn. Results
    have the model's dtype, except that kl and log-likelihoods are float32 (float64 for float64). Invalid arguments
    raise TypeError or ValueError; the message names the argument.
    """

    decoder: nn.Module
    likelihood: Likelihood

    # What a subclass defines, besides forward

    encode: Callable[..., Any]
    decode: Callable[..., Tensor]
    log_weights: Callable[..., LogWeights]

    @property
    def _num_levels(self) -> int:
        return 1

    @property
    def _exact_kl(self) -> bool:
        """Whether the KL has a closed form."""
        return True

    def _check_condition(self, condition: Condition, like: Tensor) -> Tensor | None:
        """The condition as the modules take it, with the batch size, dtype and device of ``like``."""
        if condition is not None:
            raise TypeError(f"condition was given to a {type(self).__name__}, expected None: it is unconditional")
        return None

    def _decoder_input_at_mean(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The decoder's input where z is the posterior's mean."""
        raise NotImplementedError

    def _decoder_input_from_prior(
        self, n: int, seed: Tensor, condition: Tensor | None, temperature: Sequence[float] = ()
    ) -> Tensor:
        """The decoder's input for n draws from the prior; ``temperature`` of each level, 1 for all if empty."""
        raise NotImplementedError

    def _log_likelihood_under_prior(
        self, x: Tensor, num_samples: int, seed: Tensor, condition: Tensor | None
    ) -> Tensor:
        z = self._decoder_input_from_prior(num_samples, seed, None)
        return log_prob_of_shared_draws(self.likelihood, self.decoder, z, x)

    # log p(x|z) where the decoder computes it with its last layer

    _asks_for_it = False  # whether forward has the keyword; a subclass's own need not

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._asks_for_it = "log_likelihood" in inspect.signature(cls.forward).parameters

    def _fused(self, x: Tensor) -> dict[str, bool]:
        """The keyword of ``forward`` for it."""
        fuses = isinstance(x, Tensor) and can_fuse(self.likelihood, self.decoder, x) and self._asks_for_it
        return {"log_likelihood": True} if fuses else {}

    def _decoded(self, z: Tensor, condition: Tensor | None, x: Tensor | None) -> Any:
        """The parameters of p(x|z); with x, log p(x|z)."""
        if x is not None and can_fuse(self.likelihood, self.decoder, x):
            return decode(self.decoder, z, condition, scorer(self.likelihood, x))
        parameters = decode(self.decoder, z, condition)
        return parameters if x is None else log_prob(self.likelihood, parameters, x)

    def _log_likelihood(self, output: Any, x: Tensor) -> Tensor:
        found = getattr(output, "log_likelihood", None)
        return log_prob(self.likelihood, output.parameters, x) if found is None else found

    # What every model has

    @shows_options(ModelOptions)
    def elbo(self, x: Tensor, **options: Unpack[ModelOptions]) -> ELBOTerms:
        """The evidence lower bound of each row of x (B, *event), in nats, with one draw of z: an unbiased estimate.

            elbo = log p(x|z) - KL(q(z|x) || p(z)),   z ~ q(z|x)

        (arXiv 1312.6114, equation 7 with L = 1.) Arguments and errors as for `forward`; the likelihood must support x.
        """
        check_names("elbo", options, ModelOptions)
        output = self(x, **options, **self._fused(x))  # through __call__, so that hooks and wrappers of forward run
        reconstruction = self._log_likelihood(output, x)
        return ELBOTerms(reconstruction - output.kl, reconstruction, output.kl)

    @shows_options(ModelAndKLOptions, reduction="batchmean")
    def terms(self, x: Tensor, **options: Unpack[ModelAndKLOptions]) -> LossTerms:
        """The two terms of a training loss: log p(x|z) of each row, and the KL with free bits, capacity and beta.

        Args:
            x, condition, seed, generator, row_offset: as for `forward`.
            per_coordinate: also return the KL of each latent where it has a closed form, for monitoring.
            reduction: of the KL.
            beta, capacity, free_bits, free_bits_group, free_bits_over: as for `fastvae.sample_and_kl`. In a
                hierarchical model, free bits apply to each level, beta and capacity to the sum of the levels.
        """
        per_coordinate = options.pop("per_coordinate", False) and self._exact_kl
        fused = self._fused(x)
        result = self(x, per_coordinate=per_coordinate, **{"reduction": "batchmean", **options}, **fused)
        output, kl_per_latent = result if per_coordinate else (result, (None,) * self._num_levels)
        return LossTerms(self._log_likelihood(output, x), output.kl, kl_per_latent)

    def log_likelihood_under_prior(
        self,
        x: Tensor,
        num_samples: int,
        *,
        condition: Condition = None,
        seed: Seed = None,
        generator: Generator = None,
    ) -> Tensor:
        """log p(x|z_k) in nats, (K, B), with z_k ~ p(z): the same K draws for all rows of x (B, *event).

        Of a conditional model it is log p(x|z_k, c), with z_k ~ p(z|c) from the same K noises for all rows. For
        `fastvae.objectives.naive_log_marginal`. No gradient reaches the prior.

        Raises:
            RuntimeError: the latent shape is not known.
        """
        check_tensor("x", x)
        check_count("num_samples", num_samples, 1)
        c = self._check_condition(condition, x)
        return self._log_likelihood_under_prior(x, num_samples, seed_tensor(seed, generator, x.device), c)

    @shows_options(ModelOptions)
    def reconstruct(self, x: Tensor, *, sample: bool = False, **options: Unpack[ModelOptions]) -> Tensor:
        """Encode and decode x (B, *event): E[x|z] with z the posterior's mean.

        For counts with a library size, the mean is given the library size of x.

        Args:
            condition: as for `forward`.
            sample: draw z from the posterior, as in training, instead of using its mean.
            seed, generator, row_offset: of that draw.

        Raises:
            ValueError: seed, generator or row_offset was given with sample=False, where nothing is drawn.
        """
        check_names("reconstruct", options, ModelOptions)
        if sample:
            return mean_given(self.likelihood, self(x, **options).parameters, x)
        condition = options.pop("condition", None)
        for name, value in options.items():
            if value is not None and (name != "row_offset" or value):
                raise ValueError(f"{name} was given with sample=False, where nothing is drawn; expected none")
        check_tensor("x", x)
        c = self._check_condition(condition, x)
        return mean_given(self.likelihood, decode(self.decoder, self._decoder_input_at_mean(x, c), c), x)

    def generate(
        self,
        n: int,
        *,
        condition: Condition = None,
        seed: Seed = None,
        generator: Generator = None,
        sample: bool = False,
        temperature: float | Sequence[float] = 1.0,
    ) -> Tensor:
        """n new samples: z ~ p(z), decoded, on the model's device and in its dtype.

        Args:
            n: how many.
            condition: of each of the n, for a conditional model.
            seed: fixes z on every device; for a prior N(0, I), z is `fastvae.noise` of this seed.
            generator: to draw the seed from; the device's default generator if None.
            sample: draw x ~ p(x|z) instead of returning the mean E[x|z]. This draw uses torch's generator: the seed
                fixes it per device type, not across devices.
            temperature: factor of the prior's standard deviation, 0 or more: below 1, samples are more typical and less
                varied. A sequence has one for each level of a `HierarchicalVAE`, from the top down.

        Raises:
            RuntimeError: the latent shape is not known.
        """
        check_count("n", n, 0)
        temperatures = self._check_temperature(temperature)
        like = self._reference_tensor()
        c = self._check_condition(condition, like.new_empty(n))
        z_seed = seed_tensor(seed, generator, like.device)
        parameters = decode(self.decoder, self._decoder_input_from_prior(n, z_seed, c, temperatures), c)
        if not sample:
            return self.likelihood.mean(parameters)
        if seed is not None:
            # Another seed than z's: on a GPU, torch's generator is Philox keyed by the seed, as the noise of z is.
            generator = torch.Generator(like.device).manual_seed((int(seed) ^ _PIXEL_STREAM) % 2**63)
        return self.likelihood.sample(parameters, generator)

    def _check_temperature(self, temperature: float | Sequence[float]) -> tuple[float, ...]:
        """One for each level."""
        if not isinstance(temperature, Sequence) or isinstance(temperature, str):
            return (check_number("temperature", temperature, 0.0),) * self._num_levels
        if len(temperature) != self._num_levels:
            levels = self._num_levels
            raise ValueError(f"temperature has {len(temperature)} numbers, expected {levels}: one for each level")
        return tuple(check_number(f"temperature[{level}]", one, 0.0) for level, one in enumerate(temperature))

    def _reference_tensor(self) -> Tensor:
        """A tensor with the model's device and dtype: the first weight of the decoder, or of the model."""
        for tensor in itertools.chain(self.decoder.parameters(), self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.empty(0)


def check_module(name: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} is a {type(module).__name__}, expected a torch.nn.Module")


_PIXEL_STREAM = 0x706978656C73  # "pixels" in ASCII
