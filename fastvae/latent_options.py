"""The keywords of the latent ops: one list of them with types and defaults, one check, remembered for each combination.

`described_latent` turns keywords into a `LatentSpec` and its numbers. A call repeats its keywords: what has passed the
check once is looked up.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, TypeVar, get_args, get_type_hints

from .checks import check_clamp, check_flag, check_number, check_reduction
from .kernels.latent_spec import LOG_SCALES, SCALES, LatentScalars, LatentSpec
from .size_checks import check_num_samples
from .torch_internals import is_compiling, is_dynamo_compiling, is_static

__all__ = [
    "Average", "DescribedLatent", "DrawOptions", "Group", "KLOptions", "KLOutputOptions", "LatentOptions",
    "LogProbOptions", "Reduction", "ResidualOptions", "Scale", "ScaleAndKLOptions", "ScaleOptions", "defaults_of",
    "described_latent", "is_one", "shows_options",
]  # fmt: skip

Scale = Literal["logvar", "logstd", "std", "var", "softplus"]
Reduction = Literal["none", "sample", "sum", "batchmean"]
Group = Literal["coordinate", "channel", "latent"]
Average = Literal["sample", "batch"]

GROUPS, AVERAGES = get_args(Group), get_args(Average)


# Annotated with the defaults. `fastvae.functional` says what each means.


class ScaleOptions(TypedDict, total=False):
    """How the scale is given."""

    scale: Annotated[Scale, "logvar"]
    floor: Annotated[float, 0.0]
    clamp: Annotated[Sequence[float] | None, None]
    soft_clamp: Annotated[float | None, None]
    check: Annotated[bool, False]


class DrawOptions(ScaleOptions, total=False):
    """How z is drawn."""

    num_samples: Annotated[int | None, None]
    temperature: Annotated[float, 1.0]


class ResidualOptions(TypedDict, total=False):
    """How the posterior is given beside its prior."""

    residual: Annotated[bool, False]


class KLOptions(TypedDict, total=False):
    """How the KL is summed and weighted."""

    reduction: Annotated[Reduction, "sample"]
    beta: Annotated[float, 1.0]
    capacity: Annotated[float | None, None]
    free_bits: Annotated[float, 0.0]
    free_bits_group: Annotated[Group, "coordinate"]
    free_bits_over: Annotated[Average, "sample"]


class KLOutputOptions(KLOptions, total=False):
    """And whether each coordinate's KL is given too."""

    per_coordinate: Annotated[bool, False]


class ScaleAndKLOptions(ScaleOptions, ResidualOptions, KLOutputOptions, total=False):
    """The keywords of `fastvae.gaussian_kl`."""


class LogProbOptions(DrawOptions, ResidualOptions, total=False):
    """The keywords of `fastvae.sample_and_log_prob`."""


class LatentOptions(DrawOptions, ResidualOptions, KLOutputOptions, total=False):
    """The keywords of `fastvae.sample_and_kl`."""


class DescribedLatent(NamedTuple):
    """What the keywords of a call say."""

    spec: LatentSpec
    scalars: LatentScalars
    beta: float
    capacity: float | None
    check: bool
    kernel_does_all: bool  # nothing is left to do to the KL, and nothing else is wanted


class _Use(NamedTuple):
    """An op's keywords, and what of a latent it wants whatever they are."""

    keywords: dict[str, Any]  # with their defaults
    wants: dict[str, Any]


def defaults_of(options: type) -> dict[str, Any]:
    """The defaults that the annotations of a TypedDict hold."""
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(options, include_extras=True).items()}


_USES = {
    "sample_and_kl": _Use(defaults_of(LatentOptions), {}),
    "gaussian_kl": _Use(defaults_of(ScaleAndKLOptions), {"sample": False}),
    "reparameterize": _Use(defaults_of(DrawOptions), {"reduction": None}),
    "sample_and_log_prob": _Use(defaults_of(LogProbOptions), {"reduction": None, "log_probs": True}),
}
_ALL = defaults_of(LatentOptions)

Op = TypeVar("Op", bound=Callable)


def shows_options(options: type, **own_defaults: Any) -> Callable[[Op], Op]:
    """Lets `help` and `inspect.signature` list the keywords that an op takes as ``**options``."""

    def decorate(op: Op) -> Op:
        signature = inspect.signature(op)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        hints, defaults = get_type_hints(options), {**defaults_of(options), **own_defaults}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in defaults.items()
        ]
        op.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
        return op

    return decorate


def described_latent(op: str, rank: int, options: Mapping[str, Any], packed_dim: int | None = None) -> DescribedLatent:
    """The keywords of a call of ``op`` (`sample_and_kl` for both of that name), checked; ``rank`` is mu's."""
    if not is_dynamo_compiling():
        try:
            return _remembered(op, rank, packed_dim, **options)
        except TypeError:  # it is wrong, and this will be said again, or it is a list, which cannot be looked up
            pass
    return _check_options(op, rank, packed_dim, **options)


