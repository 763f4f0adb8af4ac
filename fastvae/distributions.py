"""Diagonal Gaussians with the interface of torch.distributions and that of diffusers' class, over the fused ops."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence

from .arguments import (
    check_dtype,
    check_flag,
    check_generator,
    check_moments,
    check_posterior,
    check_row_offset,
    is_integer,
    seed_tensor,
)
from .autograd import latent
from .divergences import Diagonal, Parameters, align, in_rows, keywords_of, kl_to_standard, parameters_of
from .functional import reparameterize, sample_and_kl, sample_and_kl_packed
from .kernels.family import Options
from .kernels.reference.latents import LOG_2_PI, Scale, resolve_scale
from .options import check_number, check_options, check_values

Generators = torch.Generator | Sequence[torch.Generator] | None


class _Unset:
    """Tells an argument that was left out from None."""


class _Mode(Tensor):
    """The mode: a tensor, as torch.distributions has it, that may also be called, as diffusers does."""

    # What is computed with it is a plain Tensor, and so is what is copied or saved.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __call__(self) -> Tensor:
        return self.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict) -> Tensor:
        return copy.deepcopy(self(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self().__reduce_ex__(protocol)


class DiagonalGaussian(Diagonal):
    """N(mu, diag sigma^2): what an encoder gives, as a distribution.

    It is a `torch.distributions.Distribution`, and answers to what users of diffusers' DiagonalGaussianDistribution
    call: ``sample(generator)``, ``mode()``, ``kl(other)``, ``nll(sample, dims)``, ``mean``, ``logvar``, ``std``,
    ``var``, ``parameters``, ``deterministic``. Nothing is computed before it is asked for, and nothing is kept. The
    noise is the stream of `fastvae.noise`. `torch.distributions.kl_divergence` takes it with another one, a Normal or
    an Independent of these, on either side; the event of a bare Normal is then that of the other.

    torch.compile takes it whole, with ``fullgraph=True``, but for torch.Generator arguments, ``mode`` when called (use
    ``mean``) and ``validate_args=True``.

    Args:
        mu: means, (*batch, *event); float32, bfloat16, float16 or float64.
        logvar: log variances, or what ``scale`` says; same dtype and device, of a shape that broadcasts with mu.
        scale, floor, clamp, soft_clamp: as in `fastvae.functional`.
        event_dims: how many trailing dimensions are the event; all but the first if None.
        deterministic: a point mass at mu, as diffusers has it: samples are mu; std, var, kl and nll are 0; kl and nll
            of batch_shape, where diffusers gives [0.].
        validate_args: look at the values, once, here, and in log_prob and nll at those that come. torch's distributions
            do so at every call unless told otherwise; this one does if it is True, because looking waits for the
            device. Shapes and dtypes are checked always.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch, fastvae
    >>> posterior = fastvae.DiagonalGaussian(torch.zeros(4, 20), torch.zeros(4, 20))
    >>> posterior.batch_shape, posterior.event_shape, posterior.rsample((3,)).shape
    (torch.Size([4]), torch.Size([20]), torch.Size([3, 4, 20]))
    >>> torch.distributions.kl_divergence(posterior, torch.distributions.Normal(1.0, 1.0))
    tensor([10., 10., 10., 10.])
    """

    has_rsample = True

    # mu and logvar; or moments and None, packed along _dim, which is counted from the end.
    _first: Tensor
    _second: Tensor | None
    _dim: int

    def __init__(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        scale: str = "logvar",
        floor: float = 0.0,
        clamp: Sequence[float] | None = None,
        soft_clamp: float | None = None,
        event_dims: int | None = None,
        deterministic: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        shape = check_posterior(mu, logvar)[0].shape
        self._first, self._second, self._dim = mu, logvar, -1
        options = check_options(scale, clamp, soft_clamp, floor, False)
        self._finish(options, shape, event_dims, deterministic, validate_args)

    @classmethod
    def from_moments(
        cls,
        moments: Tensor,
        *,
        dim: int = 1,
        scale: str = "logvar",
        floor: float = 0.0,
        clamp: Sequence[float] | None = None,
        soft_clamp: float | None = None,
        event_dims: int | None = None,
        deterministic: bool = False,
        validate_args: bool | None = None,
    ) -> DiagonalGaussian:
        """mu and logvar as the halves of one tensor along ``dim``: read in place, its gradient written in one piece.

        Args:
            moments: (B, 2C, ...) for ``dim=1``, contiguous, channels_last or strided. diffusers clamps what its
                encoders give: ``clamp=(-30, 20)``.
            dim: the dimension that holds both; one of the event's, not the first of moments.
            all others: as for the class.

        >>> import torch, fastvae
        >>> posterior = fastvae.DiagonalGaussian.from_moments(torch.zeros(2, 8, 4, 4), clamp=(-30, 20))
        >>> posterior.sample(torch.Generator().manual_seed(0)).shape, posterior.kl()
        (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
        """
        self = cls.__new__(cls)
        self._first, self._second, self._dim = moments, None, check_moments(moments, dim) - moments.dim()
        options = check_options(scale, clamp, soft_clamp, floor, False)
        self._finish(options, moments.chunk(2, dim)[0].shape, event_dims, deterministic, validate_args)
        return self

    def _finish(
        self, options: Options, shape: torch.Size, event_dims: int | None, deterministic: bool, validate: bool | None
    ) -> None:
        if event_dims is None:
            event_dims = len(shape) - 1
        if not is_integer(event_dims):
            raise TypeError(f"event_dims is a {type(event_dims).__name__}, expected an int or None")
        if not 0 <= event_dims <= len(shape):
            raise ValueError(f"event_dims is {event_dims}, expected 0 to {len(shape)}, the dimensions of mu")
        if self._second is None and self._dim < -event_dims:
            dim = len(shape) + self._dim
            raise ValueError(f"dim is {dim}, expected one of the last {event_dims} dimensions of moments, the event")
        self._options, self.deterministic = options, check_flag("deterministic", deterministic)
        batch_dims = len(shape) - event_dims
        super().__init__(shape[:batch_dims], shape[batch_dims:], validate_args=False)
        self._validate_args = bool(validate)
        if validate:
            given = self._parameters()
            check_values(given.mu, given.scale, options)
            if not self.arg_constraints["logvar"].check(given.scale).all():
                raise ValueError(f"logvar, a {options.scale}, is 0 somewhere, expected more than 0")

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({shapes}, scale={self._options.scale!r})"

    # What it is

    def _parameters(self) -> Parameters:
        # Views are made when they are asked for: those made under no_grad would have no gradient later on.
        shape = self._extended_shape()
        if self._second is not None:
            mu, scale = _expanded(self._first, shape), _expanded(self._second, shape)
            return Parameters(mu, scale, self._options, self.event_shape)
        moments = _expanded(self._first, self.batch_shape + self._first.shape[-len(self.event_shape) :])
        mu, scale = moments.chunk(2, self._dim)
        return Parameters(mu, scale, self._options, self.event_shape, moments, self._dim)

    def _scale(self) -> Scale:
        return resolve_scale(_wide(self._parameters().scale), self._options)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        of_scale = constraints.positive if self._options.scale in ("std", "var") else constraints.real
        return {"mu": constraints.real, "logvar": of_scale}

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def parameters(self) -> Tensor:
        """mu and the scale before its clamp as one tensor: as given, or put together along the event's first dim."""
        given = self._parameters()
        if given.moments is not None:
            return given.moments
        if not self.event_shape:
            raise AttributeError("parameters are packed along the event, and event_shape is ()")
        return torch.cat([given.mu, given.scale], -len(self.event_shape))

    @property
    def mu(self) -> Tensor:
        return self._parameters().mu

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def mode(self) -> _Mode:
        """mu. A tensor that may be called: ``mode`` and ``mode()`` are the same."""
        return self.mu.as_subclass(_Mode)

    @property
    def logvar(self) -> Tensor:
        """log sigma^2, after the clamp; if deterministic, too, as diffusers has it."""
        return self._scale().logvar.to(self._first.dtype)

    @property
    def stddev(self) -> Tensor:
        return torch.zeros_like(self.mu) if self.deterministic else self._scale().std.to(self._first.dtype)

    @property
    def variance(self) -> Tensor:
        if self.deterministic:
            return torch.zeros_like(self.mu)
        scale = self._scale()
        return (scale.x if self._options.scale == "var" else scale.std.square()).to(self._first.dtype)

    std = stddev
    var = variance

    def expand(self, batch_shape: Sequence[int], _instance: DiagonalGaussian | None = None) -> DiagonalGaussian:
        """The same for more batch dimensions, as a view: draws differ, parameters are shared."""
        new = self._get_checked_instance(DiagonalGaussian, _instance)
        shape = self.mu.expand(torch.Size(batch_shape) + self.event_shape).shape
        new._first, new._second, new._dim = self._first, self._second, self._dim
        new._finish(self._options, shape, len(self.event_shape), self.deterministic, None)
        new._validate_args = self._validate_args
        return new

    # Draws

    def rsample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """mu + temperature sigma eps, (*sample_shape, *batch, *event), in mu's dtype, with gradients.

        One pass makes all draws; backward regenerates their noise. ``seed``, ``generator`` and ``row_offset`` as in
        `fastvae.sample_and_kl`; the batch counts row by row.
        """
        sample_shape = torch.Size(sample_shape)
        shape = self._extended_shape(sample_shape)
        if self.deterministic:
            return self.mu.expand(shape).clone()
        num_samples = math.prod(sample_shape) if sample_shape else None
        if num_samples == 0:
            return self._first.new_empty(shape)
        rows = in_rows(self._parameters(), len(self.event_shape))
        if rows.moments is None:
            z = reparameterize(
                rows.mu, rows.scale, seed=seed, generator=generator, row_offset=row_offset, num_samples=num_samples,
                temperature=temperature, **keywords_of(self._options)
            )  # fmt: skip
        else:
            row_offset = check_row_offset(row_offset)
            options = self._options._replace(temperature=check_number("temperature", temperature, 0.0))
            drawn = seed_tensor(seed, generator, rows.moments.device)
            z = latent(
                rows.moments, None, (None, None), drawn, self._dim, row_offset, num_samples, None, options
            )[0]  # fmt: skip
        return z if z.shape == shape else z.reshape(shape)

    def sample(
        self, sample_shape: Sequence[int] | Generators = (), generator: Generators | type[_Unset] = _Unset
    ) -> Tensor:
        """A draw, as torch.distributions has it, without gradients; given a generator, as diffusers has it, with them.

        Args:
            sample_shape: of the draws, or in its place a generator: then the draw is diffusers'.
            generator: a torch.Generator, None for the default one, or a list with one for each sample of the batch,
                whose noise then depends on its own generator alone. On the CPU they serve every device.
        """
        if generator is _Unset:
            if not _are_generators(sample_shape):
                with torch.no_grad():
                    return self.rsample(sample_shape)  # type: ignore[arg-type]
            sample_shape, generator = (), sample_shape
        if isinstance(generator, (list, tuple)) and len(generator) == 1:
            generator = generator[0]
        if not isinstance(generator, (list, tuple)):
            return self.rsample(sample_shape, seed=seed_from(generator, self._first.device))  # type: ignore[arg-type]
        if sample_shape:
            raise ValueError("sample_shape and a list of generators were both given, expected at most one of them")
        if len(self.batch_shape) != 1 or len(generator) != self.batch_shape[0]:
            raise ValueError(
                f"generator is a list of {len(generator)}, expected one for each sample of batch_shape "
                f"{tuple(self.batch_shape)}"
            )
        if self.deterministic:
            return self.rsample()
        given = self._parameters()
        rows = [
            reparameterize(mu, scale, seed=seed_from(one, mu.device), **keywords_of(self._options))
            for mu, scale, one in zip(given.mu.split(1), given.scale.split(1), generator, strict=True)
        ]
        return torch.cat(rows)

    def sample_and_kl(self, prior: Distribution | None = None, **keywords: Any) -> tuple[Tensor, ...]:
        """A draw, and its KL to the prior, in one pass forward and one backward.

        Args:
            prior: a DiagonalGaussian, a Normal or an Independent of these, whose shape broadcasts to this one's;
                N(0, I) if None.
            keywords: seed, reduction, num_samples, free_bits and all others of `fastvae.sample_and_kl` that do not
                say how the scale is given.

        Returns:
            what `fastvae.sample_and_kl` gives: z, (*batch, *event) or (K, *batch, *event), in mu's dtype, and the KL in
            nats, of batch_shape for reduction "sample". To "batchmean" all batch dimensions are one.

        >>> import torch, fastvae
        >>> posterior = fastvae.DiagonalGaussian(torch.zeros(4, 20), torch.zeros(4, 20))
        >>> z, kl = posterior.sample_and_kl(torch.distributions.Normal(1.0, 1.0), seed=0, reduction="batchmean")
        >>> z.shape, kl
        (torch.Size([4, 20]), tensor(10.))
        """
        posterior, prior_mu, prior_scale = parameters_of(self), None, None
        dtype, shape = posterior.mu.dtype, posterior.mu.shape
        if prior is None:
            posterior = in_rows(posterior, len(self.event_shape))
        else:
            posterior, prior_mu, prior_scale, batch_shape = align(posterior, parameters_of(prior))
            if batch_shape != self.batch_shape:
                raise ValueError(
                    f"prior has shape {tuple(prior.batch_shape + prior.event_shape)}, expected one that broadcasts to "
                    f"{tuple(shape)}"
                )
        prior_and_options: dict[str, Any] = {"prior_mu": prior_mu, "prior_logvar": prior_scale, "residual": False}
        prior_and_options |= keywords_of(posterior.options)
        if posterior.moments is None:
            z, kl, *rest = sample_and_kl(posterior.mu, posterior.scale, **prior_and_options, **keywords)
        else:
            z, kl, *rest = sample_and_kl_packed(posterior.moments, dim=posterior.dim, **prior_and_options, **keywords)
        z = z.to(dtype).reshape(z.shape[: z.dim() - posterior.mu.dim()] + shape)
        return z, kl.reshape(self.batch_shape + kl.shape[1:]) if kl.dim() else kl, *rest

    # Densities: in nats, in float32, or float64 for float64

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(value; mu, sigma^2), summed over the event; value is (*sample, *batch, *event), or broadcasts to it."""
        if self.deterministic:
            raise NotImplementedError("a deterministic DiagonalGaussian is a point mass and has no density")
        return -self._event_sum(self._nll_terms("value", value))

    def entropy(self) -> Tensor:
        """1/2 sum(1 + log 2 pi + logvar), of batch_shape."""
        if self.deterministic:
            raise NotImplementedError("a deterministic DiagonalGaussian is a point mass and has no entropy")
        return self._event_sum(0.5 * (1.0 + LOG_2_PI + self._scale().logvar))

    def kl(self, other: Distribution | None = None) -> Tensor:
        """KL to ``other``, to N(0, I) if None, summed over the event: batch_shape. 0 if deterministic."""
        if self.deterministic:
            return self._zeros()
        if other is not None:
            return kl_divergence(self, other)
        return kl_to_standard(self._parameters())

    def nll(self, sample: Tensor, dims: int | tuple[int, ...] | list[int] | None = None) -> Tensor:
        """-log N(sample; mu, sigma^2), summed over ``dims``, over the event if None. 0 if deterministic."""
        if self.deterministic:
            return self._zeros()
        terms = self._nll_terms("sample", sample)
        return self._event_sum(terms) if dims is None else terms.sum(dims)

    def _nll_terms(self, name: str, value: Tensor) -> Tensor:
        self._check_value(name, value)
        scale = self._scale()
        return 0.5 * (((_wide(value) - _wide(self.mu)) / scale.std).square() + scale.logvar + LOG_2_PI)

    def _check_value(self, name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
        check_dtype(name, value.dtype)
        try:
            torch.broadcast_shapes(value.shape, self._extended_shape())
            fits = value.shape[value.dim() - len(self.event_shape) :] == self.event_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected event_shape {tuple(self.event_shape)} behind what "
                f"broadcasts with batch_shape {tuple(self.batch_shape)}"
            )
        if self._validate_args:
            self._validate_sample(value)

    def _event_sum(self, terms: Tensor) -> Tensor:
        return terms.sum(tuple(range(-len(self.event_shape), 0))) if self.event_shape else terms

    def _zeros(self) -> Tensor:
        return _wide(self._first.new_zeros(self.batch_shape))


def _expanded(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.expand(shape)


def _wide(tensor: Tensor) -> Tensor:
    """What is not given, but computed, is computed in float32 if not in float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _are_generators(given: object) -> bool:
    if given is None or isinstance(given, torch.Generator):
        return True
    return isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], torch.Generator)


def seed_from(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A seed on the device, drawn from a generator on any."""
    check_generator(generator, None)
    return seed_tensor(None, generator, device if generator is None else generator.device).to(device)
