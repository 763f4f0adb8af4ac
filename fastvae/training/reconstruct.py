"""``fastvae reconstruct``: E[x|z] at the mean of q(z|x), for every row of data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jsonargparse.typing import PositiveInt

from ..files import save_figure, whole_file
from . import figures
from .datasets import DATA_HELP
from .encode import in_batches
from .errors import TrainingError
from .saved_model import PARTS, load_model, output_path, rows_of, saved_model_parser
from .statistics import value_range

__all__ = ["reconstruct"]


@torch.no_grad()
def reconstruct(arguments: Sequence[str]) -> None:
    """Run ``fastvae reconstruct`` with these arguments; errors as of `fastvae.training.train.train`."""
    parser = saved_model_parser("reconstruct", "Data through the latents and back: E[x|z] at the mean of q(z|x).")
    parser.add_argument("--data", type=str | None, default=None, help=f"other data than those of training: {DATA_HELP}")
    parser.add_argument("--part", choices=PARTS, default="held-out", help="of the data")
    parser.add_argument("--rows", type=PositiveInt | None, default=None, help="only so many (default of a .png: 40)")
    parser.add_argument(
        "--output", type=str, default="reconstructions.npy",
        help="a .npy file (N, *shape), or for images a .png: rows of the data above rows of their reconstructions",
    )  # fmt: skip
    options = parser.parse_args(list(arguments))
    output = output_path(options.output, ".npy", ".png")
    run, model = load_model(options.checkpoint, options.device)
    shape = run.recipe.event_shape
    if output.suffix == ".png" and not figures.are_images(shape):
        raise TrainingError(f"the data have shape {shape}, no image: --output reconstructions.npy")
    samples, _ = rows_of(run, options.data, options.part)
    rows = options.rows or (40 if output.suffix == ".png" else None)
    if rows is not None:
        samples = samples.first(rows)
    batches = in_batches(run, samples, next(model.parameters()).device)
    if output.suffix == ".npy":
        with whole_file(output) as unfinished:
            # Written as it is computed: the reconstructions of many cells are dense, and may not fit into memory.
            written = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(samples), *shape))
            start = 0
            for x, given in batches:
                came = model.reconstruct(x, **given).float().cpu()
                written[start : start + len(came)] = came.numpy()
                start += len(came)
            written.flush()
            del written  # Windows replaces no file that is mapped
    else:
        pairs = [(x.cpu(), model.reconstruct(x, **given).float().cpu()) for x, given in batches]
        originals, came = (torch.cat(part) for part in zip(*pairs, strict=True))
        low, high = run.settings.get("value_range") or value_range(originals)
        shown, made = (figures.displayable(images, low, high) for images in (originals, came))
        save_figure(figures.reconstructions(shown, made), output)
    print(f"Wrote {output}: {len(samples):,} reconstructions of shape {'x'.join(map(str, shape))}")
