"""`DiagonalGaussian`: a torch distribution over the fused ops that also has the methods of diffusers' class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence
from typing_extensions import Unpack

from .checks import check_dtype, check_flag, check_moments, check_posterior, check_values, is_integer
from .diffusers_interface import Generators, Mode, are_generators, draw_each, seed_from
from .divergences import Diagonal, Parameters, align, compute_tensor, in_rows, kl_to_standard, parameters_of, scale_of
from .draw_options import GaussianOptions, LatentOverload, SeedOptions, check_names
from .functional import NO_PRIOR, latent_op, sample_and_kl, sample_and_kl_packed
from .kernels.reference.latents import LOG_2_PI
from .latent_options import DrawOptions, ScaleOptions, defaults_of, described_latent, shows_options

__all__ = ["DiagonalGaussian"]


class _Unset:
    """Default of an argument for which None has a meaning."""


_SCALE_DEFAULTS = {name: default for name, default in defaults_of(ScaleOptions).items() if name != "check"}


class DiagonalGaussian(Diagonal):
    """N(mu, diag sigma^2): an encoder's output as a distribution.

    A `torch.distributions.Distribution` that also has the interface of diffusers' DiagonalGaussianDistribution:
    ``sample(generator)``, ``mode()``, ``kl(other)``, ``nll(sample, dims)``, ``mean``, ``logvar``, ``std``, ``var``,
    ``parameters``, ``deterministic``. Everything is computed lazily, and nothing is cached. The noise is the stream of
    `fastvae.noise`. `torch.distributions.kl_divergence` supports it with another DiagonalGaussian, a Normal or an
    Independent of these, on either side; a Normal takes the other's event shape.

    `torch.compile` with ``fullgraph=True`` supports it, except for torch.Generator arguments, ``mode()`` (use ``mean``)
    and ``validate_args=True``.

    Args:
        mu: means, (*batch, *event); float32, bfloat16, float16 or float64.
        logvar: log variances, or what ``scale`` says; same dtype and device, of a shape that broadcasts with mu.
        scale, floor, clamp, soft_clamp: as in `fastvae.functional`.
        event_dims: the number of trailing event dimensions; all but the first if None.
        deterministic: a point mass at mu, as in diffusers: samples are mu; std, var, kl and nll are 0, the latter two
            of batch_shape, where diffusers returns [0.].
        validate_args: check the values of the parameters in the constructor, and of arguments in log_prob and nll.
            Only if True, unlike in torch, as it synchronises the device. Shapes and dtypes are always checked.

    >>> import torch, fastvae
    >>> posterior = fastvae.DiagonalGaussian(torch.zeros(4, 20), torch.zeros(4, 20))
    >>> posterior.batch_shape, posterior.event_shape, posterior.rsample((3,)).shape
    (torch.Size([4]), torch.Size([20]), torch.Size([3, 4, 20]))
    >>> torch.distributions.kl_divergence(posterior, torch.distributions.Normal(1.0, 1.0))
    tensor([10., 10., 10., 10.])
    """

    has_rsample = True

    # mu and logvar; or moments and None, packed along _dim, which is negative.
    _first: Tensor
    _second: Tensor | None
    _dim: int

    @shows_options(GaussianOptions)
    def __init__(self, mu: Tensor, logvar: Tensor, **options: Unpack[GaussianOptions]) -> None:
        shape = check_posterior(mu, logvar)[0].shape
        self._first, self._second, self._dim = mu, logvar, -1
        self._finish(shape, **options)

    @classmethod
    @shows_options(GaussianOptions)
    def from_moments(cls, moments: Tensor, *, dim: int = 1, **options: Unpack[GaussianOptions]) -> DiagonalGaussian:
        """From mu and logvar packed in one tensor along ``dim``, which is read in place; its gradient is one tensor.

        Args:
            moments: (B, 2C, ...) for ``dim=1``, contiguous, channels_last or strided. diffusers clamps its encoders'
                output: ``clamp=(-30, 20)``.
            dim: the packed dimension; an event dimension, not the first of moments.
            options: as for the class.

        >>> import torch, fastvae
        >>> posterior = fastvae.DiagonalGaussian.from_moments(torch.zeros(2, 8, 4, 4), clamp=(-30, 20))
        >>> posterior.sample(torch.Generator().manual_seed(0)).shape, posterior.kl()
        (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
        """
        self = cls.__new__(cls)
        self._first, self._second, self._dim = moments, None, check_moments(moments, dim) - moments.dim()
        self._finish(moments.chunk(2, dim)[0].shape, **options)
        return self

    def _finish(
        self,
        shape: torch.Size,
        event_dims: int | None = None,
        deterministic: bool = False,
        validate_args: bool | None = None,
        **scale: Unpack[ScaleOptions],
    ) -> None:
        self._options: ScaleOptions = _own_options(scale)
        if event_dims is None:
            event_dims = len(shape) - 1
        if not is_integer(event_dims):
            raise TypeError(f"event_dims is a {type(event_dims).__name__}, expected an int or None")
        if not 0 <= event_dims <= len(shape):
            raise ValueError(f"event_dims is {event_dims}, expected 0 to {len(shape)}, the dimensions of mu")
        if self._second is None and self._dim < -event_dims:
            dim = len(shape) + self._dim
            raise ValueError(f"dim is {dim}, expected one of the last {event_dims} dimensions of moments, the event")
        self.deterministic = check_flag("deterministic", deterministic)
        batch_dims = len(shape) - event_dims
        super().__init__(shape[:batch_dims], shape[batch_dims:], validate_args=False)
        self._validate_args = bool(validate_args)
        if validate_args:
            given = self._parameters()
            check_values(given.mu, given.scale, described_latent("gaussian_kl", 2, self._options).spec)
            if not self.arg_constraints["logvar"].check(given.scale).all():
                raise ValueError(f"logvar, a {self._scale_name}, is 0 somewhere, expected more than 0")

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({shapes}, scale={self._scale_name!r})"

    # What it is

    def _parameters(self) -> Parameters:
        # Views are made on each use: a stored view made under no_grad would stay without a gradient.
        shape = self._extended_shape()
        if self._second is not None:
            mu, scale = _expanded(self._first, shape), _expanded(self._second, shape)
            return Parameters(mu, scale, self._options, self.event_shape)
        moments = _expanded(self._first, self.batch_shape + self._first.shape[-len(self.event_shape) :])
        mu, scale = moments.chunk(2, self._dim)
        return Parameters(mu, scale, self._options, self.event_shape, moments, self._dim)

    @property
    def _scale_name(self) -> str:
        return self._options.get("scale", "logvar")

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        of_scale = constraints.positive if self._scale_name in ("std", "var") else constraints.real
        return {"mu": constraints.real, "logvar": of_scale}

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def parameters(self) -> Tensor:
        """mu and the unclamped scale as one tensor: the moments, or a concatenation along the first event dimension."""
        given = self._parameters()
        if given.moments is not None:
            return given.moments
        if not self.event_shape:
            raise AttributeError("parameters are packed along the event, and event_shape is ()")
        return torch.cat([given.mu, given.scale], -len(self.event_shape))

    @property
    def mu(self) -> Tensor:
        return self._parameters().mu

    mean = mu

    @property
    def mode(self) -> Mode:
        """mu, as a tensor that can be called: ``mode`` and ``mode()`` are the same."""
        return self.mu.as_subclass(Mode)

    @property
    def logvar(self) -> Tensor:
        """log sigma^2, after the clamp; also if deterministic, as in diffusers."""
        return scale_of(self._parameters()).logvar.to(self._first.dtype)

    @property
    def stddev(self) -> Tensor:
        return (
            torch.zeros_like(self.mu) if self.deterministic else scale_of(self._parameters()).std.to(self._first.dtype)
        )

    @property
    def variance(self) -> Tensor:
        if self.deterministic:
            return torch.zeros_like(self.mu)
        scale = scale_of(self._parameters())
        return (scale.x if self._scale_name == "var" else scale.std.square()).to(self._first.dtype)

    std = stddev
    var = variance

    def expand(self, batch_shape: Sequence[int], _instance: DiagonalGaussian | None = None) -> DiagonalGaussian:
        """A view with another batch shape: it shares the parameters, but draws differ for each batch element."""
        new = self._get_checked_instance(DiagonalGaussian, _instance)
        shape = self.mu.expand(torch.Size(batch_shape) + self.event_shape).shape
        new._first, new._second, new._dim = self._first, self._second, self._dim
        new._finish(shape, len(self.event_shape), self.deterministic, **self._options)
        new._validate_args = self._validate_args
        return new

    # Draws

    @shows_options(SeedOptions)
    def rsample(
        self, sample_shape: Sequence[int] = (), *, temperature: float = 1.0, **seed: Unpack[SeedOptions]
    ) -> Tensor:
        """mu + temperature sigma eps, (*sample_shape, *batch, *event), in mu's dtype, differentiable.

        All draws are one pass; backward regenerates their noise. ``seed``, ``generator`` and ``row_offset`` are as in
        `fastvae.sample_and_kl`; row b is element b of the flattened batch.
        """
        check_names("rsample", seed, SeedOptions)
        sample_shape = torch.Size(sample_shape)
        shape = self._extended_shape(sample_shape)
        if self.deterministic:
            return self.mu.expand(shape).clone()
        num_samples = math.prod(sample_shape) if sample_shape else None
        if num_samples == 0:
            return self._first.new_empty(shape)
        rows = in_rows(self._parameters(), len(self.event_shape))
        options: DrawOptions = {**self._options, "num_samples": num_samples, "temperature": temperature}
        draw = seed.get("seed"), seed.get("generator"), seed.get("row_offset", 0)
        mu, scale, packed_dim = rows.tensors
        z: Tensor = latent_op("reparameterize", mu, scale, NO_PRIOR, draw, options, packed_dim)[0]
        return z if z.shape == shape else z.reshape(shape)

    def sample(
        self, sample_shape: Sequence[int] | Generators = (), generator: Generators | type[_Unset] = _Unset
    ) -> Tensor:
        """A draw: not differentiable, as in torch.distributions; with a generator differentiable, as in diffusers.

        Args:
            sample_shape: of the draws; or a generator in its place, for diffusers' ``sample(generator)``.
            generator: a torch.Generator, None for the default one, or a list with one for each sample of the batch,
                whose noise then depends on its own generator only. CPU generators work for every device.
        """
        if generator is _Unset:
            if not are_generators(sample_shape):
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
        return draw_each(self._parameters(), generator)

    @overload
    def sample_and_kl(
        self, prior: Distribution | None = None, *, per_coordinate: Literal[False] = False,
        **keywords: Unpack[LatentOverload],
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    @overload
    def sample_and_kl(
        self, prior: Distribution | None = None, *, per_coordinate: Literal[True], **keywords: Unpack[LatentOverload]
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    @overload
    def sample_and_kl(
        self, prior: Distribution | None = None, *, per_coordinate: bool, **keywords: Unpack[LatentOverload]
    ) -> tuple[Tensor, ...]: ...

    def sample_and_kl(self, prior: Distribution | None = None, **keywords: Any) -> tuple[Tensor, ...]:
        """A draw, and its KL to the prior, in one pass forward and one backward.

        Args:
            prior: a DiagonalGaussian, a Normal or an Independent of these, whose shape broadcasts to this one's;
                N(0, I) if None.
            keywords: seed, reduction, num_samples, free_bits and all others of `fastvae.sample_and_kl`, except those of
                the parameterisation.

        Returns:
            as `fastvae.sample_and_kl`: z, (*batch, *event) or (K, *batch, *event), in mu's dtype, and the KL in nats,
            of batch_shape for reduction "sample". "batchmean" divides by the size of the whole batch shape.

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
        prior_and_options |= posterior.options
        if posterior.moments is None:
            z, kl, *rest = sample_and_kl(posterior.mu, posterior.scale, **prior_and_options, **keywords)
        else:
            z, kl, *rest = sample_and_kl_packed(posterior.moments, dim=posterior.dim, **prior_and_options, **keywords)
        z = z.to(dtype).reshape(z.shape[: z.dim() - posterior.mu.dim()] + shape)
        return z, kl.reshape(self.batch_shape + kl.shape[1:]) if kl.dim() else kl, *rest

    # Densities: in nats, float32 (float64 for float64)

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(value; mu, sigma^2), summed over the event, for value (*sample, *batch, *event) or broadcastable."""
        if self.deterministic:
            raise NotImplementedError("a deterministic DiagonalGaussian is a point mass and has no density")
        return -self._event_sum(self._nll_terms("value", value))

    def entropy(self) -> Tensor:
        """1/2 sum(1 + log 2 pi + logvar), of batch_shape."""
        if self.deterministic:
            raise NotImplementedError("a deterministic DiagonalGaussian is a point mass and has no entropy")
        return self._event_sum(0.5 * (1.0 + LOG_2_PI + scale_of(self._parameters()).logvar))

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
        scale = scale_of(self._parameters())
        return 0.5 * (
            ((compute_tensor(value) - compute_tensor(self.mu)) / scale.std).square() + scale.logvar + LOG_2_PI
        )

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
                f"{name} has shape {tuple(value.shape)}, expected dimensions that broadcast with batch_shape "
                f"{tuple(self.batch_shape)}, then event_shape {tuple(self.event_shape)}"
            )
        if self._validate_args:
            self._validate_sample(value)

    def _event_sum(self, terms: Tensor) -> Tensor:
        return terms.sum(tuple(range(-len(self.event_shape), 0))) if self.event_shape else terms

    def _zeros(self) -> Tensor:
        return compute_tensor(self._first.new_zeros(self.batch_shape))


def _expanded(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else tensor.expand(shape)


def _own_options(given: ScaleOptions) -> ScaleOptions:
    """The checked options that differ from their defaults, so that equal parameterisations compare equal."""
    for name in given:
        if name not in _SCALE_DEFAULTS:
            raise TypeError(f"DiagonalGaussian() got an unexpected keyword argument {name!r}")
    described_latent("gaussian_kl", 2, given)
    options: dict[str, Any] = {name: value for name, value in given.items() if value != _SCALE_DEFAULTS[name]}
    if "clamp" in options:
        options["clamp"] = tuple(options["clamp"])
    return options  # type: ignore[return-value]
