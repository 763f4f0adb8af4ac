"""Images as one array of 8-bit levels: of a folder, or one by one as a dataset gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from .arrays import bits_of
from .errors import TrainingError, imported
from .layouts import Layout
from .samples import Read

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_folder", "stack_one_by_one"]

T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY_MODES = ("1", "L", "LA", *_SIXTEEN_BITS)
_ORIENTATION = 0x0112  # of EXIF: from 5 on, width and height are exchanged


def read_folder(folder: Path, image_size: int | None, skip_unreadable: bool = False) -> Read:
    """All images below the folder, (N, C, H, W) uint8 in the order of their paths, and the names of their labels.

    The label of an image is the subfolder that it lies in; images beside subfolders mean that there are no labels.
    Files and folders whose names begin with a dot are passed over: programs leave copies there. Grey if all are grey,
    else RGB. Of images of 16 bits the highest value of all tells how many are used: 10, 12, 14 or 16, which are scaled
    to 8. What is transparent lies on white. Rotated as the camera says.

    Args:
        skip_unreadable: leave out files that cannot be read, and name them in the notes.

    Raises:
        TrainingError: there are none, some cannot be read (all of them are named), they differ in size, or they do not
            fit into memory.
    """
    paths = sorted(path for path in folder.rglob("*") if _is_image(path, folder))
    if not paths:
        raise TrainingError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    imported("PIL", "images are read by Pillow", '"fastvae-kernels[train]"')
    unreadable: dict[str, str] = {}
    headers = _headers(paths, unreadable)
    if headers:
        if image_size is None:
            _check_sizes(headers, str(folder))
        bits, notes = _bits_of_files([path for path in headers if headers[path].mode in _SIXTEEN_BITS], unreadable)
        named = ((str(path), path) for path in headers)
        images = stack_one_by_one(named, len(headers), str(folder), image_size, bits, unreadable)
    if unreadable:
        _check_unreadable(unreadable, len(paths), skip_unreadable, str(folder))
        notes = (*notes, f"left out, as they cannot be read: {_listed(unreadable)}")
        images = images[[str(path) not in unreadable for path in headers]]
    parts = [path.relative_to(folder).parts for path in paths if str(path) not in unreadable]
    labels = np.array([of_path[0] for of_path in parts]) if all(len(of_path) > 1 for of_path in parts) else None
    return Read(images, labels, Layout("image"), (0.0, 1.0), notes=notes)


def _check_unreadable(unreadable: dict[str, str], count: int, skip: bool, where: str) -> None:
    if skip and len(unreadable) < count:
        return
    if len(unreadable) == count:
        raise TrainingError(f"none of the {count} images of {where} can be read: {_listed(unreadable)}")
    (first, why), more = next(iter(unreadable.items())), len(unreadable) - 1
    others = f" Nor can {more} other{'s' * (more > 1)}: {', '.join(list(unreadable)[1:])}." if more else ""
    raise TrainingError(
        f"{first} cannot be read as an image: {why}.{others}\nRepair or remove what is named, or leave it out by"
        " --skip-unreadable true"
    )


def _listed(unreadable: dict[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in unreadable.items())


def stack_one_by_one(
    images: Iterable[tuple[str, Path | Image.Image]],
    count: int,
    where: str,
    image_size: int | None,
    bits: int = 16,
    unreadable: dict[str, str] | None = None,
) -> np.ndarray:
    """(N, C, H, W) uint8 of ``count`` named images, of which one at a time is held at its own size.

    Args:
        bits: of images of 16.
        unreadable: names of images that cannot be read, with the reason; more are added, and their rows have no values.

    Raises:
        TrainingError: as `read_folder`; without ``unreadable``, of the first that cannot be read.
    """
    stacked, first = np.empty((count, 0, 0, 0), dtype=np.uint8), ""
    for row, (name, image) in enumerate(_with_bar(images, count)):
        if unreadable and name in unreadable:
            continue
        try:
            levels = _levels(image, image_size, bits)
        except Exception as error:
            if unreadable is None:
                raise TrainingError(f"{name} cannot be read as an image: {_why(error)}") from None
            unreadable[name] = _why(error)
            continue
        if not stacked.size:
            _check_memory(count * levels.size, where)
            stacked, first = np.empty((count, *levels.shape), dtype=np.uint8), name
        if levels.shape[1:] != stacked.shape[2:]:
            raise _different_sizes(where, first, stacked.shape[:1:-1], name, levels.shape[:0:-1])
        if len(levels) > stacked.shape[1]:  # the first in colour
            _check_memory(3 * stacked.size, where)
            stacked = stacked.repeat(3, axis=1)
        stacked[row] = levels
    if count == 0:
        raise TrainingError(f"{where} has no images")
    return stacked


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


class _Header(NamedTuple):
    width: int
    height: int
    mode: str


def _headers(paths: Sequence[Path], unreadable: dict[str, str]) -> dict[Path, _Header]:
    """Size and mode of those that can be read; why not, of the others. Nothing is decoded."""
    from PIL import Image

    headers = {}
    for path in paths:
        try:
            with Image.open(path) as opened:
                width, height = opened.size
                # Of the base class: that of PNG would decode the image, to look for a note behind the pixels.
                if Image.Image.getexif(opened).get(_ORIENTATION, 1) >= 5:
                    width, height = height, width
                headers[path] = _Header(width, height, opened.mode)
        except Exception as error:  # Pillow's are of many kinds, which depend on the format
            unreadable[str(path)] = _why(error)
    return headers


def _check_sizes(headers: dict[Path, _Header], where: str) -> None:
    """Before any image is decoded, which takes long."""
    (first, header), *others = headers.items()
    for path, other in others:
        if other[:2] != header[:2]:
            raise _different_sizes(where, str(first), header[:2], str(path), other[:2])


def _bits_of_files(paths: Sequence[Path], unreadable: dict[str, str]) -> tuple[int, tuple[str, ...]]:
    """How many bits the levels of 16-bit files have, and a note if there are fewer than 16."""
    from PIL import Image

    highest, widened = 0, True
    for path in paths:
        try:
            with Image.open(path) as opened:
                values = np.asarray(opened)
            highest = max(highest, int(values.max()))
            widened = widened and not (values % 257).any()  # 8 bits, made 16 by repeating them
        except Exception as error:
            unreadable[str(path)] = _why(error)
    bits = 16 if widened else bits_of(highest)
    note = f"files of 16 bits have levels up to {highest}, read as {bits} bits"
    return bits, () if bits == 16 else (note,)


def _levels(image: Path | Image.Image, image_size: int | None, bits: int) -> np.ndarray:
    """(C, H, W) uint8, grey if it is; ``bits`` are those of an image of 16."""
    from PIL import Image, ImageOps

    with Image.open(image) if isinstance(image, Path) else image as opened:
        grey = opened.mode in _GREY_MODES
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in (*_SIXTEEN_BITS, "F"):  # Pillow would cut them off at 255
            upright = Image.fromarray(_eight_bits(np.asarray(upright), bits))
        if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            paper = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(paper, upright)
        upright = upright.convert("L" if grey else "RGB")
        if image_size is not None:
            upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.LANCZOS)
        levels = np.asarray(upright)
    return levels[None] if grey else levels.transpose(2, 0, 1)


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its values go from {values.min()} to {values.max()}, expected 8 or 16 bits; .npy takes floats"
        )
    return np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _different_sizes(
    where: str, first: str, size: tuple[int, ...], other: str, other_size: tuple[int, ...]
) -> TrainingError:
    """Of sizes (width, height)."""
    return TrainingError(
        f"{where} has images of different sizes: {first} is {size[0]}x{size[1]}, {other} is"
        f" {other_size[0]}x{other_size[1]}.\n--image-size 64 crops all to their middle square and scales it to 64x64."
    )


def _check_memory(size: int, where: str) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if size > total // 2:
        raise TrainingError(
            f"the images of {where} would take {size / 2**30:.1f} GiB, more than half of this machine's memory:\n"
            "take a smaller --image-size, or write them to a .npy file, which is read as it is needed"
        )


def _with_bar(items: Iterable[T], count: int) -> Iterable[T]:
    """A bar on terminals, for those that take a while; none without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, desc="reading images", total=count, unit="image", leave=False, delay=2, disable=None)
    return bar
