"""Cells: ``--data cells.h5ad``, AnnData's files of gene expression, whose sparse matrices are read batch by batch.

The matrix stays as it is in the file, of which a batch takes its rows; one of up to 1 GiB is held in memory, sparse.
One that is stored by genes (CSC), in which the rows of a batch lie scattered, is held in memory whatever its size.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arrays import joined
from .errors import TrainingError

if TYPE_CHECKING:
    import h5py

__all__ = ["read_cells"]

USUAL_LABELS = ("cell_type", "celltype", "cell_types", "labels", "label", "leiden", "louvain")
_IN_MEMORY = 2**30
_CHECKED_AT_ONCE = 2**24


class Cells(NamedTuple):
    """What a file of cells holds."""

    x: StoredRows
    labels: np.ndarray | None
    conditions: np.ndarray | None
    value_range: tuple[float, float]
    notes: tuple[str, ...]


class StoredRows:
    """Rows of a matrix in an HDF5 file, dense, or sparse (CSR, CSC): (N, genes), given as dense float32.

    Args:
        path: of the file.
        key: of the matrix in it.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: str, key: str) -> None:
        self.path, self.key = path, key
        self._file: h5py.File | None = None
        self._opened_in = -1
        self._held: dict[str, np.ndarray] = {}  # parts that are in memory
        stored = self._stored()
        self.sparse = not hasattr(stored, "dtype")
        if self.sparse:
            self.shape = tuple(int(size) for size in stored.attrs["shape"])
            if stored.attrs["encoding-type"] == "csc_matrix":
                self._held |= _by_rows(stored, self.shape)
                return
            self._held["indptr"] = stored["indptr"][:].astype(np.int64)
            if sum(stored[name].size * stored[name].dtype.itemsize for name in ("data", "indices")) <= _IN_MEMORY:
                self._held |= {name: stored[name][:] for name in ("data", "indices")}
        else:
            self.shape = tuple(stored.shape)
            if stored.size * stored.dtype.itemsize <= _IN_MEMORY:
                self._held["dense"] = stored[:]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        if not self.sparse:
            return self._dense(numbers)
        out = np.zeros((len(numbers), self.shape[1]), dtype=np.float32)
        data, indices, indptr = (self._part(name) for name in ("data", "indices", "indptr"))
        for place in np.argsort(numbers):  # in the order of the file
            start, stop = indptr[numbers[place]], indptr[numbers[place] + 1]
            np.add.at(out[place], indices[start:stop], data[start:stop])
        return out

    def values(self, limit: int | None = None) -> Any:
        """The stored values in pieces, all or about the first so many; of a sparse matrix those that are not zero."""
        stored = self._part("data") if self.sparse else self._held.get("dense", self._stored())
        width = 1 if self.sparse else self.shape[1]
        step = max(1, min(_CHECKED_AT_ONCE, limit or _CHECKED_AT_ONCE) // width)
        for start in range(0, step if limit else stored.shape[0], step):
            yield np.asarray(stored[start : start + step])

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: each opens the file itself."""
        return self.__dict__ | {"_file": None, "_opened_in": -1}

    def _dense(self, numbers: np.ndarray) -> np.ndarray:
        if "dense" in self._held:
            return self._held["dense"][numbers].astype(np.float32)
        each, back = np.unique(numbers, return_inverse=True)  # HDF5 takes increasing rows
        return self._stored()[each].astype(np.float32)[back]

    def _part(self, name: str) -> Any:
        return self._held[name] if name in self._held else self._stored()[name]

    def _stored(self) -> Any:
        import h5py

        if self._file is None or self._opened_in != os.getpid():  # a handle is not for use after a fork
            self._file, self._opened_in = h5py.File(self.path, "r"), os.getpid()
        return self._file[self.key]


def read_cells(path: Path, counts: bool, condition: tuple[str, ...], label: str | None, layer: str | None) -> Cells:
    """The counts of an .h5ad file, its labels, and its conditions.

    Args:
        counts: x are counts; False takes any finite numbers, such as logarithms.
        condition, label: columns of obs.
        layer: "X", "raw" (raw/X) or a layer; the first of X, the layer "counts" and raw that holds counts, if None.

    Raises:
        TrainingError: the file cannot be read, has no such column or layer, or no counts there.
    """
    if not path.is_file():
        raise TrainingError(f"{path} does not exist")
    try:
        import h5py
        from anndata.io import read_elem
    except ImportError as error:
        raise TrainingError(f'cells are read by anndata ({error}): pip install "fastvae-kernels[cells]"') from None
    try:
        with h5py.File(path, "r") as file:
            obs = read_elem(file["obs"])
            keys = {"X": "X", **{name: f"layers/{name}" for name in file.get("layers", ())}, "raw": "raw/X"}
            keys = {name: key for name, key in keys.items() if key in file}
    except (OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read as an .h5ad file ({str(error).splitlines()[0][:120]})") from None
    notes = []
    name = layer if layer is not None else _layer_of_counts(path, keys) if counts else "X"
    if name not in keys:
        raise TrainingError(f"--layer is {name!r}: {path} has {', '.join(keys) or 'no matrix'}")
    if layer is None and name != "X":
        notes.append(f"counts are those of {keys[name]}: X does not hold whole numbers")
    x = _stored(path, keys[name])
    value_range = _checked(x, f"{path} ({keys[name]})", counts)
    if label is None:
        label = next((usual for usual in USUAL_LABELS if usual in obs and usual not in condition), None)
        notes += [] if label is None else [f"labels are the column {label}"]
    labels = None if label is None else _column(obs, "--label", label, path)
    conditions = joined([_column(obs, "--condition", name, path) for name in condition], condition, len(obs))
    return Cells(x, labels, conditions, value_range, tuple(notes))


def _stored(path: Path, key: str) -> StoredRows:
    import h5py

    with h5py.File(path, "r") as file:
        encoding = file[key].attrs.get("encoding-type", "array")
        if encoding not in ("array", "csr_matrix", "csc_matrix"):
            raise TrainingError(f"{path} holds {key} as {encoding}, expected csr_matrix, csc_matrix or array")
        shape = file[key].shape if encoding == "array" else file[key].attrs["shape"]
        if len(shape) != 2 or 0 in shape:
            raise TrainingError(f"{path} has {key} of shape {tuple(shape)}, expected (cells, genes)")
    return StoredRows(str(path.absolute()), key)


def _by_rows(stored: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The parts of a matrix that is stored by columns (CSC) as one stored by rows (CSR)."""
    from scipy import sparse

    parts = tuple(stored[name][:] for name in ("data", "indices", "indptr"))
    matrix = sparse.csc_matrix(parts, shape=shape).tocsr()
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr.astype(np.int64)}


