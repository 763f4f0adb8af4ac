"""diffusers under `fastvae.patch`: its DiagonalGaussianDistribution, in every autoencoder that builds one.

The class is a subclass of diffusers' own, with its attributes, methods, shapes and dtypes, but computes nothing before
it is asked for. In training, ``sample`` and then ``kl`` are one pass over the moments, and their gradient is written in
one piece. ``nll``, deterministic distributions, float64 and `torch.compile` are left to diffusers' own code.

Generators are as in diffusers: None, one, or a list with one for each sample, on the CPU or on the device of the
moments; with fastvae's noise they give its seed. ``kl`` has the moments' dtype, as there, and is summed over dimensions
1 to 3, as there, unless ``whole_event=True``: of video that leaves a number for each column of pixels.
"""

from __future__ import annotations

import functools
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ..distributions import DiagonalGaussian, Generators, seed_from
from ..functional import gaussian_kl, sample_and_kl_packed
from .patching import Setting, setting_of
from .replacements import Replacements
from .served import dtype_of_formulas, is_served

CLAMP = (-30.0, 20.0)  # of logvar, in diffusers
DIMS = (1, 2, 3)  # that diffusers sums over

_PRIVATE = ("parameters", "deterministic", "_setting", "_with_grad", "_kl")
_COMPUTED = ("mean", "logvar", "std", "var")


def install(replacements: Replacements) -> None:
    from diffusers.models.autoencoders import vae

    fused = fused_distribution(vae.DiagonalGaussianDistribution)
    replacements.everywhere(vae, "DiagonalGaussianDistribution", fused)


def rebuild(parameters: Tensor, deterministic: bool, by_hand: dict[str, Any]) -> Any:
    """What a copied or pickled distribution is made with: the class that is in diffusers then."""
    from diffusers.models.autoencoders import vae

    made = vae.DiagonalGaussianDistribution(parameters, deterministic)
    for name, value in by_hand.items():
        setattr(made, name, value)
    return made


@functools.cache
def fused_distribution(original: Any) -> Any:
    """The subclass of diffusers' class; always the same one, however often it is patched in."""

    class OneOfDiffusers(type):
        """Objects made before the patch are of the class too."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, original)

    class DiagonalGaussianDistribution(original, metaclass=OneOfDiffusers):
        _setting: Setting | None = None  # when it was made; None: all is diffusers' own
        _with_grad: bool  # whether gradients were recorded when it was made
        _kl: Tensor | None = None  # of the last draw's pass

        def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
            setting = setting_of("diffusers")
            if setting is None or deterministic or not _fits(parameters):
                super().__init__(parameters, deterministic)
                return
            self.__dict__.update(
                parameters=parameters,
                deterministic=False,
                _setting=setting,
                _with_grad=torch.is_grad_enabled(),
            )

        def __getattr__(self, name: str) -> Any:
            """What diffusers computes at once, here when it is looked at, with the gradient that it has there."""
            if name not in _COMPUTED or self._setting is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            with torch.set_grad_enabled(self._with_grad):
                if name == "mean":
                    self.__dict__["mean"] = self.parameters.chunk(2, 1)[0]
                else:
                    self.__dict__.update(vars(original(self.parameters)) | vars(self))
            return vars(self)[name]

        def __setattr__(self, name: str, value: Any) -> None:
            if self._setting is not None:  # somebody's own mean or std: diffusers' methods look at each
                self.__dict__.update(vars(original(self.parameters)) | vars(self))
                self.__dict__["_setting"] = None
            super().__setattr__(name, value)

        def __reduce__(self) -> tuple[Any, ...]:
            by_hand = {} if self._setting is not None else {n: v for n, v in vars(self).items() if n not in _PRIVATE}
            return rebuild, (self.parameters, self.deterministic, by_hand)

        def sample(self, generator: Generators = None) -> Tensor:
            if self._setting is None or self._setting.noise == "torch" or not self._is_fused():
                return super().sample(generator)
            if isinstance(generator, list):
                batch = self.parameters.shape[0]
                if not generator or 1 < len(generator) < batch:
                    return super().sample(generator)  # which says what is wrong
                generator = generator[0] if len(generator) == 1 else generator[:batch]
            elif not isinstance(generator, (torch.Generator, NoneType)):
                return super().sample(generator)
            if isinstance(generator, list) or not self._is_priced_with_a_draw():
                return self._gaussian().sample(generator)
            seed = seed_from(generator, self.parameters.device)
            z, self.__dict__["_kl"] = sample_and_kl_packed(self._wide_parameters(), clamp=CLAMP, seed=seed)
            return z

        def kl(self, other: Any = None) -> Tensor:
            if not self._is_fused():
                return super().kl(other)
            if other is not None:
                fused = getattr(other, "_setting", None) is not None
                if not fused or not self._is_summed_over_all() or other.parameters.shape != self.parameters.shape:
                    return super().kl(other)
                kl = self._gaussian().kl(other._gaussian())
            elif not self._is_summed_over_all():
                mu, logvar = self._wide_parameters().chunk(2, 1)
                elementwise = gaussian_kl(mu, logvar, clamp=CLAMP, reduction="none")
                assert isinstance(elementwise, Tensor)  # no KL per coordinate was asked for
                kl = elementwise.sum(DIMS)
            elif self._kl is not None and torch.is_grad_enabled():
                kl, self.__dict__["_kl"] = self._kl, None  # given out once: who asks again gets one of their own
            else:
                kl = self._gaussian().kl()
            return kl.to(dtype_of_formulas(self.parameters))

        def _is_fused(self) -> bool:
            return self._setting is not None and setting_of("diffusers") is not None

        def _gaussian(self) -> DiagonalGaussian:
            return DiagonalGaussian.from_moments(self._wide_parameters(), clamp=CLAMP)

        def _wide_parameters(self) -> Tensor:
            return self.parameters.to(dtype_of_formulas(self.parameters))

        def _is_summed_over_all(self) -> bool:
            whole_event = self._setting is not None and self._setting.whole_event
            return whole_event or self.parameters.dim() == 1 + len(DIMS)

        def _is_priced_with_a_draw(self) -> bool:
            """Where a gradient will be wanted of the draw, its KL comes in the same pass."""
            with_grad = self._with_grad and torch.is_grad_enabled() and self.parameters.requires_grad
            return with_grad and self._is_summed_over_all()

    DiagonalGaussianDistribution.__module__ = original.__module__
    DiagonalGaussianDistribution.__qualname__ = original.__qualname__
    return DiagonalGaussianDistribution


def _fits(parameters: Tensor) -> bool:
    in_halves = parameters.dim() > 1 and parameters.shape[1] % 2 == 0 and parameters.numel() > 0
    return in_halves and is_served(parameters)
