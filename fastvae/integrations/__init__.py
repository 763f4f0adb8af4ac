"""fastvae within other libraries: one line makes loops that exist faster, and one line undoes it.

    with fastvae.patch("scvi"):
        model.train()

What `fastvae.patch` replaces:

    "torch"      torch.distributions: ``Normal.rsample``, and the KL between Normals and between Independents of them
    "diffusers"  DiagonalGaussianDistribution, in every autoencoder that builds one
    "scvi"       scvi-tools: the Encoder's sampling and its KL, the negative binomial likelihoods, zero-inflated or not
    "pyro"       sampling from pyro.distributions.Normal, and its KL under TraceMeanField_ELBO
    "pythae"     ``_sample_gauss`` and the loss of VAE, BetaVAE, IWAE and their kin

Without a patch: `fastvae.integrations.pyro.DiagonalGaussian` is a distribution for Pyro's models and guides, and
`fastvae.integrations.compvis` has the regulariser of latent-diffusion and generative-models.
"""

from .patching import Patch, patch, unpatch

__all__ = ["Patch", "patch", "unpatch"]
