"""Modules: a VAE of any encoder, decoder and likelihood, and an MLP encoder and decoder to start with."""

from .mlp import MLPDecoder, MLPEncoder
from .vae import ELBO, VAE, Posterior, VAEOutput

__all__ = ["ELBO", "VAE", "MLPDecoder", "MLPEncoder", "Posterior", "VAEOutput"]
