"""``fastvae train``: the options, on Lightning's command line, and the run they make."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..files import whole_file
from ..kernels.selection import backends
from ..objectives import ELBO, IWAE
from ..schedules import linear_warmup
from .checkpoints import SavedRun, WholeFiles, checkpoint_callbacks, last_checkpoint, read_checkpoint
from .data import VAEDataModule
from .errors import TrainingError
from .lightning import Trainer
from .module import SCHEDULES, VAEModule
from .recipes import COUNTS, LIKELIHOODS, MODELS, PRIORS, Recipe
from .run_folder import Lines, Pictures, ProgressBar, Record, Speed
from .sources import DATA_HELP, Source, describe

CONFIG = "config.yaml"
TRAINER_OPTIONS = {
    "max_steps", "max_time", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "callbacks",
    "deterministic", "benchmark", "profiler", "detect_anomaly", "log_every_n_steps", "sync_batchnorm",
    "enable_progress_bar",
}  # fmt: skip
"""What of Lightning's Trainer is passed on as it is. Not ``limit_train_batches`` and its kin: the order of the data
after a stop is counted in whole epochs."""


class TrainCLI(LightningCLI):
    """Lightning's command line with the options of a VAE in front of the Trainer's."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__(
            VAEModule, VAEDataModule, save_config_callback=None, args=list(arguments), run=False,
            auto_configure_optimizers=False, load_from_checkpoint_support=False,
            parser_kwargs={"prog": "fastvae train", "description": _DESCRIPTION, "dump_header": ["fastvae train"]},
        )  # fmt: skip

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's own one seeds Python, NumPy and torch; nothing here draws from them."""

    def _set_seed(self) -> None:
        pass

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        _add_data(parser.add_argument_group("data"))
        _add_model(parser.add_argument_group("model"))
        _add_objective(parser.add_argument_group("objective"))
        _add_run(parser.add_argument_group("run"))
        _add_devices(parser.add_argument_group("devices, as Lightning's Trainer has them"))
        names = set(Trainer.__init__.__annotations__) - TRAINER_OPTIONS - {"return"}
        parser.add_class_arguments(
            Trainer, "trainer", skip=names, fail_untyped=False, sub_configs=True, instantiate=False
        )
        parser.set_defaults({"trainer.log_every_n_steps": 10})

    def instantiate_classes(self) -> None:
        """Nothing yet: the model's shape is that of the data, and they are to be read first."""


_DESCRIPTION = """Train a variational autoencoder: on the digits that come with the package, on a folder of images of
your own, on arrays. In the output folder are then the checkpoints, a log (logs/), pictures and report.html. Options can
stand in a YAML file (--config FILE); those of a run are in its folder's config.yaml."""


def _add_data(group: Any) -> None:
    group.add_argument("--data", type=str, default="mnist5k", help=DATA_HELP)
    group.add_argument("--data-root", type=str, default="data", help="where torchvision keeps what it downloads")
    group.add_argument(
        "--image-size", type=PositiveInt | None, default=None, help="crop images to squares of this size"
    )
    group.add_argument("--held-out", type=float, default=0.2, help="part of the data that is kept for validation")
    group.add_argument("--batch-size", type=PositiveInt, default=100, help="rows of a step, of all devices together")
    group.add_argument("--workers", type=NonNegativeInt, default=0, help="processes that read ahead")
    group.add_argument(
        "--binarize", type=bool | None, default=None,
        help="draw ink or paper from grey levels, anew each time (default: true for bernoulli)",
    )  # fmt: skip


def _add_model(group: Any) -> None:
    group.add_argument("--model", choices=MODELS, default="vae", help=_MODEL_HELP)
    group.add_argument(
        "--likelihood", choices=("auto", *LIKELIHOODS), default="auto",
        help="p(x|z); auto: bernoulli for grey images, gaussian for all else",
    )  # fmt: skip
    group.add_argument(
        "--latent-dim", type=PositiveInt, nargs="+", default=[20],
        help="size of z; of hvae one for each level, from the top down (one number: two levels)",
    )  # fmt: skip
    group.add_argument("--hidden", type=PositiveInt, nargs="+", default=[400], help="widths of the hidden layers")
    group.add_argument(
        "--channels", type=PositiveInt, nargs="+", default=[32, 64],
        help="of conv's convolutions, each of which halves the sides of the image",
    )  # fmt: skip
    group.add_argument("--prior", choices=PRIORS, default="standard", help="p(z)")
    group.add_argument("--components", type=PositiveInt, default=50, help="of the priors mixture and vamp")


_MODEL_HELP = (
    "vae: one of linear layers; conv: of convolutions; cvae: with the labels as condition; hvae: with levels of"
    " latents; iwae: as vae, trained on the importance-weighted bound"
)


def _add_objective(group: Any) -> None:
    group.add_argument("--beta", type=NonNegativeFloat, default=1.0, help="weight of the KL")
    group.add_argument("--warmup-epochs", type=NonNegativeFloat, default=0.0, help="raise beta from 0 during these")
    group.add_argument("--free-bits", type=NonNegativeFloat, default=0.0, help="nats of each latent that cost nothing")
    group.add_argument(
        "--capacity", type=NonNegativeFloat | None, default=None, help="nats C, for beta |KL - C| as the loss's KL term"
    )
    group.add_argument("--iwae-samples", type=PositiveInt, default=10, help="K of iwae")
    group.add_argument("--dreg", type=bool, default=False, help="iwae's doubly reparameterised gradient")


