"""Statistics of the training data, from which a model starts: standardisation, mean image, first variance."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihoods import Gaussian, LogNormal
from ..nn import VAE, ResidualDecoder, ResidualEncoder, StandardizedDecoder, StandardizedEncoder
from ..nn.model import LatentVariableModel
from .augment import in_all_orientations
from .datasets import Samples
from .model_config import ModelConfig
from .optimizer import learned_scale

__all__ = ["start_from", "statistics_of", "value_range"]

_ROWS = 5000
_ROWS_OF_COMPONENTS = 1000
_NUMBERS_AT_ONCE = 2**23
_LEAST_ERROR = 1e-7
_LEAST_MEAN = 1e-30
_LEAST_STD = 1e-3
"""Of the largest: a coordinate that hardly varies is not blown up."""


class Statistics(NamedTuple):
    """Of each coordinate of x, (*event), float64."""

    mean: Tensor
    variance: Tensor
    low: float
    """Of `value_range`, as ``high``."""
    high: float


def statistics_of(samples: Samples) -> Statistics:
    """From all rows, or 5,000 spread evenly over them; NaN are left out."""
    rows = _spread(len(samples), _ROWS)
    at_once = max(1, _NUMBERS_AT_ONCE // math.prod(samples.event_shape))
    total = squares = known = torch.zeros(samples.event_shape, dtype=torch.float64)
    seen: list[Tensor] = []
    for start in range(0, len(rows), at_once):
        x = samples.rows(rows[start : start + at_once])
        observed = ~torch.isnan(x)
        known = known + observed.sum(0)
        some = x[observed]
        x = x.nan_to_num(nan=0.0)
        total = total + x.sum(0, dtype=torch.float64)
        squares = squares + x.double().square().sum(0)
        seen.append(some[:: max(1, len(some) * (-(-len(rows) // at_once)) // 2**20)])
    known = known.clamp_min(1.0)
    mean = total / known
    variance = (squares / known - mean**2).clamp_min(0.0)
    return Statistics(mean, variance, *value_range(torch.cat(seen)))


def value_range(x: Tensor) -> tuple[float, float]:
    """(0, 1) for data in [0, 1], else the range without the outermost thousandth on each side: a few outliers do not
    make all other values look alike. NaN are left out."""
    values = x.detach().double().flatten().cpu()
    values = values[~torch.isnan(values)]
    if not len(values) or (values.min() >= 0 and values.max() <= 1):
        return 0.0, 1.0
    low, high = np.quantile(values.numpy(), (0.001, 0.999)).tolist()
    return low, high


@torch.no_grad()
def start_from(
    model: LatentVariableModel,
    config: ModelConfig,
    data: Statistics,
    samples: Samples,
    *,
    flip: bool = False,
    rotate: bool = False,
) -> None:
    """Set what a new model starts from.

    The standardisation buffers; the linear part of a convolutional encoder and decoder, to principal components; and
    the likelihood's scale, to the error of the model as it is then.

    Args:
        flip, rotate: as of `VAEModule`; the components are those of images in all these orientations.
    """
    mean, variance = _pooled(config, data)
    if config.likelihood == "log-normal":
        mean, variance = _of_logarithm(mean, variance)
    std = variance.sqrt()
    largest = std.max()
    std = std.clamp_min(_LEAST_STD * largest) if largest > 0 else torch.ones_like(std)
    for module in model.modules():
        if isinstance(module, StandardizedEncoder):
            module.set_statistics(mean, std)
        elif isinstance(module, StandardizedDecoder):
            if config.likelihood in ("bernoulli", "continuous-bernoulli"):
                module.set_statistics(torch.logit(data.mean.clamp(0.01, 0.99)))
            else:
                module.set_statistics(mean, std)
    scale = learned_scale(model)
    if scale is None:
        return
    rows = samples.rows(_spread(len(samples), _ROWS_OF_COMPONENTS))
    if config.linear is not None:
        assert isinstance(model, VAE)
        start_from_components(model, in_all_orientations(rows, flip, rotate))
    else:
        scale.fill_(_logarithm_of_scale(model, variance.mean()))


@torch.no_grad()
def start_from_components(model: VAE, x: Tensor) -> None:
    """Set the linear parts of a new model to the probabilistic PCA of x (N, C, H, W), which the networks then improve.

    With components v_i of the averaged images, of variance l_i: mu_i = v_i (x - mean) / sqrt(l_i), decoded to
    mean + sum_i sqrt(l_i) v_i z_i, and the posterior's variance is 1 / (1 + e_i / s^2) with e_i the squared norm of
    what z_i adds to an image and s^2 the mean squared error (Tipping & Bishop 1999, "Probabilistic principal component
    analysis"; a linear VAE has this optimum: Lucas et al., arXiv 1911.02469).
    """
    encoder, decoder = model.encoder, model.decoder
    assert isinstance(encoder, StandardizedEncoder)
    assert isinstance(decoder, StandardizedDecoder)
    to_latents, to_images = encoder.network, decoder.network
    assert isinstance(to_latents, ResidualEncoder)
    assert isinstance(to_images, ResidualDecoder)
    assert to_latents.linear is not None
    assert to_images.linear is not None
    averaged = to_latents.linear[:2]((x - encoder.mean) / encoder.std).double()
    center = averaged.mean(0)
    latents = to_latents.latent_dim
    variances, components = _principal_components(averaged - center, latents)
    roots = variances.sqrt()
    unused = latents - len(roots)
    into = F.pad(components / roots[:, None], (0, 0, 0, unused + latents))
    offset = -into @ center
    to_latents.set_linear(into, offset)
    to_images.set_linear(F.pad(components.T * roots, (0, unused)), center)
    error = torch.stack([(model.reconstruct(part) - part).square().mean() * len(part) for part in x.split(100)]).sum()
    error = (error / len(x)).clamp_min(_LEAST_ERROR)
    added = decoder.std * (to_images.linear(torch.eye(latents)) - to_images.linear(torch.zeros(1, latents)))
    offset[latents:] = -torch.log1p(added.square().flatten(1).sum(1) / error)
    to_latents.set_linear(into, offset)
    scale = learned_scale(model)
    assert scale is not None
    scale.fill_(_logarithm_of_scale(model, error))


def _principal_components(p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Variances (n,) and components (n, D) of the largest n <= count of them, of centred rows (N, D)."""
    short = len(p) <= p.shape[1]
    values, vectors = torch.linalg.eigh(p @ p.T if short else p.T @ p)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count].T
    kept = values > 1e-9 * values.max().clamp_min(1e-12)
    values, vectors = values[kept], vectors[kept]
    return values / len(p), vectors @ p / values.sqrt()[:, None] if short else vectors


