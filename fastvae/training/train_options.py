"""The options of ``fastvae train``, on Lightning's command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .data import VAEDataModule
from .lightning import Trainer
from .module import SCHEDULES, VAEModule
from .recipes import LIKELIHOODS, MODELS, PRIORS
from .sources import DATA_HELP

TRAINER_OPTIONS = {
    "max_time", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "callbacks",
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
            parser_kwargs={
                "prog": "fastvae train", "usage": "fastvae train [options]", "description": _DESCRIPTION,
                "dump_header": ["fastvae train"],
            },
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
