"""scVI: synthetic counts of 2,000 genes, 128 cells a batch, with the module of `scvi.model.SCVI`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE

from ..measure import optimiser_step


def make_step(
    likelihood: str, cells: int = 128, genes: int = 2000, learning_rate: float = 1e-3, **options: Any
) -> Callable[[], torch.Tensor]:
    counts = torch.poisson(torch._standard_gamma(torch.full((cells, genes), 0.3)))  # 80% zeros
    tensors = {
        REGISTRY_KEYS.X_KEY: counts,
        REGISTRY_KEYS.BATCH_KEY: torch.arange(cells).reshape(-1, 1) % 2,
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(cells, 1, dtype=torch.int64),
    }
    if not options.get("use_observed_lib_size", True):
        options |= {"library_log_means": torch.ones(1, 2).numpy() * 3, "library_log_vars": torch.ones(1, 2).numpy()}
    module = VAE(genes, n_batch=2, gene_likelihood=likelihood, **options)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, eps=0.01, weight_decay=1e-6)  # as scVI's

    return optimiser_step(optimiser, lambda: module(tensors, loss_kwargs={"kl_weight": 1.0})[2].loss)


STEPS = {
    f"scVI step, {name}, 128 x 2000": functools.partial(make_step, likelihood)
    for likelihood, name in (("zinb", "zero-inflated negative binomial"), ("nb", "negative binomial"))
}
