"""``fastvae train``: from options to a run."""

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

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..files import locked, whole_file
from ..kernels.backend import backends
from ..nn.residual import residual_sizes
from ..objectives import ELBO, IWAE
from ..schedules import linear_warmup
from .checkpoints import WholeFiles, checkpoint_callbacks
from .data import VAEDataModule
from .datasets import BUILT_IN, CELLS, DataOptions, Source, describe, fingerprint, median_library
from .defaults import complete
from .errors import TrainingError
from .lightning import Trainer
from .model_config import COUNTS, ModelConfig
from .module import VAEModule
from .run_folder import Lines, Pictures, ProgressBar, Record, Speed, TimeLimit
from .saved_run import FOLDER, LAST, SavedRun, read_checkpoint
from .statistics import start_from, statistics_of
from .train_options import TrainCLI

__all__ = ["CONFIG", "train"]

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
    """``--resume FOLDER`` reads the settings of the run first; options that are given again override them."""
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
            if any(re.match(r"--quality(=|$)", other) for other in given):
                raise TrainingError("--quality sets the length of a new run: give a resumed one --max-epochs")
            return ["--config", str(config), *given]
    return given


def _run(cli: TrainCLI) -> None:
    config = cli.config
    _check_options(config)
    folder = _folder(config)
    _absolute(config)
    last = folder / FOLDER / f"{LAST}.ckpt"
    checkpoint = last if config.resume is not None and last.exists() else None
    resumed = None if checkpoint is None else read_checkpoint(checkpoint)
    try:
        data, model_config, module, shown = _built(config)
    except (ValueError, TypeError, OverflowError) as error:  # options out of bounds that the parser does not check
        raise TrainingError(str(error).splitlines()[0]) from None
    assert data.source is not None
    if resumed is not None:
        _check_resumed(resumed, model_config, config.batch_size, data.source)
    settings = {name: value for name, value in config.as_dict().items() if name not in ("trainer", "config")} | {
        "likelihood": model_config.likelihood, "binarize": module.binarize, "channels": list(model_config.channels),
        "value_range": shown,
    }  # fmt: skip
    record = Record(model_config, settings, data.source)
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
                # Without --resume: these settings, used for another run, start it from the beginning.
                begun = config.clone()
                begun.resume = None
                unfinished.write_text(cli.parser.dump(begun))
            _print_start(config, model_config, module, trainer, data.source, folder, checkpoint)
        # Stopped by Ctrl-C, Lightning exits or returns, depending on its version.
        with contextlib.suppress(SystemExit):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if trainer.interrupted:
        raise TrainingError(f"stopped; go on with: fastvae train --resume {shlex.quote(str(folder))}")
    if trainer.is_global_zero:
        _print_end(trainer, record, folder)


def _built(config: Any) -> tuple[VAEDataModule, ModelConfig, VAEModule, list[float]]:
    """The data, the model for data of their shape, and the range of values that pictures show."""
    options = DataOptions.of(config.as_dict(), counts=config.likelihood in COUNTS)
    data = VAEDataModule(
        config.data, batch_size=config.batch_size or 1, conditional=config.model == "cvae", workers=config.workers,
        seed=config.seed, **vars(options),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert data.source is not None
    complete(config, data.source.train)
    data.batch_size = config.batch_size
    model_config = _model_config(config, data.source)
    _check_values(model_config, data.source, config)
    model = model_config.build(config.seed)
    statistics = statistics_of(data.source.train)
    if model_config.standardize:
        start_from(model, model_config, statistics, data.source.train, flip=config.flip, rotate=config.rotate)
    module = VAEModule(
        model, _objective(config, data), learning_rate=config.learning_rate,
        schedule=config.schedule, warmup_steps=config.warmup_steps, flip=config.flip, rotate=config.rotate,
        shift=config.shift, seed=config.seed,
        binarize=model_config.likelihood == "bernoulli" if config.binarize is None else config.binarize,
    )  # fmt: skip
    return data, model_config, module, [statistics.low, statistics.high]


@contextlib.contextmanager
def _alone_in(folder: Path, anew: bool) -> Iterator[None]:
    """Lock the folder against other runs; the further processes of this run do not ask for the lock."""
    if not _is_first_process():
        yield
        return
    with locked(folder / ".lock", wait=False) as alone:
        if not alone or (anew and (folder / CONFIG).exists()):
            raise TrainingError(f"another process trains in {folder}: choose another --output, or wait for it to end")
        yield


def _draw_again(trainer: Trainer, module: VAEModule, data: VAEDataModule, resumed: SavedRun, record: Record) -> None:
    """Draw the pictures and the report of a complete run, which may have been killed before it drew them."""
    record.history, record.settings = resumed.history, resumed.settings
    module.load_state_dict(resumed.weights)
    trainer.validate(module, datamodule=data, verbose=False)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Pictures):
            callback.on_train_end(trainer, module)


