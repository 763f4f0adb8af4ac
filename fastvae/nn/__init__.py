"""Modules: VAEs of any encoder, decoder and likelihood (also conditional and hierarchical), and MLPs and convolutions.

Every model has ``elbo``, ``terms`` and ``log_weights``, which `fastvae.objectives` call, and ``encode``, ``decode``,
``reconstruct`` and ``generate``. Invalid arguments, among them sizes that are not positive ints or do not fit, raise
TypeError or ValueError; the message names the argument.
"""

from typing import TYPE_CHECKING

from ..deprecated import renamed
from .conditional import ConditionalVAE
from .conv import ConvDecoder, ConvEncoder
from .head import ConvLikelihoodHead, LikelihoodHead
from .hierarchical import HierarchicalOutput, HierarchicalVAE
from .levels import Level
from .mlp import MLPDecoder, MLPEncoder
from .model import ELBOTerms, LogWeights, LossTerms
from .posterior import Posterior
from .residual import ResidualBlock, ResidualDecoder, ResidualEncoder
from .standardize import StandardizedDecoder, StandardizedEncoder
from .vae import VAE, VAEOutput

__all__ = [
    "VAE",
    "ConditionalVAE",
    "ConvDecoder",
    "ConvEncoder",
    "ConvLikelihoodHead",
    "ELBOTerms",
    "HierarchicalOutput",
    "HierarchicalVAE",
    "Level",
    "LikelihoodHead",
    "LogWeights",
    "LossTerms",
    "MLPDecoder",
    "MLPEncoder",
    "Posterior",
    "ResidualBlock",
    "ResidualDecoder",
    "ResidualEncoder",
    "StandardizedDecoder",
    "StandardizedEncoder",
    "VAEOutput",
]


def __dir__() -> list[str]:
    return list(__all__)


if not TYPE_CHECKING:  # for which every name would be there
    __getattr__ = renamed(__name__, {"ELBO": "ELBOTerms", "Terms": "LossTerms"})
