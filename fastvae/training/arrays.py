"""Arrays in .npy and .npz files, checked: their values, their layout, and the labels beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .errors import TrainingError
from .layouts import Layout, arrange
from .samples import Read

__all__ = ["ENDINGS", "NPZ_KEYS", "bits_of", "joined", "read_arrays"]

ENDINGS = (".npy", ".npz")
LABELS = ("labels", "label", "y", "targets")
DATA = ("x", "images", "data")
NPZ_KEYS = f"x ({' or '.join(DATA[1:])}) and, if there are any, labels ({', '.join(LABELS[1:])})"
_BEGINNINGS = {".npy": b"\x93NUMPY", ".npz": b"PK"}
_CHECKED_AT_ONCE = 2**24


def read_arrays(path: Path, *, counts: bool, layout: str, missing: bool, condition: tuple[str, ...]) -> Read:
    """x, labels and conditions of a .npy or .npz file.

    Args:
        counts: x are counts, and given as they are.
        layout: one of `layouts.LAYOUTS`.
        missing: NaN stands for a missing value.
        condition: names of arrays in an .npz, one value a row.

    Raises:
        TrainingError: the file cannot be read, or its arrays are not what they should be.
    """
    x, labels, given = _load(path, condition)
    if x.ndim < 2 or 0 in x.shape:
        raise TrainingError(f"{path} has shape {x.shape}, expected (N, ...): N samples of one number or more")
    if x.dtype.kind not in "uif" or (x.dtype.kind == "f" and x.dtype.itemsize < 2):
        raise TrainingError(f"{path} is of {x.dtype}, expected numbers: uint8 levels of images, floats, or counts")
    levels = x.dtype == np.uint8 or (x.dtype == np.uint16 and x.ndim in (3, 4) and layout not in ("series", "values"))
    if x.dtype.kind in "ui" and not levels and not counts:
        raise TrainingError(
            f"{path} is of {x.dtype}: levels 0 to 255 are to be uint8; counts need --likelihood poisson,"
            " negative-binomial or zero-inflated"
        )
    low, high = _range_of(x, str(path), counts, missing)
    if counts:
        x, read = (x, Layout("values")) if layout == "auto" else arrange(x, str(path), layout, False)
        return Read(x, labels, read._replace(alpha=False), (low, high), given, 1.0)
    scale, said = 1.0, None
    if x.dtype == np.uint8:
        scale = 1 / 255
    elif x.dtype == np.uint16:
        bits = bits_of(high)
        scale, said = 1 / (2**bits - 1), f"16-bit levels up to {high:g}, read as {bits} bits"
    low, high = low * scale, high * scale
    x, read = arrange(x, str(path), layout, levels or (low >= 0 and high <= 1))
    if said is not None:
        read = read._replace(note=said if read.note is None else f"{said}; {read.note}")
    return Read(x, labels, read, (low, high), given, scale)


def bits_of(highest: float) -> int:
    """Of levels up to this one: 8, 10, 12, 14 or 16, as cameras and scanners have them."""
    return next((bits for bits in (8, 10, 12, 14) if highest < 2**bits), 16)


def _load(path: Path, condition: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """x, labels and conditions, as they stand in the file."""
    if not path.is_file():
        raise TrainingError(f"{path} does not exist")
    with _readable(path):
        with path.open("rb") as file:
            beginning = file.read(len(_BEGINNINGS[path.suffix]))
        if beginning != _BEGINNINGS[path.suffix]:
            save = "numpy.save" if path.suffix == ".npy" else "numpy.savez"
            raise TrainingError(
                f"{path} begins with {beginning!r}, expected a {path.suffix} file, as {save} writes them"
            )
        if path.suffix == ".npy":
            if condition:
                raise TrainingError(f"--condition {condition[0]}: {path} has one array; .npz and .h5ad have names")
            return np.load(path, mmap_mode="r", allow_pickle=False), None, None
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            unknown = [name for name in condition if name not in names]
            if unknown:
                raise TrainingError(f"--condition {unknown[0]}: {path} has the arrays {', '.join(names)}")
            labels = next((name for name in LABELS if name in names), None)
            others = [name for name in names if name != labels and name not in condition]
            x = next((name for name in DATA if name in others), None)
            if x is None and len(others) != 1:
                raise TrainingError(f"{path} has the arrays {', '.join(names)}; expected one of them to be named x")
            given = joined([archive[name] for name in condition], condition, len(archive[x or others[0]]))
            return archive[x or others[0]], None if labels is None else archive[labels], given


def joined(columns: list[np.ndarray], names: tuple[str, ...], rows: int) -> np.ndarray | None:
    """One text for each row of all conditions together, such as "a, 1"; None without any.

    Raises:
        TrainingError: a column is not one text or whole number for each row.
    """
    for name, column in zip(names, columns, strict=True):
        if column.shape != (rows,) or column.dtype.kind not in "uiUSbO":
            raise TrainingError(
                f"--condition {name} is of {column.dtype}, shape {column.shape}; expected ({rows},) integers or strings"
            )
    if not columns:
        return None
    texts = [np.char.decode(column, "utf-8", "replace") if column.dtype.kind == "S" else column for column in columns]
    return np.array([", ".join(map(str, row)) for row in zip(*texts, strict=True)])


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:  # of many kinds: damaged headers are read as Python, archives by zipfile and zlib
        why = (str(error) or type(error).__name__).splitlines()[0][:120]
        objects = "pickle" in why or "object" in why.lower()
        what = (
            "holds Python objects, expected an array of numbers" if objects else "cannot be read, it may not be whole"
        )
        raise TrainingError(f"{path} {what} ({why})") from None


def _range_of(x: np.ndarray, where: str, counts: bool, missing: bool) -> tuple[float, float]:
    """The lowest and the highest value of all rows, each of which is looked at."""
    if x.dtype == np.uint8:  # no byte can be wrong: such files, the large ones, are not read for it
        return 0.0, 255.0
    at_once = max(1, _CHECKED_AT_ONCE // int(np.prod(x.shape[1:])))
    lows, highs = [], []
    for start in range(0, len(x), at_once):
        part = np.asarray(x[start : start + at_once]).reshape(min(at_once, len(x) - start), -1)
        _check_part(part, where, start, counts, missing)
        known = part[~np.isnan(part)] if missing and part.dtype.kind == "f" else part
        if known.size:
            lows.append(float(known.min()))
            highs.append(float(known.max()))
    if not lows:
        raise TrainingError(f"{where} has no value but NaN, expected some that are not missing")
    return min(lows), max(highs)


def _check_part(part: np.ndarray, where: str, start: int, counts: bool, missing: bool) -> None:
    """Rows (n, numbers) from ``start`` on: finite, whole if they are counts, NaN if that is a missing value."""
    nan = np.isnan(part) if part.dtype.kind == "f" else np.zeros(part.shape, dtype=bool)
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(part.astype(np.float32))
    hint = "" if missing or not nan.any() else "; --missing nan takes NaN as missing values"
    expected = f"finite numbers of float32{hint}"
    if missing:
        wrong &= ~nan
    if counts and not wrong.any():
        with np.errstate(invalid="ignore"):
            wrong, expected = (part < 0) | ((part != np.round(part)) & ~nan), "counts: whole numbers, 0 or more"
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise TrainingError(f"{where} has {part[row, column]} in row {start + row}, expected {expected}")
