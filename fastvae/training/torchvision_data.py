"""``--data torchvision:NAME``: torchvision's data sets, with its own parts for training and testing."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..files import locked
from .errors import TrainingError, imported
from .samples import Samples

__all__ = ["download", "read_torchvision"]


def download(name: str, root: Path) -> None:
    """Download both parts, one process at a time.

    Raises:
        TrainingError: it failed, or there is no such set.
    """
    with locked(root / ".lock", wait=True):
        for train in (True, False):
            _part(name, root, train, download=True)


def read_torchvision(name: str, root: Path, image_size: int | None) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Both parts, images (N, C, H, W) uint8 with int64 labels, and the names of the labels 0 to K - 1.

    Raises:
        TrainingError: they cannot be read, or are not images of one size with labels.
    """
    parts = []
    for train in (True, False):
        dataset = _part(name, root, train, download=False)
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
    return Samples(x, labels), Samples(held_x, held_labels), tuple(map(str, names))


def _part(name: str, root: Path, train: bool, *, download: bool) -> Any:
    """torchvision's own dataset: of those with ``train=``, and those with ``split=``."""
    datasets = imported("torchvision.datasets", f"torchvision:{name} needs torchvision", "torchvision")
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
