"""``fastvae sample``: new data from a checkpoint, as a picture or an array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from PIL import Image
from torch import Tensor

from ..files import whole_file
from . import figures
from .errors import TrainingError
from .saved_model import class_number, load_model, output_path, saved_model_parser
from .saved_run import SavedRun
from .statistics import value_range

__all__ = ["sample"]


def sample(arguments: Sequence[str]) -> None:
    """Run ``fastvae sample`` with these arguments; errors as of `fastvae.training.train.train`."""
    parser = saved_model_parser("sample", "New data from a trained model.")
    parser.add_argument("--n", type=PositiveInt, default=64, help="how many")
    parser.add_argument("--output", type=str, default="samples.png", help="a .png (a grid of images) or a .npy file")
    parser.add_argument(
        "--label", type=str | None, default=None, help="of all, for a conditional model: its name or its number"
    )
    parser.add_argument(
        "--temperature", type=NonNegativeFloat, nargs="+", default=[1.0],
        help="factor of the prior's standard deviation; for hvae also one for each level, from the top down",
    )  # fmt: skip
    parser.add_argument("--draw", type=bool, default=False, help="draw x from p(x|z); its mean if false")
    parser.add_argument("--seed", type=NonNegativeInt, default=0)
    options = parser.parse_args(list(arguments))
    output = output_path(options.output, ".png", ".npy")
    run, model = load_model(options.checkpoint, options.device)
    if output.suffix == ".png" and not figures.are_images(run.recipe.event_shape):
        raise TrainingError(f"samples have shape {run.recipe.event_shape}, no image: --output samples.npy")
    condition = _labels(run, options.label, options.n, next(model.parameters()).device)
    with torch.no_grad():
        given: dict[str, Any] = {} if condition is None else {"condition": condition}
        try:
            temperature = options.temperature if len(options.temperature) > 1 else options.temperature[0]
            made = model.generate(options.n, seed=options.seed, sample=options.draw, temperature=temperature, **given)
        except ValueError as error:
            raise TrainingError(str(error)) from None
    made = made.float().cpu()
    _write(made, output, run.settings.get("value_range"))
    print(f"Wrote {output}: {options.n} samples of shape {'x'.join(map(str, run.recipe.event_shape))}")


def _labels(run: SavedRun, label: str | None, n: int, device: torch.device) -> Tensor | None:
    """One label for all, or each in turn."""
    known = run.recipe.num_classes
    if known is None:
        if label is not None:
            raise TrainingError(f"--label is {label}, but this {run.recipe.model} was trained without labels")
        return None
    every = torch.arange(n, device=device) % known
    return every if label is None else torch.full_like(every, class_number(run, label))


def _write(made: Tensor, output: Path, shown_range: Sequence[float] | None) -> None:
    """An array as it is; a picture pixel by pixel, with the range of the training data as black to white."""
    if output.suffix == ".npy":
        with whole_file(output) as unfinished:
            np.save(unfinished, made.numpy())
        return
    low, high = shown_range or value_range(made)
    grid = figures.image_grid(figures.displayable(made, low, high), columns=max(1, round(len(made) ** 0.5))).numpy()
    with whole_file(output) as unfinished:
        Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(unfinished)
