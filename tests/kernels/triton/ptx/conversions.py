"""The instructions that compare, select and convert."""

from __future__ import annotations

from typing import Any

import numpy as np

from .floats import flush, from_bfloat16, to_bfloat16
from .instructions import DTYPES, WIDTHS, Action, Decoded, elementwise, instruction, only
from .parse import Pair, PtxError


@elementwise("selp")
def _select(d: Decoded) -> Any:
    return (only(d, "subf"), d.kind, "pred"), d.kind, lambda a, b, p: np.where(p, a, b)


_COMPARE = {
    **dict.fromkeys(("eq", "equ"), np.equal),
    **dict.fromkeys(("ne", "neu"), np.not_equal),
    **dict.fromkeys(("lt", "ltu", "lo"), np.less),
    **dict.fromkeys(("le", "leu", "ls"), np.less_equal),
    **dict.fromkeys(("gt", "gtu", "hi"), np.greater),
    **dict.fromkeys(("ge", "geu", "hs"), np.greater_equal),
}


@instruction("setp", " ".join(_COMPARE) + " num nan and or xor ftz")
def _compare(d: Decoded) -> Action:
    """Ordered comparisons are false with a NaN, unordered ones (equ, ...) true; and/or/xor adds a predicate."""
    kind, name = only(d, "subf"), d.flag(*_COMPARE, "num", "nan")
    if name in ("lo", "ls", "hi", "hs") and kind[0] != "u":
        raise d.unknown()
    destination, a, b, *more = d.operands
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(d.flag("and", "or", "xor"))
    if bool(more) != (combine is not None):
        raise PtxError("wrong number of operands")

    def act(block: Any) -> None:
        x, y = block.read(a, kind), block.read(b, kind)
        if "ftz" in d.flags:
            x, y = flush(x), flush(y)
        result = _COMPARE[name](x, y) if name in _COMPARE else None
        if kind[0] == "f":
            unordered = np.isnan(x) | np.isnan(y)
            if result is None:
                result = unordered == (name == "nan")
            else:
                result = result | unordered if name.endswith("u") else result & ~unordered
        opposite = ~result
        if combine is not None:
            third = block.read(more[0], "pred")
            result, opposite = combine(result, third), combine(opposite, third)
        block.write_pair(destination, result, "pred", opposite)

    if isinstance(destination, Pair) and destination.second is None:
        raise PtxError("no second destination")
    return act


_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@elementwise("cvt", "rn rz ftz sat " + " ".join(_ROUND))
def _convert(d: Decoded) -> Any:
    to, *sources = d.types
    source, rounding = sources[0], d.flag("rn", "rz", *_ROUND)
    as_float = {"bf16": from_bfloat16}.get(source, lambda x: x)
    if "sat" in d.flags and to[0] in "bf":
        raise d.unknown()
    if to in ("bf16x2", "f16x2"):  # the first source is the upper half

        def half(x: Any) -> Any:
            return to_bfloat16(x, rounding) if to == "bf16x2" else x.astype(np.float16).view(np.uint16)

        if source != "f32" or (rounding != "rn" and to == "f16x2"):
            raise d.unknown()
        return ("f32", "f32"), to, lambda a, b: half(a).astype(np.uint32) << 16 | half(b)
    if to == "bf16":
        return ({"f32": "f32"}[source],), to, lambda a: to_bfloat16(a, {"rn": "rn", "rz": "rz"}[rounding])
    if to[0] == "f" and rounding in _ROUND:
        return (source,), to, lambda a: _ROUND[rounding](as_float(a))
    if to[0] == "f" or source[0] not in "fb":
        narrows = (source[0] in "su" and to[0] == "f") or (source[0] == "f" and WIDTHS[source] > WIDTHS[to])
        if narrows != (rounding == "rn"):
            raise d.unknown()
        limits = np.iinfo(DTYPES[to]) if "sat" in d.flags else None
        if limits is not None:
            return (source,), to, lambda a: np.array([min(max(x, limits.min), limits.max) for x in a.tolist()])
        return (source,), to, as_float

    limits = np.iinfo(DTYPES[to])  # float to integer clamps, and makes a NaN 0

    def whole(a: Any) -> Any:
        rounded = _ROUND[rounding](as_float(a).astype(np.float64)).tolist()
        return np.array([0 if x != x else int(min(max(x, limits.min), limits.max)) for x in rounded], DTYPES[to])

    return (source,), to, whole
