"""scVI, PeakVI and MultiVI: synthetic cells, 128 a batch, with the modules of `scvi.model`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial
from scvi.module import MULTIVAE, PEAKVAE, VAE

from ..measure import optimiser_step


def make_step(
    likelihood: str, cells: int = 128, genes: int = 2000, learning_rate: float = 1e-3, **options: Any
) -> Callable[[], torch.Tensor]:
    tensors = tensors_of(torch.poisson(torch._standard_gamma(torch.full((cells, genes), 0.3))))  # 80% zeros
    if not options.get("use_observed_lib_size", True):
        options |= {"library_log_means": torch.ones(1, 2).numpy() * 3, "library_log_vars": torch.ones(1, 2).numpy()}
    return training_step(VAE(genes, n_batch=2, gene_likelihood=likelihood, **options), tensors, learning_rate)


def make_peakvi(cells: int = 128, genes: int = 20000, learning_rate: float = 1e-4) -> Callable[[], torch.Tensor]:
    """``genes`` regions, 95% of them inaccessible."""
    return training_step(PEAKVAE(genes, n_batch=2), tensors_of(accessibility(cells, genes)), learning_rate)


def make_multivi(cells: int = 128, genes: int = 20000, learning_rate: float = 1e-4) -> Callable[[], torch.Tensor]:
    """A tenth as many genes as there are regions."""
    counts = torch.poisson(torch._standard_gamma(torch.full((cells, genes // 10), 0.3)))
    tensors = tensors_of(torch.cat((counts, accessibility(cells, genes)), 1))
    tensors[REGISTRY_KEYS.INDICES_KEY] = torch.arange(cells).reshape(-1, 1)
    module = MULTIVAE(n_input_regions=genes, n_input_genes=genes // 10, n_batch=2, n_obs=cells)
    return training_step(module, tensors, learning_rate)


def make_importance_weights(draws: int = 25, cells: int = 40, genes: int = 2000) -> Callable[[], torch.Tensor]:
    """One cell against draws of many, as in `scvi.model.SCVI.get_importance_weights`."""
    mean, x = torch.rand(draws, cells, genes), torch.poisson(torch.rand(1, genes))
    px = NegativeBinomial(mu=mean, theta=torch.rand(genes) + 0.5)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        return px.log_prob(x).sum(-1)

    return step


def accessibility(cells: int, regions: int) -> torch.Tensor:
    return (torch.rand(cells, regions) < 0.05).float()


def tensors_of(x: torch.Tensor) -> dict[str, torch.Tensor]:
    cells = len(x)
    return {
        REGISTRY_KEYS.X_KEY: x,
        REGISTRY_KEYS.BATCH_KEY: torch.arange(cells).reshape(-1, 1) % 2,
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(cells, 1, dtype=torch.int64),
    }


def training_step(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], learning_rate: float
) -> Callable[[], torch.Tensor]:
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, eps=0.01, weight_decay=1e-6)  # as scVI's
    return optimiser_step(optimiser, lambda: module(tensors, loss_kwargs={"kl_weight": 1.0})[2].loss)


STEPS = {
    f"scVI step, {name}, 128 x 2000": functools.partial(make_step, likelihood)
    for likelihood, name in (("zinb", "zero-inflated negative binomial"), ("nb", "negative binomial"))
}
STEPS |= {"PeakVI step, 128 x 20000": make_peakvi, "MultiVI step, 128 x (2000 + 20000)": make_multivi}
STEPS |= {"scVI's importance weights, 1 cell, 25 draws of 40 x 2000": make_importance_weights}
