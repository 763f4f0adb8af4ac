"""Checkpoints, written atomically, and the callbacks that write them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..files import whole_file
from .lightning import LightningModule, Trainer
from .saved_run import BEST, FOLDER, LAST

__all__ = ["WholeFiles", "checkpoint_callbacks"]


class WholeFiles(TorchCheckpointIO):
    """Writes a temporary file and renames it: after a kill or on a full disk the previous checkpoint is still whole."""

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
    """Restores the best bound so far also after the folder of the run was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str | None) -> str | None:
            return path and str(Path(str(self.dirpath)) / Path(path).name)

        paths = {name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path")}
        of_best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": of_best})


class _BetweenEpochs(ModelCheckpoint):
    """Does not save after the last batch of an epoch, as a run resumed there would skip the validation after it,
    nor while gradients are being accumulated, as a checkpoint does not hold them."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _AfterEpochs(ModelCheckpoint):
    """A class of its own, so that Lightning does not take it for one that a user adds."""
