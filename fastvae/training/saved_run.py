"""Saved runs, read without Lightning: what a checkpoint of ``fastvae train`` says, and the model that it holds."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..nn.model import LatentVariableModel
from .errors import TrainingError
from .model_config import ModelConfig

__all__ = ["BEST", "FOLDER", "LAST", "RUN", "SavedRun", "find_checkpoint", "load", "read_checkpoint"]

RUN = "fastvae_run"
"""Key of our part of a checkpoint: how to build the model, the settings of the run, and its history."""
FOLDER, BEST, LAST = "checkpoints", "best", "last"


def load(run_or_checkpoint: str | Path, *, device: torch.device | str = "cpu") -> LatentVariableModel:
    """The trained model of a run of ``fastvae train``, in eval mode.

    Args:
        run_or_checkpoint: the folder of a run, whose best checkpoint is taken, or a .ckpt file. Safe on files from
            elsewhere: only tensors and plain values are unpickled (``torch.load(weights_only=True)``), so that a file
            cannot run code.
        device: where the model is to be.

    Returns:
        A model of `fastvae.nn`, with ``encode``, ``reconstruct``, ``generate`` and ``elbo``. Inputs have the shape and
        the units of the training data: images as (B, C, H, W) with levels / 255, counts as they are.

    Raises:
        fastvae.training.TrainingError: there is no checkpoint, it is not whole, or not one of ``fastvae train``.

    >>> import fastvae
    >>> model = fastvae.load("runs/mnist5k-vae")  # doctest: +SKIP
    >>> images = model.generate(16, seed=0)  # doctest: +SKIP
    """
    return read_checkpoint(find_checkpoint(run_or_checkpoint)).model().to(device)


def find_checkpoint(given: str | Path) -> Path:
    """The file itself, or the best checkpoint in the folder of a run.

    Raises:
        TrainingError: there is none.
    """
    path = Path(given)
    if path.is_file():
        return path
    if not path.exists():
        raise TrainingError(f"{path} does not exist, expected a checkpoint or the folder of a run")
    for name in (BEST, LAST):
        found = path / FOLDER / f"{name}.ckpt"
        if found.exists():
            return found
    raise TrainingError(f"{path} has no checkpoint: no {FOLDER}/{BEST}.ckpt and no {FOLDER}/{LAST}.ckpt")


_FOREIGN = "{} is not a checkpoint of `fastvae train`: it does not say how to build the model"


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says of its run."""

    path: Path
    recipe: ModelConfig
    settings: dict[str, Any]
    fingerprint: str
    """Of the data."""
    train_rows: int
    label_names: tuple[str, ...] | None
    condition_names: tuple[str, ...] | None
    """Of the classes that a conditional model is given."""
    history: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    epoch: int
    step: int

    def model(self) -> LatentVariableModel:
        """The trained model, in eval mode on the CPU."""
        model = self.recipe.build()
        try:
            model.load_state_dict({name.removeprefix("model."): weight for name, weight in self.weights.items()})
        except RuntimeError as error:
            raise TrainingError(f"{self.path} does not fit its own description: {str(error).splitlines()[0]}") from None
        return model.eval()


def read_checkpoint(path: Path) -> SavedRun:
    """Only tensors and plain values are unpickled: a checkpoint from elsewhere cannot run code.

    Raises:
        TrainingError: the file is not whole, or not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # not of its contents
            raise
        if "Unsupported global" in str(error):
            raise TrainingError(_FOREIGN.format(path)) from None
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise TrainingError(
            f"{path} is not a whole checkpoint ({reason}).\n"
            f"Take the other one in its folder, {BEST}.ckpt or {LAST}.ckpt, or a copy."
        ) from None
    if not isinstance(checkpoint, dict) or RUN not in checkpoint:
        raise TrainingError(_FOREIGN.format(path))
    run = checkpoint[RUN]
    try:
        names, given = (
            None if came is None else tuple(came)
            for came in (run["label_names"], run.get("condition_names", run["label_names"]))
        )
        return SavedRun(
            path, ModelConfig.from_saved(run["recipe"]), run["settings"], run["fingerprint"], run["train_rows"], names,
            given, run["history"], checkpoint["state_dict"], checkpoint["epoch"], checkpoint["global_step"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(f"{path} describes no model of this version of fastvae: {error!r}") from None
