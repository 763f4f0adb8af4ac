"""``fastvae train``: the run that its options make."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..files import locked, whole_file
from ..kernels.backend import backends
from ..objectives import ELBO, IWAE
from ..schedules import linear_warmup
from .checkpoints import SavedRun, WholeFiles, checkpoint_callbacks, last_checkpoint, read_checkpoint
from .data import VAEDataModule
from .errors import TrainingError
from .lightning import Trainer
from .module import VAEModule
from .recipes import COUNTS, Recipe
from .run_folder import Lines, Pictures, ProgressBar, Record, Speed, TimeLimit
from .sources import BUILT_IN, Source, describe, fingerprint
from .train_options import TrainCLI

CONFIG = "config.yaml"


def train(arguments: Sequence[str]) -> None:
    """Run ``fastvae train`` with these arguments.

    Raises:
        TrainingError, OSError: what is wrong, and what to do.
        SystemExit: from the parser.
    """
    with _quiet():
        _run(TrainCLI(_with_settings_of_resumed(arguments)))


def _with_settings_of_resumed(arguments: Sequence[str]) -> list[str]:
    """``--resume FOLDER`` stands for the settings in the folder, before all that is given anew."""
    given = list(arguments)
    for place, argument in enumerate(given):
        folder = argument.partition("=")[2] if argument.startswith("--resume=") else None
        if argument == "--resume" and place + 1 < len(given):
            folder = given[place + 1]
        if folder is not None:
            if any(re.match(r"--output(=|$)", other) for other in given):
                raise TrainingError("--resume and --output were both given: a run goes on in its own folder")
            config = Path(folder) / CONFIG
            if not config.is_file():
                raise TrainingError(f"{folder} is no run to resume: it has no {CONFIG}")
            return ["--config", str(config), *given]
    return given


def _run(cli: TrainCLI) -> None:
    config = cli.config
    _check_options(config)
    folder = _folder(config)
    _absolute(config)
    checkpoint = last_checkpoint(folder) if config.resume is not None else None
    resumed = None if checkpoint is None else read_checkpoint(checkpoint)
    try:
        data, recipe, module = _built(config)
    except (ValueError, TypeError, OverflowError) as error:  # of options whose bounds the parser does not know
        raise TrainingError(str(error).splitlines()[0]) from None
    assert data.source is not None
    if resumed is not None:
        _check_resumed(resumed, recipe, config.batch_size, data.source)
    settings = _settings(cli) | {"likelihood": recipe.likelihood, "binarize": module.binarize}
    record = Record(recipe, settings, data.source)
    try:
        trainer = _trainer(cli, folder, module, record, data.source)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:  # Lightning's, of its options
        raise TrainingError(f"Lightning's Trainer refuses: {str(error).splitlines()[0]}") from None
    with _alone_in(folder, config.resume is None):
        if resumed is not None and len(resumed.history) >= config.max_epochs:
            _draw_again(trainer, module, data, resumed, record)
            print(f"{folder} has {len(resumed.history)} epochs, expected more by --max-epochs to train on")
            return
        if trainer.is_global_zero:
            with whole_file(folder / CONFIG) as unfinished:
                # Without --resume: whoever takes these settings for another run begins anew.
                begun = config.clone()
                begun.resume = None
                unfinished.write_text(cli.parser.dump(begun))
            _print_start(config, recipe, module, trainer, data.source, folder, checkpoint)
        # Stopped by hand, Lightning ends the process, or returns, as its version has it.
        with contextlib.suppress(SystemExit):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if trainer.interrupted:
        raise TrainingError(f"stopped; go on with: fastvae train --resume {shlex.quote(str(folder))}")
    if trainer.is_global_zero:
        _print_end(trainer, record, folder)


def _built(config: Any) -> tuple[VAEDataModule, Recipe, VAEModule]:
    """The data, read; and the model for data of their shape."""
    data = VAEDataModule(
        config.data, batch_size=config.batch_size, conditional=config.model == "cvae", held_out=config.held_out,
        image_size=config.image_size, root=config.data_root, counts=config.likelihood in COUNTS,
        workers=config.workers, seed=config.seed,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert data.source is not None
    recipe = _recipe(config, data.source)
    _check_values(recipe, data.source, config.data)
    module = VAEModule(
        recipe.build(config.seed), _objective(config, data), learning_rate=config.learning_rate,
        schedule=config.schedule, seed=config.seed,
        binarize=recipe.likelihood == "bernoulli" if config.binarize is None else config.binarize,
    )  # fmt: skip
    return data, recipe, module


@contextlib.contextmanager
def _alone_in(folder: Path, anew: bool) -> Iterator[None]:
    """No other process trains in the folder meanwhile, but for those that belong to this run."""
    if not _is_first_process():
        yield
        return
    with locked(folder / ".lock", wait=False) as alone:
        if not alone or (anew and (folder / CONFIG).exists()):
            raise TrainingError(f"another process trains in {folder}: choose another --output, or wait for it to end")
        yield


def _draw_again(trainer: Trainer, module: VAEModule, data: VAEDataModule, resumed: SavedRun, record: Record) -> None:
    """The pictures and the report of a complete run, which may have been killed before it had drawn them."""
    record.history, record.settings = resumed.history, resumed.settings
    module.load_state_dict(resumed.weights)
    trainer.validate(module, datamodule=data, verbose=False)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Pictures):
            callback.on_train_end(trainer, module)


def _check_resumed(run: SavedRun, recipe: Recipe, batch_size: int, source: Source) -> None:
    """The model is the same, and so is the place in the data that the run has come to."""
    what, differences = "another model", run.recipe.differences(recipe)
    rows = len(source.train)
    if not differences and (run.train_rows, run.settings["batch_size"]) != (rows, batch_size):
        what = "other batches"
        differences = [f"{run.train_rows} rows by {run.settings['batch_size']}, not {rows} rows by {batch_size}"]
    elif not differences and run.fingerprint != fingerprint(source):
        what, differences = "other data", ["they have changed since"]
    if differences:
        raise TrainingError(
            f"{run.path} is of {what}: {'; '.join(differences)}.\n"
            "Resume with the settings of the run, or train anew with another --output."
        )


def _folder(config: Any) -> Path:
    """Where the run is to be; nothing is there yet, unless it is resumed."""
    if config.resume is not None:
        config.output = config.resume
    elif config.output is None:
        config.output = str(Path("runs") / f"{Path(config.data.replace(':', '-')).stem}-{config.model}")
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file, expected a folder for the run: choose another --output")
    if config.resume is None and (folder / CONFIG).exists() and _is_first_process():
        raise TrainingError(
            f"{folder} holds a run already: go on with it by `fastvae train --resume {folder}`, or choose another"
            " --output"
        )
    return folder


def _is_first_process() -> bool:
    """Of those that Lightning or torchrun start; the others find what the first one has begun."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def _recipe(config: Any, source: Source) -> Recipe:
    shape = source.train.event_shape
    grey = len(shape) == 3 and shape[0] == 1
    likelihood = config.likelihood if config.likelihood != "auto" else "bernoulli" if grey else "gaussian"
    num_classes = None
    if config.model == "cvae":
        assert source.train.labels is not None
        assert source.held_out.labels is not None
        num_classes = 1 + max(int(source.train.labels.max()), int(source.held_out.labels.max()))
    return Recipe(
        config.model, likelihood, shape, config.latent_dim, config.hidden, config.channels, num_classes, config.prior,
        config.components,
    )  # fmt: skip


