"""Priors p(z) over the latents of a VAE: N(0, I), a learned Gaussian, a mixture of Gaussians, the VampPrior.

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))

Between Gaussians the KL has a closed form, which the fused ops compute. To a mixture it has none: there the KL is the
one-sample estimate log q(z|x) - log p(z), unbiased, possibly negative. Results are in nats and per sample; seeds work
as in `fastvae.sample_and_kl`. Invalid arguments raise TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from . import functional
from .checks import check_dtype, check_number, check_posterior, seed_tensor
from .draw_options import Generator, PriorOverload, Seed, SeedAndKLOptions, SeedOptions, check_names
from .kernels.layout import likelihood_dtype
from .kernels.reference.latents import LOG_2_PI
from .kl_options import finish_kl
from .latent_options import described_latent, shows_options
from .returned import check_returned
from .size_checks import check_count, check_num_samples, latent_shape_of, positive_sizes

__all__ = ["GaussianMixture", "LearnedGaussian", "Prior", "StandardNormal", "VampPrior", "normal_log_prob"]


class Prior(nn.Module):
    """Base class. A new prior defines `log_prob` and `sample`; its KL is then estimated from one draw.

    Args:
        latent_shape: shape of one z, an int for a vector.
    """

    closed_form = False
    """True: the KL is exact. False: it is estimated as log q(z|x) - log p(z) at one draw."""

    _like: Tensor

    def __init__(self, latent_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = positive_sizes("latent_shape", latent_shape)
        # Tells the module's device and dtype, also of a prior without parameters. Not in the state dict.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, summed over the latent dimensions: (...) for z (..., *latent_shape).

        Differentiable in z and in the prior's parameters; float32, float64 if z or the prior is float64.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    @torch.no_grad()
    def sample(self, n: int, *, seed: Seed = None, generator: Generator = None, temperature: float = 1.0) -> Tensor:
        """n draws z ~ p(z), 0 or more, (n, *latent_shape), on the prior's device and in its dtype, without gradients.

        Seeds work as in `fastvae.sample_and_kl`. ``temperature``, 0 or more, multiplies the standard deviation, of each
        component in a mixture.
        """
        check_count("n", n, 0)
        check_number("temperature", temperature, 0.0)
        drawn = self._draw(n, seed_tensor(seed, generator, self._like.device), temperature)
        check_returned(f"{type(self).__name__}._draw", drawn, (n, *self.latent_shape), "the draws z")
        return drawn.to(self._like.dtype)

    def _checked_log_prob(self, z: Tensor) -> Tensor:
        of_rows = z.shape[: z.dim() - len(self.latent_shape)]
        return check_returned(f"{type(self).__name__}.log_prob", self.log_prob(z), of_rows, "one sum for each z")

    def _draw(self, n: int, seed: Tensor, temperature: float) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no sample")

    def gaussian(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """mu and logvar of a Gaussian prior, (*latent_shape) each, in this dtype; (None, None) for N(0, I)."""
        raise NotImplementedError(f"{type(self).__name__} is not a Gaussian")

    @overload
    def sample_and_kl(
        self, mu: Tensor, logvar: Tensor, *, per_coordinate: Literal[False] = False, **options: Unpack[PriorOverload]
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def sample_and_kl(
        self, mu: Tensor, logvar: Tensor, *, per_coordinate: Literal[True], **options: Unpack[PriorOverload]
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    @overload
    def sample_and_kl(
        self, mu: Tensor, logvar: Tensor, *, per_coordinate: bool, **options: Unpack[PriorOverload]
    ) -> tuple[Tensor, ...]: ...

    @shows_options(SeedAndKLOptions)
    def sample_and_kl(self, mu: Tensor, logvar: Tensor, **options: Unpack[SeedAndKLOptions]) -> tuple[Tensor, ...]:
        """z ~ q(z|x) = N(mu, diag exp(logvar)) and the KL of q to this prior in nats.

        With a closed form this is `fastvae.sample_and_kl` with the prior's parameters, cast to mu's dtype. Without one,
        free bits, beta and capacity apply to the estimate log q(z|x) - log p(z).

        Args:
            mu, logvar: of the posterior, (B, *latent_shape).
            options: as for `fastvae.sample_and_kl`, which says what is returned. reduction "none" and per_coordinate
                need a closed form; without one free_bits_group must be "latent".
        """
        mu, logvar = self._check_posterior(mu, logvar)
        if self.closed_form:
            return functional.sample_and_kl(mu, logvar, *self.gaussian(mu.dtype), **options)
        given = dict(options)
        draw: dict[str, Any] = {name: given.pop(name) for name in SeedOptions.__annotations__ if name in given}
        described = described_latent("gaussian_kl", 2, {**given, "free_bits_group": "latent"})
        spec = described.spec
        if spec.reduction == "none":
            raise ValueError(f"reduction is 'none', expected 'sample', 'sum' or 'batchmean': {self._no_closed_form()}")
        if spec.per_coordinate:
            raise ValueError(f"per_coordinate is True, expected False: {self._no_closed_form()}")
        group = options.get("free_bits_group", "coordinate")
        if spec.free_bits != "none" and group != "latent":
            raise ValueError(f"free_bits_group is {group!r}, expected 'latent': {self._no_closed_form()}")
        z, log_q, log_p = self.sample_and_log_prob(mu, logvar, None, **draw)
        kl = log_q - log_p
        mean = kl.mean() if spec.kernel_reduction is None else None
        if spec.kernel_reduction in ("sum", "batchmean"):
            kl = kl.sum() if spec.kernel_reduction == "sum" else kl.mean()
        return z, finish_kl(kl, mean, described, mu.shape[0])

    @shows_options(SeedOptions)
    def sample_and_log_prob(
        self,
        mu: Tensor,
        logvar: Tensor,
        num_samples: int | None,
        *,
        hold_posterior: bool = False,
        **seed: Unpack[SeedOptions],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """K draws z ~ q(z|x) with log q(z|x) and log p(z) of each, for importance weights.

        Args:
            mu, logvar: of the posterior, (B, *latent_shape).
            num_samples: K; None for one draw without the leading dimension.
            seed, generator, row_offset: as for `fastvae.sample_and_kl`; the same seed gives the same z.
            hold_posterior: detach mu and logvar in log q, so that gradients reach them only through z, as the doubly
                reparameterised gradient needs it (Tucker et al., arXiv 1810.04152).

        Returns:
            z, (K, B, *latent_shape), in mu's dtype; log q(z|x) and log p(z), (K, B), float32 (float64 for float64).
        """
        mu, logvar = self._check_posterior(mu, logvar)
        check_names("sample_and_log_prob", seed, SeedOptions)
        draw: dict[str, Any] = {"num_samples": check_num_samples(num_samples), **seed}
        if hold_posterior:
            z = functional.reparameterize(mu, logvar, **draw)
            return z, normal_log_prob(z, mu.detach(), logvar.detach(), mu.dim() - 1), self._checked_log_prob(z)
        if self.closed_form:
            return functional.sample_and_log_prob(mu, logvar, *self.gaussian(mu.dtype), **draw)
        z, log_q, _ = functional.sample_and_log_prob(mu, logvar, **draw)
        return z, log_q, self._checked_log_prob(z)

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

    def _no_closed_form(self) -> str:
        return f"the KL to a {type(self).__name__} is estimated, as one number a sample"


class StandardNormal(Prior):
    """p(z) = N(0, I); its KL is exact (Kingma & Welling, arXiv 1312.6114, appendix B). No parameters.

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

    def _draw(self, n: int, seed: Tensor, temperature: float) -> Tensor:
        eps = functional.noise(seed, (n, *self.latent_shape), dtype=self._like.dtype)
        return eps if temperature == 1.0 else temperature * eps

    def gaussian(self, dtype: torch.dtype) -> tuple[None, None]:
        return None, None


