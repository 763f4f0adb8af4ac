"""The keywords that the models, the priors, the objectives and the distributions share, with types and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from .latent_options import DrawOptions, KLOptions, KLOutputOptions, ResidualOptions, ScaleOptions

__all__ = [
    "Condition", "ForwardOverload", "GaussianKLOverload", "GaussianOptions", "Generator", "LatentOverload",
    "LogWeightOptions", "ModelAndKLOptions", "ModelOptions", "PriorOverload", "Seed", "SeedAndKLOptions", "SeedOptions",
    "check_kl_names", "check_names", "condition_given",
]  # fmt: skip

Seed = int | Tensor | None
Generator = torch.Generator | None
Condition = Tensor | int | None


class SeedOptions(TypedDict, total=False):
    """Where the noise comes from, as for `fastvae.sample_and_kl`."""

    seed: Annotated[Seed, None]
    generator: Annotated[Generator, None]
    row_offset: Annotated[int, 0]


class SeedAndKLOptions(SeedOptions, KLOutputOptions, total=False):
    """The noise, and how the KL is summed and weighted."""


class GaussianOptions(ScaleOptions, total=False):
    """The keywords of `fastvae.DiagonalGaussian`."""

    event_dims: Annotated[int | None, None]
    deterministic: Annotated[bool, False]
    validate_args: Annotated[bool | None, None]


class ModelOptions(SeedOptions, total=False):
    """The noise, and the condition of a conditional model."""

    condition: Annotated[Condition, None]


class ModelAndKLOptions(SeedAndKLOptions, ModelOptions, total=False):
    """The keywords of ``forward`` and ``terms`` of a model."""


class LogWeightOptions(ModelOptions, total=False):
    """The keywords of ``log_weights`` of a model."""

    hold_posterior: Annotated[bool, False]


# Those of overloads: all but the keywords that decide what is returned.


class GaussianKLOverload(ScaleOptions, ResidualOptions, KLOptions, total=False):
    """Of `fastvae.gaussian_kl`."""


class LatentOverload(SeedOptions, DrawOptions, ResidualOptions, KLOptions, total=False):
    """Of `fastvae.sample_and_kl`."""


class PriorOverload(SeedOptions, KLOptions, total=False):
    """Of ``sample_and_kl`` of a prior."""


class ForwardOverload(ModelOptions, KLOptions, total=False):
    """Of ``forward`` of a model."""


def check_names(function: str, options: Mapping[str, Any], expected: type) -> None:
    """That a call of ``function``, which passes its keywords on, has only those of a TypedDict."""
    for name in options:
        if name not in expected.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def check_kl_names(options: Mapping[str, Any]) -> None:
    """That the keywords of a model's ``forward`` are known."""
    for name in options:
        if name not in ModelAndKLOptions.__annotations__:
            raise TypeError(
                f"{name} is not an argument of the KL, expected one of {', '.join(KLOptions.__annotations__)}"
            )


def condition_given(options: ModelOptions) -> dict[str, Any]:
    """The keywords without a condition of None, as methods of an unconditional model need no such argument."""
    return {name: value for name, value in options.items() if name != "condition" or value is not None}
