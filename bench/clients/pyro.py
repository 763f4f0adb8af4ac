"""Pyro: a training step of a VAE with Pyro's own Normal under TraceMeanField_ELBO."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro import distributions as of_pyro
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from ..measure import optimiser_step

BATCH, DATA, HIDDEN, LATENT = 128, 784, 400, 20


def make_vae() -> Callable[[], torch.Tensor]:
    encoder = nn.Sequential(nn.Linear(DATA, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, DATA))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    data = (torch.rand(BATCH, DATA) < 0.2).float()
    elbo = TraceMeanField_ELBO()

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), LATENT)
            z = pyro.sample("z", of_pyro.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("x", of_pyro.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, 1)
            pyro.sample("z", of_pyro.Normal(loc, log_scale.exp()).to_event(1))

    return optimiser_step(optimizer, lambda: elbo.differentiable_loss(model, guide, data))


STEPS = {"VAE, 784-400-20, TraceMeanField_ELBO, batch 128": make_vae}
