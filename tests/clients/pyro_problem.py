"""A small VAE in Pyro, and what its tests have in common."""

from __future__ import annotations

import pyro
import torch
from pyro import distributions as of_pyro
from pyro import poutine
from torch import nn

from fastvae.integrations.pyro import DiagonalGaussian

BATCH, DATA, LATENT = 8, 5, 3


def parameters(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    return mu, logvar


def normal(mu, logvar):
    return of_pyro.Normal(mu, torch.exp(0.5 * logvar))


class Problem:
    """A model, and two guides that say the same: ``ours`` and ``normal``."""

    def __init__(self, mask=None, scale=1.0):
        pyro.clear_param_store()
        self.encoder, self.decoder = nn.Linear(DATA, 2 * LATENT), nn.Linear(LATENT, DATA)
        self.x, self.mask, self.scale = torch.randn(BATCH, DATA), mask, scale

    def masked(self, site):
        return site if self.mask is None else site.mask(self.mask)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", BATCH, dim=-1), poutine.scale(scale=self.scale):
            z = pyro.sample("z", self.masked(of_pyro.Normal(torch.zeros(LATENT), torch.ones(LATENT)).to_event(1)))
            return pyro.sample("x", of_pyro.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def ours(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", BATCH, dim=-1), poutine.scale(scale=self.scale):
            return pyro.sample("z", self.masked(DiagonalGaussian.from_moments(self.encoder(x))))

    def normal(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", BATCH, dim=-1), poutine.scale(scale=self.scale):
            return pyro.sample("z", self.masked(normal(*self.encoder(x).chunk(2, 1)).to_event(1)))

    def losses(self, guide, elbo, count=200):
        return torch.tensor([elbo.loss(self.model, guide, self.x) for _ in range(count)])