def _check_options(op: str, rank: int, packed_dim: int | None, /, **options: Any) -> DescribedLatent:
    use = _USES[op]
    for name in options:
        if name not in use.keywords:
            raise TypeError(f"{op}() got an unexpected keyword argument {name!r}")
    given = {**_ALL, **options}
    spec, scalars = _check_scale(given)
    group, over = _check_free_bits(given, rank)
    for name in ("per_coordinate", "check"):
        check_flag(name, given[name])
    beta, capacity = check_number("beta", given["beta"], 0.0), given["capacity"]
    if capacity is not None:
        capacity = check_number("capacity", capacity, 0.0)
        if given["reduction"] == "none":
            raise ValueError("capacity was given with reduction 'none', expected a KL that is summed over the event")
    spec = spec._replace(
        residual=given["residual"],
        reduction=given["reduction"],
        free_bits=group if given["free_bits"] else "none",
        free_bits_over_batch=over == "batch" if given["free_bits"] else False,
        per_coordinate=given["per_coordinate"],
        packed_dim=None if packed_dim is None else packed_dim % rank,
    )
    scalars = scalars._replace(
        num_samples=check_num_samples(given["num_samples"]),
        temperature=check_number("temperature", given["temperature"], 0.0),
        free_bits=given["free_bits"],
    )
    spec = spec._replace(**use.wants)
    frees_in_kernel = spec.free_bits == "none" or spec.kernel_free_bits
    whole_kl = frees_in_kernel and not spec.per_coordinate and capacity is None and is_one(beta)
    kernel_does_all = spec.reduction is None or whole_kl
    return DescribedLatent(spec, scalars, beta, capacity, given["check"], kernel_does_all)


_remembered = functools.lru_cache(maxsize=1024, typed=True)(_check_options)


def _check_scale(given: dict[str, Any]) -> tuple[LatentSpec, LatentScalars]:
    scale, clamp, soft_clamp, residual = (given[name] for name in ("scale", "clamp", "soft_clamp", "residual"))
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, expected one of {', '.join(map(repr, SCALES))}")
    check_flag("residual", residual)
    log_scales = " or ".join(map(repr, LOG_SCALES))
    if residual and scale not in LOG_SCALES:
        raise ValueError(f"residual is True with scale {scale!r}, expected {log_scales}: scales that add up")
    floor = check_number("floor", given["floor"], 0.0)
    if scale != "softplus" and floor:
        raise ValueError(f"floor is {floor} with scale {scale!r}, expected it with 'softplus' only")
    if clamp is not None and soft_clamp is not None:
        raise ValueError("clamp and soft_clamp were both given, expected at most one of them")
    spec = LatentSpec(scale=scale)
    if clamp is not None:
        low, high = check_clamp(clamp)
        return spec._replace(clamp="hard"), LatentScalars(low=low, high=high, floor=floor)
    if soft_clamp is not None:
        if scale not in LOG_SCALES:
            raise ValueError(f"soft_clamp was given with scale {scale!r}, expected {log_scales}")
        bound = check_number("soft_clamp", soft_clamp, 0.0)
        if bound <= 0.0:
            raise ValueError("soft_clamp is 0.0, expected more than 0")
        return spec._replace(clamp="soft"), LatentScalars(high=bound, floor=floor)
    return spec, LatentScalars(floor=floor)


def _check_free_bits(given: dict[str, Any], rank: int) -> tuple[str, str]:
    """The group of coordinates, as mu's rank has it, and what free bits are averaged over."""
    group, over, reduction = given["free_bits_group"], given["free_bits_over"], given["reduction"]
    check_reduction(reduction)
    given["free_bits"] = check_number("free_bits", given["free_bits"], 0.0)
    if group not in GROUPS:
        raise ValueError(f"free_bits_group is {group!r}, expected one of {', '.join(map(repr, GROUPS))}")
    if over not in AVERAGES:
        raise ValueError(f"free_bits_over is {over!r}, expected one of {', '.join(map(repr, AVERAGES))}")
    if (rank < 3 and group == "channel") or rank < 2:
        group = "coordinate"  # a channel, or an event, of one coordinate
    if given["free_bits"]:
        if over == "batch" and reduction not in ("sum", "batchmean"):
            raise ValueError(f"free_bits_over is 'batch' with reduction {reduction!r}, expected 'batchmean' or 'sum'")
        if group != "coordinate" and reduction == "none":
            raise ValueError(f"free_bits_group is {group!r} with reduction 'none', expected a KL that is summed")
    return group, over


def is_one(number: float) -> bool:
    """Whether a factor can be left out; of an input of the graph that is being compiled, that is not asked."""
    return number == 1.0 if not is_compiling() else is_static(number) and number == 1.0