def _add_run(group: Any) -> None:
    group.add_argument("--output", type=str | None, default=None, help="folder of the run (default: runs/DATA-MODEL)")
    group.add_argument(
        "--resume", type=str | None, default=None, metavar="FOLDER",
        help="go on with the run in this folder, with its settings but for those given anew",
    )  # fmt: skip
    group.add_argument("--max-epochs", type=PositiveInt, default=200)
    group.add_argument("--learning-rate", type=PositiveFloat, default=2e-3, help="of Adam")
    group.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate")
    group.add_argument("--seed", type=NonNegativeInt, default=0, help="of the weights, the data's order and the noise")
    group.add_argument(
        "--checkpoint-every", type=PositiveInt | None, default=None, metavar="STEPS",
        help="save between epochs too (each epoch is saved anyway)",
    )  # fmt: skip
    group.add_argument(
        "--pictures-every", type=NonNegativeInt, default=20, metavar="EPOCHS",
        help="draw pictures and the report each so many epochs (0: at the end only)",
    )  # fmt: skip


def _add_devices(group: Any) -> None:
    group.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, ...")
    group.add_argument("--devices", type=int | str, default="auto", help="how many, on each node")
    group.add_argument("--num-nodes", type=PositiveInt, default=1)
    group.add_argument("--strategy", type=str, default="auto", help="ddp, fsdp, ...")
    group.add_argument("--precision", type=str, default="32-true", help="32-true, bf16-mixed, 16-mixed, ...")


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
            config = Path(folder) / CONFIG
            if not config.is_file():
                raise TrainingError(f"{folder} is no run to resume: it has no {CONFIG}")
            return ["--config", str(config), *given]
    return given


def _run(cli: TrainCLI) -> None:
    config = cli.config
    folder = _folder(config)
    _absolute(config)
    checkpoint = last_checkpoint(folder) if config.resume is not None else None
    resumed = None if checkpoint is None else read_checkpoint(checkpoint)

    data = VAEDataModule(
        config.data, batch_size=config.batch_size, conditional=config.model == "cvae", held_out=config.held_out,
        image_size=config.image_size, root=config.data_root, counts=config.likelihood in COUNTS,
        workers=config.workers, seed=config.seed,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert data.source is not None
    recipe = _recipe(config, data.source)
    if resumed is not None:
        _check_resumed(resumed, recipe, config.batch_size, len(data.source.train))
    binarize = recipe.likelihood == "bernoulli" if config.binarize is None else config.binarize
    _check_values(recipe, data.source, config.data)
    module = VAEModule(
        recipe.build(config.seed), _objective(config, data), learning_rate=config.learning_rate,
        schedule=config.schedule, binarize=binarize, seed=config.seed,
    )  # fmt: skip
    settings = _settings(cli) | {"likelihood": recipe.likelihood, "binarize": binarize}
    record = Record(recipe, settings, len(data.source.train))
    try:
        trainer = _trainer(cli, folder, module, record, data.source)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:  # Lightning's, of its options
        raise TrainingError(f"Lightning's Trainer refuses: {str(error).splitlines()[0]}") from None
    if trainer.is_global_zero:
        with whole_file(folder / CONFIG) as unfinished:
            unfinished.write_text(cli.parser.dump(config))
        _print_start(config, recipe, module, trainer, data.source, folder, checkpoint)
    if resumed is not None and len(resumed.history) >= config.max_epochs:
        _draw_again(trainer, module, data, resumed, record)
        print(f"{folder} has its {len(resumed.history)} epochs: give more by --max-epochs")
        return
    # Stopped by hand, Lightning ends the process, or returns, as its version has it.
    with contextlib.suppress(SystemExit):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if trainer.interrupted:
        raise TrainingError(f"stopped; go on with: fastvae train --resume {folder}")
    if trainer.is_global_zero:
        _print_end(trainer, record, folder)


def _draw_again(trainer: Trainer, module: VAEModule, data: VAEDataModule, resumed: SavedRun, record: Record) -> None:
    """The pictures and the report of a complete run, which may have been killed before it had drawn them."""
    record.history = resumed.history
    module.load_state_dict(resumed.weights)
    trainer.validate(module, datamodule=data, verbose=False)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Pictures):
            callback.on_train_end(trainer, module)


def _check_resumed(run: SavedRun, recipe: Recipe, batch_size: int, rows: int) -> None:
    """The model is the same, and so is the place in the data that the run has come to."""
    what, differences = "another model", run.recipe.differences(recipe)
    if not differences and (run.train_rows, run.settings["batch_size"]) != (rows, batch_size):
        what = "other batches"
        differences = [f"{run.train_rows} rows by {run.settings['batch_size']}, not {rows} rows by {batch_size}"]
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


def _absolute(config: Any) -> None:
    """Paths as they are seen from everywhere: a run may be taken up or evaluated from another folder."""
    if Path(config.data).exists():
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
    terminal = sys.stdout.isatty() and options.pop("enable_progress_bar", None) is not False
    options.pop("enable_progress_bar", None)
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
    print(f"Report: {folder / 'report.html'}\nMeasure it: fastvae evaluate {folder}")


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