def _check_options(config: Any) -> None:
    """Options that would have no effect are refused, and so is a backend that is not there."""
    if config.model == "iwae":
        given = {"beta": config.beta != 1.0, "warmup-epochs": config.warmup_epochs, "free-bits": config.free_bits}
        given["capacity"] = config.capacity is not None
        for name, is_given in given.items():
            if is_given:
                raise TrainingError(f"--{name} shapes the KL of the ELBO, and --model iwae has none: leave it out")
    elif config.dreg:
        raise TrainingError("--dreg is a gradient of --model iwae: leave it out, or train that")
    backends()


def _absolute(config: Any) -> None:
    """Paths as they are seen from everywhere: a run may be taken up or evaluated from another folder."""
    named = config.data in BUILT_IN or config.data.startswith("torchvision:")
    if not named and Path(config.data).exists():
        config.data = str(Path(config.data).absolute())
    config.data_root = str(Path(config.data_root).absolute())


def _check_values(recipe: Recipe, source: Source, data: str) -> None:
    """Before hours are spent on values that the likelihood has no probability for: looks at a thousand rows."""
    rows = source.train.rows(torch.arange(min(len(source.train), 1000)).numpy())
    in_unit = recipe.likelihood in ("bernoulli", "continuous-bernoulli", "mixture")
    if in_unit and not bool(((rows >= 0) & (rows <= 1)).all()):
        low, high = rows.min().item(), rows.max().item()
        raise TrainingError(
            f"{data} has values from {low:g} to {high:g}, {recipe.likelihood} takes 0 to 1:"
            " scale them, or --likelihood gaussian"
        )
    if recipe.likelihood in COUNTS and not bool(((rows >= 0) & (rows == rows.round())).all()):
        raise TrainingError(f"{data} has values that are no counts, which {recipe.likelihood} takes")