class LearnedGaussian(Prior):
    """p(z) = N(mu, diag exp(logvar)) with mu and logvar learned; its KL is exact. Initialised to N(0, I).

    ``mu`` and ``logvar``, of the shape of one z, are rounded to half precision for posteriors in it.

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
        return normal_log_prob(z, self.mu, self.logvar, len(self.latent_shape))

    def _draw(self, n: int, seed: Tensor, temperature: float) -> Tensor:
        dtype = likelihood_dtype(self.mu)
        eps = functional.noise(seed, (n, *self.latent_shape), dtype=dtype)
        return self.mu + temperature * torch.exp(0.5 * self.logvar.to(dtype)) * eps

    def gaussian(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.mu.to(dtype), self.logvar.to(dtype)


class _Mixture(Prior):
    """p(z) = sum_c w_c N(z; mu_c, diag exp(logvar_c)); subclasses define `components`."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """log w, (C,), mu and logvar, (C, *latent_shape); float32, or float64 where they are."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (...) for z (..., *latent_shape). Its memory grows with the number of components."""
        self._check_latents(z)
        log_weights, mu, logvar = self.components()
        rank = len(self.latent_shape)
        by_component = normal_log_prob(z.unsqueeze(z.dim() - rank), mu, logvar, rank)
        return torch.logsumexp(log_weights + by_component, -1)

    def _draw(self, n: int, seed: Tensor, temperature: float) -> Tensor:
        log_weights, mu, logvar = self.components()
        # Phi(eps) is uniform, so inverting the cumulative weights picks a component. draw=1: noise that z does not use.
        uniform = torch.special.ndtr(functional.noise(seed, (n,), draw=1, dtype=mu.dtype))
        component = torch.searchsorted(log_weights.exp().cumsum(0), uniform).clamp_max(len(mu) - 1)
        eps = functional.noise(seed, (n, *self.latent_shape), dtype=mu.dtype)
        return mu[component] + temperature * torch.exp(0.5 * logvar[component]) * eps


