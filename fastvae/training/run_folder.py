"""What a run leaves in its folder beside the checkpoints: the history in each of them, pictures and a report."""

from __future__ import annotations

import functools
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint, Timer, TQDMProgressBar
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from ..files import save_figure
from ..monitors import plot_kl_per_latent
from . import pictures
from .checkpoints import RUN
from .lightning import Callback, LightningModule, Trainer, logs_now
from .module import VAEModule
from .recipes import Recipe
from .report import best_epoch, write_report
from .sources import Source, fingerprint

SHOWN = 40
SAMPLES = 100


class Record(Checkpoint):
    """The history of a run, a row an epoch; it and all that the model is built from go into every checkpoint.

    A Checkpoint, as Lightning calls those after the module's own hooks, which log the last numbers of an epoch; it is
    to stand before those that save.
    """

    def __init__(self, recipe: Recipe, settings: Mapping[str, Any], source: Source) -> None:
        self.recipe = recipe
        self.settings = dict(settings)
        self.of_data = {
            "fingerprint": fingerprint(source), "train_rows": len(source.train), "label_names": source.label_names
        }  # fmt: skip
        self.history: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        names = ("train_elbo", "train_iwae", "val_elbo", "val_reconstruction", "val_kl", "val_iwae", "active_units")
        metrics = trainer.callback_metrics
        self.history.append(row | {name: metrics[name].item() for name in names if name in metrics})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        run = {
            "recipe": self.recipe.saved(), "settings": self.settings, "history": self.history, **self.of_data
        }  # fmt: skip
        # Numbers that the parser has checked are of its own classes, which nobody should need to read a checkpoint.
        checkpoint[RUN] = json.loads(json.dumps(run))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint[RUN]["history"])


