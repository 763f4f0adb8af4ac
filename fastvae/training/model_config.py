"""`ModelConfig`: the sizes and choices from which the command line builds a model, and a checkpoint builds it again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import likelihoods, priors
from ..likelihoods import Linear
from ..nn import (
    VAE,
    ConditionalVAE,
    ConvDecoder,
    ConvEncoder,
    HierarchicalVAE,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
    StandardizedDecoder,
    StandardizedEncoder,
)
from ..nn.head import Score, takes_score
from ..nn.levels import mlp_levels
from ..nn.model import LatentVariableModel
from ..nn.standardize import copy_interface
from .errors import TrainingError

__all__ = ["COUNTS", "LIKELIHOODS", "MODELS", "PRIORS", "ModelConfig"]

MODELS = ("vae", "conv", "cvae", "hvae", "iwae")
_LIKELIHOODS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "bernoulli": lambda config: likelihoods.Bernoulli(),
    "continuous-bernoulli": lambda config: likelihoods.ContinuousBernoulli(),
    "gaussian": lambda config: likelihoods.Gaussian(0.1, learned=True),
    "laplace": lambda config: likelihoods.Laplace(0.3, learned=True),
    "log-normal": lambda config: likelihoods.LogNormal(0.1, learned=True),
    "mixture": lambda config: likelihoods.DiscretizedLogisticMixture(channels=config.event_shape[0]),
    "poisson": lambda config: likelihoods.Poisson(config.library_size),
    "negative-binomial": lambda config: likelihoods.NegativeBinomial(config.event_shape, config.library_size),
    "zero-inflated": lambda config: likelihoods.ZeroInflatedNegativeBinomial(config.event_shape, config.library_size),
}
LIKELIHOODS = tuple(_LIKELIHOODS)
COUNTS = ("poisson", "negative-binomial", "zero-inflated")
PRIORS = ("standard", "learned", "mixture", "vamp")


@dataclass(frozen=True)
class ModelConfig:
    """What a model is built from: plain values, which a checkpoint holds."""

    model: str
    likelihood: str
    event_shape: tuple[int, ...]
    latent_dim: tuple[int, ...] = (20,)
    """Size of z. For hvae: of each level from the top down; one number means two levels of this size."""
    hidden: tuple[int, ...] = (400,)
    """Widths of the hidden layers of encoder and decoder; hvae has one."""
    channels: tuple[int, ...] = (64, 128)
    """conv: channels at each resolution, from the largest down; each has half the sides of the one before."""
    patch: int = 1
    """conv: side of the squares of pixels that become one position of the largest resolution."""
    blocks: int = 1
    """conv: residual blocks at each resolution; 0 for `ConvEncoder` and `ConvDecoder`, as in runs of version 0.1."""
    linear: int | None = None
    """conv: side of the averaged image of the linear part of encoder and decoder; None without one."""
    standardize: bool = True
    """Whether the networks see standardised data: not in runs of version 0.1, and never for counts."""
    num_classes: int | None = None
    prior: str = "standard"
    components: int = 50
    """Of the priors mixture and vamp."""
    library_size: float | None = None
    """Of generated cells: means of counts are a softmax over the genes times the size of the library; None without."""
    missing: bool = False
    """NaN stands for a missing value."""

    def __post_init__(self) -> None:
        for name, known in (("model", MODELS), ("likelihood", LIKELIHOODS), ("prior", PRIORS)):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("event_shape", "latent_dim", "hidden", "channels"):
            object.__setattr__(self, name, tuple(int(size) for size in getattr(self, name)))
            if any(size < 1 for size in getattr(self, name)) or (name == "latent_dim" and not self.latent_dim):
                raise TrainingError(f"{name} is {getattr(self, name)}, expected positive numbers")
        self._check()

    def _check(self) -> None:
        image = len(self.event_shape) == 3
        if self.model == "conv" and not image:
            raise TrainingError(f"the data have shape {self.event_shape}, conv needs images (C, H, W): --model vae")
        if self.model == "conv" and not self.channels:
            raise TrainingError("channels is empty, conv needs one number or more: --channels 64 128")
        if self.likelihood == "mixture" and not (image and self.event_shape[0] in (1, 3)):
            raise TrainingError(f"the data have shape {self.event_shape}, the mixture needs images of 1 or 3 channels")
        if self.model != "hvae" and len(self.latent_dim) > 1:
            raise TrainingError(f"latent_dim is {self.latent_dim}, several levels are for --model hvae")
        if self.model == "hvae" and len(self.hidden) != 1:
            raise TrainingError(f"hidden is {self.hidden}, hvae has one hidden layer everywhere: give one number")
        if self.model in ("cvae", "hvae") and self.prior != "standard":
            raise TrainingError(f"prior is {self.prior!r}, {self.model} is built with the standard one only")
        if (self.model == "cvae") != (self.num_classes is not None):
            raise TrainingError(f"num_classes is {self.num_classes}, expected it for cvae and for no other")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> ModelConfig:
        return cls(**{"blocks": 0, "standardize": False, **saved})

    def saved(self) -> dict[str, Any]:
        """As lists and plain values: the argument of `from_saved`."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def differences(self, other: ModelConfig) -> list[str]:
        """Names and values of the fields that differ: "latent_dim (20,), not (10,)"."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{name} {ours[name]}, not {theirs[name]}" for name in ours if ours[name] != theirs[name]]

    def build(self, seed: int = 0) -> LatentVariableModel:
        """The model, with initial weights drawn from the seed; torch's global generator is not advanced."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            return self._hierarchical() if self.model == "hvae" else self._flat()

    def _flat(self) -> LatentVariableModel:
        likelihood = self._likelihood()
        outputs = self._outputs(likelihood)
        (latent_dim,) = self.latent_dim
        encoder: nn.Module
        decoder: nn.Module
        if self.model == "conv" and self.blocks:
            sizes: dict[str, Any] = {"patch": self.patch, "blocks": self.blocks, "linear": self.linear}
            encoder = ResidualEncoder(self.event_shape, self.channels, latent_dim, **sizes)
            decoder = ResidualDecoder(latent_dim, self.channels[::-1], outputs, **sizes)
        elif self.model == "conv":
            encoder = ConvEncoder(self.event_shape, self.channels, latent_dim)
            decoder = ConvDecoder(latent_dim, channels=self.channels[::-1], output_shape=outputs)
        else:
            encoder = MLPEncoder(self.event_shape, self.hidden, latent_dim, condition_dim=self.num_classes)
            decoder = MLPDecoder(latent_dim, self.hidden[::-1], outputs, condition_dim=self.num_classes)
        encoder, decoder = self._at_scale(encoder), self._of_parameters(decoder)
        if self.num_classes is not None:
            return ConditionalVAE(encoder, decoder, likelihood, num_classes=self.num_classes)
        return VAE(encoder, decoder, likelihood, prior=self._prior(encoder, latent_dim))

    def _hierarchical(self) -> HierarchicalVAE:
        likelihood = self._likelihood()
        (hidden,) = self.hidden
        dims = self.latent_dim * 2 if len(self.latent_dim) == 1 else self.latent_dim
        bottom_up, levels, _ = mlp_levels(self.event_shape, hidden, dims, nn.ReLU)
        bottom_up[0] = self._at_scale(bottom_up[0])
        decoder = self._of_parameters(MLPDecoder(hidden, hidden, self._outputs(likelihood)))
        return HierarchicalVAE(bottom_up, levels, decoder, likelihood)

    def _at_scale(self, network: nn.Module) -> nn.Module:
        """The network that takes x, behind what brings the data to a scale of about 1."""
        if self.missing:
            network = _Transformed(network, _zero_for_missing)
        if self.likelihood in COUNTS:  # they span orders of magnitude, as positive values do
            return _Transformed(network, torch.log1p)
        if self.standardize:
            network = StandardizedEncoder(network, self.statistics_shape)
        return _Transformed(network, torch.log) if self.likelihood == "log-normal" else network

    def _of_parameters(self, decoder: nn.Module) -> nn.Module:
        """The decoder, with its output at the scale of the likelihood's parameters."""
        if self.likelihood == "zero-inflated" or (self.likelihood == "negative-binomial" and not self.library_size):
            return _MeanOfCounts(decoder, self.likelihood == "zero-inflated", positive=not self.library_size)
        if not self.standardize or self.likelihood in ("mixture", *COUNTS):
            return decoder
        # Logits start at those of the mean image; means at the statistics of the data, or of their logarithm.
        logits = self.likelihood in ("bernoulli", "continuous-bernoulli")
        return StandardizedDecoder(decoder, self.event_shape if logits else self.statistics_shape)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Of the mean and the standard deviation of the data: for each channel of images, else for each coordinate."""
        channels, *positions = self.event_shape
        return (channels, 1, 1) if len(positions) == 2 else self.event_shape

    def _likelihood(self) -> Any:
        likelihood: Any = _LIKELIHOODS[self.likelihood](self)
        return likelihoods.MissingAsNaN(likelihood) if self.missing else likelihood

    def _outputs(self, likelihood: Any) -> tuple[int, ...]:
        """The shape of the decoder's output."""
        if self.likelihood == "mixture":
            return (getattr(likelihood, "likelihood", likelihood).parameter_channels, *self.event_shape[1:])
        first, *others = self.event_shape
        return (2 * first if self.likelihood == "zero-inflated" else first, *others)

    def _prior(self, encoder: nn.Module, latent_dim: int) -> priors.Prior | None:
        if self.prior == "learned":
            return priors.LearnedGaussian(latent_dim)
        if self.prior == "mixture":
            return priors.GaussianMixture(latent_dim, self.components)
        if self.prior == "vamp":
            bounded = self.likelihood not in (*COUNTS, "log-normal")
            squash = torch.sigmoid if bounded else F.softplus
            return priors.VampPrior(encoder, self.event_shape, self.components, squash=squash)
        return None


