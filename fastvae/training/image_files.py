"""Images as one array of 8-bit levels: of a folder, or one by one as a dataset gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .errors import TrainingError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY_MODES = ("1", "L", "LA", *_SIXTEEN_BITS)
_ORIENTATION = 0x0112  # of EXIF: from 5 on, width and height are exchanged


def read_folder(folder: Path, image_size: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """All images below the folder in the order of their paths, (N, C, H, W) uint8, and the names of their labels.

    The label of an image is the subfolder that it lies in; images beside subfolders mean that there are no labels.
    Files and folders whose names begin with a dot are passed over: programs leave copies there. Grey if all are grey,
    else RGB; 16 bits are scaled to 8. What is transparent lies on white. Rotated as the camera says.

    Raises:
        TrainingError: there are none, one cannot be read, they differ in size, or they do not fit into memory.
    """
    paths = sorted(path for path in folder.rglob("*") if _is_image(path, folder))
    if not paths:
        raise TrainingError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    images = _stack_files(paths, str(folder), image_size)
    parts = [path.relative_to(folder).parts for path in paths]
    labels = np.array([of_path[0] for of_path in parts]) if all(len(of_path) > 1 for of_path in parts) else None
    return images, labels


def stack_one_by_one(
    images: Iterable[tuple[str, Image.Image]], count: int, where: str, image_size: int | None
) -> np.ndarray:
    """(N, C, H, W) uint8 of ``count`` named images, of which one at a time is held at its own size.

    Raises:
        TrainingError: as `read_folder`.
    """
    _check_pillow()
    stacked, first = np.empty((0, 0, 0, 0), dtype=np.uint8), ""
    for row, (name, image) in enumerate(_with_bar(images, count)):
        levels = _levels(name, image, image.mode in _GREY_MODES, image_size)
        if row == 0:
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


def _stack_files(paths: Sequence[Path], where: str, image_size: int | None) -> np.ndarray:
    _check_pillow()
    size, grey = _headers(paths, where, image_size)
    shape = (1 if grey else 3, size[1], size[0])
    _check_memory(len(paths) * int(np.prod(shape)), where)
    stacked = np.empty((len(paths), *shape), dtype=np.uint8)
    for row, path in enumerate(_with_bar(paths, len(paths))):
        levels = _levels(str(path), path, grey, image_size)
        if levels.shape != shape:  # turned by a note that stands behind the pixels
            raise _different_sizes(where, str(paths[0]), size, str(path), levels.shape[:0:-1])
        stacked[row] = levels
    return stacked


def _headers(paths: Sequence[Path], where: str, image_size: int | None) -> tuple[tuple[int, int], bool]:
    """Width and height of all, as they will be; and whether all are grey. Nothing is decoded."""
    from PIL import Image

    size, grey = (0, 0), True
    for path in paths:
        try:
            with Image.open(path) as opened:
                width, height = opened.size
                # Of the base class: that of PNG would decode the image, to look for a note behind the pixels.
                if Image.Image.getexif(opened).get(_ORIENTATION, 1) >= 5:
                    width, height = height, width
                grey = grey and opened.mode in _GREY_MODES
        except Exception as error:
            raise _unreadable(str(path), error) from None
        came = (width, height) if image_size is None else (image_size, image_size)
        if path != paths[0] and came != size:
            raise _different_sizes(where, str(paths[0]), size, str(path), came)
        size = came
    return size, grey


def _levels(name: str, image: Path | Image.Image, grey: bool, image_size: int | None) -> np.ndarray:
    """(C, H, W) uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(image) if isinstance(image, Path) else image as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in (*_SIXTEEN_BITS, "F"):  # Pillow would cut them off at 255
                upright = Image.fromarray(_eight_bits(np.asarray(upright)))
            if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                paper = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(paper, upright)
            upright = upright.convert("L" if grey else "RGB")
            if image_size is not None:
                upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.LANCZOS)
            levels = np.asarray(upright)
    except Exception as error:
        raise _unreadable(name, error) from None
    return levels[None] if grey else levels.transpose(2, 0, 1)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its values go from {values.min()} to {values.max()}, expected 8 or 16 bits; .npy takes floats"
        )
    return np.rint(values / 257).astype(np.uint8)


def _unreadable(name: str, error: Exception) -> TrainingError:
    """For any error: what Pillow raises over a broken file is of many kinds, which depend on the format."""
    return TrainingError(f"{name} cannot be read as an image: {str(error) or type(error).__name__}")


def _different_sizes(
    where: str, first: str, size: tuple[int, ...], other: str, other_size: tuple[int, ...]
) -> TrainingError:
    """Of sizes (width, height)."""
    return TrainingError(
        f"{where} has images of different sizes: {first} is {size[0]}x{size[1]}, {other} is"
        f" {other_size[0]}x{other_size[1]}.\n--image-size 64 crops all to their middle square and scales it to 64x64."
    )


def _check_pillow() -> None:
    try:
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise TrainingError(f'images are read by Pillow ({error}): pip install "fastvae-kernels[train]"') from None


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
