"""Checkpoints that are whole or not there, and what a run can be taken up from."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..files import whole_file
from ..nn.model import LatentVariableModel
from .errors import TrainingError
from .lightning import LightningModule, Trainer
from .recipes import Recipe

RUN = "fastvae_run"
"""What of a checkpoint is ours: how to build the model, the settings of the run, and its history."""
FOLDER, BEST, LAST = "checkpoints", "best", "last"


class WholeFiles(TorchCheckpointIO):
    """Writes beside the file and puts the whole in its place: whoever is killed or out of disk leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # Through memory, so that a full disk is an OSError that says so.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with whole_file(Path(path)) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())


def checkpoint_callbacks(folder: Path, monitor: str, every_steps: int | None) -> list[ModelCheckpoint]:
    """``best`` by the held-out bound; ``last`` after every epoch, and in between where that is asked for."""
    place: dict[str, Any] = {
        "dirpath": str(folder / FOLDER),
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    best = _Best(filename=BEST, monitor=monitor, mode="max", save_on_train_epoch_end=True, **place)
    last = _AfterEpochs(filename=LAST, every_n_epochs=1, save_on_train_epoch_end=True, **place)
    if every_steps is None:
        return [best, last]
    return [best, last, _BetweenEpochs(filename=LAST, every_n_train_steps=every_steps, **place)]


class _Best(ModelCheckpoint):
    """Knows the best bound so far in whatever folder the run has been moved to."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str | None) -> str | None:
            return path and str(Path(str(self.dirpath)) / Path(path).name)

        paths = {name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path")}
        of_best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": of_best})


class _BetweenEpochs(ModelCheckpoint):
    """Not after the last batch of an epoch: a run taken up from there would go without the validation that follows. And
    not while gradients are being accumulated, which a checkpoint does not hold."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _AfterEpochs(ModelCheckpoint):
    """A class of its own, by which Lightning tells it from one that a user adds."""


def last_checkpoint(folder: Path) -> Path | None:
    path = folder / FOLDER / f"{LAST}.ckpt"
    return path if path.exists() else None


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
    recipe: Recipe
    settings: dict[str, Any]
    fingerprint: str
    """Of the data."""
    train_rows: int
    label_names: tuple[str, ...] | None
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
    return SavedRun(
        path, Recipe.from_saved(run["recipe"]), run["settings"], run["fingerprint"], run["train_rows"],
        None if run["label_names"] is None else tuple(run["label_names"]), run["history"],
        checkpoint["state_dict"], checkpoint["epoch"], checkpoint["global_step"],
    )  # fmt: skip
