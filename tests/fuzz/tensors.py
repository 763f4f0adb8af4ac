"""Tensors of any layout and dtype, and how a call is compared with float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("dense", "backwards", "gaps", "offset", "expanded")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXECUTED = (torch.float32, torch.float16)  # by Triton's interpreter, which rounds to bfloat16 another way
# Relative to the size of the terms: what the arithmetic rounds, and what the tensor that is written does.
ARITHMETIC = {torch.float32: 1e-5, torch.float64: 1e-9}
ROUNDING = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# Each test has a short and a long form, of which Triton's interpreter takes a part of a second to several.
SHORT = settings(max_examples=30, derandomize=True, database=None, **_COMMON)
LONG = settings(max_examples=1500, print_blob=True, **_COMMON)
INTERPRETED = settings(LONG, max_examples=100)

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=3).flatmap(
    lambda rest: st.sampled_from([1, 2, 3, 7, 40]).map(lambda rows: (rows, *rest))
)


def laid_out(values: np.ndarray, dtype: torch.dtype, layout: str) -> Tensor:
    """The values in a tensor of a dtype and memory layout; "expanded" repeats those of the first row."""
    tensor = torch.tensor(np.asarray(values)).to(dtype)
    if layout == "backwards":
        dims = tuple(reversed(range(tensor.dim())))
        return tensor.permute(dims).contiguous().permute(dims)
    if layout == "gaps":
        return torch.stack((tensor, torch.full_like(tensor, 3)), -1)[..., 0]
    if layout == "offset":
        padded = torch.cat((torch.zeros(1, dtype=dtype), tensor.flatten()))
        return padded[1:].view(tensor.shape)
    return tensor[:1].expand(tensor.shape) if layout == "expanded" and tensor.dim() else tensor


def as_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def assert_near(name: str, came: Tensor, exact: np.ndarray, size: np.ndarray) -> None:
    """Within rounding of terms of that size, and of the result to its dtype."""
    wide = torch.float64 if came.dtype == torch.float64 else torch.float32
    found = as_array(came)
    assert found.shape == exact.shape, f"{name} has shape {found.shape}, expected {exact.shape}"
    smallest = 1e-6 if came.dtype == torch.float16 else 1e-30
    allowed = ARITHMETIC[wide] * size + ROUNDING[came.dtype] * np.abs(exact) + smallest
    representable = np.abs(exact) < torch.finfo(came.dtype).max
    within = np.abs(found - np.where(representable, exact, 0.0)) <= allowed
    worst = np.argmax((~within & representable).ravel())
    assert np.all(within | ~representable), (
        f"{name} is {found.ravel()[worst]} at {worst}, expected {exact.ravel()[worst]} within {allowed.ravel()[worst]}"
    )


def reduced(each: np.ndarray, reduction: str) -> np.ndarray:
    if reduction == "none":
        return each
    rows = each.reshape(len(each), -1).sum(1)
    return rows if reduction == "sample" else rows.sum() / (len(rows) if reduction == "batchmean" else 1)


def spread(grad: np.ndarray, shape: tuple[int, ...], reduction: str) -> np.ndarray:
    """The gradient of each coordinate from that of what they were reduced to."""
    if reduction == "batchmean":
        grad = grad / shape[0]
    dims = grad.shape + (1,) * (len(shape) - grad.ndim)
    return np.broadcast_to(grad.reshape(dims), shape)


def summed_to(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and array.shape[axis] != 1)
    return array.sum(axes, keepdims=True)
