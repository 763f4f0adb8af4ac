"""Modules: VAEs of any encoder, decoder and likelihood, plain, conditional and hierarchical, and layers to start with.

Every model has ``elbo``, ``terms`` and ``log_weights`` (what `fastvae.objectives` are made of), ``reconstruct``,
``generate`` and ``decode``.
"""

from .conditional import ConditionalVAE
from .conv import ConvDecoder, ConvEncoder
from .hierarchical import HierarchicalOutput, HierarchicalVAE
from .levels import Level
from .mlp import MLPDecoder, MLPEncoder
from .model import ELBO, LogWeights, Terms
from .posterior import Posterior
from .vae import VAE, VAEOutput

__all__ = [
    "ELBO",
    "VAE",
    "ConditionalVAE",
    "ConvDecoder",
    "ConvEncoder",
    "HierarchicalOutput",
    "HierarchicalVAE",
    "Level",
    "LogWeights",
    "MLPDecoder",
    "MLPEncoder",
    "Posterior",
    "Terms",
    "VAEOutput",
]
