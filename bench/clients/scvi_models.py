"""Models of scvi-tools as their users call them: whole epochs of ``train()``, Lightning and loader included."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import mudata
import numpy as np
import scvi
import torch

Call = Callable[[], torch.Tensor]

TRAINING: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}  # else the defaults: 90% train
LABELS = ("a", "b", "unknown")


def cells_of(cells: int, genes: int) -> anndata.AnnData:
    """Cells of two batches whose counts are 80% zeros, with labels and a hundred proteins."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(rng.gamma(0.3, 1.0, (cells, genes))).astype(np.float32))
    adata.obs["batch"] = np.array(["first", "second"])[np.arange(cells) % 2]
    adata.obs["label"] = np.array(LABELS)[np.arange(cells) % len(LABELS)]
    adata.obsm["protein"] = rng.poisson(rng.gamma(1.0, 5.0, (cells, 100))).astype(np.float32)
    return adata


def make_training(
    name: str, cells: int = 1440, genes: int = 2000, batch_size: int = 128, regions: int = 0, replayed: bool = False
) -> Call:
    """One epoch a call; gives its ELBO. ``replayed``: without the model, with the outputs of an earlier epoch."""
    kind = getattr(scvi.model, name)
    with quiet():
        scvi.settings.seed = 0  # which cells are held out
        model = kind(_data(kind, cells, genes, regions))

    def train() -> torch.Tensor:
        with quiet():
            model.train(1, batch_size=batch_size, **TRAINING)
        return torch.tensor(float(model.history["elbo_train"].iloc[-1, 0]))

    if replayed:
        _replay(model.module, train)
    return train


def _replay(module: torch.nn.Module, train: Call) -> None:
    """From now on the module gives what it gives in this epoch, and a loss of its smallest parameter."""
    smallest, forward = min(module.parameters(), key=torch.Tensor.numel), module.forward
    made: list[Any] = []

    def with_new_loss(outputs: Any) -> Any:
        outputs[2].loss = 0.0 * smallest.sum()
        return outputs

    def record(*arguments: Any, **options: Any) -> Any:
        with torch.no_grad():
            made.append(forward(*arguments, **options))
        return with_new_loss(made[-1])

    module.forward = record
    train()
    again = itertools.cycle(made)
    module.forward = lambda *_, **__: with_new_loss(next(again))


def make_marginal(cells: int = 32, genes: int = 2000, samples: int = 1000, at_once: int = 25) -> Call:
    with quiet():
        model = scvi.model.SCVI(_data(scvi.model.SCVI, cells, genes, 0))
        model.train(1, **TRAINING)

    def marginal() -> torch.Tensor:
        with quiet():
            return torch.as_tensor(model.get_marginal_ll(n_mc_samples=samples, n_mc_samples_per_pass=at_once))

    return marginal


def _data(kind: type, cells: int, genes: int, regions: int) -> Any:
    adata = cells_of(cells, genes)
    if regions:
        accessible = (np.random.default_rng(1).random((cells, regions)) < 0.05).astype(np.float32)
        data = mudata.MuData({"rna": adata, "atac": anndata.AnnData(accessible)})
        kind.setup_mudata(data, modalities={"rna_layer": "rna", "atac_layer": "atac"})
        return data
    setup = {"labels_key": "label", "unlabeled_category": "unknown"} if kind is scvi.model.SCANVI else {}
    setup |= {"protein_expression_obsm_key": "protein"} if kind is scvi.model.TOTALVI else {}
    kind.setup_anndata(adata, batch_key="batch", **setup)
    return adata


@contextlib.contextmanager
def quiet() -> Any:
    """Without what Lightning and scvi-tools say at the beginning and the end of each training."""
    scvi.settings.verbosity = logging.ERROR
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


CALLS = {
    "SCVI.train(), an epoch, 128 x 2000": functools.partial(make_training, "SCVI"),
    "SCVI.train(), an epoch, 1024 x 20000": functools.partial(
        make_training, "SCVI", cells=2276, genes=20000, batch_size=1024
    ),
    "SCANVI.train(), an epoch, 128 x 2000": functools.partial(make_training, "SCANVI"),
    "TOTALVI.train(), an epoch, 256 x (2000 + 100)": functools.partial(make_training, "TOTALVI", batch_size=256),
    "MULTIVI.train(), an epoch, 128 x (2000 + 20000)": functools.partial(
        make_training, "MULTIVI", cells=512, regions=20000
    ),
    "SCVI.get_marginal_ll(), 1000 samples of 32 x 2000": make_marginal,
}
REPLAYED = {name: functools.partial(make, replayed=True) for name, make in CALLS.items() if make is not make_marginal}
