"""One model of each kind, small, and data for it."""

from __future__ import annotations

import torch
from torch import nn

from fastvae.likelihoods import Bernoulli, Gaussian
from fastvae.nn import VAE, ConditionalVAE, ConvDecoder, ConvEncoder, HierarchicalVAE, MLPDecoder, MLPEncoder
from fastvae.priors import GaussianMixture, LearnedGaussian, VampPrior

SHAPE = (1, 4, 8)
BATCH = 6


def _mlps(condition_dim: int | None = None) -> tuple[nn.Module, nn.Module]:
    return (
        MLPEncoder(SHAPE, 16, 5, condition_dim=condition_dim),
        MLPDecoder(5, 16, SHAPE, condition_dim=condition_dim),
    )


def _learned() -> LearnedGaussian:
    prior = LearnedGaussian(5)
    with torch.no_grad():
        prior.mu.normal_()
        prior.logvar.normal_()
    return prior


def _vamp() -> VAE:
    encoder, decoder = _mlps()
    return VAE(encoder, decoder, Bernoulli(), prior=VampPrior(encoder, SHAPE, 3, squash=torch.sigmoid))


MODELS = {
    "vae": lambda: VAE(*_mlps(), Bernoulli()),
    "learned prior": lambda: VAE(*_mlps(), Bernoulli(), prior=_learned()),
    "mixture prior": lambda: VAE(*_mlps(), Bernoulli(), prior=GaussianMixture(5, 3)),
    "vamp prior": _vamp,
    "convolutions": lambda: VAE(
        ConvEncoder(SHAPE, (4, 8), latent_channels=2),
        ConvDecoder(latent_channels=2, channels=(8, 4), output_shape=SHAPE),
        Gaussian(0.5, learned=True),
    ),
    "classes": lambda: ConditionalVAE(*_mlps(3), Bernoulli(), num_classes=3),
    "conditional prior": lambda: ConditionalVAE(*_mlps(2), Bernoulli(), prior=MLPEncoder(2, 8, 5)),
    "two levels": lambda: HierarchicalVAE.of_mlps(SHAPE, 16, (3, 5), Bernoulli()),
    "three levels": lambda: HierarchicalVAE.of_mlps(
        SHAPE, 16, (2, 3, 5), Bernoulli(), residual=False, scale="logstd", soft_clamp=5.0
    ),
}
ESTIMATED = ("mixture prior", "vamp prior")


def make_model(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


def data_of(name: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x, and the condition where there is one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(BATCH, *SHAPE, generator=generator).round().to(dtype)
    if name == "classes":
        return x, {"condition": torch.arange(BATCH) % 3}
    if name == "conditional prior":
        return x, {"condition": torch.randn(BATCH, 2, generator=generator).to(dtype)}
    return x, {}


def rows_of(given: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: tensor[rows] for name, tensor in given.items()}
