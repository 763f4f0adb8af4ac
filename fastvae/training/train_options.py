"""The options of ``fastvae train``, on Lightning's command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .data import VAEDataModule
from .datasets import DATA_HELP
from .defaults import QUALITIES
from .layouts import LAYOUT_HELP, LAYOUTS
from .lightning import Trainer
from .model_config import LIKELIHOODS, MODELS, PRIORS
from .module import SCHEDULES, VAEModule

__all__ = ["TrainCLI"]

TRAINER_OPTIONS = {
    "max_time", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "callbacks",
    "deterministic", "benchmark", "profiler", "detect_anomaly", "log_every_n_steps", "sync_batchnorm",
    "enable_progress_bar",
}  # fmt: skip
"""Options of Lightning's Trainer that are passed on. Not ``limit_train_batches`` and the like: a resumed run finds its
place in the data by counting whole epochs."""


class TrainCLI(LightningCLI):
    """Lightning's command line with the options of a VAE in front of the Trainer's."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__(
            VAEModule, VAEDataModule, save_config_callback=None, args=list(arguments), run=False,
            auto_configure_optimizers=False, load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": "fastvae train", "usage": "fastvae train [options]", "description": _DESCRIPTION,
                "dump_header": ["fastvae train"],
            },
        )  # fmt: skip

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        _check_names(parser, args)
        self.config = parser.parse_args(args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Not Lightning's --seed_everything: nothing here draws from the generators of Python, NumPy and torch."""

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
        """Not here: the model's shape is that of the data, which are read later."""


_OTHER_NAMES = {
    "epochs": "max-epochs", "num-epochs": "max-epochs", "lr": "learning-rate", "bs": "batch-size", "gpus": "devices",
    "z-dim": "latent-dim", "latents": "latent-dim", "dataset": "data", "out": "output", "val-split": "held-out",
}  # fmt: skip
"""Names that other programs give to these options."""


def _check_names(parser: LightningArgumentParser, arguments: Sequence[str]) -> None:
    """Name the option that was probably meant; the parser only says that there is none of the name.

    Raises:
        SystemExit: as of the parser.
    """
    known = {name.lstrip("-") for action in parser._actions for name in action.option_strings}
    for argument in arguments:
        name = argument.partition("=")[0].lstrip("-")
        if not argument.startswith("--") or name in known or "." in name or not name:
            continue
        near = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else difflib.get_close_matches(name, sorted(known), n=1)
        if near:
            parser.error(f"there is no option --{name}, did you mean --{near[0]}?")


_DESCRIPTION = """Train a variational autoencoder: on the digits that come with the package, on a folder of images of
your own, on arrays. In the output folder are then the checkpoints, a log (logs/), pictures and report.html. Options can
stand in a YAML file (--config FILE); those of a run are in its folder's config.yaml."""


def _optional(group: Any, name: str, kind: Any, help: str, **options: Any) -> None:
    group.add_argument(name, type=kind | None, default=None, help=help, **options)


def _flag(group: Any, name: str, help: str) -> None:
    group.add_argument(name, type=bool, default=False, help=help)


def _add_data(group: Any) -> None:
    group.add_argument("--data", type=str, default="mnist5k", help=DATA_HELP)
    group.add_argument("--data-root", type=str, default="data", help="where torchvision keeps what it downloads")
    _optional(group, "--image-size", PositiveInt, "crop images to squares of this size")
    group.add_argument("--layout", choices=LAYOUTS, default="auto", help=LAYOUT_HELP)
    group.add_argument(
        "--missing", choices=("refuse", "nan"), default="refuse", help="nan: NaN stands for missing values"
    )
    _flag(group, "--skip-unreadable", "leave out images that cannot be read, and name them")
    group.add_argument(
        "--condition", type=str, nargs="+", default=[], metavar="NAME",
        help="what a conditional model is given: columns of an .h5ad, arrays of an .npz; makes vae a cvae",
    )  # fmt: skip
    _optional(group, "--label", str, "column of an .h5ad with the labels of its cells")
    _optional(group, "--layer", str, "where an .h5ad has its counts: X, raw, or a layer's name")
    group.add_argument("--held-out", type=float, default=0.2, help="part of the data that is kept for validation")
    _optional(
        group, "--batch-size", PositiveInt, "rows of a step, of all devices together (default: by the number of rows)"
    )
    group.add_argument("--workers", type=NonNegativeInt, default=0, help="processes that read ahead")
    _optional(
        group, "--binarize", bool, "draw black or white from grey levels, anew each time (default: true for bernoulli)"
    )
    _flag(group, "--flip", "mirror images left to right at random in training")
    _flag(group, "--rotate", "turn square images by multiples of 90 degrees at random in training")
    group.add_argument(
        "--shift", type=NonNegativeInt, default=0, metavar="PIXELS",
        help="move images at random by up to so many pixels in training",
    )  # fmt: skip


def _add_model(group: Any) -> None:
    group.add_argument("--model", choices=MODELS, default="vae", help=_MODEL_HELP)
    group.add_argument(
        "--likelihood", choices=("auto", *LIKELIHOODS), default="auto",
        help="p(x|z); auto: bernoulli for grey images, negative-binomial for .h5ad, else gaussian",
    )  # fmt: skip
    group.add_argument(
        "--latent-dim", type=PositiveInt, nargs="+", default=[20],
        help="size of z; of hvae one for each level, from the top down (one number: two levels)",
    )  # fmt: skip
    group.add_argument("--hidden", type=PositiveInt, nargs="+", default=[400], help="widths of the hidden layers")
    group.add_argument(
        "--channels", type=PositiveInt, nargs="+", default=None,
        help="of conv at each resolution, of half the sides of the one before (default: by the size of the images)",
    )  # fmt: skip
    group.add_argument("--blocks", type=PositiveInt, default=1, help="residual blocks of conv at each resolution")
    _optional(
        group, "--library-size", bool,
        "means of counts are a softmax over the genes times the sum of the row (default: true for .h5ad)",
    )  # fmt: skip
    group.add_argument("--prior", choices=PRIORS, default="standard", help="p(z)")
    group.add_argument("--components", type=PositiveInt, default=50, help="of the priors mixture and vamp")


_MODEL_HELP = (
    "vae: one of linear layers; conv: of convolutions; cvae: with the labels as condition; hvae: with levels of"
    " latents; iwae: as vae, trained on the importance-weighted bound"
)


def _add_objective(group: Any) -> None:
    group.add_argument("--beta", type=NonNegativeFloat, default=1.0, help="weight of the KL")
    _optional(
        group, "--warmup-epochs", NonNegativeFloat,
        "raise beta from 0 during these (default: a tenth of the epochs for conv, else 0)",
    )  # fmt: skip
    group.add_argument("--free-bits", type=NonNegativeFloat, default=0.0, help="nats of each latent that cost nothing")
    _optional(group, "--capacity", NonNegativeFloat, "nats C, for beta |KL - C| as the loss's KL term")
    group.add_argument("--iwae-samples", type=PositiveInt, default=10, help="K of iwae")
    _flag(group, "--dreg", "iwae's doubly reparameterised gradient")


def _add_run(group: Any) -> None:
    _optional(group, "--output", str, "folder of the run (default: runs/DATA-MODEL)")
    words = "go on with the run in this folder, with its settings but for those given anew"
    _optional(group, "--resume", str, words, metavar="FOLDER")
    group.add_argument(
        "--quality", choices=tuple(QUALITIES), default="good",
        help="how long to train where --max-epochs is not given: draft a quarter of good, best four times as long",
    )  # fmt: skip
    _optional(group, "--max-epochs", PositiveInt, "(default: by --quality and the number of rows)")
    _optional(group, "--learning-rate", PositiveFloat, "of Adam (default: 0.001 for conv, else 0.002)")
    group.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate")
    _optional(
        group, "--warmup-steps", NonNegativeInt,
        "raise the learning rate from 0 during these (default: 5% of the run, at most 100, for conv, else 0)",
    )  # fmt: skip
    group.add_argument("--seed", type=NonNegativeInt, default=0, help="of the weights, the data's order and the noise")
    words = "save between epochs too (each epoch is saved anyway)"
    _optional(group, "--checkpoint-every", PositiveInt, words, metavar="STEPS")
    words = "draw pictures and the report each so many epochs (0: at the end only; default: five times)"
    _optional(group, "--pictures-every", NonNegativeInt, words, metavar="EPOCHS")


def _add_devices(group: Any) -> None:
    group.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, ...")
    group.add_argument("--devices", type=int | str, default="auto", help="how many, on each node")
    group.add_argument("--num-nodes", type=PositiveInt, default=1)
    group.add_argument("--strategy", type=str, default="auto", help="ddp, fsdp, ...")
    group.add_argument("--precision", type=str, default="32-true", help="32-true, bf16-mixed, 16-mixed, ...")
