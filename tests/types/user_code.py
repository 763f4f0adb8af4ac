"""Code of a user beside the README's, for mypy and pyright: `test_type_checkers` runs both on it. Never executed.

``assert_type`` says what they must infer. A line that ends in ``# error`` is one where both must find an error, and
no other line has one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_type

import fastvae
from fastvae.likelihoods import (
    Bernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    Likelihood,
    Linear,
    MissingAsNaN,
    ZeroInflatedNegativeBinomial,
    bernoulli_log_prob,
    gaussian_log_prob,
    linear_log_prob,
)
from fastvae.monitors import ActiveUnits, Activity, kl_per_latent
from fastvae.nn import (
    VAE,
    ConditionalVAE,
    ConvEncoder,
    ELBOTerms,
    HierarchicalOutput,
    HierarchicalVAE,
    LikelihoodHead,
    LogWeights,
    MLPDecoder,
    MLPEncoder,
    Posterior,
    ResidualDecoder,
    ResidualEncoder,
    StandardizedDecoder,
    VAEOutput,
)
from fastvae.nn.model import LatentVariableModel
from fastvae.objectives import ELBO, IWAE, LogMarginal, ObjectiveOutput, log_marginal
from fastvae.priors import GaussianMixture, Prior, VampPrior
from fastvae.schedules import linear_warmup
from fastvae.training import VAEModule


def latents(mu: Tensor, logvar: Tensor, flag: bool) -> None:
    assert_type(fastvae.sample_and_kl(mu, logvar), tuple[Tensor, Tensor])
    assert_type(fastvae.sample_and_kl(mu, logvar, 0.0, logvar, seed=1, beta=4, num_samples=3), tuple[Tensor, Tensor])
    assert_type(fastvae.sample_and_kl(mu, logvar, per_coordinate=False), tuple[Tensor, Tensor])
    assert_type(fastvae.sample_and_kl(mu, logvar, per_coordinate=True), tuple[Tensor, Tensor, Tensor])
    assert_type(fastvae.sample_and_kl(mu, logvar, per_coordinate=flag), tuple[Tensor, ...])
    assert_type(fastvae.sample_and_kl_packed(mu, dim=-1), tuple[Tensor, Tensor])
    assert_type(fastvae.sample_and_kl_packed(mu, per_coordinate=True), tuple[Tensor, Tensor, Tensor])
    assert_type(fastvae.gaussian_kl(mu, logvar, mu, logvar, reduction="none"), Tensor)
    assert_type(fastvae.gaussian_kl(mu, logvar, per_coordinate=True), tuple[Tensor, Tensor])
    assert_type(fastvae.gaussian_kl(mu, logvar, per_coordinate=flag), Tensor | tuple[Tensor, Tensor])
    assert_type(fastvae.sample_and_log_prob(mu, logvar, num_samples=50), tuple[Tensor, Tensor, Tensor])
    assert_type(fastvae.reparameterize(mu, logvar, scale="std", generator=torch.Generator()), Tensor)
    assert_type(fastvae.noise(7, (4, 3), device="cpu"), Tensor)

    fastvae.sample_and_kl(mu, logvar, reduction="summ")  # error
    fastvae.sample_and_kl(mu, logvar, reductoin="sum")  # error
    fastvae.sample_and_kl(mu, logvar, clamp=5.0)  # error
    fastvae.sample_and_kl(mu, logvar, num_samples="3")  # error
    fastvae.sample_and_kl(mu)  # error
    fastvae.sample_and_kl(mu, [0.0])  # error
    fastvae.sample_and_kl_packed(mu, free_bits_group="level")  # error
    fastvae.gaussian_kl(mu, logvar, seed=3)  # error
    fastvae.gaussian_kl(mu, logvar, scale="sigma")  # error
    fastvae.reparameterize(mu, logvar, reduction="sum")  # error
    fastvae.sample_and_log_prob(mu, logvar, per_coordinate=True)  # error
    fastvae.noise(None, (4, 3))  # error
    fastvae.gaussian_kl(mu, logvar, per_coordinate=True).mean()  # error
    fastvae.smaple_and_kl(mu, logvar)  # error


def distributions(mu: Tensor, logvar: Tensor) -> None:
    posterior = fastvae.DiagonalGaussian.from_moments(mu, clamp=(-30, 20))
    assert_type(posterior, fastvae.DiagonalGaussian)
    assert_type(posterior.sample_and_kl(), tuple[Tensor, Tensor])
    assert_type(posterior.sample_and_kl(posterior, per_coordinate=True, seed=0), tuple[Tensor, Tensor, Tensor])
    assert_type(posterior.rsample((3,)), Tensor)
    assert_type(posterior.kl(), Tensor)
    assert_type(posterior.nll(mu, dims=[1, 2]), Tensor)
    assert_type(posterior.sample(torch.Generator()), Tensor)
    posterior.sample_and_kl(reduction="mean")  # error
    fastvae.DiagonalGaussian(mu, logvar, scale="sigma")  # error


def likelihoods(logits: Tensor, x: Tensor) -> None:
    assert_type(bernoulli_log_prob(logits, x, reduction="none", mask=x > 0), Tensor)
    assert_type(gaussian_log_prob(logits, logits, x, clamp=(-6, 2)), Tensor)
    assert_type(Bernoulli().log_prob(logits, x, reduction="batchmean"), Tensor)
    assert_type(Gaussian(None).log_prob((logits, logits), x), Tensor)
    assert_type(ZeroInflatedNegativeBinomial(2000).sample((logits, logits), x=x), Tensor)
    assert_type(linear_log_prob("gaussian", logits, [Linear(logits), Linear(logits, activation="exp")], x), Tensor)
    bernoulli_log_prob(logits, x, reduction="mean")  # error
    bernoulli_log_prob(logits)  # error
    Bernoulli().log_prob(logits, x, reduction="summ")  # error
    Gaussian("0.5")  # error
    linear_log_prob("normal", logits, [Linear(logits)], x)  # error
    linear_log_prob("bernoulli", logits, [Linear(logits)], x, reduction="none")  # error


class GeometricCounts(nn.Module):
    """A likelihood of one's own: any module with the three methods, whatever it calls its arguments."""

    takes_draws = True

    def log_prob(self, logits: Tensor, x: Tensor) -> Tensor:
        return (F.logsigmoid(logits) + x * F.logsigmoid(-logits)).sum(-1)

    def mean(self, logits: Tensor) -> Tensor:
        return torch.exp(-logits)

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.empty_like(logits).geometric_(0.5, generator=generator)


