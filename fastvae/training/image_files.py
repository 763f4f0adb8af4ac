"""Images as one array of 8-bit levels: of a folder, or of any other list of Pillow's images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import TrainingError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")


def read_folder(folder: Path, image_size: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """All images below the folder in the order of their paths, (N, C, H, W) uint8, and the names of their labels.

    The label of an image is the subfolder that it lies in; images beside subfolders mean that there are no labels.
    Grey if all are grey, else RGB. What is transparent lies on white. Rotated as the camera says.

    Raises:
        TrainingError: there are none, one cannot be read, they differ in size, or they do not fit into memory.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise TrainingError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    images = stack_images(((str(path), path) for path in paths), str(folder), image_size, count=len(paths))
    parts = [path.relative_to(folder).parts for path in paths]
    labels = np.array([of_path[0] for of_path in parts]) if all(len(of_path) > 1 for of_path in parts) else None
    return images, labels


def stack_images(
    images: Iterable[tuple[str, Path | Image.Image]],
    where: str,
    image_size: int | None,
    count: int | None = None,
) -> np.ndarray:
    """(N, C, H, W) uint8 of named images, or of the files with these names.

    Raises:
        TrainingError: as `read_folder`.
    """
    try:
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise TrainingError(f'images are read by Pillow ({error}): pip install "fastvae-kernels[train]"') from None
    named = list(images)
    sizes, grey = _headers(named, image_size)
    (first, size), *others = sizes
    for name, other in others:
        if other != size:
            raise TrainingError(
                f"{where} has images of different sizes: {first} is {size[0]}x{size[1]}, {name} is"
                f" {other[0]}x{other[1]}.\n--image-size 64 crops all to their middle square and scales it to 64x64."
            )
    channels = 1 if grey else 3
    _check_memory(len(named) * channels * size[0] * size[1], where)
    stacked = np.empty((len(named), channels, size[1], size[0]), dtype=np.uint8)
    for row, (name, image) in enumerate(_with_bar(named)):
        stacked[row] = _levels(name, image, grey, image_size)
    return stacked


def _headers(
    named: Sequence[tuple[str, Path | Image.Image]], image_size: int | None
) -> tuple[list[tuple[str, tuple[int, int]]], bool]:
    """Name and size (width, height) of each, as it will be; and whether all are grey. Nothing is decoded."""
    sizes, grey = [], True
    for name, image in named:
        opened = _open(name, image)
        width, height = opened.size
        if opened.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        sizes.append((name, (width, height) if image_size is None else (image_size, image_size)))
        grey = grey and opened.mode in _GREY_MODES
        if isinstance(image, Path):
            opened.close()
    return sizes, grey


_ORIENTATION = 0x0112  # of EXIF: from 5 on, width and height are exchanged


def _open(name: str, image: Path | Image.Image) -> Image.Image:
    from PIL import Image

    if not isinstance(image, Path):
        return image
    try:
        return Image.open(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{name} cannot be read as an image: {error}") from None


def _levels(name: str, image: Path | Image.Image, grey: bool, image_size: int | None) -> np.ndarray:
    """(C, H, W) uint8."""
    from PIL import Image, ImageOps

    try:
        with _open(name, image) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("I", "I;16", "F"):  # 16 bits: Pillow would cut them off at 255
                upright = Image.fromarray((np.asarray(upright, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
            if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                paper = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(paper, upright)
            upright = upright.convert("L" if grey else "RGB")
            if image_size is not None:
                upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.LANCZOS)
            levels = np.asarray(upright)
    except (OSError, ValueError, SyntaxError) as error:
        raise TrainingError(f"{name} cannot be read as an image: {error}") from None
    return levels[None] if grey else levels.transpose(2, 0, 1)


def _check_memory(size: int, where: str) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if size > total // 2:
        raise TrainingError(
            f"the images of {where} would take {size / 2**30:.1f} GiB, more than half of this machine's memory:\n"
            "take a smaller --image-size, or write them to a .npy file, which is read as it is needed"
        )


def _with_bar(
    named: Sequence[tuple[str, Path | Image.Image]],
) -> Iterator[tuple[str, Path | Image.Image]]:
    """A bar on terminals, for those that take a while."""
    from tqdm import tqdm

    return iter(tqdm(named, desc="reading images", unit="image", leave=False, delay=2, disable=None))
