"""The variational autoencoder: an encoder, a decoder and a likelihood around the fused latent op.

    prior z ~ N(0, I),   decoder p(x|z),   encoder q(z|x) = N(mu(x), diag exp(logvar(x)))
    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

(Kingma & Welling, arXiv 1312.6114, section 2.2.) Everything is in nats and per sample: row b of a result belongs to
row b of x, and means and sums over the batch are left to the caller.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import check_tensor, is_integer, seed_tensor
from ..functional import noise, reparameterize, sample_and_kl
from ..likelihoods import Likelihood


class Posterior(NamedTuple):
    """q(z|x) = N(mu, diag exp(logvar)); both (B, *latent_shape)."""

    mu: Tensor
    logvar: Tensor


class VAEOutput(NamedTuple):
    """One pass through the model: what `VAE.forward` returns."""

    z: Tensor
    """The draw from the posterior, (B, *latent_shape)."""
    mu: Tensor
    logvar: Tensor
    kl: Tensor
    """KL(q(z|x) || N(0, I)) in nats, (B,), 0 or more."""
    parameters: Tensor
    """The decoder's output, the parameters of p(x|z)."""


class ELBO(NamedTuple):
    """The bound and its two parts, in nats, (B,) each: elbo = reconstruction - kl."""

    elbo: Tensor
    reconstruction: Tensor
    """log p(x|z) at one z drawn from q(z|x)."""
    kl: Tensor
    """KL(q(z|x) || N(0, I)), 0 or more."""


class VAE(nn.Module):
    """A VAE of any encoder, decoder and likelihood; training minimises ``-vae.elbo(x).elbo.mean()``.

    Args:
        encoder: module with ``encoder(x) -> (mu, logvar)``, both (B, *latent_shape); logvar is log sigma^2.
        decoder: module with ``decoder(z) -> parameters``, the parameters of p(x|z) that the likelihood takes.
        likelihood: `fastvae.likelihoods.Bernoulli`, `Gaussian`, or a module with the same methods.
        latent_shape: shape of one z, which `generate` must know; ``encoder.latent_shape`` or ``encoder.latent_dim`` if
            None.

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

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        latent_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder), ("likelihood", likelihood)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} is a {type(module).__name__}, expected a torch.nn.Module")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.latent_shape = _latent_shape(encoder, latent_shape)

    def encode(self, x: Tensor) -> Posterior:
        """The posterior q(z|x) of x (B, *event).

        Raises:
            TypeError, ValueError: x is not a floating-point tensor with a batch dimension, or the encoder did not
                return the two tensors (mu, logvar).
        """
        check_tensor("x", x)
        posterior = self.encoder(x)
        if not isinstance(posterior, (tuple, list)) or len(posterior) != 2:
            came = f"{len(posterior)} values" if isinstance(posterior, (tuple, list)) else type(posterior).__name__
            raise TypeError(f"encoder returned {came}, expected the pair (mu, logvar)")
        return Posterior(*posterior)

    def forward(
        self,
        x: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> VAEOutput:
        """Encode x (B, *event), draw z with its KL in one fused pass, decode z.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        mu, logvar = self.encode(x)
        z, kl = sample_and_kl(mu, logvar, seed=seed, generator=generator, row_offset=row_offset)
        return VAEOutput(z, mu, logvar, kl, self.decoder(z))

    def elbo(
        self,
        x: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> ELBO:
        """The evidence lower bound of each row of x (B, *event), in nats, with one draw of z: an unbiased estimate.

            elbo = log p(x|z) - KL(q(z|x) || N(0, I)),   z ~ q(z|x)

        (arXiv 1312.6114, equation 7 with L = 1.) Arguments and errors as for `forward`; x must also be what the
        likelihood takes.
        """
        # Through __call__, so that hooks and wrappers of forward see this pass too.
        output = self(x, seed=seed, generator=generator, row_offset=row_offset)
        reconstruction = self.likelihood.log_prob(output.parameters, x)
        return ELBO(reconstruction - output.kl, reconstruction, output.kl)

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], the mean image of z (B, *latent_shape)."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(
        self,
        x: Tensor,
        *,
        sample: bool = False,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """x (B, *event) through the code and back: the mean image E[x|z].

        Args:
            sample: draw z from the posterior, as training does, instead of taking its mean.
            seed, generator, row_offset: of that draw.

        Raises:
            ValueError: a seed, generator or row_offset without ``sample=True``, where it would rule nothing.
        """
        if not sample:
            for name, value in (("seed", seed), ("generator", generator), ("row_offset", row_offset or None)):
                if value is not None:
                    raise ValueError(
                        f"{name} was given with sample=False, where nothing is drawn; expected it left out"
                    )
            return self.decode(self.encode(x).mu)
        mu, logvar = self.encode(x)
        return self.decode(reparameterize(mu, logvar, seed=seed, generator=generator, row_offset=row_offset))

    def generate(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        sample: bool = False,
    ) -> Tensor:
        """n new images, z ~ N(0, I) through the decoder, on the model's device and in its dtype.

        Args:
            n: how many.
            seed: of z, which is then the same on every device: `fastvae.noise` of this seed.
            generator: to draw the seed from; the default one of the device if None.
            sample: draw x ~ p(x|z) instead of returning the mean image E[x|z]. Its noise is torch's own: a seed fixes
                it too, but for one kind of device.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
            RuntimeError: the latent shape is not known.
        """
        if self.latent_shape is None:
            raise RuntimeError(
                "the shape of z is not known; expected VAE(..., latent_shape=...) or an encoder with latent_shape or"
                " latent_dim"
            )
        if not is_integer(n):
            raise TypeError(f"n is a {type(n).__name__}, expected an int")
        if n < 0:
            raise ValueError(f"n is {n}, expected 0 or more")
        like = self._like()
        z_seed = seed_tensor(seed, generator, like.device)
        parameters = self.decoder(noise(z_seed, (n, *self.latent_shape), dtype=like.dtype))
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

    def extra_repr(self) -> str:
        return f"latent_shape={self.latent_shape}"


_PIXEL_STREAM = 0x706978656C73  # "pixels"


def _latent_shape(encoder: nn.Module, given: int | Sequence[int] | None) -> tuple[int, ...] | None:
    name, shape = "latent_shape", given
    if shape is None:
        for name in ("latent_shape", "latent_dim"):
            shape = getattr(encoder, name, None)
            if shape is not None:
                break
        else:
            return None
    try:
        sizes = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        raise TypeError(f"{name} is {shape!r}, expected an int or a sequence of ints") from None
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} is {shape!r}, expected positive sizes")
    return sizes