class NoSample(nn.Module):
    def log_prob(self, logits: Tensor, x: Tensor) -> Tensor:
        return (logits * x).sum(-1)


class SharpBernoulli(Bernoulli):
    def mean(self, parameters: Tensor | tuple[Tensor, ...]) -> Tensor:
        return super().mean(parameters).round()


class MyDecoder(nn.Module):
    """A decoder of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, z: Tensor) -> Tensor:
        found: Tensor = self.layers(z)
        return found


class Uniform(Prior):
    """A prior of one's own."""

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.zeros(z.shape[0])


def models(x: Tensor, z: Tensor, flag: bool) -> None:
    encoder, decoder = MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784)
    several: list[Likelihood] = [
        Bernoulli(),
        MissingAsNaN(Gaussian()),
        DiscretizedLogisticMixture(),
        ZeroInflatedNegativeBinomial(2000, library_size=1e4),
        GeometricCounts(),
        SharpBernoulli(),
    ]
    vae = VAE(encoder, MyDecoder(), several[0], prior=Uniform(20))
    VAE(encoder, decoder, GeometricCounts(), latent_shape=20)
    VAE(encoder, decoder, NoSample())  # error
    VAE(encoder, decoder, F.binary_cross_entropy)  # error
    VAE(encoder, z, Bernoulli())  # error
    VAE(encoder, decoder, Bernoulli(), prior=MLPEncoder(10, [], 20))  # error

    assert_type(encoder(x), tuple[Tensor, Tensor])
    assert_type(encoder(x, packed=True), Tensor)
    assert_type(ResidualEncoder((3, 32, 32), (64, 128), 20)(x, packed=flag), Tensor | tuple[Tensor, Tensor])
    assert_type(ConvEncoder((1, 28, 28), (8, 16), 4)(x, z), tuple[Tensor, Tensor])
    assert_type(decoder(z), Tensor)
    assert_type(ResidualDecoder(20, (64, 128), (3, 32, 32))(z), Tensor)
    assert_type(StandardizedDecoder(decoder, (784,))(z), Tensor)
    assert_type(LikelihoodHead(400, 784, Bernoulli())(z, x), Tensor)
    assert_type(LikelihoodHead(400, 784, outputs=2)(z), Tensor | tuple[Tensor, ...])
    encoder(x, packed="yes")  # error
    decoder()  # error
    decoder([0.0])  # error

    output = vae(x)
    assert_type(output, VAEOutput)
    assert_type(output.z, Tensor)
    assert_type(output.parameters, Tensor | tuple[Tensor, ...])
    assert_type(vae(x, seed=0, reduction="batchmean", per_coordinate=True), tuple[VAEOutput, tuple[Tensor, ...]])
    assert_type(vae(x, log_likelihood=True).log_likelihood, Tensor)
    assert_type(vae.encode(x), Posterior)
    assert_type(vae.elbo(x, row_offset=8), ELBOTerms)
    assert_type(vae.terms(x, beta=4.0).kl, Tensor)
    assert_type(vae.log_weights(x, 5), LogWeights)
    assert_type(vae.generate(3, temperature=0.7), Tensor)
    assert_type(vae.reconstruct(x), Tensor)
    vae(x, reduction="summ")  # error
    vae(x, num_samples=3)  # error
    vae([0.0])  # error
    print(output.elbo)  # error
    vae.elbo(x, beta=4.0)  # error
    vae.generate("3")  # error
    print(fastvae.nn.VEA)  # error

    conditional = ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=10, prior=MLPEncoder(10, [], 20))
    assert_type(conditional(x, condition=7), VAEOutput)
    deep = HierarchicalVAE.of_mlps(784, 64, (4, 8), Bernoulli())
    assert_type(deep(x), HierarchicalOutput)
    assert_type(deep(x).kl_per_level, tuple[Tensor, ...])
    assert_type(fastvae.load("runs/mnist5k-vae").elbo(x).elbo, Tensor)
    nn.Sequential(encoder, nn.Flatten()).append(vae)
    torch.compile(vae)


