"""`ConditionalVAE`: the encoder, the decoder and optionally the prior also take a condition c.

    log p(x|c) >= E_q[log p(x|z, c)] - KL(q(z|x, c) || p(z|c)),   z ~ q(z|x, c)

(Sohn, Lee & Yan, "Learning Structured Output Representation using Deep Conditional Generative Models", NIPS 2015,
equation 4, which calls our x y, and our c x.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_tensor, dtype_name, is_integer, refuse_first
from ..draw_options import Condition
from ..functional import noise, reparameterize
from ..likelihoods import Likelihood
from ..priors import Prior, VampPrior
from ..size_checks import check_count
from .decoding import log_prob_of_draws
from .model import check_module
from .posterior import Gaussian, encode
from .vae import VAE

__all__ = ["ConditionalVAE"]


class ConditionalVAE(VAE):
    """A VAE whose methods all take ``condition=``, such as the class of each image.

    Args:
        encoder: module with ``encoder(x, condition) -> (mu, logvar)`` or moments, as for `VAE`.
        decoder: module with ``decoder(z, condition) -> parameters``.
        likelihood: as for `VAE`.
        num_classes: if given, conditions are class indices: int64 from 0 to num_classes - 1, (B,), or one int for all
            rows; the modules get them one-hot, (B, num_classes). If None, conditions are floating-point tensors
            (B, ...), passed on as they are.
        prior: p(z|c), a module with ``prior(condition) -> (mu, logvar)`` or moments; or p(z), one of `fastvae.priors`
            except a VampPrior of this encoder; N(0, I) if None.
        latent_shape: as for `VAE`.

    A condition must have x's device, and x's dtype unless it is classes. Classes out of range are an error on the CPU;
    on a GPU, where checking would synchronise, they trigger CUDA's own device-side assertion.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import ConditionalVAE, MLPDecoder, MLPEncoder
    >>> encoder = MLPEncoder(784, 400, 20, condition_dim=10)
    >>> decoder = MLPDecoder(20, 400, 784, condition_dim=10)
    >>> prior = MLPEncoder(10, [], 20)
    >>> vae = ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=10, prior=prior)
    >>> x, digit = torch.rand(8, 784).round(), torch.arange(8)
    >>> loss = -vae.elbo(x, condition=digit).elbo.mean()
    >>> vae.generate(3, condition=7).shape
    torch.Size([3, 784])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        num_classes: int | None = None,
        prior: nn.Module | None = None,
        latent_shape: int | Sequence[int] | None = None,
    ) -> None:
        if isinstance(prior, VampPrior) and prior.encoder is encoder:
            raise ValueError(
                "prior is a VampPrior of the model's encoder, which needs a condition, and pseudo-inputs have none;"
                " expected another prior"
            )
        own = prior if isinstance(prior, Prior) else None
        super().__init__(encoder, decoder, likelihood, prior=own, latent_shape=latent_shape)
        if own is not prior:
            check_module("prior", prior)
            self.prior = prior
        if num_classes is not None:
            check_count("num_classes", num_classes, 1)
        self.num_classes = num_classes

    def _log_likelihood_under_prior(
        self, x: Tensor, num_samples: int, seed: Tensor, condition: Tensor | None
    ) -> Tensor:
        prior = self._prior(condition)
        if isinstance(prior, tuple):
            mu, logvar = prior
            eps = noise(seed, (num_samples, *mu.shape[1:]), dtype=mu.dtype)
            z = mu + torch.exp(0.5 * logvar) * eps.unsqueeze(1)
        else:
            shared = self._decoder_input_from_prior(num_samples, seed, None)
            z = shared.unsqueeze(1).expand(num_samples, len(x), *shared.shape[1:])
        return log_prob_of_draws(self.likelihood, self.decoder, z, x, condition)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_classes={self.num_classes}"

    def _prior(self, condition: Tensor | None) -> Prior | Gaussian | None:
        if self.prior is None or isinstance(self.prior, Prior):
            return super()._prior(condition)
        assert condition is not None  # _check_condition requires it
        return encode("prior", self.prior, condition)[:2]

    def _decoder_input_from_prior(
        self, n: int, seed: Tensor, condition: Tensor | None, temperature: Sequence[float] = ()
    ) -> Tensor:
        prior = self._prior(condition)
        if isinstance(prior, tuple):
            return reparameterize(*prior, seed=seed, temperature=temperature[0] if temperature else 1.0)
        return super()._decoder_input_from_prior(n, seed, condition, temperature)

    def _check_condition(self, condition: Condition, like: Tensor) -> Tensor:
        if condition is None:
            expected = "a tensor (batch, ...)" if self.num_classes is None else _CLASSES
            raise TypeError(f"condition is None, expected {expected}")
        if self.num_classes is not None:
            return _one_hot(condition, self.num_classes, like)
        if not isinstance(condition, Tensor):
            raise TypeError(f"condition is a {type(condition).__name__}, expected a torch.Tensor")
        check_tensor("condition", condition)
        if condition.dtype != like.dtype:
            actual, expected = dtype_name(condition.dtype), dtype_name(like.dtype)
            raise TypeError(f"condition is {actual}, expected {expected}, as the data or the model")
        _check_device_and_rows(condition, like)
        return condition


_CLASSES = "int64 classes (batch,) or one int"


def _one_hot(classes: Tensor | int, num_classes: int, like: Tensor) -> Tensor:
    """(B, num_classes), in the dtype of ``like``."""
    if is_integer(classes):
        classes = torch.full((like.shape[0],), int(classes), device=like.device)
    if not isinstance(classes, Tensor):
        raise TypeError(f"condition is a {type(classes).__name__}, expected {_CLASSES}")
    if classes.dtype != torch.int64 or classes.dim() != 1:
        actual = f"{dtype_name(classes.dtype)} of shape {tuple(classes.shape)}"
        raise TypeError(f"condition is {actual}, expected {_CLASSES}")
    _check_device_and_rows(classes, like)
    if classes.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (classes < 0) | (classes >= num_classes)
        refuse_first("condition", classes, wrong, f"a class from 0 to {num_classes - 1}")
    return F.one_hot(classes, num_classes).to(like.dtype)


def _check_device_and_rows(condition: Tensor, like: Tensor) -> None:
    if condition.device != like.device:
        raise ValueError(f"condition is on {condition.device}, expected it on {like.device}")
    if condition.shape[0] != like.shape[0]:
        raise ValueError(f"condition has shape {tuple(condition.shape)}, expected {len(like)} rows")