def _check_resumed(run: SavedRun, model_config: ModelConfig, batch_size: int, source: Source) -> None:
    """Refuse to resume with another model, or with other batches or data, where the place in the data would be lost."""
    what, differences = "another model", run.recipe.differences(model_config)
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
    """The folder of the run, which holds no run yet unless it is resumed."""
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
    """Whether this is rank 0; the other processes, started by Lightning or torchrun, find the folder made already."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def _model_config(config: Any, source: Source) -> ModelConfig:
    shape = source.train.event_shape
    grey = len(shape) == 3 and shape[0] == 1
    likelihood = config.likelihood if config.likelihood != "auto" else "bernoulli" if grey else "gaussian"
    num_classes = None
    if config.model == "cvae":
        assert source.train.given is not None
        assert source.held_out.given is not None
        num_classes = 1 + max(int(source.train.given.max()), int(source.held_out.given.max()))
    library = config.library_size if config.library_size is not None else config.data.endswith(CELLS)
    library_size = median_library(source.train) if library and likelihood in COUNTS else None
    patch, channels = residual_sizes(*shape[1:]) if len(shape) == 3 else (1, ())
    # The start from principal components is for means in the units of the data, and for complete rows.
    whole = config.missing != "nan"
    linear = 32 if config.model == "conv" and likelihood in ("gaussian", "laplace") and whole else None
    # Pixels from 0 to 1 are at a good scale: linear layers only overfit sooner on standardised ones. Missing values are
    # encoded as 0, which standardising makes the mean.
    standardize = config.model == "conv" or not whole or likelihood not in ("bernoulli", "continuous-bernoulli")
    return ModelConfig(
        config.model, likelihood, shape, config.latent_dim, config.hidden, config.channels or channels, patch,
        config.blocks, linear, standardize, num_classes=num_classes, prior=config.prior, components=config.components,
        library_size=library_size, missing=config.missing == "nan",
    )  # fmt: skip


def _check_options(config: Any) -> None:
    """Refuse options that would have no effect, and a requested backend that is not available."""
    if config.model == "iwae":
        given = {"beta": config.beta != 1.0, "warmup-epochs": config.warmup_epochs, "free-bits": config.free_bits}
        given["capacity"] = config.capacity is not None
        for name, is_given in given.items():
            if is_given:
                raise TrainingError(f"--{name} shapes the KL of the ELBO, and --model iwae has none: leave it out")
    elif config.dreg:
        raise TrainingError("--dreg is a gradient of --model iwae: leave it out, or train that")
    if config.condition:
        if config.model not in ("vae", "cvae"):
            raise TrainingError(f"--condition is for --model cvae, not for {config.model}")
        config.model = "cvae"
    if config.likelihood == "auto" and config.data.endswith(CELLS):
        config.likelihood = "negative-binomial"
    if config.library_size and config.likelihood not in COUNTS:
        raise TrainingError(f"--library-size is for {', '.join(COUNTS)}, not for {config.likelihood}")
    backends()


def _absolute(config: Any) -> None:
    """Make paths absolute: a run may be resumed or evaluated from another folder."""
    named = config.data in BUILT_IN or config.data.startswith("torchvision:")
    if not named and Path(config.data).exists():
        config.data = str(Path(config.data).absolute())
    config.data_root = str(Path(config.data_root).absolute())


def _check_values(model_config: ModelConfig, source: Source, config: Any) -> None:
    """Refuse data that the options do not suit, before training; the values of all rows are checked.

    Counts are checked as they are read.
    """
    data, shape = config.data, model_config.event_shape
    for option, does in (("flip", "mirrors"), ("rotate", "turns"), ("shift", "moves")):
        if config[option] and len(shape) != 3:
            raise TrainingError(f"--{option} {does} images (C, H, W), {data} has samples of shape {shape}")
    if config.rotate and shape[1] != shape[2]:
        raise TrainingError(f"--rotate turns square images, those of {data} have {shape[1]}x{shape[2]} pixels: --flip")
    if model_config.likelihood not in ("bernoulli", "continuous-bernoulli", "log-normal", "mixture"):
        return
    assert source.value_range is not None  # load_source looks at all values
    low, high = source.value_range
    if model_config.likelihood == "log-normal":
        if low <= 0:
            raise TrainingError(
                f"{data} has values from {low:g} on, log-normal takes those above 0: --likelihood gaussian"
            )
        return
    if low < 0 or high > 1:
        raise TrainingError(
            f"{data} has values from {low:g} to {high:g}, {model_config.likelihood} takes 0 to 1:"
            " scale them, or --likelihood gaussian"
        )


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


def _print_start(
    config: Any,
    model_config: ModelConfig,
    module: VAEModule,
    trainer: Trainer,
    source: Source,
    folder: Path,
    checkpoint: Path | None,
) -> None:
    parameters = sum(weight.numel() for weight in module.model.parameters())
    served = f"{trainer.strategy.root_device.type} float32"
    backend = next(name for name, state in backends().items() if served in state["chosen_for"])
    print(f"{config.data}: {describe(source)}")
    for note in source.notes:
        print(f"{config.data}: {note}")
    print(f"{model_config.model}, {model_config.likelihood}, {parameters:,} parameters; latent ops: {backend}")
    if checkpoint is not None:
        print(f"resumed from {checkpoint}")
    elif config.resume is not None:
        print(f"{folder} has no checkpoint yet: trained from the beginning")


def _print_end(trainer: Trainer, record: Record, folder: Path) -> None:
    if record.history:
        last = record.history[-1]
        print(", ".join(f"{name} {value:,.2f}" for name, value in last.items() if name.startswith(("train", "val"))))
        for line in _advice(record, trainer):
            print(line)
    print(f"Report: {folder / 'report.html'}\nMeasure it: fastvae evaluate {shlex.quote(str(folder))}")


def _advice(record: Record, trainer: Trainer) -> list[str]:
    """What a finished run shows of a model that learned little, and which option helps."""
    last, module = record.history[-1], trainer.lightning_module
    assert isinstance(module, VAEModule)
    latents = sum(kl.numel() for kl in module.kl_per_latent or ())
    active = last.get("active_units")
    if active is None or not latents:
        return []
    if active == 0:
        return [
            f"Warning: none of the {latents} latents carries anything, so reconstructions are all alike (posterior"
            " collapse): --warmup-epochs, --free-bits 0.1, or train longer."
        ]
    if active < 0.1 * latents:
        return [f"Note: {active:.0f} of {latents} latents are active: train longer, or take a smaller --latent-dim."]
    return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's notes on devices and its hints on workers; other warnings stay."""
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
