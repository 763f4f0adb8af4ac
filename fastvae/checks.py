"""Checks of what callers pass: one pass of plain comparisons, done before anything is computed.

Every message names the argument, what came and what was expected.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .fast_path import are_alike
from .kernels.latent_spec import REDUCTIONS, LatentSpec
from .torch_internals import is_observed

__all__ = [
    "check_all_values", "check_clamp", "check_dense", "check_dtype", "check_flag", "check_generator", "check_moments",
    "check_number", "check_posterior", "check_prior", "check_reduction", "check_shape", "check_tensor", "check_values",
    "dtype_name", "fit_to_rows", "int_of", "is_integer", "refuse_first", "seed_tensor",
]  # fmt: skip

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_SEED_LOW, _SEED_HIGH = -(2**63), 2**64
_DRAWN = (-(2**63), 2**63 - 1)  # the bounds of seeds that PyTorch draws


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, tensor: Tensor) -> None:
    """A dense floating-point tensor with a batch dimension."""
    check_dense(name, tensor)
    check_dtype(name, tensor.dtype)
    if tensor.dim() == 0:
        raise ValueError(f"{name} is 0-d, expected shape (batch, *event)")


def check_dense(name: str, tensor: Tensor) -> None:
    """A tensor of any dtype, neither sparse nor nested."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name} is a {'nested' if tensor.is_nested else tensor.layout} tensor, expected a dense one")


def check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        came = dtype_name(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)
        raise TypeError(f"{name} is {came}, expected one of {', '.join(map(dtype_name, DTYPES))}")


def check_posterior(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """mu and logvar, broadcast against each other. Those that `fast_path.are_alike` finds alike need no check."""
    check_tensor("mu", mu)
    check_tensor("logvar", logvar)
    if mu.dtype != logvar.dtype and torch.is_autocast_enabled(mu.device.type):
        # An encoder's two last layers may differ: autocast runs some in half precision, some in float32.
        dtype = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(dtype), logvar.to(dtype)
    if mu.dtype != logvar.dtype:
        raise TypeError(f"logvar is {dtype_name(logvar.dtype)}, mu is {dtype_name(mu.dtype)}; expected the same dtype")
    if mu.device != logvar.device:
        raise ValueError(f"logvar is on {logvar.device}, mu is on {mu.device}; expected the same device")
    if mu.shape == logvar.shape:
        return mu, logvar
    try:
        shape = torch.broadcast_shapes(mu.shape, logvar.shape)
    except RuntimeError:
        raise ValueError(
            f"logvar has shape {tuple(logvar.shape)}, mu has {tuple(mu.shape)}; expected shapes that broadcast"
        ) from None
    return mu.expand(shape), logvar.expand(shape)


def fit_to_rows(name: str, given: Tensor, like_name: str, like: Tensor) -> Tensor:
    """What kernels take beside ``like``: a tensor of its shape, of the event's shape, of (1, *event) or one element."""
    # Ranks first: (3,) == (B, 3) compares sizes before it compares ranks, and would fix B for torch.export.
    missing = like.dim() - given.dim()
    if missing in (0, 1) and given.shape == like.shape[missing:]:
        return given
    if given.numel() == 1:
        return given.reshape((1,) * like.dim())
    try:
        fits = torch.broadcast_shapes(given.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}, {like_name} has {tuple(like.shape)}; expected {like_name}'s shape,"
            f" its event's shape {tuple(like.shape[1:])}, or one that broadcasts to it"
        )
    differs_by_row = given.dim() == like.dim() and given.shape[0] != 1
    return given.expand(like.shape if differs_by_row else (1, *like.shape[1:]))


def refuse_first(name: str, tensor: Tensor, wrong: Tensor, expected: str) -> None:
    """An opt-in check: an error that names the first wrong element. Waits for the device."""
    if not wrong.any():
        return
    index = wrong.nonzero()[0].tolist()
    raise ValueError(f"{name} is {tensor[tuple(index)].item()} at index {index}, expected {expected}")


def check_moments(moments: Tensor, dim: int) -> int:
    """The dimension that holds mu and, behind it, logvar; counted from the front."""
    check_tensor("moments", moments)
    if not is_integer(dim):
        raise TypeError(f"dim is a {type(dim).__name__}, expected an int")
    rank = moments.dim()
    if not -rank <= dim < rank or dim % rank == 0:
        raise ValueError(f"dim is {dim}, expected an event dimension of moments, shape {tuple(moments.shape)}")
    if moments.shape[dim] % 2:
        raise ValueError(f"moments has shape {tuple(moments.shape)}, expected an even size in dim {dim}: mu and logvar")
    return dim % rank


def check_flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a bool")
    return value


def is_integer(value: object) -> bool:
    """Python's and NumPy's integers and the compiler's symbolic ones; not True and False."""
    return isinstance(value, (int, torch.SymInt, numbers.Integral)) and not isinstance(value, bool)


