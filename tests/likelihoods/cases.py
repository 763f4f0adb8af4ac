"""Every likelihood with data and parameters to try it on, and its formula as people write it in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench import eager_likelihoods as eager
from fastvae.kernels.likelihood_spec import COUNTS, MIXTURE, NO_BOUNDS, Bounds, LikelihoodSpec, channels_of_mixture

COMPONENTS = 3


class Case(NamedTuple):
    spec: LikelihoodSpec
    formula: Callable[..., Tensor]  # of x and the parameters, log p of each coordinate
    shapes: tuple[str, ...] = ("full",)  # of the parameters: "full", "shared", "rows" (one a row) or "one"
    bounds: Bounds = NO_BOUNDS

    def under(self, reduction: str) -> tuple[LikelihoodSpec, Bounds]:
        """What a backend takes beside the tensors."""
        return self.spec._replace(reduction=reduction), self.bounds


def clamped_gaussian(x, mean, logvar):
    return eager.gaussian(x, mean, logvar.clamp(-1.0, 0.5))


def clamped_log_normal(x, mu, logvar):
    return eager.log_normal(x, mu, logvar.clamp(-1.0, 0.5))


def mixture(x, parameter):
    """By probabilities of bins, which float64 has digits enough for."""
    if parameter.dtype == torch.float64:
        return _mixture_of_bins(x, parameter)
    return eager.discretized_logistic_mixture(x, parameter, COMPONENTS)


def _mixture_of_bins(x, parameter):
    y = 2 * x - 1
    channels, m = x.shape[1], COMPONENTS
    logits, rest = parameter[:, :m], parameter[:, m:].unflatten(1, (channels, -1, m))
    means, scales = rest[:, :, 0], torch.exp(rest[:, :, 1].clamp_min(-7.0))
    if channels == 3:
        k = torch.tanh(rest[:, :, 2])
        red, green = y[:, 0].unsqueeze(1), y[:, 1].unsqueeze(1)
        of_green, of_blue = k[:, 0] * red, k[:, 1] * red + k[:, 2] * green
        means = means + torch.stack((torch.zeros_like(of_green), of_green, of_blue), 1)
    y = y.unsqueeze(2)
    upper = torch.where(y > 0.999, 1.0, torch.sigmoid((y + 1 / 255 - means) / scales))
    lower = torch.where(y < -0.999, 0.0, torch.sigmoid((y - 1 / 255 - means) / scales))
    return torch.logsumexp(torch.log_softmax(logits, 1) + torch.log(upper - lower).sum(1), 1)


UNIT = ("bernoulli", "continuous_bernoulli", MIXTURE)

NEGATIVE_BINOMIAL = LikelihoodSpec("negative_binomial")
ZERO_INFLATED = LikelihoodSpec("zero_inflated_negative_binomial")

CASES = {
    "bernoulli": Case(LikelihoodSpec("bernoulli"), eager.bernoulli),
    "continuous Bernoulli": Case(LikelihoodSpec("continuous_bernoulli"), eager.continuous_bernoulli),
    "Gaussian": Case(LikelihoodSpec("gaussian"), eager.gaussian, ("full", "full")),
    "Gaussian, shared variance": Case(LikelihoodSpec("gaussian"), eager.gaussian, ("full", "shared")),
    "Gaussian, one variance": Case(LikelihoodSpec("gaussian"), eager.gaussian, ("full", "one")),
    "Gaussian, clamped": Case(
        LikelihoodSpec("gaussian", clamp=True), clamped_gaussian, ("full", "full"), Bounds(-1.0, 0.5)
    ),
    "Laplace": Case(LikelihoodSpec("laplace"), eager.laplace, ("full", "full")),
    "Laplace, one scale": Case(LikelihoodSpec("laplace"), eager.laplace, ("full", "one")),
    "log-normal": Case(LikelihoodSpec("log_normal"), eager.log_normal, ("full", "full")),
    "log-normal, clamped, shared variance": Case(
        LikelihoodSpec("log_normal", clamp=True), clamped_log_normal, ("full", "shared"), Bounds(-1.0, 0.5)
    ),
    "Poisson": Case(LikelihoodSpec("poisson"), eager.poisson),
    "negative binomial": Case(NEGATIVE_BINOMIAL, eager.negative_binomial, ("full", "shared")),
    "negative binomial, theta of each": Case(NEGATIVE_BINOMIAL, eager.negative_binomial, ("full", "full")),
    "negative binomial, theta of each row": Case(NEGATIVE_BINOMIAL, eager.negative_binomial, ("full", "rows")),
    "zero-inflated": Case(
        LikelihoodSpec("zero_inflated_negative_binomial"),
        eager.zero_inflated_negative_binomial,
        ("full", "shared", "full"),
    ),
    "zero-inflated, shared": Case(
        LikelihoodSpec("zero_inflated_negative_binomial"),
        eager.zero_inflated_negative_binomial,
        ("full", "one", "shared"),
    ),
    "scaled Bernoulli": Case(LikelihoodSpec("scaled_bernoulli"), eager.scaled_bernoulli, ("full", "rows", "shared")),
    "scaled Bernoulli, all of each": Case(LikelihoodSpec("scaled_bernoulli"), eager.scaled_bernoulli, ("full",) * 3),
    "mixture": Case(LikelihoodSpec(MIXTURE, components=COMPONENTS), mixture, bounds=Bounds(low=-7.0)),
}


def draw(case: Case, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x in float32 and the parameters in ``dtype``."""
    kind = case.spec.kind
    if kind == MIXTURE:
        x = torch.randint(0, 256, shape) / 255
        x[:, :, :1] = torch.randint(0, 2, x[:, :, :1].shape).float()  # the ends have a formula of their own
        parameter = torch.randn(shape[0], channels_of_mixture(shape[1], COMPONENTS), *shape[2:])
        parameter[:, COMPONENTS:] *= 0.5
        return x, (parameter.to(dtype),)
    sizes = {"full": shape, "shared": (1, *shape[1:]), "one": (1,) * len(shape)}
    sizes["rows"] = (shape[0], *sizes["one"][1:])
    parameters = [torch.randn(sizes[name]) for name in case.shapes]
    if kind in COUNTS[1:]:
        parameters[:2] = [torch.exp(2 * parameter) for parameter in parameters[:2]]
    if kind == "scaled_bernoulli":
        parameters = [torch.sigmoid(parameter) for parameter in parameters]
    return data_of(kind, shape), tuple(parameter.to(dtype) for parameter in parameters)


def data_of(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Random x in the domain of a kind; of counts more than half are 0."""
    if kind in (*COUNTS, "scaled_bernoulli"):
        return torch.poisson(torch.rand(shape) * torch.randint(0, 2, shape) * 6)
    if kind == "log_normal":
        return torch.exp(torch.randn(shape))
    return torch.rand(shape) if kind in UNIT else torch.randn(shape)


def shapes_of(case: Case) -> tuple[tuple[int, ...], ...]:
    """Of x: short rows, and an event of several dimensions."""
    return ((2, 3, 4, 5), (3, 1, 6)) if case.spec.kind == MIXTURE else ((9, 10), (2, 3, 4, 5))