def _layer_of_counts(path: Path, keys: dict[str, str]) -> str:
    for name in ("X", "counts", "raw"):
        if name in keys and all(_are_counts(part) for part in _stored(path, keys[name]).values(limit=100_000)):
            return name
    raise TrainingError(
        f"{path} has no counts in X, layers/counts or raw/X, expected whole numbers, 0 or more.\n"
        "--layer names where they are; values that are no counts need --likelihood gaussian"
    )


def _are_counts(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values == np.round(values))).all())


def _checked(x: StoredRows, where: str, counts: bool) -> tuple[float, float]:
    """The lowest and highest value, after a look at all of them."""
    low, high = (0.0, 0.0) if x.sparse else (np.inf, -np.inf)
    for values in x.values():
        if not np.isfinite(values).all():
            raise TrainingError(f"{where} has values that are not finite numbers, expected finite ones")
        if counts and not _are_counts(values):
            wrong = values[(values < 0) | (values != np.round(values))].flat[0]
            raise TrainingError(f"{where} has {wrong:g}, expected counts: whole numbers, 0 or more")
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high


def _column(obs: Any, option: str, name: str, path: Path) -> np.ndarray:
    if name not in obs:
        raise TrainingError(f"{option} {name}: {path} has the columns {', '.join(map(str, obs.columns)) or 'none'}")
    column = obs[name]
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise TrainingError(f"{option} {name}: {path} has no value in row {row}, expected one for each cell")
    values = column.to_numpy()
    if values.dtype.kind == "f":
        raise TrainingError(f"{option} {name}: {path} has {values.dtype} there, expected categories: text or integers")
    return values.astype(str)