def priors(encoder: MLPEncoder, mu: Tensor, logvar: Tensor) -> None:
    prior = VampPrior(encoder, 784, components=50, squash=torch.sigmoid)
    assert_type(prior.sample_and_kl(mu, logvar, beta=2.0), tuple[Tensor, Tensor])
    assert_type(prior.sample_and_log_prob(mu, logvar, 5), tuple[Tensor, Tensor, Tensor])
    assert_type(GaussianMixture((4, 4, 4), 10).sample(3, seed=0), Tensor)
    prior.sample_and_kl(mu, logvar, condition=3)  # error
    GaussianMixture(20)  # error


class Autoencoder(nn.Module):
    """fastvae inside a module of one's own."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = MLPEncoder(784, 400, 20), MyDecoder(), likelihood

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(x)
        z, kl = fastvae.sample_and_kl(mu, logvar, reduction="batchmean", free_bits=0.1)
        return kl - self.likelihood.log_prob(self.decoder(z), x).mean()


def training(vae: VAE, batches: list[Tensor]) -> None:
    objective = ELBO(beta=linear_warmup(1000), free_bits=0.1, free_bits_group="channel")
    optimizer, units = torch.optim.Adam(vae.parameters()), ActiveUnits()
    for step, x in enumerate(batches):
        output = objective(vae, x, step=step, capacity=lambda step: 0.1 * step)
        assert_type(output, ObjectiveOutput)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        units.update(vae.encode(x).mu)
    assert_type(units.compute(), Activity)
    assert_type(IWAE(50, gradient="dreg")(vae, batches[0]).loss, Tensor)
    assert_type(log_marginal(vae, batches[0], 1000, seed=0), LogMarginal)
    assert_type(kl_per_latent(vae, batches), tuple[Tensor, ...])
    ELBO(beta="warm")  # error
    ELBO(free_bits_over="rows")  # error
    IWAE(5, gradient="dregs")  # error
    objective(batches[0], vae)  # error
    log_marginal(vae, batches[0])  # error
    assert_type(VAEModule(vae, objective, learning_rate=1e-3, schedule="constant").model, LatentVariableModel)
    VAEModule(vae, schedule="linear")  # error
    VAEModule(objective)  # error


def switches() -> None:
    with fastvae.patch("scvi", "diffusers", noise="torch"), fastvae.use_backend("cpu"):
        pass
    assert_type(fastvae.patch("torch").undo(), None)
    fastvae.unpatch()
    fastvae.patch("sklearn")  # error
    fastvae.patch("scvi", noise="numpy")  # error
    fastvae.use_backend("cuda")  # error
