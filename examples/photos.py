"""Train `fastvae train --model conv` on colour images and compare it with principal components on held-out ones.

python -m examples.photos [--data photos|shapes] [--latents 32] [--quality draft|good|best] [--output photos]

``photos`` are crops of 128x128 pixels, halved to 64x64, of the two photos inside scikit-learn: those to train on lie in
the left 70% of a photo, those that are held out in the rest. ``shapes`` are made-up discs on plain backgrounds in
saturated colours. Printed are the mean squared error of reconstructions, that of as many principal components fitted on
the same training images, and the correlation of colour (each channel less the pixel's grey) with the data; the numbers
and the time go to numbers.json, originals, reconstructions, those of the components and samples to comparison.png.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastvae.__main__ import main as fastvae
from fastvae.files import save_json, whole_file
from fastvae.training.figures import image_grid
from fastvae.training.saved_run import find_checkpoint, read_checkpoint

SIDE, CROP = 64, 128
LEFT = 0.7
HELD_OUT = 200
ERROR_GOAL, COLOUR_GOAL = 0.75, 0.95
"""At most this part of the components' error, at least this correlation."""
_SHOWN = 10


class Result(NamedTuple):
    error: float
    """Mean squared error a value, of images in [0, 1]."""
    components_error: float
    colour_correlation: float
    components_colour_correlation: float


def photo_crops(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Crops to train on and held-out ones, (N, 3, 64, 64) uint8, half of them from each photo."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise SystemExit(f'{error}: pip install "fastvae-kernels[train]" brings the photos') from None
    random = np.random.default_rng(seed)
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for photo in load_sample_images().images:
        cut = round(LEFT * photo.shape[1])
        train += [_crop(photo[:, :cut], random) for _ in range(rows // 2)]
        held_out += [_crop(photo[:, cut:], random) for _ in range(HELD_OUT // 2)]
    return np.stack(train), np.stack(held_out)


def _crop(photo: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random square of a photo (H, W, 3) at half its resolution, (3, 64, 64)."""
    top, left = (int(random.integers(0, size - CROP + 1)) for size in photo.shape[:2])
    square = photo[top : top + CROP, left : left + CROP].astype(np.float32)
    halved = square.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    return np.rint(halved).astype(np.uint8).transpose(2, 0, 1)


def shapes(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One disc on a background, both of random saturated colours: as `photo_crops`."""
    random = np.random.default_rng(seed)
    down, right = np.mgrid[:SIDE, :SIDE]
    made = np.empty((rows + HELD_OUT, 3, SIDE, SIDE), dtype=np.uint8)
    for image in made:
        background, colour = (random.permutation([random.integers(0, 60), random.integers(0, 256), 255]) for _ in "12")
        radius = random.uniform(8, 22)
        y, x = random.uniform(16, 48, 2)
        image[:] = background[:, None, None]
        image[:, (down - y) ** 2 + (right - x) ** 2 < radius**2] = colour[:, None]
    return made[:rows], made[rows:]


def component_reconstructions(train: np.ndarray, held_out: np.ndarray, count: int) -> np.ndarray:
    """Held-out images from their first ``count`` principal components of the training images, in [0, 1]."""
    x, y = (part.reshape(len(part), -1).astype(np.float32) / 255 for part in (train, held_out))
    mean = x.mean(0)
    x = x - mean
    # Of the smaller of the two Gram matrices.
    if len(x) <= x.shape[1]:
        _, vectors = np.linalg.eigh(x @ x.T)
        axes = vectors[:, -count:].T @ x
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    else:
        _, vectors = np.linalg.eigh(x.T @ x)
        axes = vectors[:, -count:].T
    return ((y - mean) @ axes.T @ axes + mean).clip(0, 1).reshape(held_out.shape)


def colour_correlation(images: np.ndarray, others: np.ndarray) -> float:
    """Correlation of channel values less the grey of their pixel, (N, 3, H, W) each."""
    one, other = (part - part.mean(1, keepdims=True) for part in (images, others))
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@torch.no_grad()
def compare(run: Path, train: np.ndarray, held_out: np.ndarray) -> tuple[Result, Tensor]:
    """The numbers of a finished run, and a sheet of images (rows, columns, 3) uint8."""
    model = read_checkpoint(find_checkpoint(run)).model()
    assert isinstance(model.latent_shape, tuple)
    originals = held_out.astype(np.float32) / 255
    batches = torch.from_numpy(originals).split(50)
    came = torch.cat([model.reconstruct(batch) for batch in batches]).clamp(0, 1).numpy()
    components = component_reconstructions(train, held_out, model.latent_shape[0])
    result = Result(
        float(np.square(came - originals).mean()), float(np.square(components - originals).mean()),
        colour_correlation(came, originals), colour_correlation(components, originals),
    )  # fmt: skip
    some = np.random.default_rng(0).permutation(len(originals))[:_SHOWN]
    shown = np.concatenate([part[some] for part in (originals, came, components)])
    samples = model.generate(4 * _SHOWN, seed=0)
    return result, image_grid(torch.cat([torch.from_numpy(shown), samples]).clamp(0, 1), _SHOWN)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.photos", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=("photos", "shapes"), default="photos")
    parser.add_argument("--rows", type=int, default=None, help="images to train on (default: 4000 crops, 240 shapes)")
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--quality", choices=("draft", "good", "best"), default="good")
    parser.add_argument("--output", type=Path, default=None, help="folder for the data, the run and the comparison")
    options, others = parser.parse_known_args(arguments)  # the others are options of `fastvae train`
    output = options.output or Path(options.data)
    rows = options.rows or (4000 if options.data == "photos" else 240)
    train, held_out = photo_crops(rows) if options.data == "photos" else shapes(rows)
    data, run = output / "train.npy", output / "run"
    with whole_file(data) as unfinished:
        np.save(unfinished, train)
    since, cpu = time.perf_counter(), _cpu_seconds()
    status = fastvae([
        "train", f"--data={data}", "--model=conv", f"--latent-dim={options.latents}", f"--quality={options.quality}",
        f"--output={run}", "--flip=true", "--rotate=true", *others,
    ])  # fmt: skip
    if status:
        return status
    seconds, cpu = time.perf_counter() - since, _cpu_seconds() - cpu
    result, sheet = compare(run, train, held_out)
    with whole_file(output / "comparison.png") as unfinished:
        Image.fromarray(sheet.numpy()).save(unfinished)
    save_json({**result._asdict(), "seconds": seconds, "cpu_seconds": cpu, "train_rows": rows}, output / "numbers.json")
    for line in report(result, options.latents):
        print(line)
    print(f"{seconds:.0f} s, {cpu:.0f} s of CPU time; {output / 'comparison.png'}: originals, reconstructions, those of"
          " the components, samples")  # fmt: skip
    return 0


def report(result: Result, latents: int) -> list[str]:
    """What was measured, and whether it is as good as it should be."""
    ratio = result.error / result.components_error
    colour = result.colour_correlation
    return [
        f"held-out error {result.error:.5f}, of {latents} principal components {result.components_error:.5f}: ratio"
        f" {ratio:.3f}, goal {ERROR_GOAL} {'reached' if ratio <= ERROR_GOAL else 'MISSED'}",
        f"colour correlation {colour:.3f}, of the components {result.components_colour_correlation:.3f}:"
        f" goal {COLOUR_GOAL} {'reached' if colour >= COLOUR_GOAL else 'MISSED'}",
    ]


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