class _Transformed(nn.Module):
    """``encoder(transform(x))``."""

    def __init__(self, encoder: nn.Module, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        copy_interface(self, encoder)
        self._transform = transform

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:
        return self.encoder(self._transform(x), *others, **options)


def _zero_for_missing(x: Tensor) -> Tensor:
    """0, the mean of standardised data, for NaN (Mattei & Frellsen, arXiv 1812.02633)."""
    return torch.where(torch.isnan(x), x.new_zeros(()), x)


class _MeanOfCounts(nn.Module):
    """A decoder of counts, whose output is their mean; with ``inflated`` its second half are the logits of more zeros.

    ``positive`` applies softplus to the mean; without it, the first output is the logits of a softmax over the genes.
    """

    def __init__(self, decoder: nn.Module, inflated: bool, positive: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.inflated = inflated
        self.positive = positive
        self.takes_score = takes_score(decoder)

    def forward(self, *given: Tensor, score: Score | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if score is not None:
            return self.decoder(*given, score=functools.partial(self._score, score))
        out = self.decoder(*given)
        mean, *logits = out.chunk(2, dim=1) if self.inflated else (out,)
        if self.positive:
            mean = F.softplus(mean)
        return (mean, *logits) if logits else mean

    def _score(self, score: Score, hidden: Tensor, layers: Sequence[Linear], shape: tuple[int, ...]) -> Tensor:
        """Of the halves of the decoder's layer, the first with its softplus."""
        (layer,), count = layers, 2 if self.inflated else 1
        biases = [None] * count if layer.bias is None else layer.bias.chunk(count)
        halves = [Linear(weight, bias) for weight, bias in zip(layer.weight.chunk(count), biases, strict=True)]
        if self.positive:
            halves[0] = halves[0]._replace(activation="softplus")
        return score(hidden, halves, (shape[0] // count, *shape[1:]))
