"""``fastvae encode``: the latents of data, the mean of q(z|x) of every row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import whole_file
from ..nn.model import LatentVariableModel
from .batches import BatchLoader, PartSampler
from .datasets import CELLS, DATA_HELP, Samples, Source
from .errors import TrainingError, imported
from .progress import Progress
from .saved_model import PARTS, load_model, output_path, rows_of, saved_model_parser
from .saved_run import SavedRun

__all__ = ["in_batches", "latents_of"]

OBSM = "X_fastvae"
"""Where AnnData files get the latents: obsm, as scanpy.pp.neighbors(use_rep=...) takes them."""
_ROWS_AT_ONCE = 250


def encode(arguments: Sequence[str]) -> None:
    """Run ``fastvae encode`` with these arguments; errors as of `fastvae.training.train.train`."""
    parser = saved_model_parser("encode", "The latents of data: the mean of q(z|x), a row for each row of the data.")
    parser.add_argument("--data", type=str | None, default=None, help=f"other data than those of training: {DATA_HELP}")
    parser.add_argument("--part", choices=PARTS, default="all", help="of the data")
    parser.add_argument(
        "--output", type=str, default="latents.npy",
        help=f"a .npy file (N, latents), or an .h5ad: a copy of the data with obsm['{OBSM}']",
    )  # fmt: skip
    options = parser.parse_args(list(arguments))
    output = output_path(options.output, ".npy", CELLS)
    run, model = load_model(options.checkpoint, options.device)
    samples, source = rows_of(run, options.data, options.part)
    parts = [latents_of(model, x, given) for x, given in in_batches(run, samples, next(model.parameters()).device)]
    latents = torch.cat(parts).numpy()
    if output.suffix == ".npy":
        with whole_file(output) as unfinished:
            np.save(unfinished, latents)
    elif (data := options.data or run.settings["data"]).endswith(CELLS):
        if options.part != "all":
            raise TrainingError(f"--part is {options.part}: an .h5ad has all cells of the data, expected all")
        _add_to_copy(Path(data), output, latents)
    else:
        _write_cells(output, latents, samples, source)
    print(f"Wrote {output}: {len(latents):,} rows of {latents.shape[1]} latents")


@torch.no_grad()
def latents_of(model: LatentVariableModel, x: Tensor, given: dict[str, Any]) -> Tensor:
    """The mean of q(z|x), (B, latents) on the CPU; levels of latents one behind the other, from the top down."""
    came = model.encode(x, **given)
    levels = [came] if isinstance(came[0], Tensor) else list(came)
    return torch.cat([level.mu.flatten(1) for level in levels], 1).float().cpu()


def in_batches(run: SavedRun, samples: Samples, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """x and what the model is given beside it, in the order of the rows."""
    conditional = run.recipe.num_classes is not None
    sampler = PartSampler(len(samples), _ROWS_AT_ONCE, seed=None)
    progress = Progress(len(samples), "rows")
    for batch in BatchLoader(samples, sampler, conditional=conditional, workers=0):
        yield batch.x.to(device), {"condition": batch.condition.to(device)} if conditional else {}
        progress.done(len(batch.x))


def _add_to_copy(data: Path, output: Path, latents: np.ndarray) -> None:
    """A copy of the file, whose matrices are not read for it, with the latents."""
    import h5py
    from anndata.io import write_elem

    with whole_file(output) as unfinished:
        shutil.copyfile(data, unfinished)
        with h5py.File(unfinished, "r+") as file:
            write_elem(file.require_group("obsm"), OBSM, latents)


def _write_cells(output: Path, latents: np.ndarray, samples: Samples, source: Source) -> None:
    anndata = imported("anndata", ".h5ad is written by anndata", '"fastvae-kernels[cells]"')
    import pandas as pd  # which anndata requires

    obs = pd.DataFrame(index=[str(row) for row in range(len(latents))])
    if samples.labels is not None and source.label_names is not None:
        obs["label"] = pd.Categorical.from_codes(samples.labels, list(source.label_names))
    with whole_file(output) as unfinished:
        anndata.AnnData(latents, obs=obs).write_h5ad(unfinished)
