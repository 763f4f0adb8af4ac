"""Floating-point arithmetic as the PTX ISA manual defines it, on NumPy arrays.

Approximate functions have the accuracy that the manual (PTX ISA, section "Floating Point Instructions") publishes, and
no better: the exact value is moved within the published bound and then rounded to float32.

    ex2.approx       2^-22 relative (2 ulp)
    lg2.approx       2^-22 absolute for an argument in (0.5, 2), 2^-22 relative elsewhere
    sin, cos.approx  2^-20.5 absolute in [-2 pi, 2 pi], 2^-14.7 in [-100 pi, 100 pi]; NaN beyond, where none is given
    sqrt.approx      2^-23 relative            rsqrt.approx  2^-22.9 relative
    rcp.approx       1 ulp, 2^-23 relative     div.full, div.approx  2 ulp, 2^-22 relative
    tanh.approx      2^-11 relative

At a zero argument, where the manual names the result, it is exact.
"""

from __future__ import annotations

import numpy as np

APPROXIMATE = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "tanh": np.tanh,
}

_RELATIVE = {"ex2": -22.0, "lg2": -22.0, "sqrt": -23.0, "rsqrt": -22.9, "rcp": -23.0, "tanh": -11.0, "div": -22.0}


def published_error(name: str, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The largest absolute error of an approximate function at ``x`` that the manual allows."""
    if name in ("sin", "cos"):
        size = np.abs(x)
        near = np.where(size <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7)
        return np.where(size <= 100 * np.pi, near, np.nan)
    error = 2.0 ** _RELATIVE[name] * np.abs(value)
    return np.where((x > 0.5) & (x < 2.0), 2.0**-22, error) if name == "lg2" else error


class Accuracy:
    """Where in the published interval an approximate result lies.

    "exact": in its middle. "above", "below": at its ends. "random": anywhere, the same for the same argument always.
    """

    def __init__(self, mode: str = "random", seed: int = 0):
        self.mode, self.seed = mode, seed

    def approximate(self, name: str, x: np.ndarray) -> np.ndarray:
        wide = x.astype(np.float64)
        value = APPROXIMATE[name](wide)
        return self.blur(value, np.where(wide == 0, 0.0, published_error(name, wide, value)), x)

    def divide(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        value = a.astype(np.float64) / b.astype(np.float64)
        return self.blur(value, published_error("div", b, value), a.view(np.uint32) ^ b.view(np.uint32))

    def blur(self, value: np.ndarray, error: np.ndarray, argument: np.ndarray) -> np.ndarray:
        if self.mode == "random":
            part = _hash(argument.view(np.uint32), self.seed)
        else:
            part = {"exact": 0.0, "above": 1.0, "below": -1.0}[self.mode]
        return np.where(np.isinf(value), value, value + part * error).astype(np.float32)


def _hash(bits: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [-1, 1) that look random, from 32-bit words (the steps of splitmix64)."""
    x = (bits.astype(np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float32, rounded once.

    The product is exact in float64. The sum is rounded there to odd (its last bit set if bits were lost), which keeps
    enough for the second rounding to be right.
    """
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    outwards = np.signbit(lost) == np.signbit(total)
    to_odd = np.where((lost != 0) & np.isfinite(total) & (bits & 1 == 0), np.where(outwards, 1, -1), 0)
    return (bits + to_odd).view(np.float64).astype(np.float32)


def flush(x: np.ndarray) -> np.ndarray:
    """.ftz: subnormal numbers become zeros of the same sign."""
    tiny = np.abs(x) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), x), x) if tiny.any() else x


def minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smaller number; the other one where one is NaN; -0 is smaller than +0."""
    return np.where((a == b) & np.signbit(b), b, np.fmin(a, b))


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == b) & np.signbit(a), b, np.fmax(a, b))


def to_bfloat16(x: np.ndarray, direction: str = "rn") -> np.ndarray:
    """The bits of float32 numbers rounded to bfloat16: "rn" to nearest even, "rz" towards zero; NaN is 0x7fff."""
    bits = x.view(np.uint32)
    if direction == "rn":
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(x), np.uint16(0x7FFF), (bits >> np.uint32(16)).astype(np.uint16))


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
