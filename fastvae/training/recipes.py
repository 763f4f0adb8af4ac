"""The models that the command line builds: a `Recipe` is all that it takes to build one again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import likelihoods, priors
from ..nn import VAE, ConditionalVAE, ConvDecoder, ConvEncoder, HierarchicalVAE, MLPDecoder, MLPEncoder
from ..nn.levels import mlp_levels
from ..nn.model import LatentVariableModel
from .errors import TrainingError

MODELS = ("vae", "conv", "cvae", "hvae", "iwae")
LIKELIHOODS = (
    "bernoulli", "continuous-bernoulli", "gaussian", "laplace", "mixture", "poisson", "negative-binomial",
    "zero-inflated",
)  # fmt: skip
COUNTS = ("poisson", "negative-binomial", "zero-inflated")
PRIORS = ("standard", "learned", "mixture", "vamp")


@dataclass(frozen=True)
class Recipe:
    """A model by its sizes; plain values, which a checkpoint holds."""

    model: str
    likelihood: str
    event_shape: tuple[int, ...]
    latent_dim: tuple[int, ...] = (20,)
    """Size of z; of hvae, of each level from the top down, and one number stands for two levels of this size."""
    hidden: tuple[int, ...] = (400,)
    """Widths of the hidden layers of each side; hvae has one."""
    channels: tuple[int, ...] = (32, 64)
    """Of the convolutions, each of which halves the image's sides."""
    num_classes: int | None = None
    prior: str = "standard"
    components: int = 50
    """Of the priors that are mixtures."""

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
        factor = 2 ** len(self.channels)
        if self.model == "conv" and not self.channels:
            raise TrainingError("channels is empty, conv needs one number or more: --channels 32 64")
        if self.model == "conv" and any(side % factor for side in self.event_shape[1:]):
            height, width = self.event_shape[1:]
            raise TrainingError(
                f"the images are {height}x{width}, and {len(self.channels)} convolutions of stride 2 need sides"
                f" divisible by {factor}: --image-size {max(factor, height // factor * factor)}, or fewer --channels"
            )
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
    def from_saved(cls, saved: Mapping[str, Any]) -> Recipe:
        return cls(**saved)

    def saved(self) -> dict[str, Any]:
        """Of plain values: what `from_saved` takes."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def differences(self, other: Recipe) -> list[str]:
        """Names and values of what differs: "latent_dim (20,), not (10,)"."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{name} {ours[name]}, not {theirs[name]}" for name in ours if ours[name] != theirs[name]]

    def build(self, seed: int = 0) -> LatentVariableModel:
        """The model, its first weights drawn from the seed; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            return self._hierarchical() if self.model == "hvae" else self._flat()

    def _flat(self) -> LatentVariableModel:
        likelihood = self._likelihood()
        outputs = self._outputs(likelihood)
        (latent_dim,) = self.latent_dim
        encoder: nn.Module
        decoder: nn.Module
        if self.model == "conv":
            encoder = ConvEncoder(self.event_shape, self.channels, latent_dim)
            decoder = ConvDecoder(latent_dim, channels=self.channels[::-1], output_shape=outputs)
        else:
            encoder = MLPEncoder(self.event_shape, self.hidden, latent_dim, condition_dim=self.num_classes)
            decoder = MLPDecoder(latent_dim, self.hidden[::-1], outputs, condition_dim=self.num_classes)
        if self.likelihood in COUNTS:
            encoder = _OfLogCounts(encoder, (latent_dim,))
        if self.likelihood in COUNTS[1:]:
            decoder = _MeanOfCounts(decoder, self.likelihood == "zero-inflated")
        if self.num_classes is not None:
            return ConditionalVAE(encoder, decoder, likelihood, num_classes=self.num_classes)
        return VAE(encoder, decoder, likelihood, prior=self._prior(encoder, latent_dim))

    def _hierarchical(self) -> HierarchicalVAE:
        likelihood = self._likelihood()
        (hidden,) = self.hidden
        dims = self.latent_dim * 2 if len(self.latent_dim) == 1 else self.latent_dim
        bottom_up, levels, _ = mlp_levels(self.event_shape, hidden, dims, nn.ReLU)
        decoder: nn.Module = MLPDecoder(hidden, hidden, self._outputs(likelihood))
        if self.likelihood in COUNTS:
            bottom_up[0] = _OfLogCounts(bottom_up[0])
        if self.likelihood in COUNTS[1:]:
            decoder = _MeanOfCounts(decoder, self.likelihood == "zero-inflated")
        return HierarchicalVAE(bottom_up, levels, decoder, likelihood)

    def _likelihood(self) -> Any:
        made: dict[str, Callable[[], nn.Module]] = {
            "bernoulli": likelihoods.Bernoulli,
            "continuous-bernoulli": likelihoods.ContinuousBernoulli,
            "gaussian": lambda: likelihoods.Gaussian(0.1, learned=True),
            "laplace": lambda: likelihoods.Laplace(0.3, learned=True),
            "mixture": lambda: likelihoods.DiscretizedLogisticMixture(channels=self.event_shape[0]),
            "poisson": likelihoods.Poisson,
            "negative-binomial": lambda: likelihoods.NegativeBinomial(self.event_shape),
            "zero-inflated": lambda: likelihoods.ZeroInflatedNegativeBinomial(self.event_shape),
        }
        return made[self.likelihood]()

    def _outputs(self, likelihood: Any) -> tuple[int, ...]:
        """The shape of what the decoder gives."""
        if self.likelihood == "mixture":
            return (likelihood.parameter_channels, *self.event_shape[1:])
        first, *others = self.event_shape
        return (2 * first if self.likelihood == "zero-inflated" else first, *others)

    def _prior(self, encoder: nn.Module, latent_dim: int) -> priors.Prior | None:
        if self.prior == "learned":
            return priors.LearnedGaussian(latent_dim)
        if self.prior == "mixture":
            return priors.GaussianMixture(latent_dim, self.components)
        if self.prior == "vamp":
            bounded = self.likelihood not in COUNTS
            squash = torch.sigmoid if bounded else F.softplus
            return priors.VampPrior(encoder, self.event_shape, self.components, squash=squash)
        return None


class _OfLogCounts(nn.Module):
    """An encoder that sees log(1 + x): counts reach over decades."""

    def __init__(self, encoder: nn.Module, latent_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_shape = latent_shape
        self.packs_moments = getattr(encoder, "packs_moments", False)

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:
        return self.encoder(torch.log1p(x), *others, **options)


class _MeanOfCounts(nn.Module):
    """A decoder whose output is made the mean of counts, by softplus; and the logits of zero inflation beside it."""

    def __init__(self, decoder: nn.Module, inflated: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.inflated = inflated

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.decoder(*given)
        if not self.inflated:
            return F.softplus(out)
        mean, logits = out.chunk(2, dim=1)
        return F.softplus(mean), logits