def _objective(config: Any, data: VAEDataModule) -> ELBO | IWAE:
    if config.model == "iwae":
        return IWAE(config.iwae_samples, "dreg" if config.dreg else "standard")
    beta: Any = config.beta
    if config.warmup_epochs:
        steps = round(config.warmup_epochs * len(data.train_dataloader()))
        beta = linear_warmup(steps, end=config.beta)
    return ELBO(beta=beta, capacity=config.capacity, free_bits=config.free_bits)


def _trainer(cli: TrainCLI, folder: Path, module: VAEModule, record: Record, source: Source) -> Trainer:
    config = cli.config
    options = cli.parser.instantiate(config).trainer.as_dict()
    own = options.pop("callbacks", None) or []
    max_time = options.pop("max_time", None)
    terminal = options.pop("enable_progress_bar", None) is not False and sys.stdout.isatty()
    shown = [ProgressBar(leave=False)] if terminal else [Lines(record, config.max_epochs)]
    return Trainer(
        **options, accelerator=config.accelerator, devices=config.devices, num_nodes=config.num_nodes,
        strategy=config.strategy, precision=config.precision, max_epochs=config.max_epochs,
        default_root_dir=folder, logger=_loggers(folder), plugins=[WholeFiles()], num_sanity_val_steps=0,
        enable_model_summary=False, enable_progress_bar=terminal,
        callbacks=[
            *(own if isinstance(own, list) else [own]), Speed(), record, *shown,
            *checkpoint_callbacks(folder, module.monitor, config.checkpoint_every),
            Pictures(folder, source, record, config.pictures_every),
            *([] if max_time is None else [TimeLimit(max_time, interval="epoch")]),
        ],
    )  # fmt: skip


def _loggers(folder: Path) -> list[Logger]:
    """One folder of logs for each start of the run: logs/version_0, and version_1 when it is resumed."""
    csv = CSVLogger(folder, name="logs")
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return [csv, TensorBoardLogger(folder, name="logs", version=csv.version)]
    except ImportError:
        return [csv]


def _settings(cli: TrainCLI) -> dict[str, Any]:
    """All options but the Trainer's, as plain values."""
    config = cli.config.as_dict()
    return {name: value for name, value in config.items() if name not in ("trainer", "config")}


def _print_start(
    config: Any,
    recipe: Recipe,
    module: VAEModule,
    trainer: Trainer,
    source: Source,
    folder: Path,
    checkpoint: Path | None,
) -> None:
    parameters = sum(weight.numel() for weight in module.model.parameters())
    print(f"{config.data}: {describe(source)}")
    print(f"{recipe.model}, {recipe.likelihood}, {parameters:,} parameters; latent ops: {_backend(trainer)}")
    if checkpoint is not None:
        print(f"resumed from {checkpoint}")
    elif config.resume is not None:
        print(f"{folder} has no checkpoint yet: trained from the beginning")


def _backend(trainer: Trainer) -> str:
    served = f"{trainer.strategy.root_device.type} float32"
    return next(name for name, state in backends().items() if served in state["chosen_for"])


def _print_end(trainer: Trainer, record: Record, folder: Path) -> None:
    if record.history:
        last = record.history[-1]
        print(", ".join(f"{name} {value:,.2f}" for name, value in last.items() if name.startswith(("train", "val"))))
    print(f"Report: {folder / 'report.html'}\nMeasure it: fastvae evaluate {shlex.quote(str(folder))}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on devices and its hints on workers; warnings of what matters remain."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers",
                ".*log_every_n_steps",
                ".*exists and is not empty",
                ".*dirpath has changed",
                ".*isinstance.treespec",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
