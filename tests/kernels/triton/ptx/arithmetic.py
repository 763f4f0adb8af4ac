"""The instructions that compute: integers, logic, bits, floats and approximate functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .floats import APPROXIMATE, flush, fma, maximum, minimum
from .instructions import DTYPES, WIDTHS, Action, Decoded, elementwise, instruction, only


def _bits(d: Decoded) -> int:
    return 8 * WIDTHS[d.kind]


def _float(d: Decoded, compute: Callable[..., Any], sources: int) -> Any:
    """A float operation, also on two float32 side by side in 64 bits."""
    if d.kind != "f32x2":
        return (only(d, "f"),) * sources, d.kind, compute
    flushed = flush if "ftz" in d.flags else lambda x: x

    def both(*values: Any) -> Any:
        return flushed(compute(*(flushed(value.view(np.float32)) for value in values))).view(np.uint64)

    return ("f32x2",) * sources, "f32x2", both


@elementwise("add sub", "rn ftz")
def _add(d: Decoded) -> Any:
    compute = np.add if d.instruction.opcode.startswith("add") else np.subtract
    return _float(d, compute, 2) if d.kind[0] == "f" else ((only(d, "su"),) * 2, d.kind, compute)


def _wide(kind: str) -> str:
    return {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}[kind]


def _product(d: Decoded) -> tuple[str, Callable[..., Any]]:
    """The type of a product of integers, and how to compute it."""
    kind = only(d, "su")
    if d.flag("lo", "hi", "wide") == "lo":
        return kind, np.multiply
    if d.flag("lo", "hi", "wide") == "wide":
        wide = DTYPES[_wide(kind)]
        return _wide(kind), lambda a, b: a.astype(wide) * b.astype(wide)
    bits, dtype = _bits(d), DTYPES[kind]
    return kind, lambda a, b: ((a.astype(object) * b.astype(object)) >> bits).astype(dtype)


@elementwise("mul", "lo hi wide rn ftz")
def _mul(d: Decoded) -> Any:
    if d.kind[0] == "f":
        return _float(d, np.multiply, 2)
    result, product = _product(d)
    return (d.kind,) * 2, result, product


@elementwise("mad", "lo hi wide rn ftz")
def _mad(d: Decoded) -> Any:
    if d.kind == "f32":
        return _fma(d)
    result, product = _product(d)
    return (d.kind, d.kind, result), result, lambda a, b, c: product(a, b) + c


@elementwise("fma", "rn ftz")
def _fma(d: Decoded) -> Any:
    if d.kind not in ("f32", "f32x2") or "rn" not in d.flags:
        raise d.unknown()
    return _float(d, fma, 3)


@elementwise("min max", "ftz NaN")
def _min(d: Decoded) -> Any:
    smaller = d.instruction.opcode.startswith("min")
    if only(d, "suf")[0] in "su":
        compute = np.minimum if smaller else np.maximum
    elif "NaN" in d.flags:
        number = minimum if smaller else maximum
        return (d.kind,) * 2, d.kind, lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, number(a, b))
    else:
        compute = minimum if smaller else maximum
    return (d.kind,) * 2, d.kind, compute


@elementwise("abs neg", "ftz")
def _abs(d: Decoded) -> Any:
    return (only(d, "sf"),), d.kind, np.abs if d.instruction.opcode.startswith("abs") else np.negative


@elementwise("copysign")
def _copysign(d: Decoded) -> Any:
    return (only(d, "f"),) * 2, d.kind, lambda sign, size: np.copysign(size, sign)


@instruction("div", "full approx rn ftz")
def _div(d: Decoded) -> Action:
    if only(d, "suf")[0] in "su":

        def whole(a: Any, b: Any) -> Any:  # towards zero; by zero: all ones, a value that PTX leaves open
            exact = [int(abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1) if y else -1 for x, y in _pairs(a, b)]
            return np.array([value & ((1 << _bits(d)) - 1) for value in exact], DTYPES["u" + d.kind[1:]])

        return _both(d, whole)
    if d.flag("full", "approx"):
        if d.kind != "f32":
            raise d.unknown()
        return _both(d, lambda a, b, block: block.accuracy.divide(a, b))
    return _both(d, np.divide)


@instruction("rem")
def _rem(d: Decoded) -> Action:
    only(d, "su")

    def rest(a: Any, b: Any) -> Any:
        exact = [int(abs(x) % abs(y)) * (-1 if x < 0 else 1) if y else -1 for x, y in _pairs(a, b)]
        return np.array([value & ((1 << _bits(d)) - 1) for value in exact], DTYPES["u" + d.kind[1:]])

    return _both(d, rest)


def _pairs(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(a.tolist(), b.tolist(), strict=True))


def _both(d: Decoded, compute: Callable[..., Any]) -> Action:
    """An instruction of two sources and the block's accuracy, if ``compute`` takes it."""
    destination, a, b = d.operands
    approximate = bool(d.flag("full", "approx"))

    def act(block: Any) -> None:
        values = [block.read(a, d.kind), block.read(b, d.kind)]
        if "ftz" in d.flags:
            values = [flush(value) for value in values]
        result = compute(*values, block) if approximate else compute(*values)
        block.write(destination, flush(result) if "ftz" in d.flags else result, d.kind)

    return act


