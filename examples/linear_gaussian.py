"""A VAE with an exact log p(x): a linear decoder with Gaussian noise, also known as probabilistic PCA.

    z ~ N(0, I),   x|z ~ N(W z + b, s^2 I)
    x   ~ N(b, W W' + s^2 I)
    z|x ~ N(M^-1 W' (x - b), s^2 M^-1),   M = W' W + s^2 I

(Tipping & Bishop, "Probabilistic principal component analysis", 1999, equations 3 to 9.) The columns of W are initially
orthogonal, so that the posterior is diagonal and the encoder can be exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from fastvae.likelihoods import Gaussian
from fastvae.nn import VAE
from fastvae.priors import Prior


class LinearEncoder(nn.Module):
    """mu linear in x, logvar the same for every x."""

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.mean = nn.Linear(data_dim, latent_dim)
        self.logvar = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.mean(x)
        return mu, self.logvar.expand_as(mu)


class ExactPosterior(NamedTuple):
    mean: Tensor
    """(B, latent_dim)"""
    covariance: Tensor
    """(latent_dim, latent_dim), the same for every x"""


class LinearGaussian(VAE):
    """The model above, with an encoder initialised to the exact posterior.

    Args:
        data_dim, latent_dim: of x and z.
        variance: s^2.
        seed: of W and b.
        prior: as for VAE; the exact quantities are those of N(0, I).
    """

    def __init__(
        self, data_dim: int = 5, latent_dim: int = 2, variance: float = 0.5, seed: int = 0, prior: Prior | None = None
    ) -> None:
        decoder = nn.Linear(latent_dim, data_dim)
        super().__init__(LinearEncoder(data_dim, latent_dim), decoder, Gaussian(variance), prior=prior)
        generator = torch.Generator().manual_seed(seed)
        directions, _ = torch.linalg.qr(torch.randn(data_dim, latent_dim, generator=generator))
        with torch.no_grad():
            decoder.weight.copy_(directions * torch.linspace(2.0, 1.0, latent_dim))
            decoder.bias.copy_(torch.randn(data_dim, generator=generator))
        self.make_encoder_exact()

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples x from the model."""
        with torch.no_grad():
            return self.generate(n, sample=True, generator=generator)

    def exact_log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,), float64."""
        weight, bias, variance = self._parameters_of_decoder()
        covariance = weight @ weight.T + variance * torch.eye(len(bias), dtype=bias.dtype)
        return MultivariateNormal(bias, covariance).log_prob(x.double())

    def exact_posterior(self, x: Tensor) -> ExactPosterior:
        """p(z|x), float64."""
        matrix, covariance = self._exact_encoder()
        return ExactPosterior((x.double() - self.decoder.bias.double()) @ matrix.T, covariance)

    @torch.no_grad()
    def make_encoder_exact(self) -> None:
        """Set the encoder to the exact posterior, or to the best diagonal one if W's columns are not orthogonal."""
        matrix, covariance = self._exact_encoder()
        self.encoder.mean.weight.copy_(matrix)
        self.encoder.mean.bias.copy_(-matrix @ self.decoder.bias.double())
        # The diagonal Gaussian with the smallest KL to the posterior has the diagonal of its precision matrix.
        self.encoder.logvar.copy_(-torch.log(torch.linalg.inv(covariance).diagonal()))

    @torch.no_grad()
    def perturb_encoder(self, mean: float = 0.3, logvar: float = 0.4) -> None:
        """Move the encoder off the exact posterior: scale its means by 1 - mean, add logvar to its log variances."""
        self.encoder.mean.weight.mul_(1.0 - mean)
        self.encoder.mean.bias.mul_(1.0 - mean)
        self.encoder.logvar.add_(logvar)

    def _parameters_of_decoder(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, b and s^2 in float64."""
        decoder = self.decoder
        return decoder.weight.double(), decoder.bias.double(), self.likelihood.logvar.double().exp()

    def _exact_encoder(self) -> tuple[Tensor, Tensor]:
        """M^-1 W', (latent_dim, data_dim), and s^2 M^-1 in float64."""
        weight, _, variance = self._parameters_of_decoder()
        inverse = torch.linalg.inv(weight.T @ weight + variance * torch.eye(weight.shape[1], dtype=weight.dtype))
        return inverse @ weight.T, variance * inverse
