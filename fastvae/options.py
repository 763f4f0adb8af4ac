"""Checks of how a latent is described beyond mu and logvar: parameterisation, clamp, prior and number of draws."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from . import plain
from .arguments import check_flag, check_tensor, dtype_name, fit_to_rows, is_integer, refuse_first
from .kernels.family import LOG_SCALES, SCALES, Options
from .plain import observed


def check_options(
    scale: str,
    clamp: Sequence[float] | None,
    soft_clamp: float | None,
    floor: float,
    residual: bool,
    temperature: float = 1.0,
) -> Options:
    """The options, each checked. Calls repeat theirs: what has passed once is looked up."""
    arguments = (scale, clamp, soft_clamp, floor, residual, temperature)
    if not torch.compiler.is_compiling():
        try:
            return _checked_options(*arguments)
        except TypeError:  # it is wrong, and this will be said again, or it is a list, which cannot be looked up
            pass
    return _check_options(*arguments)


def _check_options(
    scale: str,
    clamp: Sequence[float] | None,
    soft_clamp: float | None,
    floor: float,
    residual: bool,
    temperature: float,
) -> Options:
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, expected one of {', '.join(map(repr, SCALES))}")
    check_flag("residual", residual)
    log_scales = " or ".join(map(repr, LOG_SCALES))
    if residual and scale not in LOG_SCALES:
        raise ValueError(f"residual is True with scale {scale!r}, expected {log_scales}: scales that add up")
    floor = check_number("floor", floor, 0.0)
    if floor and scale != "softplus":
        raise ValueError(f"floor is {floor} with scale {scale!r}, expected it with 'softplus' only")
    temperature = check_number("temperature", temperature, 0.0)
    options = Options(scale=scale, floor=floor, residual=residual, temperature=temperature)
    if clamp is not None and soft_clamp is not None:
        raise ValueError("clamp and soft_clamp were both given, expected at most one of them")
    if clamp is not None:
        low, high = check_clamp(clamp)
        return options._replace(clamp="hard", low=low, high=high)
    if soft_clamp is not None:
        if scale not in LOG_SCALES:
            raise ValueError(f"soft_clamp was given with scale {scale!r}, expected {log_scales}")
        bound = check_number("soft_clamp", soft_clamp, 0.0)
        if bound == 0.0:
            raise ValueError("soft_clamp is 0.0, expected more than 0")
        return options._replace(clamp="soft", high=bound)
    return options


_checked_options = functools.lru_cache(maxsize=256, typed=True)(_check_options)


def check_clamp(clamp: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in clamp)
    except (TypeError, ValueError):
        raise TypeError(f"clamp is {clamp!r}, expected a pair of numbers (low, high)") from None
    if not low <= high:
        raise ValueError(f"clamp is ({low}, {high}), expected (low, high) with low at most high")
    return low, high


def check_number(name: str, value: float, at_least: float) -> float:
    """A finite number, not below a bound."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not (math.isfinite(value) and value >= at_least):
        raise ValueError(f"{name} is {value}, expected a finite number of {at_least:g} or more")
    return float(value)


def check_num_samples(num_samples: int | None) -> int | None:
    if num_samples is None:
        return None
    if not is_integer(num_samples):
        raise TypeError(f"num_samples is a {type(num_samples).__name__}, expected an int or None")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, expected 1 or more")
    return num_samples if isinstance(num_samples, torch.SymInt) else int(num_samples)


def check_prior(
    prior_mu: Tensor | float | None, prior_logvar: Tensor | float | None, mu: Tensor, options: Options
) -> tuple[Tensor | None, Tensor | None]:
    """The prior's parameters, of mu's shape, the event's, (1, *event) or of one element; None, None for N(0, I)."""
    if prior_mu is None and prior_logvar is None:
        if options.residual:
            raise ValueError("residual is True without a prior, expected prior_mu and prior_logvar")
        return None, None
    for name, given in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if given is None:
            raise ValueError(f"{name} is None, expected both of prior_mu and prior_logvar or neither")
    if not observed() and plain.alike_on_cpu(prior_mu, mu) and plain.alike_on_cpu(prior_logvar, mu):
        return prior_mu, prior_logvar  # type: ignore[return-value]
    return _check_prior_tensor("prior_mu", prior_mu, mu), _check_prior_tensor("prior_logvar", prior_logvar, mu)


def _check_prior_tensor(name: str, given: Tensor | float | None, mu: Tensor) -> Tensor:
    one = (1,) * mu.dim()
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        return torch.full(one, float(given), dtype=mu.dtype, device=mu.device)
    if isinstance(given, Tensor) and given.dim() == 0:
        given = given.reshape(1)
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a torch.Tensor or a number")
    check_tensor(name, given)
    if given.dtype != mu.dtype:
        raise TypeError(f"{name} is {dtype_name(given.dtype)}, mu is {dtype_name(mu.dtype)}; expected the same dtype")
    if given.device != mu.device:
        raise ValueError(f"{name} is on {given.device}, mu is on {mu.device}; expected the same device")
    return fit_to_rows(name, given, "mu", mu)


def check_values(mu: Tensor, scale: Tensor, options: Options, prefix: str = "") -> None:
    """The opt-in check: everything finite, no negative std or var. Waits for the device."""
    for name, tensor in (("mu", mu), ("logvar", scale)):
        refuse_first(prefix + name, tensor, ~torch.isfinite(tensor), "a finite number")
    if options.scale in ("std", "var"):
        refuse_first(f"{prefix}logvar, a {options.scale},", scale, scale < 0, "0 or more")
