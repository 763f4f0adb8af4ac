"""diffusers under `fastvae.patch`: its DiagonalGaussianDistribution, in every autoencoder that builds one.

The replacement is a subclass of diffusers' class with the same attributes, methods, shapes and dtypes, computed lazily.
In training, ``sample`` followed by ``kl`` is one pass over the moments, whose gradient is one tensor. diffusers' own
code runs for ``nll``, deterministic distributions, float64 and `torch.compile`.

Generators are as in diffusers: None, one, or a list with one for each sample, on the CPU or on the device of the
moments; with fastvae's noise the seed is drawn from them. ``kl`` has the moments' dtype and is summed over dimensions 1
to 3, both as in diffusers; for video that leaves one value for each pixel column. ``whole_event=True`` sums over all.
"""

from __future__ import annotations

import functools
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ..diffusers_interface import Generators, seed_from
from ..distributions import DiagonalGaussian
from ..functional import gaussian_kl, sample_and_kl_packed
from .monkeypatch import MonkeyPatch
from .patching import Setting, setting_of
from .support import formula_dtype, is_supported

__all__ = ["install"]

CLAMP = (-30.0, 20.0)  # diffusers' clamp of logvar
DIMS = (1, 2, 3)  # the dimensions that diffusers sums the KL over

_PRIVATE = ("parameters", "deterministic", "_setting", "_with_grad", "_kl")
_COMPUTED = ("mean", "logvar", "std", "var")


def install(monkeypatch: MonkeyPatch) -> None:
    from diffusers.models.autoencoders import vae

    fused = fused_distribution(vae.DiagonalGaussianDistribution)
    monkeypatch.rebind(vae, "DiagonalGaussianDistribution", fused)


def rebuild(parameters: Tensor, deterministic: bool, overrides: dict[str, Any]) -> Any:
    """Unpickle or copy: an object of the class that diffusers has at that time, patched or not."""
    from diffusers.models.autoencoders import vae

    rebuilt = vae.DiagonalGaussianDistribution(parameters, deterministic)
    for name, value in overrides.items():
        setattr(rebuilt, name, value)
    return rebuilt


@functools.cache
def fused_distribution(original: Any) -> Any:
    """The subclass of diffusers' class; cached, so that patching again gives the same class."""

    class AcceptsOriginal(type):
        """isinstance is also true for objects made before the patch."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, original)

    class DiagonalGaussianDistribution(original, metaclass=AcceptsOriginal):
        _setting: Setting | None = None  # of the patch at construction; None: diffusers' own code runs
        _with_grad: bool  # whether grad mode was on at construction
        _kl: Tensor | None = None  # computed in the pass of the last draw

        def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
            setting = setting_of("diffusers")
            packed = parameters.dim() > 1 and parameters.shape[1] % 2 == 0 and parameters.numel() > 0
            if setting is None or deterministic or not (packed and is_supported(parameters)):
                super().__init__(parameters, deterministic)
                return
            self.__dict__.update(
                parameters=parameters,
                deterministic=False,
                _setting=setting,
                _with_grad=torch.is_grad_enabled(),
            )

        def __getattr__(self, name: str) -> Any:
            """The attributes that diffusers computes in its constructor, in the grad mode of the construction."""
            if name not in _COMPUTED or self._setting is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            with torch.set_grad_enabled(self._with_grad):
                if name == "mean":
                    self.__dict__["mean"] = self.parameters.chunk(2, 1)[0]
                else:
                    self.__dict__.update(vars(original(self.parameters)) | vars(self))
            return vars(self)[name]

        def __setattr__(self, name: str, value: Any) -> None:
            if self._setting is not None:  # a mean or std is overridden: from here on, diffusers' own methods run
                self.__dict__.update(vars(original(self.parameters)) | vars(self))
                self.__dict__["_setting"] = None
            super().__setattr__(name, value)

        def __reduce__(self) -> tuple[Any, ...]:
            lazy = self._setting is not None
            overrides = {} if lazy else {name: value for name, value in vars(self).items() if name not in _PRIVATE}
            return rebuild, (self.parameters, self.deterministic, overrides)

        def sample(self, generator: Generators = None) -> Tensor:
            if self._setting is None or self._setting.noise == "torch" or not self._is_fused():
                return super().sample(generator)
            if isinstance(generator, list):
                batch = self.parameters.shape[0]
                if not generator or 1 < len(generator) < batch:
                    return super().sample(generator)  # which raises the error
                generator = generator[0] if len(generator) == 1 else generator[:batch]
            elif not isinstance(generator, (torch.Generator, NoneType)):
                return super().sample(generator)
            # A draw that requires grad computes the KL in the same pass.
            with_grad = self._with_grad and torch.is_grad_enabled() and self.parameters.requires_grad
            if isinstance(generator, list) or not (with_grad and self._is_summed_over_all()):
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
                assert isinstance(elementwise, Tensor)  # per_coordinate is False
                kl = elementwise.sum(DIMS)
            elif self._kl is not None and torch.is_grad_enabled():
                kl, self.__dict__["_kl"] = self._kl, None  # returned once: a second call computes a new tensor
            else:
                kl = self._gaussian().kl()
            return kl.to(formula_dtype(self.parameters))

        def _is_fused(self) -> bool:
            return self._setting is not None and setting_of("diffusers") is not None

        def _gaussian(self) -> DiagonalGaussian:
            return DiagonalGaussian.from_moments(self._wide_parameters(), clamp=CLAMP)

        def _wide_parameters(self) -> Tensor:
            return self.parameters.to(formula_dtype(self.parameters))

        def _is_summed_over_all(self) -> bool:
            whole_event = self._setting is not None and self._setting.whole_event
            return whole_event or self.parameters.dim() == 1 + len(DIMS)

    DiagonalGaussianDistribution.__module__ = original.__module__
    DiagonalGaussianDistribution.__qualname__ = original.__qualname__
    return DiagonalGaussianDistribution