def int_of(value: int) -> int:
    """What Python takes as an index, but True and False."""
    if isinstance(value, bool):
        raise TypeError("a bool is no size")
    return operator.index(value)


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(int_of(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape is {shape!r}, expected a sequence of ints") from None
    if not sizes or min(sizes) < 0:
        raise ValueError(f"shape is {sizes}, expected (batch, *event) of sizes 0 or more")
    if math.prod(sizes) >= 2**63:
        raise ValueError(f"shape is {sizes}, expected fewer than 2**63 elements")
    return sizes


def seed_tensor(
    seed: int | Tensor | None,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    alike: bool = False,
) -> Tensor:
    """The 64-bit seed as a one-element int64 tensor on the device; drawn from torch's generator if none is given.

    ``alike``: `fast_path.are_alike` has found the tensors to draw for, which are on ``device``, alike.
    """
    if seed is None:
        if generator is None and isinstance(device, torch.device) and (alike or not is_observed()):
            return torch.randint_like(_one_on(device), *_DRAWN)  # in less time than randint takes
        if generator is not None:
            check_generator(generator, device)
        return torch.randint(*_DRAWN, (1,), generator=generator, device=device, dtype=torch.int64)
    if generator is not None:
        raise ValueError("seed and generator were both given, expected at most one of them")
    if isinstance(seed, Tensor):
        check_dense("seed", seed)
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"seed is a tensor of {dtype_name(seed.dtype)}, shape {tuple(seed.shape)}; expected one int64 element"
            )
        if device is not None and not _is_on(seed, torch.device(device)):
            raise ValueError(f"seed is on {seed.device}, expected it on {device}")
        return seed.reshape(1)
    if not is_integer(seed):
        raise TypeError(f"seed is a {type(seed).__name__}, expected an int or a one-element int64 tensor")
    if not _SEED_LOW <= seed < _SEED_HIGH:
        raise ValueError(f"seed is {seed}, expected 64 bits: from -2**63 to 2**64 - 1")
    seed = int(seed)
    return torch.full((1,), seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64, device=device)


@functools.cache
def _one_on(device: torch.device) -> Tensor:
    return torch.empty(1, dtype=torch.int64, device=device)


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    """ "cuda" means any of them."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def check_generator(generator: torch.Generator | None, device: torch.device | str | None) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is a {type(generator).__name__}, expected a torch.Generator")
    if device is not None and generator.device.type != torch.device(device).type:
        raise ValueError(f"generator is on {generator.device}, expected it on {device}")


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(map(repr, REDUCTIONS))}")


def check_clamp(clamp: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = clamp
    except (TypeError, ValueError):
        raise TypeError(f"clamp is {clamp!r}, expected a pair of numbers (low, high)") from None
    for bound in (low, high):
        if not _is_number(bound):
            raise TypeError(f"clamp is {clamp!r}, expected a pair of numbers (low, high)")
    if not low <= high:
        raise ValueError(f"clamp is ({low}, {high}), expected (low, high) with low at most high")
    return _as_float(low), _as_float(high)


def check_number(name: str, value: float, at_least: float) -> float:
    """A finite number, not below a bound."""
    if not _is_number(value):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not at_least <= value < math.inf:  # NaN neither
        raise ValueError(f"{name} is {value}, expected a finite number of {at_least:g} or more")
    return _as_float(value)


def _is_number(value: object) -> bool:
    """Python's and NumPy's real numbers and the compiler's symbolic ones; not True and False."""
    return isinstance(value, (float, torch.SymFloat, torch.SymInt, numbers.Real)) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    return value if isinstance(value, (float, torch.SymFloat)) else float(value)


def check_prior(
    prior_mu: Tensor | float | None, prior_logvar: Tensor | float | None, mu: Tensor, spec: LatentSpec
) -> tuple[Tensor, ...]:
    """The prior's two parameters, of mu's shape, the event's, (1, *event) or of one element; none for N(0, I)."""
    if prior_mu is None and prior_logvar is None:
        if spec.residual:
            raise ValueError("residual is True without a prior, expected prior_mu and prior_logvar")
        return ()
    for name, given in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if given is None:
            raise ValueError(f"{name} is None, expected both of prior_mu and prior_logvar or neither")
    if are_alike(mu, prior_mu, prior_logvar):
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


def check_all_values(mu: Tensor, scale: Tensor, prior: tuple[Tensor, ...], spec: LatentSpec) -> None:
    check_values(mu, scale, spec)
    if prior:
        prior_mu, prior_scale = prior
        check_values(prior_mu, prior_scale, spec, "prior_")


def check_values(mu: Tensor, scale: Tensor, spec: LatentSpec, prefix: str = "") -> None:
    """The opt-in check: everything finite, no negative std or var. Waits for the device."""
    for name, tensor in (("mu", mu), ("logvar", scale)):
        refuse_first(prefix + name, tensor, ~torch.isfinite(tensor), "a finite number")
    if spec.scale in ("std", "var"):
        refuse_first(f"{prefix}logvar, a {spec.scale},", scale, scale < 0, "0 or more")
