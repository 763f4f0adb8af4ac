"""``fastvae sample``: new data from a checkpoint, as a picture or an array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from ..files import save_figure, whole_file
from . import pictures
from .checkpoints import SavedRun
from .errors import TrainingError
from .saved_model import load_model, saved_model_parser


def sample(arguments: Sequence[str]) -> None:
    """Run ``fastvae sample`` with these arguments.

    Raises:
        TrainingError, OSError: what is wrong, and what to do.
        SystemExit: from the parser.
    """
    parser = saved_model_parser("sample", "New data from a trained model.")
    parser.add_argument("--n", type=PositiveInt, default=64, help="how many")
    parser.add_argument("--output", type=str, default="samples.png", help="a .png (a grid of images) or a .npy file")
    parser.add_argument("--label", type=NonNegativeInt | None, default=None, help="of all, for a conditional model")
    parser.add_argument("--draw", type=bool, default=False, help="draw x from p(x|z); its mean if false")
    parser.add_argument("--seed", type=NonNegativeInt, default=0)
    options = parser.parse_args(list(arguments))
    output = Path(options.output)
    if output.suffix not in (".png", ".npy"):
        raise TrainingError(f"--output is {output}, expected a name that ends in .png or .npy")
    run, model = load_model(options.checkpoint, options.device)
    image = len(run.recipe.event_shape) == 3 and run.recipe.event_shape[0] in (1, 3)
    if output.suffix == ".png" and not image:
        raise TrainingError(f"samples have shape {run.recipe.event_shape}, no image: --output samples.npy")
    condition = _labels(run, options.label, options.n, next(model.parameters()).device)
    with torch.no_grad():
        given: dict[str, Any] = {} if condition is None else {"condition": condition}
        made = model.generate(options.n, seed=options.seed, sample=options.draw, **given).float().cpu()
    _write(made, output)
    print(f"Wrote {output}: {options.n} samples of shape {'x'.join(map(str, run.recipe.event_shape))}")


def _labels(run: SavedRun, label: int | None, n: int, device: torch.device) -> Tensor | None:
    """One label for all, or each in turn."""
    known = run.recipe.num_classes
    if known is None:
        if label is not None:
            raise TrainingError(f"--label is {label}, but this {run.recipe.model} was trained without labels")
        return None
    if label is not None and label >= known:
        raise TrainingError(f"--label is {label}, expected 0 to {known - 1}")
    every = torch.arange(n, device=device) % known
    return every if label is None else torch.full_like(every, label)


def _write(made: Tensor, output: Path) -> None:
    if output.suffix == ".npy":
        with whole_file(output) as unfinished:
            np.save(unfinished, made.numpy())
        return
    made = pictures.displayable(made, made)
    save_figure(pictures.samples(made, columns=max(1, round(len(made) ** 0.5)), ink=pictures.is_ink(made)), output)
