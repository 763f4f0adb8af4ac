"""Priors p(z) over the latents of a VAE: N(0, I), a learned Gaussian, a mixture of Gaussians, the VampPrior.

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))

Between Gaussians the KL has a closed form, which the fused ops compute. For the mixtures it has none: their KL is
log q(z|x) - log p(z) at the one z that was drawn, which is right on average and may be negative for one sample. What a
prior gives is in nats and per sample; seeds work as in `fastvae.sample_and_kl`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .arguments import check_dtype, check_posterior, check_reduction, seed_tensor
from .kernels.layout import likelihood_dtype
from .kernels.reference.latents import LOG_2_PI
from .options import check_num_samples
from .shaping import check_kl_shape
from .sizes import check_count, latent_shape_of, positive_sizes


class Prior(nn.Module):
    """What models ask of a prior; a new one has `log_prob` and `sample`, its KL is then estimated.

    Args:
        latent_shape: shape of one z, an int for a vector.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.
    """

    closed_form = False
    """True: the KL is exact. False: it is log q(z|x) - log p(z) at one draw, unbiased, negative for some samples."""

    _like: Tensor

    def __init__(self, latent_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = positive_sizes("latent_shape", latent_shape)
        # Follows the module's device and dtype, whether or not it has parameters; not part of its state.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, summed over the latent dimensions: (...) for z (..., *latent_shape).

        Differentiable in z and in the prior's parameters; float32, float64 if z or the prior is float64.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def sample(self, n: int, *, seed: int | Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n draws z ~ p(z), (n, *latent_shape), on the prior's device and in its dtype, without gradients.

        Args:
            n: how many, 0 or more.
            seed: fixes the draw on every device; drawn from torch's generator if None.
            generator: to draw the seed from; the default one of the device if None.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sample")

    def gaussian(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """mu and logvar of a prior with a closed form, (*latent_shape) each, in this dtype; None and None: N(0, I)."""
        raise NotImplementedError(f"{type(self).__name__} is not one Gaussian")

    def sample_and_kl(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        reduction: str = "sample",
        beta: float = 1.0,
        capacity: float | None = None,
        free_bits: float = 0.0,
        free_bits_group: str = "coordinate",
        free_bits_over: str = "sample",
        per_coordinate: bool = False,
    ) -> tuple[Tensor, ...]:
        """z ~ q(z|x) = N(mu, diag exp(logvar)) and its KL to this prior in nats.

        With a closed form this is `fastvae.sample_and_kl` with the prior's parameters, cast to mu's dtype. Without one
        the KL is that of the draw, log q(z|x) - log p(z), and free bits, beta and capacity act on this estimate.

        Args:
            mu, logvar: of the posterior, (B, *latent_shape).
            seed, generator, row_offset, beta, capacity: as for `fastvae.sample_and_kl`.
            reduction: as there; "none" needs a closed form.
            free_bits, free_bits_group, free_bits_over: as there; without a closed form the group is "latent".
            per_coordinate: as there; needs a closed form.

        Returns:
            z and the KL, and with ``per_coordinate`` the KL of each coordinate, as from `fastvae.sample_and_kl`.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind, or needs a closed form; the message names it.
        """
        mu, logvar = self._check_posterior(mu, logvar)
        check_reduction(reduction)
        draw: dict[str, Any] = {"seed": seed, "generator": generator, "row_offset": row_offset}
        if self.closed_form:
            prior = self.gaussian(mu.dtype)
            return functional.sample_and_kl(
                mu, logvar, *prior, **draw, reduction=reduction, beta=beta, capacity=capacity, free_bits=free_bits,
                free_bits_group=free_bits_group, free_bits_over=free_bits_over, per_coordinate=per_coordinate,
            )  # fmt: skip
        if reduction == "none":
            raise ValueError(f"reduction is 'none', expected 'sample', 'sum' or 'batchmean': {self._only_one_kl()}")
        if per_coordinate:
            raise ValueError(f"per_coordinate is True, expected False: {self._only_one_kl()}")
        if free_bits and free_bits_group != "latent":
            raise ValueError(f"free_bits_group is {free_bits_group!r}, expected 'latent': {self._only_one_kl()}")
        shape = check_kl_shape(beta, capacity, free_bits, "latent", free_bits_over, reduction, event_rank=1)
        z, log_q, log_p = self.sample_and_log_prob(mu, logvar, None, **draw)
        kl = log_q - log_p
        summed = shape.kernel_reduction(reduction)
        if summed is None:
            return z, shape.finish(None, kl.mean(), len(mu), reduction)
        if summed != "sample":
            kl = kl.sum() if summed == "sum" else kl.mean()
        return z, shape.finish(kl, None, len(mu), reduction)

    def sample_and_log_prob(
        self,
        mu: Tensor,
        logvar: Tensor,
        num_samples: int | None,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        hold_posterior: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """K draws z ~ q(z|x) with log q(z|x) and log p(z) of each: what importance weights are made of.

        Args:
            mu, logvar: of the posterior, (B, *latent_shape).
            num_samples: K; None for one draw, without a dimension for it.
            seed, generator, row_offset: as for `fastvae.sample_and_kl`; the same seed gives the same z.
            hold_posterior: the gradient of log q reaches mu and logvar through z alone, and so does that of log p, as
                the doubly reparameterised gradient has it (Tucker et al., arXiv 1810.04152).

        Returns:
            z, (K, B, *latent_shape), in mu's dtype; log q(z|x) and log p(z), (K, B), float32 (float64 for float64).

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        mu, logvar = self._check_posterior(mu, logvar)
        num_samples = check_num_samples(num_samples)
        draw: dict[str, Any] = {
            "num_samples": num_samples, "seed": seed, "generator": generator, "row_offset": row_offset
        }  # fmt: skip
        if hold_posterior:
            z = functional.reparameterize(mu, logvar, **draw)
            return z, log_normal(z, mu.detach(), logvar.detach(), mu.dim() - 1), self.log_prob(z)
        if self.closed_form:
            return functional.sample_and_log_prob(mu, logvar, *self.gaussian(mu.dtype), **draw)
        z, log_q, _ = functional.sample_and_log_prob(mu, logvar, **draw)
        return z, log_q, self.log_prob(z)

    def extra_repr(self) -> str:
        kl = "exact KL" if self.closed_form else "KL estimated from one draw"
        return f"latent_shape={self.latent_shape}, {kl}"

    def _check_posterior(self, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = check_posterior(mu, logvar)
        if mu.shape[1:] != self.latent_shape:
            expected = ", ".join(["batch", *map(str, self.latent_shape)])
            raise ValueError(f"mu has shape {tuple(mu.shape)}, expected ({expected})")
        return mu, logvar

    def _check_latents(self, z: Tensor) -> None:
        if not isinstance(z, Tensor):
            raise TypeError(f"z is a {type(z).__name__}, expected a torch.Tensor")
        check_dtype("z", z.dtype)
        rank = len(self.latent_shape)
        if z.dim() < rank or z.shape[z.dim() - rank :] != self.latent_shape:
            expected = ", ".join(["...", *map(str, self.latent_shape)])
            raise ValueError(f"z has shape {tuple(z.shape)}, expected ({expected})")

    def _only_one_kl(self) -> str:
        return f"the KL to a {type(self).__name__} is estimated as one number for each sample"


class StandardNormal(Prior):
    """p(z) = N(0, I); its KL is exact (Kingma & Welling, arXiv 1312.6114, appendix B). No parameters.

    Args:
        latent_shape: shape of one z, an int for a vector.

    >>> import torch
    >>> from fastvae.priors import StandardNormal
    >>> prior = StandardNormal(20)
    >>> prior.sample(3, seed=0).shape, prior.log_prob(torch.zeros(3, 20))  # -10 log(2 pi)
    (torch.Size([3, 20]), tensor([-18.3788, -18.3788, -18.3788]))
    """

    closed_form = True

    def log_prob(self, z: Tensor) -> Tensor:
        self._check_latents(z)
        terms = z.to(likelihood_dtype(z, self._like)).square() + LOG_2_PI
        return -0.5 * _event_sum(terms, len(self.latent_shape))

    @torch.no_grad()
    def sample(self, n: int, *, seed: int | Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        check_count("n", n, 0)
        seed = seed_tensor(seed, generator, self._like.device)
        return functional.noise(seed, (n, *self.latent_shape), dtype=self._like.dtype)

    def gaussian(self, dtype: torch.dtype) -> tuple[None, None]:
        return None, None


class LearnedGaussian(Prior):
    """p(z) = N(mu, diag exp(logvar)) with mu and logvar learned; its KL is exact. Starts as N(0, I).

    Beside posteriors in half precision, ``mu`` and ``logvar`` are rounded to it.

    Args:
        latent_shape: shape of one z, and of ``mu`` and ``logvar``; an int for a vector.

    >>> import torch
    >>> from fastvae.priors import LearnedGaussian
    >>> prior = LearnedGaussian(2)
    >>> z, kl = prior.sample_and_kl(torch.ones(3, 2), torch.zeros(3, 2))
    >>> kl.detach()
    tensor([1., 1., 1.])
    """

    closed_form = True

    def __init__(self, latent_shape: int | Sequence[int]) -> None:
        super().__init__(latent_shape)
        self.mu = nn.Parameter(torch.zeros(self.latent_shape))
        self.logvar = nn.Parameter(torch.zeros(self.latent_shape))

    def log_prob(self, z: Tensor) -> Tensor:
        self._check_latents(z)
        return log_normal(z, self.mu, self.logvar, len(self.latent_shape))

    @torch.no_grad()
    def sample(self, n: int, *, seed: int | Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        check_count("n", n, 0)
        seed = seed_tensor(seed, generator, self._like.device)
        dtype = likelihood_dtype(self.mu)
        eps = functional.noise(seed, (n, *self.latent_shape), dtype=dtype)
        return (self.mu + torch.exp(0.5 * self.logvar.to(dtype)) * eps).to(self._like.dtype)

    def gaussian(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.mu.to(dtype), self.logvar.to(dtype)


class _Mixture(Prior):
    """p(z) = sum_c w_c N(z; mu_c, diag exp(logvar_c)); what the components are, is the subclass's."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """log w, (C,), mu and logvar, (C, *latent_shape); float32, or float64 where they are."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (...) for z (..., *latent_shape); takes memory for the components of each z."""
        self._check_latents(z)
        log_weights, mu, logvar = self.components()
        rank = len(self.latent_shape)
        of_components = log_normal(z.unsqueeze(z.dim() - rank), mu, logvar, rank)
        return torch.logsumexp(log_weights + of_components, -1)

    @torch.no_grad()
    def sample(self, n: int, *, seed: int | Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        check_count("n", n, 0)
        seed = seed_tensor(seed, generator, self._like.device)
        log_weights, mu, logvar = self.components()
        # Phi(eps) is uniform; where it falls among the cumulative weights is the component. The draw beside that of z.
        uniform = torch.special.ndtr(functional.noise(seed, (n,), draw=1, dtype=mu.dtype))
        component = torch.searchsorted(log_weights.exp().cumsum(0), uniform).clamp_max(len(mu) - 1)
        eps = functional.noise(seed, (n, *self.latent_shape), dtype=mu.dtype)
        return (mu[component] + torch.exp(0.5 * logvar[component]) * eps).to(self._like.dtype)


class GaussianMixture(_Mixture):
    """p(z) = sum_c softmax(logits)_c N(z; mu_c, diag exp(logvar_c)), all learned. Its KL is estimated from one draw.

    The components start apart, with equal weights and variance 1 at means drawn from N(0, I) by torch's generator.

    Args:
        latent_shape: shape of one z, an int for a vector.
        components: how many, 1 or more.

    >>> import torch
    >>> from fastvae.priors import GaussianMixture
    >>> prior = GaussianMixture(20, components=10)
    >>> prior.log_prob(prior.sample(3)).shape, prior.mu.shape
    (torch.Size([3]), torch.Size([10, 20]))
    >>> z, kl = prior.sample_and_kl(torch.zeros(3, 20), torch.zeros(3, 20), free_bits=1.0, free_bits_group="latent")
    >>> bool((kl >= 1.0).all())
    True
    """

    def __init__(self, latent_shape: int | Sequence[int], components: int) -> None:
        super().__init__(latent_shape)
        check_count("components", components, 1)
        self.logits = nn.Parameter(torch.zeros(components))
        self.mu = nn.Parameter(torch.randn(components, *self.latent_shape))
        self.logvar = nn.Parameter(torch.zeros(components, *self.latent_shape))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = likelihood_dtype(self.mu)
        return torch.log_softmax(self.logits.to(dtype), 0), self.mu.to(dtype), self.logvar.to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={len(self.logits)}"


class VampPrior(_Mixture):
    """p(z) = 1/C sum_c q(z|u_c): the posteriors of C learned pseudo-inputs. Its KL is estimated from one draw.

    (Tomczak & Welling, arXiv 1705.07120.) The encoder is the model's own. It is not registered here, so
    that the model has its weights once: the model moves, saves and trains them, and copies of the model and its
    pickles hold one encoder that both use. A prior that stands alone has the pseudo-inputs for parameters, and its
    encoder stays where it is.

    Args:
        encoder: the model's, as `fastvae.nn.VAE` takes it.
        input_shape: shape of one x, an int for a vector.
        components: C, 1 or more.
        latent_shape: shape of one z; ``encoder.latent_shape`` or ``encoder.latent_dim`` if None.
        squash: what is done to the pseudo-inputs before the encoder sees them, torch.sigmoid for pixels in [0, 1];
            nothing if None.

    The pseudo-inputs, (C, *input_shape), start uniform in [0, 1). To start from data:
    ``prior.pseudo_inputs.data.copy_(x[:components])``.

    >>> import torch
    >>> from fastvae.nn import MLPEncoder
    >>> from fastvae.priors import VampPrior
    >>> prior = VampPrior(MLPEncoder(784, 400, 20), 784, components=50)
    >>> prior.sample(3).shape, [name for name, _ in prior.named_parameters()]
    (torch.Size([3, 20]), ['pseudo_inputs'])
    """

    def __init__(
        self,
        encoder: nn.Module,
        input_shape: int | Sequence[int],
        components: int,
        *,
        latent_shape: int | Sequence[int] | None = None,
        squash: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder is a {type(encoder).__name__}, expected a torch.nn.Module")
        shape = latent_shape_of(encoder, latent_shape)
        if shape is None:
            raise ValueError(
                "latent_shape is None and encoder has neither latent_shape nor latent_dim, expected one of them"
            )
        super().__init__(shape)
        if squash is not None and not callable(squash):
            raise TypeError(f"squash is a {type(squash).__name__}, expected a function or None")
        check_count("components", components, 1)
        self._encoder = (encoder,)  # in a tuple, where nn.Module does not look for modules
        self.squash = squash
        self.pseudo_inputs = nn.Parameter(torch.rand(components, *positive_sizes("input_shape", input_shape)))

    @property
    def encoder(self) -> nn.Module:
        return self._encoder[0]

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        from .nn.posterior import encode  # which needs this module

        pseudo_inputs = self.pseudo_inputs if self.squash is None else self.squash(self.pseudo_inputs)
        mu, logvar, _ = encode("encoder", self.encoder, pseudo_inputs)
        expected = (len(pseudo_inputs), *self.latent_shape)
        if mu.shape != expected:
            raise ValueError(f"encoder returned mu of shape {tuple(mu.shape)}, expected {expected}")
        dtype = likelihood_dtype(mu)
        log_weights = mu.new_full((len(mu),), -math.log(len(mu)), dtype=dtype)
        return log_weights, mu.to(dtype), logvar.to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={len(self.pseudo_inputs)}"


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor, event_rank: int) -> Tensor:
    """log N(z; mu, diag exp(logvar)) in nats, summed over the last ``event_rank`` dimensions.

    -1/2 sum((z - mu)^2 exp(-logvar) + logvar + log 2 pi), in float32 (float64 if one of them is).
    """
    dtype = likelihood_dtype(z, mu, logvar)
    z, mu, logvar = z.to(dtype), mu.to(dtype), logvar.to(dtype)
    distance = ((z - mu) * torch.exp(-0.5 * logvar)).square()
    return -0.5 * (_event_sum(distance, event_rank) + _event_sum(logvar + LOG_2_PI, event_rank))


def _event_sum(terms: Tensor, event_rank: int) -> Tensor:
    return terms.flatten(terms.dim() - event_rank).sum(-1) if event_rank else terms
