"""What all models of `fastvae.nn` share: the bound and its terms, generation and reconstruction.

    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

(Kingma & Welling, arXiv 1312.6114, section 2.2.) Everything is in nats and per sample: row b of a result belongs to
row b of x, and means and sums over the batch are left to the caller, but for `Terms.kl`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from ..arguments import check_tensor, seed_tensor
from ..likelihoods import Likelihood
from ..sizes import check_count
from .decoding import decode, log_prob_of_shared_draws

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ELBO(NamedTuple):
    """The bound and its two parts, in nats, (B,) each: elbo = reconstruction - kl."""

    elbo: Tensor
    reconstruction: Tensor
    """log p(x|z) at one z drawn from q(z|x)."""
    kl: Tensor
    """KL(q(z|x) || p(z)), of all latents together: 0 or more, unless the prior has no closed form for it."""


class Terms(NamedTuple):
    """What a training loss is made of."""

    reconstruction: Tensor
    """log p(x|z) at one z drawn from q(z|x), in nats, (B,)."""
    kl: Tensor
    """The KL of all latents together in nats, as shaped; one number under reduction "batchmean"."""
    kl_per_latent: tuple[Tensor | None, ...]
    """The KL of each latent in nats, averaged over the batch, unshaped and detached: for each level a tensor of the
    shape of its z, or None where it was not asked for or has no closed form."""


class LogWeights(NamedTuple):
    """Importance weights of K draws for each row of x."""

    log_weights: Tensor
    """log p(x|z_k) + log p(z_k) - log q(z_k|x) in nats, (K, B)."""
    z: tuple[Tensor, ...]
    """The draws, for each level (K, B, *latent_shape)."""


class Shaping(TypedDict, total=False):
    """What is done to the KL; as for `fastvae.sample_and_kl`."""

    reduction: str
    beta: float
    capacity: float | None
    free_bits: float
    free_bits_group: str
    free_bits_over: str


_SHAPING = tuple(Shaping.__annotations__)


def check_shaping(shaping: Shaping) -> None:
    for name in shaping:
        if name not in _SHAPING:
            raise TypeError(f"{name} is no argument of the KL, expected one of {', '.join(_SHAPING)}")


class LatentVariableModel(nn.Module):
    """A decoder and a likelihood; posterior and prior are the subclass's.

    Seeds work as in `fastvae.sample_and_kl`: ``seed`` (an int, or one int64 element on x's device) fixes the draw on
    every device, ``generator`` or torch's default one rules it otherwise, and ``row_offset``, the index of row 0 in the
    global batch, makes each part of a split batch draw what the whole would have drawn. Results are in the dtype of the
    model, but the kl and the log-likelihood in float32 (float64 for float64).
    """

    decoder: nn.Module
    likelihood: Likelihood

    # What a subclass has, beside forward

    if TYPE_CHECKING:
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

    def _check_condition(self, condition: Tensor | int | None, like: Tensor) -> Tensor | None:
        """The condition as the modules take it, with the rows, dtype and device of ``like``."""
        if condition is not None:
            raise TypeError(f"condition was given to a {type(self).__name__}, expected it for a ConditionalVAE only")
        return None

    def _mean_code(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """What the decoder makes the reconstruction of x from when nothing is drawn."""
        raise NotImplementedError

    def _prior_code(self, n: int, seed: Tensor, condition: Tensor | None) -> Tensor:
        """What the decoder makes n images from, drawn from the prior."""
        raise NotImplementedError

    # What all have

    def elbo(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> ELBO:
        """The evidence lower bound of each row of x (B, *event), in nats, with one draw of z: an unbiased estimate.

            elbo = log p(x|z) - KL(q(z|x) || p(z)),   z ~ q(z|x)

        (arXiv 1312.6114, equation 7 with L = 1.) Arguments and errors as for `forward`; x must also be what the
        likelihood takes.
        """
        # Through __call__, so that hooks and wrappers of forward see this pass too.
        output = self(x, seed=seed, generator=generator, row_offset=row_offset, **_given(condition))
        reconstruction = self.likelihood.log_prob(output.parameters, x)
        return ELBO(reconstruction - output.kl, reconstruction, output.kl)

    def terms(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        per_coordinate: bool = False,
        **shaping: Unpack[Shaping],
    ) -> Terms:
        """The two terms of a loss: log p(x|z) of each row, and the KL, shaped.

        Args:
            x, condition, seed, generator, row_offset: as for `forward`.
            per_coordinate: give the KL of each latent too, where it has a closed form: for monitoring.
            reduction: of the KL, "batchmean" if not given.
            beta, capacity, free_bits, free_bits_group, free_bits_over: as for `fastvae.sample_and_kl`. In a model with
                levels of latents, free bits hold for each level; beta and capacity for the sum.
        """
        per_coordinate = per_coordinate and self._exact_kl
        passed = self(
            x, seed=seed, generator=generator, row_offset=row_offset, per_coordinate=per_coordinate,
            **{"reduction": "batchmean", **shaping}, **_given(condition),
        )  # fmt: skip
        output, each = passed if per_coordinate else (passed, (None,) * self._num_levels)
        return Terms(self.likelihood.log_prob(output.parameters, x), output.kl, each)

    def log_likelihood_under_prior(
        self,
        x: Tensor,
        num_samples: int,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x|z_k) in nats, (K, B), with z_k ~ p(z): one set of K draws for all rows of x (B, *event).

        Its mean over the draws of exp is p(x), which it is a hopeless estimate of. Has no gradient to the prior.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
            RuntimeError: the latent shape is not known.
        """
        check_tensor("x", x)
        check_count("num_samples", num_samples, 1)
        self._check_condition(condition, x)
        code = self._prior_code(num_samples, seed_tensor(seed, generator, x.device), None)
        return log_prob_of_shared_draws(self.likelihood, self.decoder, code, x)

    def reconstruct(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        sample: bool = False,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """x (B, *event) through the code and back: the mean image E[x|z].

        Args:
            condition: as for `forward`.
            sample: draw z from the posterior, as training does, instead of taking its mean.
            seed, generator, row_offset: of that draw.

        Raises:
            ValueError: a seed, generator or row_offset without ``sample=True``, where it would rule nothing.
        """
        if sample:
            output = self(x, seed=seed, generator=generator, row_offset=row_offset, **_given(condition))
            return self.likelihood.mean(output.parameters)
        for name, value in (("seed", seed), ("generator", generator), ("row_offset", row_offset or None)):
            if value is not None:
                raise ValueError(f"{name} was given with sample=False, where nothing is drawn; expected it left out")
        check_tensor("x", x)
        given = self._check_condition(condition, x)
        return self.likelihood.mean(decode(self.decoder, self._mean_code(x, given), given))

    def generate(
        self,
        n: int,
        *,
        condition: Tensor | int | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        sample: bool = False,
    ) -> Tensor:
        """n new images, z ~ p(z) through the decoder, on the model's device and in its dtype.

        Args:
            n: how many.
            condition: of each of the n, for a conditional model.
            seed: of z, which is then the same on every device: for N(0, I), `fastvae.noise` of this seed.
            generator: to draw the seed from; the default one of the device if None.
            sample: draw x ~ p(x|z) instead of returning the mean image E[x|z]. Its noise is torch's own: a seed fixes
                it too, but for one kind of device.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
            RuntimeError: the latent shape is not known.
        """
        check_count("n", n, 0)
        like = self._like()
        given = self._check_condition(condition, like.new_empty(n))
        z_seed = seed_tensor(seed, generator, like.device)
        parameters = decode(self.decoder, self._prior_code(n, z_seed, given), given)
        if not sample:
            return self.likelihood.mean(parameters)
        if seed is not None:
            # Not the seed itself: on a GPU torch's generator is Philox keyed by its seed, as the noise of z is.
            generator = torch.Generator(like.device).manual_seed((int(seed) ^ _PIXEL_STREAM) % 2**63)
        return self.likelihood.sample(parameters, generator)

    def _like(self) -> Tensor:
        """A tensor with the model's device and dtype: a weight of the decoder, if it has one."""
        for tensor in itertools.chain(self.decoder.parameters(), self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.empty(0)


def check_module(name: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} is a {type(module).__name__}, expected a torch.nn.Module")


def _given(condition: Tensor | int | None) -> dict[str, Any]:
    """Only where there is one: a forward of one's own need not know the argument."""
    return {} if condition is None else {"condition": condition}


_PIXEL_STREAM = 0x706978656C73  # "pixels"