def _logarithm_of_scale(model: LatentVariableModel, error: Tensor) -> float:
    """Of a Gaussian and a log-normal the log variance, of a Laplace with this variance the log of its scale."""
    logvar = math.log(max(error.item(), _LEAST_ERROR))
    likelihood = getattr(model.likelihood, "likelihood", model.likelihood)  # inside MissingAsNaN
    return logvar if isinstance(likelihood, (Gaussian, LogNormal)) else 0.5 * (logvar - math.log(2.0))


def _of_logarithm(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the logarithm of a log-normal whose own these are."""
    mean = mean.clamp_min(_LEAST_MEAN)  # of a coordinate that is missing everywhere
    variance = torch.log1p(variance / mean.square())
    return mean.log() - 0.5 * variance, variance


def _spread(rows: int, count: int) -> np.ndarray:
    """At most so many row numbers, spread evenly over all."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(np.int64))


def _pooled(config: ModelConfig, data: Statistics) -> tuple[Tensor, Tensor]:
    """Mean and variance of shape `ModelConfig.statistics_shape`: of images, one mean for each channel and one variance
    for all, so that an error counts the same in every channel, as in the likelihood."""
    if config.statistics_shape == config.event_shape:
        return data.mean, data.variance
    mean = data.mean.mean((1, 2), keepdim=True)
    variance = data.variance.mean() + (data.mean - mean).square().mean()
    return mean, variance.expand(config.statistics_shape)
