"""What a run leaves in its folder beside the checkpoints: the history in each of them, pictures and a report."""

from __future__ import annotations

import functools
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, Timer, TQDMProgressBar
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from ..files import save_figure
from ..monitors import plot_kl_per_latent
from ..nn import ConditionalVAE
from . import data_figures, figures
from .datasets import Source, fingerprint
from .figures import are_images
from .lightning import Callback, LightningModule, Trainer, logs_now
from .model_config import ModelConfig
from .module import VAEModule
from .report import best_epoch, bound_of, write_report
from .saved_run import RUN
from .statistics import value_range

__all__ = ["Lines", "Pictures", "ProgressBar", "Record", "Speed", "TimeLimit"]

SHOWN = 40
SAMPLES = 100


class Record(Checkpoint):
    """The history of a run, a row an epoch; it and all that the model is built from go into every checkpoint.

    A subclass of Checkpoint, because Lightning calls those after the module's hooks, which log the last numbers of an
    epoch. In the list of callbacks it comes before the checkpoints that save.
    """

    def __init__(self, recipe: ModelConfig, settings: Mapping[str, Any], source: Source) -> None:
        self.recipe = recipe
        self.settings = dict(settings)
        self.of_data = {
            "fingerprint": fingerprint(source), "train_rows": len(source.train), "label_names": source.label_names,
            "condition_names": source.names_of_given,
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
        # Checked numbers have types of the parser, which reading a checkpoint should not need.
        checkpoint[RUN] = json.loads(json.dumps(run))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint[RUN]["history"])


class Speed(Callback):
    """Logs ``samples_per_second``, of all devices together."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._rows = time.perf_counter(), 0

    on_validation_end = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._rows += batch.batch_rows
        if logs_now(trainer):
            now = time.perf_counter()
            pl_module.log("samples_per_second", self._rows / (now - self._since), prog_bar=True, batch_size=1)
            self._since, self._rows = now, 0


class TimeLimit(Timer):
    """Limits the time of each start of a run, without that of earlier starts; it stops at the end of an epoch."""

    def on_fit_start(self, trainer: Trainer, *others: Any) -> None:
        """Unlike Timer's, without a check of the time: each start runs at least one epoch."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class ProgressBar(TQDMProgressBar):
    """A progress bar for each epoch, with the metrics."""

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
    """Prints a line for about twenty epochs of the run, where output is no terminal and has no progress bar."""

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
        self.source = source._replace(held_out=source.held_out.first(500))

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
            value_range = self.record.settings.get("value_range")
            drawn = draw(module, self.folder / "pictures", self.source, self.record.history, value_range)
        finally:
            module.train(training)
        write_report(
            self.folder / "report.html", title=f"{self.record.settings['model']} on {self.record.settings['data']}",
            summary=_summary(self.record.history), settings=self.record.settings, pictures=drawn,
            history=self.record.history, commands=_commands(self.folder, are_images(self.source.held_out.event_shape)),
        )  # fmt: skip


@torch.no_grad()
def draw(
    module: VAEModule,
    folder: Path,
    source: Source,
    history: list[dict[str, float]],
    shown_range: Sequence[float] | None = None,
) -> list[tuple[Path, str]]:
    """Write pictures of the held-out rows; their paths, with a caption each.

    ``shown_range`` is drawn as black to white.
    """
    drawn: list[tuple[Any, str, str]] = [
        (figure, f"curve-{name}", _CURVES[name]) for name, figure in figures.curves(history).items()
    ]
    if module.kl_per_latent is not None:
        figure = plot_kl_per_latent(module.kl_per_latent)
        drawn.append((figure, "kl", "The KL of each latent on the held-out data: which of them carry anything"))
    held = source.held_out
    x = held.rows(np.arange(len(held))).to(next(module.parameters()))
    labels, classes = (None if numbers is None else torch.from_numpy(numbers) for numbers in (held.labels, held.given))
    given: dict[str, Any] = {}
    if isinstance(module.model, ConditionalVAE) and classes is not None:
        given["condition"] = classes.to(x.device)
    if are_images(held.event_shape):
        drawn += _of_images(module, x, given, shown_range or value_range(x))
    else:
        drawn += data_figures.of_values(module.model, x, given, source.kind, labels, source.label_names or ())
    paths = []
    for figure, name, caption in drawn:
        save_figure(figure, folder / f"{name}.png")
        paths.append((folder / f"{name}.png", caption))
    return paths


_CURVES = {
    "bound": "The negative bound in nats a sample",
    "terms": "Its two terms on held-out data",
    "units": "Latents whose posterior mean varies over the held-out data",
}


def _of_images(
    module: VAEModule, x: Tensor, given: dict[str, Any], shown_range: Sequence[float]
) -> list[tuple[Any, str, str]]:
    model = module.model
    conditional = getattr(model, "num_classes", None)
    low, high = shown_range
    eye = functools.partial(figures.displayable, low=low, high=high)
    shown = x[:SHOWN]
    of_shown: dict[str, Any] = {name: value[:SHOWN] for name, value in given.items()}
    wanted: dict[str, Any] = (
        {} if conditional is None else {"condition": torch.arange(SAMPLES, device=x.device) % conditional}
    )
    drawn: list[tuple[Any, str, str]] = [
        (
            figures.reconstructions(eye(shown), eye(model.reconstruct(shown, **of_shown))),
            "reconstructions", "Held-out images (upper rows) and their reconstructions (lower rows)",
        ),
        (
            figures.samples(eye(model.generate(SAMPLES, seed=0, **wanted))),
            "samples", "New images: the means of p(x|z) at z drawn from the prior",
        ),
    ]  # fmt: skip
    walked = figures.walk_latents(model, x, figures.WALK, 10, **given)
    if walked is not None:
        walks, carried = walked
        caption = "One image, one latent changed at a time: those that carry most"
        drawn.append((figures.traversals(eye(walks), figures.WALK, carried), "traversals", caption))
    return drawn


def _summary(history: list[dict[str, float]]) -> dict[str, str]:
    last, best = history[-1], best_epoch(history)
    summary = {"epochs": f"{last['epoch']:.0f}", "steps": f"{last['step']:,.0f}"}
    if best is not None:
        row = history[best]
        name = bound_of(history)
        summary[f"best held-out {name.removeprefix('val_').upper()}"] = (
            f"{row[name]:.2f} nats (epoch {row['epoch']:.0f})"
        )
    if "val_kl" in last:
        summary["reconstruction, KL"] = f"{last['val_reconstruction']:.2f}, {last['val_kl']:.2f} nats"
    if "active_units" in last:
        summary["active units"] = f"{last['active_units']:.0f}"
    return summary


def _commands(path: Path, images: bool) -> list[tuple[str, str]]:
    folder = shlex.quote(str(path))
    new = ("new images", "samples.png") if images else ("new data", "samples.npy")
    return [
        ("ELBO and log-likelihood on held-out data", f"fastvae evaluate {folder}"),
        (new[0], f"fastvae sample {folder} --n 64 --output {new[1]}"),
        ("the latents of all data", f"fastvae encode {folder} --output latents.npy"),
        ("go on training", f"fastvae train --resume {folder}"),
    ]
