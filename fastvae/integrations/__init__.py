"""fastvae inside other libraries: one line speeds up an existing training loop, one line undoes it.

    with fastvae.patch("scvi"):
        model.train()

What `fastvae.patch` replaces:

    "torch"      torch.distributions: ``Normal.rsample``, the KL between Normals and between Independent Normals
    "diffusers"  DiagonalGaussianDistribution, in every autoencoder that builds one
    "scvi"       scvi-tools: the Encoder's sampling and KL; (zero-inflated) negative binomial likelihoods, in one op
                 with the decoder's last layers; the default optimizer
    "pyro"       sampling from pyro.distributions.Normal, and its KL under TraceMeanField_ELBO
    "pythae"     ``_sample_gauss``, and the losses of VAE, BetaVAE, IWAE and related models

Usable without a patch: `fastvae.integrations.pyro.DiagonalGaussian`, a distribution for Pyro models and guides, and
`fastvae.integrations.compvis`, the regulariser of latent-diffusion and generative-models.
"""

from .patching import Patch, patch, unpatch

__all__ = ["Patch", "patch", "unpatch"]


def __dir__() -> list[str]:
    return list(__all__)
