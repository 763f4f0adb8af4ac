"""The `Likelihood` protocol, and what the modules share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..checks import check_generator, check_tensor
from ..kernels.head_spec import Activation, Density
from ..kernels.layout import compute_dtype
from ..latent_options import shows_options
from .functional import LikelihoodOptions
from .head import Linear

__all__ = [
    "FusedLikelihood", "HeadTerms", "Likelihood", "Parameters", "check_parts", "check_positive", "head_terms",
    "mean_given", "sample_given",
]  # fmt: skip

Parameters = Tensor | tuple[Tensor, ...]


class Likelihood(Protocol):
    """The methods that `fastvae.nn.VAE` needs of a likelihood; any module with them works.

    A module with ``takes_draws = True`` accepts parameters with a leading dimension of draws, (K, B, *event), for x of
    shape (B, *event), and returns (K, B); for other modules x is repeated K times. A module with
    ``takes_library = True`` also has ``mean(parameters, x)`` and ``sample(parameters, generator, x)``, given the
    library size of x.
    """

    # Any: a likelihood of one's own may take a tensor alone, or a tuple alone, and call it as it likes.

    def log_prob(self, parameters: Any, x: Tensor, /) -> Tensor: ...

    def mean(self, parameters: Any, /) -> Tensor: ...

    def sample(self, parameters: Any, generator: torch.Generator | None = None, /) -> Tensor: ...


class FusedLikelihood(nn.Module):
    """The base class of the modules here. A subclass defines ``_log_prob``, ``_mean`` and ``_draw`` of `parts`."""

    takes_draws = True
    _density: Density  # of each class's own, not inherited: a user's subclass may be another density
    _differentiable = False  # whether draws are, with respect to the parameters
    _log_prob: Callable[..., Tensor]
    _mean: Callable[..., Tensor]
    _draw: Callable[..., Tensor]

    def parts(self, parameters: Parameters) -> tuple[Tensor, ...]:
        """The parameters of the density: the decoder's output, and what the module itself holds."""
        return check_parts(parameters, ("parameters",))

    @shows_options(LikelihoodOptions)
    def log_prob(self, parameters: Parameters, x: Tensor, **options: Unpack[LikelihoodOptions]) -> Tensor:
        """log p(x|z) in nats, (B,); arguments, dtypes and errors as in `fastvae.likelihoods.functional`."""
        return self._log_prob(*self._parts_given(parameters, x, options.get("mask")), x, **options)

    def _parts_given(self, parameters: Parameters, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """`parts` of a density that depends on more of x than the value of each coordinate."""
        return self.parts(parameters)

    def mean(self, parameters: Parameters) -> Tensor:
        """E[x|z], in the shape and dtype of the decoder's output, the first tensor if there are several."""
        return self._mean(*self.parts(parameters))

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        """x ~ p(x|z) drawn with ``generator``, in the mean's shape and dtype.

        Differentiable for `Gaussian`, `Laplace` and `LogNormal` only.
        """
        return self._sample_of(self.parts(parameters), generator)

    def _sample_of(self, parts: tuple[Tensor, ...], generator: torch.Generator | None) -> Tensor:
        check_generator(generator, parts[0].device)
        dtype = compute_dtype(parts[0].dtype)  # bfloat16 would round a probability of 0.999 to 1
        wide = [(part if self._differentiable else part.detach()).to(dtype) for part in parts]
        return self._draw(*wide, generator).to(parts[0].dtype)

    def _head_terms(self, x: Tensor) -> HeadTerms:
        return HeadTerms(self._density, ("identity",))


class HeadTerms(NamedTuple):
    """What `linear_log_prob` takes of a likelihood, given the decoder's last layers."""

    density: Density
    parameters: tuple[
        Activation | Tensor, ...
    ]  # an activation of the decoder's next layer, or a tensor of the likelihood's own
    library: Tensor | None = None
    clamp: tuple[float, float] | None = None
    components: int = 10

    def given_layers(self, layers: Sequence[Linear]) -> list[Linear | Tensor] | None:
        """The parameters, layers with their activation; None if these are not the layers that the likelihood takes."""
        found: list[Linear | Tensor] = []
        remaining = list(layers)
        for one in self.parameters:
            if isinstance(one, Tensor):
                found.append(one)
                continue
            if not remaining or "identity" not in (one, remaining[0].activation):
                return None
            layer = remaining.pop(0)
            found.append(layer if one == "identity" else layer._replace(activation=one))
        return None if remaining else found


def head_terms(likelihood: Likelihood, x: Tensor) -> HeadTerms | None:
    """None for a likelihood whose class does not say which density it is."""
    if isinstance(likelihood, FusedLikelihood) and "_density" in vars(type(likelihood)):
        return likelihood._head_terms(x)
    return None


def mean_given(likelihood: Likelihood, parameters: Parameters, x: Tensor | None) -> Tensor:
    """E[x|z]; of a likelihood with a library size, given that of x."""
    if x is not None and getattr(likelihood, "takes_library", False):
        return likelihood.mean(parameters, x)  # type: ignore[call-arg]
    return likelihood.mean(parameters)


def sample_given(
    likelihood: Likelihood, parameters: Parameters, x: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """x ~ p(x|z); of a likelihood with a library size, given that of x."""
    if getattr(likelihood, "takes_library", False):
        return likelihood.sample(parameters, generator, x)  # type: ignore[call-arg]
    return likelihood.sample(parameters, generator)


def check_parts(parameters: Parameters, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The decoder's output as a tuple of one tensor for each name; a single tensor need not be in a tuple."""
    parts = tuple(parameters) if isinstance(parameters, (tuple, list)) else (parameters,)
    if len(parts) != len(names):
        actual = f"{len(parts)} tensors" if isinstance(parameters, (tuple, list)) else type(parameters).__name__
        raise TypeError(f"parameters is {actual}, expected the tensors ({', '.join(names)})")
    for name, part in zip(names, parts, strict=True):
        check_tensor(name, part)
    return parts


def check_positive(name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, expected a positive finite number")
    return float(value)
