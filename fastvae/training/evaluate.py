"""``fastvae evaluate``: ELBO and log-likelihood of a checkpoint on held-out data, with standard errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from ..files import save_json
from ..objectives import log_marginal
from .batches import Batch, BatchLoader, PartSampler, derived_seed
from .datasets import DATA_HELP, fingerprint
from .errors import TrainingError
from .module import VAEModule
from .progress import Progress
from .saved_model import data_of, fitting, load_model, saved_model_parser
from .saved_run import SavedRun

__all__ = ["held_out_batches"]

_NUMBERS_AT_ONCE = 2**24


class Measured(NamedTuple):
    """Means over the held-out data in nats, each with its standard error."""

    samples: int
    elbo: tuple[float, float]
    reconstruction: tuple[float, float]
    kl: tuple[float, float]
    log_likelihood: tuple[float, float]
    importance_samples: int
    sampling_error: float
    """Of the log-likelihood, the part that comes from the importance samples, in nats; too low where they miss."""


def evaluate(arguments: Sequence[str]) -> None:
    """Run ``fastvae evaluate`` with these arguments; errors as of `fastvae.training.train.train`."""
    parser = saved_model_parser("evaluate", "ELBO and log-likelihood of held-out data, in nats.")
    parser.add_argument("--data", type=str | None, default=None, help=f"other data than those of training: {DATA_HELP}")
    parser.add_argument("--samples", type=PositiveInt, default=1000, help="importance samples K of each x")
    parser.add_argument(
        "--chunk", type=PositiveInt | None, default=None,
        help="samples to hold in memory at once (default: 16 million numbers' worth of x)",
    )  # fmt: skip
    parser.add_argument("--rows", type=PositiveInt | None, default=None, help="only so many of the held-out data")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the draws from the posterior")
    parser.add_argument("--json", type=str | None, default=None, help="write the numbers to this file too")
    options = parser.parse_args(list(arguments))
    run, model = load_model(options.checkpoint, options.device)
    module = VAEModule(model, binarize=run.settings["binarize"], seed=run.settings["seed"])
    loader = held_out_batches(run, options.data, options.rows)
    module.eval().to(next(model.parameters()).device)
    chunk = options.chunk or max(1, _NUMBERS_AT_ONCE // math.prod(run.recipe.event_shape))
    progress = Progress(loader.sampler.rows, "samples")  # type: ignore[attr-defined]
    measured = measure(
        module, loader, samples=options.samples, chunk=chunk, seed=options.seed, progress=progress
    )  # fmt: skip
    print(f"{run.path}, epoch {run.epoch + 1}, step {run.step:,}: {measured.samples:,} held-out samples of"
          f" {options.data or run.settings['data']}")  # fmt: skip
    for line in table(measured):
        print(line)
    if options.json is not None:
        # JSON has no NaN: null, where one sample has no standard error.
        written = json.loads(json.dumps(measured._asdict()), parse_constant=lambda name: None)
        save_json(written, Path(options.json))


def held_out_batches(run: SavedRun, data: str | None = None, rows: int | None = None) -> DataLoader:
    """What the run was never trained on, or the held-out part of other data, in the order of a validation.

    Raises:
        TrainingError: the data do not fit the model.
    """
    source = data_of(run, data)
    if data is None and fingerprint(source) != run.fingerprint:
        raise TrainingError(
            f"{run.settings['data']} has changed since the run was trained on it: what is held out now may have been\n"
            "trained on. Take the data of then; or name them by --data, if none of them were trained on."
        )
    held_out = fitting(run, source.held_out, source, data or run.settings["data"])
    count = len(held_out) if rows is None else min(rows, len(held_out))
    sampler = PartSampler(count, 250, seed=None)
    return BatchLoader(held_out, sampler, conditional=run.recipe.num_classes is not None, workers=0)


@torch.no_grad()
def measure(
    module: VAEModule, loader: DataLoader, *, samples: int, chunk: int, seed: int, progress: Progress | None = None
) -> Measured:
    """Of every sample that the loader gives: ELBO with one draw, and log p(x) by importance sampling.

    Args:
        samples: K, importance samples of each x.
        chunk: samples of one x in memory at once.
        progress: is told how many rows are done.
    """
    columns: list[list[Tensor]] = [[], [], [], [], []]
    for number, batch in enumerate(loader):
        rows = max(1, _NUMBERS_AT_ONCE // (samples * batch.x[0].numel()))  # progress is shown after so many
        for start in range(0, len(batch.x), rows):
            # The noise of a row depends on its number alone, and not on the rows that are computed with it.
            x, condition, first_row = _rows(module, batch, slice(start, start + rows))
            given: dict[str, Any] = {"row_offset": first_row, **condition}
            bound = module.model.elbo(x, seed=derived_seed(seed, "elbo"), **given)
            marginal = log_marginal(
                module.model, x, samples, chunk=chunk, seed=derived_seed(seed, "marginal", number), **given
            )
            of_rows = (*bound, marginal.estimate, marginal.standard_error)
            for column, values in zip(columns, of_rows, strict=True):
                column.append(values.double().cpu())
            if progress is not None:
                progress.done(len(x))
    elbo, reconstruction, kl, log_likelihood, errors = (torch.cat(column) for column in columns)
    sampling_error = errors.square().sum().sqrt().item() / len(errors)
    return Measured(
        len(elbo), _mean(elbo), _mean(reconstruction), _mean(kl), _mean(log_likelihood), samples, sampling_error
    )


def _rows(module: VAEModule, batch: Batch, part: slice) -> tuple[Tensor, dict[str, Tensor], int]:
    """x of a part of a batch as validation sees it, its condition, and the number of its first row."""
    condition = None if batch.condition is None else batch.condition[part].to(module.device)
    first_row = batch.first_row + part.start
    moved = batch._replace(x=batch.x[part].to(module.device), condition=condition, first_row=first_row)
    return module.held_out_pixels(moved), module.condition_of(moved), first_row


def _mean(values: Tensor) -> tuple[float, float]:
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error


def table(measured: Measured) -> list[str]:
    rows: list[tuple[str, tuple[float, float]]] = [
        ("ELBO", measured.elbo), ("  reconstruction, E log p(x|z)", measured.reconstruction),
        ("  KL(q(z|x) || p(z))", measured.kl),
        (f"log p(x), {measured.importance_samples:,} importance samples", measured.log_likelihood),
    ]  # fmt: skip
    lines = [f"{name:<42}{mean:>12.3f} +- {error:.3f} nats" for name, (mean, error) in rows]
    return [
        *lines,
        "+- is the standard error over the samples; of the importance sampling alone it is"
        f" {measured.sampling_error:.3f} nats.",
    ]
