"""Cells: ``--data cells.h5ad``, AnnData's files of gene expression, whose sparse matrices are read batch by batch.

The matrix stays as it is in the file, of which a batch takes its rows; one of up to 1 GiB is held in memory, sparse.
One that is stored by genes (CSC), in which the rows of a batch lie scattered, is held in memory whatever its size.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import joined
from .errors import TrainingError, imported
from .layouts import Layout
from .samples import Read

__all__ = ["read_cells"]

USUAL_LABELS = ("cell_type", "celltype", "cell_types", "labels", "label", "leiden", "louvain")
_IN_MEMORY = 2**30
_CHECKED_AT_ONCE = 2**24


class StoredRows:
    """Rows of a matrix in an HDF5 file, dense, or sparse (CSR, CSC): (N, genes), given as dense float32.

    Args:
        path: of the file.
        key: of the matrix in it.

    Raises:
        TrainingError: the matrix is stored in another way, or is none of cells and genes.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: Path, key: str) -> None:
        import h5py

        with h5py.File(path, "r") as file:
            encoding = file[key].attrs.get("encoding-type", "array")
            if encoding not in ("array", "csr_matrix", "csc_matrix"):
                raise TrainingError(f"{path} holds {key} as {encoding}, expected csr_matrix, csc_matrix or array")
            shape = file[key].shape if encoding == "array" else file[key].attrs["shape"]
            if len(shape) != 2 or 0 in shape:
                raise TrainingError(f"{path} has {key} of shape {tuple(shape)}, expected (cells, genes)")
        self.path, self.key, self.shape = str(path.absolute()), key, tuple(map(int, shape))
        self._opened: Any = None
        self._opened_in = -1
        self._held: Any = None  # the matrix, if it is in memory
        stored = self._stored()
        self.sparse = encoding != "array"
        parts = [stored.group[name] for name in ("data", "indices")] if self.sparse else [stored]
        if self.sparse and stored.format == "csc":
            self._held = stored.to_memory().tocsr()
        elif sum(part.nbytes for part in parts) <= _IN_MEMORY:
            self._held = stored.to_memory() if self.sparse else stored[:]
        elif self.sparse:
            self._starts = stored.group["indptr"][:]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        if self._held is not None:
            picked = self._held[numbers].astype(np.float32)
        else:
            each, back = np.unique(numbers, return_inverse=True)  # HDF5 takes increasing rows
            picked = self._read(each).astype(np.float32)[back]
        return picked.toarray() if self.sparse else picked

    def _read(self, rows: np.ndarray) -> Any:
        """From the disk. Of a sparse matrix by its parts: AnnData's own way takes milliseconds before it begins."""
        stored = self._stored()
        if not self.sparse:
            return stored[rows]
        from scipy.sparse import csr_matrix

        places = [slice(*self._starts[row : row + 2]) for row in rows]
        parts = (stored.group["data"], stored.group["indices"])
        data, indices = (np.concatenate([part[:0], *[part[place] for place in places]]) for part in parts)
        starts = np.cumsum([0, *[place.stop - place.start for place in places]])
        return csr_matrix((data, indices, starts), shape=(len(rows), self.shape[1]))

    def values(self, limit: int | None = None) -> Any:
        """The stored values in pieces, all or about the first so many; of a sparse matrix those that are not zero."""
        stored = self._stored() if self._held is None else self._held
        if self.sparse:
            stored = stored.group["data"] if self._held is None else stored.data
        width = 1 if self.sparse else self.shape[1]
        step = max(1, min(_CHECKED_AT_ONCE, limit or _CHECKED_AT_ONCE) // width)
        for start in range(0, step if limit else stored.shape[0], step):
            yield np.asarray(stored[start : start + step])

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: each opens the file itself."""
        return self.__dict__ | {"_opened": None, "_opened_in": -1}

    def _stored(self) -> Any:
        """The matrix on the disk: h5py's Dataset, or AnnData's sparse one."""
        import h5py
        from anndata.io import sparse_dataset

        if self._opened is None or self._opened_in != os.getpid():  # a handle is not for use after a fork
            matrix = h5py.File(self.path, "r")[self.key]
            self._opened = matrix if hasattr(matrix, "dtype") else sparse_dataset(matrix)
            self._opened_in = os.getpid()
        return self._opened


def read_cells(path: Path, counts: bool, condition: tuple[str, ...], label: str | None, layer: str | None) -> Read:
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
    read_elem = imported("anndata.io", "cells are read by anndata", '"fastvae-kernels[cells]"').read_elem
    import h5py  # which anndata requires

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
    x = StoredRows(path, keys[name])
    value_range = _checked(x, f"{path} ({keys[name]})", counts)
    if label is None:
        label = next((usual for usual in USUAL_LABELS if usual in obs and usual not in condition), None)
        notes += [] if label is None else [f"labels are the column {label}"]
    labels = None if label is None else _column(obs, "--label", label, path)
    conditions = joined([_column(obs, "--condition", name, path) for name in condition], condition, len(obs))
    return Read(x, labels, Layout("values"), value_range, conditions, 1.0, tuple(notes))


def _layer_of_counts(path: Path, keys: dict[str, str]) -> str:
    for name in ("X", "counts", "raw"):
        if name in keys and all(_are_counts(part) for part in StoredRows(path, keys[name]).values(limit=100_000)):
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