@instruction("ex2 lg2 sin cos sqrt rsqrt rcp tanh", "approx ftz rn")
def _function(d: Decoded) -> Action:
    name = d.instruction.opcode.partition(".")[0]
    exactly = "rn" in d.flags
    if d.types != ("f32",) or (exactly and name not in ("sqrt", "rcp")) or exactly == ("approx" in d.flags):
        raise d.unknown()
    destination, source = d.operands

    def act(block: Any) -> None:
        x = block.read(source, "f32")
        x = flush(x) if "ftz" in d.flags else x
        y = APPROXIMATE[name](x.astype(np.float64)).astype(np.float32) if exactly else None
        y = block.accuracy.approximate(name, x) if y is None else y
        block.write(destination, flush(y) if "ftz" in d.flags else y, "f32")

    return act


@elementwise("and or xor")
def _logic(d: Decoded) -> Any:
    compute = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return (only(d, "bp"),) * 2, d.kind, compute[d.instruction.opcode.partition(".")[0]]


@elementwise("not")
def _not(d: Decoded) -> Any:
    return (only(d, "bp"),), d.kind, np.invert


@elementwise("lop3")
def _lop3(d: Decoded) -> Any:
    def compute(a: Any, b: Any, c: Any, table: Any) -> Any:
        result = np.zeros_like(a)
        for row in range(8):
            if table[0] >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return ({"b32": "b32"}[d.kind],) * 4, "b32", compute


@elementwise("shl shr")
def _shift(d: Decoded) -> Any:
    left, bits, dtype = d.instruction.opcode.startswith("shl"), _bits(d), DTYPES[only(d, "sub")]

    def compute(a: Any, count: Any) -> Any:
        inside = np.minimum(count, bits - 1).astype(dtype)
        shifted = np.left_shift(a, inside) if left else np.right_shift(a, inside)
        return shifted if dtype.kind == "i" else np.where(count < bits, shifted, dtype.type(0))

    return (d.kind, "u32"), d.kind, compute


@elementwise("shf", "l r wrap clamp")
def _funnel(d: Decoded) -> Any:
    def compute(low: Any, high: Any, count: Any) -> Any:
        count = (count & 31 if "wrap" in d.flags else np.minimum(count, 32)).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        if "r" in d.flags:
            return both >> count  # at 32 the high word is left; below, what is cut off on conversion
        return np.where(count == 0, high, both >> (np.uint64(32) - count))

    return ({"b32": "b32"}[d.kind],) * 2 + ("u32",), "b32", lambda *values: compute(*values).astype(np.uint32)


@elementwise("prmt")
def _prmt(d: Decoded) -> Any:
    def compute(a: Any, b: Any, selector: Any) -> Any:
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        result = np.zeros(len(a), np.uint64)
        for byte in range(4):
            nibble = selector >> np.uint32(4 * byte)
            chosen = both >> (np.uint64(8) * (nibble & 7)) & np.uint64(0xFF)
            sign = (chosen >> np.uint64(7)) * np.uint64(0xFF)
            result |= np.where(nibble & 8, sign, chosen) << np.uint64(8 * byte)
        return result

    return ({"b32": "b32"}[d.kind],) * 3, "b32", compute


@elementwise("bfe")
def _extract(d: Decoded) -> Any:
    bits, signed = _bits(d), only(d, "su")[0] == "s"

    def compute(a: Any, position: Any, length: Any) -> Any:
        result = []
        for value, start, size in zip(a.tolist(), (position & 255).tolist(), (length & 255).tolist(), strict=True):
            value &= (1 << bits) - 1
            field = value >> start & ((1 << size) - 1)
            negative = signed and size > 0 and value >> min(start + size - 1, bits - 1) & 1
            kept = max(0, min(size, bits - start))
            result.append((field | (-1 << kept if negative else 0)) & ((1 << bits) - 1))
        return np.array(result, np.dtype(f"u{bits // 8}")).view(DTYPES[d.kind])

    return (d.kind, "u32", "u32"), d.kind, compute


@elementwise("bfi")
def _insert(d: Decoded) -> Any:
    bits, dtype = _bits(d), DTYPES[only(d, "b")]

    def compute(a: Any, b: Any, position: Any, length: Any) -> Any:
        result = []
        for field, into, start, size in zip(*(x.tolist() for x in (a, b, position & 255, length & 255)), strict=True):
            mask = ((1 << size) - 1) << start & ((1 << bits) - 1)
            result.append(into & ~mask | field << start & mask)
        return np.array(result, dtype)

    return (d.kind, d.kind, "u32", "u32"), d.kind, compute


@elementwise("popc clz brev")
def _count(d: Decoded) -> Any:
    bits, name = _bits(d), d.instruction.opcode.partition(".")[0]
    compute = {
        "popc": lambda x: bin(x).count("1"),
        "clz": lambda x: bits - x.bit_length(),
        "brev": lambda x: int(f"{x:0{bits}b}"[::-1], 2),
    }[name]
    result = d.kind if name == "brev" else "u32"
    return (only(d, "b"),), result, lambda a: np.array([compute(x) for x in a.tolist()], DTYPES[result])
