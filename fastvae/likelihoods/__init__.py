"""Fused likelihoods p(x|z), as functions and as modules.

Each module has the same three methods, where ``parameters`` is the decoder's output (a tensor, or a tuple of tensors if
the distribution has several parameters) and x the data:

    log_prob(parameters, x)                  log p(x|z) of each sample in nats, summed over the event; shape (B,)
    mean(parameters)                         E[x|z], of the shape of x
    sample(parameters, generator=None)       x ~ p(x|z), of the shape of x

``log_prob(..., mask=)`` leaves out missing values; `MissingAsNaN` leaves out those that are NaN. Data are (B, *event),
row b is sample b; parameters of K draws, (K, B, *event), give (K, B). Sums are float32 even for bfloat16 and float16
(float64 stays float64), as a sum over 784 pixels needs more than bfloat16's 8 bits. No method synchronises the device
unless ``check=True``. `linear_log_prob` computes a likelihood together with the decoder's last linear layers. Invalid
arguments raise TypeError or ValueError; the message names the argument. The conventions of the functions are in
`fastvae.likelihoods.functional`.
"""

from .base import Likelihood
from .counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .functional import (
    bernoulli_log_prob,
    continuous_bernoulli_log_prob,
    discretized_logistic_mixture_log_prob,
    gaussian_log_prob,
    laplace_log_prob,
    log_normal_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
    scaled_bernoulli_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from .head import Linear, linear_log_prob
from .images import DiscretizedLogisticMixture
from .missing import MissingAsNaN
from .pixels import Bernoulli, ContinuousBernoulli
from .reals import Gaussian, Laplace, LogNormal

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "Linear",
    "LogNormal",
    "MissingAsNaN",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "bernoulli_log_prob",
    "continuous_bernoulli_log_prob",
    "discretized_logistic_mixture_log_prob",
    "gaussian_log_prob",
    "laplace_log_prob",
    "linear_log_prob",
    "log_normal_log_prob",
    "negative_binomial_log_prob",
    "poisson_log_prob",
    "scaled_bernoulli_log_prob",
    "zero_inflated_negative_binomial_log_prob",
]


def __dir__() -> list[str]:
    return list(__all__)