class GaussianMixture(_Mixture):
    """p(z) = sum_c softmax(logits)_c N(z; mu_c, diag exp(logvar_c)), all learned. Its KL is estimated from one draw.

    Initialised with equal weights, variances of 1, and means drawn from N(0, I) by torch's generator.

    Args:
        latent_shape: as for `Prior`.
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

    (Tomczak & Welling, arXiv 1705.07120.) The encoder is the model's own. It is not registered as a submodule here, so
    that its weights appear once in the model's parameters and state dict; deep copies and pickles of the model keep
    sharing one encoder. ``prior.to(...)`` moves the pseudo-inputs only.

    Args:
        encoder: the model's, as `fastvae.nn.VAE` takes it.
        input_shape: shape of one x, an int for a vector.
        components: C, 1 or more.
        latent_shape: shape of one z; ``encoder.latent_shape`` or ``encoder.latent_dim`` if None.
        squash: function applied to the pseudo-inputs before the encoder, such as torch.sigmoid for pixels in [0, 1].

    The pseudo-inputs, (C, *input_shape), are initialised uniformly in [0, 1). To initialise them with data:
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
                "latent_shape is None, and encoder has neither latent_shape nor latent_dim; expected one of them"
            )
        super().__init__(shape)
        if squash is not None and not callable(squash):
            raise TypeError(f"squash is a {type(squash).__name__}, expected a function or None")
        check_count("components", components, 1)
        self._encoder = (encoder,)  # in a tuple, nn.Module does not register it
        self.squash = squash
        self.pseudo_inputs = nn.Parameter(torch.rand(components, *positive_sizes("input_shape", input_shape)))

    @property
    def encoder(self) -> nn.Module:
        return self._encoder[0]

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        from .nn.posterior import encode  # imported late: fastvae.nn imports this module

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


def normal_log_prob(z: Tensor, mu: Tensor, logvar: Tensor, event_rank: int) -> Tensor:
    """log N(z; mu, diag exp(logvar)) in nats, summed over the last ``event_rank`` dimensions.

    -1/2 sum((z - mu)^2 exp(-logvar) + logvar + log 2 pi), in float32 (float64 if an argument is).
    """
    dtype = likelihood_dtype(z, mu, logvar)
    z, mu, logvar = z.to(dtype), mu.to(dtype), logvar.to(dtype)
    distance = ((z - mu) * torch.exp(-0.5 * logvar)).square()
    return -0.5 * (_event_sum(distance, event_rank) + _event_sum(logvar + LOG_2_PI, event_rank))


def _event_sum(terms: Tensor, event_rank: int) -> Tensor:
    return terms.flatten(terms.dim() - event_rank).sum(-1) if event_rank else terms