class Speed(Callback):
    """Logs ``samples_per_second``, of all devices together."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._rows = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._rows += batch.batch_rows
        if logs_now(trainer):
            now = time.perf_counter()
            pl_module.log("samples_per_second", self._rows / (now - self._since), prog_bar=True, batch_size=1)
            self._since, self._rows = now, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._rows = time.perf_counter(), 0


class TimeLimit(Timer):
    """Ends each start of a run after so long, when its epoch is over: what earlier starts took does not count."""

    def on_fit_start(self, trainer: Trainer, *others: Any) -> None:
        """Timer looks at the clock here too; but each start is to have one epoch at the least."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class ProgressBar(TQDMProgressBar):
    """One bar for the run's epoch, with the numbers that count."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {name: _short(value) for name, value in shown.items()}


def _short(value: Any) -> Any:
    """Whole numbers from 1000 on, four digits below."""
    if not isinstance(value, (int, float)):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"


class Lines(Checkpoint):
    """For where no terminal shows a bar: a line on about twenty epochs of the run."""

    def __init__(self, record: Record, epochs: int) -> None:
        self.record = record
        self.every = max(1, epochs // 20)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.record.history[-1]
        if trainer.is_global_zero and row["epoch"] % self.every == 0:
            numbers = ", ".join(f"{name} {value:.2f}" for name, value in row.items() if name not in ("epoch", "step"))
            print(f"epoch {row['epoch']:.0f}: {numbers}", flush=True)


class Pictures(Checkpoint):
    """Draws what the model does, and the report around it, each few epochs and at the end.

    Runs after the checkpoints of its epoch are written, in the first process only.
    """

    def __init__(self, folder: Path, source: Source, record: Record, every_epochs: int) -> None:
        self.folder = folder
        self.record = record
        self.every = every_epochs
        x = source.held_out
        rows = torch.arange(min(len(x), 500)).numpy()
        self.x = x.rows(rows)
        self.labels = None if x.labels is None else torch.from_numpy(x.labels[rows])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not last and self.every and (trainer.current_epoch + 1) % self.every == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or not self.record.history:
            return
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            return  # no process has all of the weights: `fastvae sample` draws from the checkpoint
        assert isinstance(module, VAEModule)
        training = module.training
        module.eval()
        try:
            drawn = draw(module, self.folder / "pictures", self.x, self.labels, self.record.history)
        finally:
            module.train(training)
        write_report(
            self.folder / "report.html", title=f"{self.record.settings['model']} on {self.record.settings['data']}",
            summary=_summary(self.record.history), settings=self.record.settings, pictures=drawn,
            history=self.record.history, commands=_commands(self.folder),
        )  # fmt: skip


@torch.no_grad()
def draw(
    module: VAEModule, folder: Path, x: Tensor, labels: Tensor | None, history: list[dict[str, float]]
) -> list[tuple[Path, str]]:
    """Write the pictures; where they are, with a caption each."""
    drawn: list[tuple[Any, str, str]] = [(pictures.curves(history), "curves", "Training, in nats a sample")]
    if module.kl_per_latent is not None:
        figure = plot_kl_per_latent(module.kl_per_latent)
        drawn.append((figure, "kl", "The KL of each latent on the held-out data: which of them carry anything"))
    if x.dim() == 4 and x.shape[1] in (1, 3):
        drawn += _of_images(module, x.to(module.device), labels)
    paths = []
    for figure, name, caption in drawn:
        save_figure(figure, folder / f"{name}.png")
        paths.append((folder / f"{name}.png", caption))
    return paths


def _of_images(module: VAEModule, x: Tensor, labels: Tensor | None) -> list[tuple[Any, str, str]]:
    model, ink = module.model, pictures.is_ink(pictures.displayable(x, x))
    conditional = getattr(model, "num_classes", None)
    given: dict[str, Any] = {} if conditional is None or labels is None else {"condition": labels.to(x.device)}
    eye = functools.partial(pictures.displayable, like=x)
    shown = x[:SHOWN]
    of_shown: dict[str, Any] = {name: value[:SHOWN] for name, value in given.items()}
    wanted: dict[str, Any] = (
        {} if conditional is None else {"condition": torch.arange(SAMPLES, device=x.device) % conditional}
    )
    drawn: list[tuple[Any, str, str]] = [
        (
            pictures.reconstructions(eye(shown), eye(model.reconstruct(shown, **of_shown)), ink=ink),
            "reconstructions", "Held-out images (upper rows) and their reconstructions (lower rows)",
        ),
        (
            pictures.samples(eye(model.generate(SAMPLES, seed=0, **wanted)), ink=ink),
            "samples", "New images: the means of p(x|z) at z drawn from the prior",
        ),
    ]  # fmt: skip
    walked = pictures.walk_latents(model, x, pictures.WALK, 10, **given)
    if walked is not None:
        walks, carried = walked
        caption = "One image, one latent changed at a time: those that carry most"
        drawn.append((pictures.traversals(eye(walks), pictures.WALK, carried, ink=ink), "traversals", caption))
    return drawn


def _summary(history: list[dict[str, float]]) -> dict[str, str]:
    last, best = history[-1], best_epoch(history)
    summary = {"epochs": f"{last['epoch']:.0f}", "steps": f"{last['step']:,.0f}"}
    if best is not None:
        row = history[best]
        summary["best held-out ELBO"] = f"{row['val_elbo']:.2f} nats (epoch {row['epoch']:.0f})"
    if "val_kl" in last:
        summary["reconstruction, KL"] = f"{last['val_reconstruction']:.2f}, {last['val_kl']:.2f} nats"
    if "active_units" in last:
        summary["active units"] = f"{last['active_units']:.0f}"
    return summary


def _commands(path: Path) -> list[tuple[str, str]]:
    folder = shlex.quote(str(path))
    return [
        ("ELBO and log-likelihood on held-out data", f"fastvae evaluate {folder}"),
        ("new images", f"fastvae sample {folder} --n 64 --output samples.png"),
        ("go on training", f"fastvae train --resume {folder}"),
    ]
