"""What a likelihood log p(x|z) is, and what the backends compute for it. Every backend follows these formulas.

Of each coordinate, with x the data, the decoder's parameters as named, and eps = 1e-8:

    "bernoulli"             logits l              x l - softplus(l)
    "continuous_bernoulli"  logits l              x l - softplus(l) + log(l / tanh(l/2)); the last log is log 2 at l = 0
    "gaussian"              mean f, logvar v      -1/2 ((x - f)^2 exp(-v) + v + log 2 pi)
    "laplace"               mean f, logscale v    -|x - f| exp(-v) - v - log 2
    "log_normal"            mu m, logvar v        -1/2 ((log x - m)^2 exp(-v) + v + log 2 pi) - log x
    "poisson"               lograte r             x r - exp(r) - lgamma(x + 1)
    "negative_binomial"     mean m, theta t       n + x log((m + eps) / (t + m + eps))
                                                  + lgamma(x + t) - lgamma(t) - lgamma(x + 1),
                                                  n = -t log1p(m / (t + eps)): all that there is at x = 0
    "zero_inflated_negative_binomial"
                            mean m, theta t, logits l of a zero that is not the negative binomial's
                                                  x = 0: softplus(n - l) - softplus(-l)
                                                  else:  that negative binomial - softplus(l)
    "scaled_bernoulli"      probability p, factors d, f     q = p d f is the probability of x > 0
                                                  x > 0: log q    else: log(1 - q)    of each at least -100

(Kingma & Welling, arXiv 1312.6114; Loaiza-Ganem & Cunningham, arXiv 1907.06845, for the continuous Bernoulli; negative
binomials as in scVI, Lopez et al. 2018, whose eps keeps logarithms finite where a decoder gives 0; the last as in
PeakVI, Ashuach et al. 2022, computed as PyTorch's binary cross entropy is; the log-normal as in Johnson, Kotz &
Balakrishnan 1994, "Continuous univariate distributions", chapter 14.) The v of a Gaussian, Laplace or log-normal may be
clamped to (low, high), with a gradient of 1 on the bounds. The derivative by q is (1 or 0 - q) / max(q (1 - q), 1e-12).

Of a log-normal, log p is -infinity at x = 0, its limit, and NaN below. There log x is at least `LEAST_LOG` where it is
subtracted: an infinity less another would be NaN. No positive float64 has a smaller one.

A value is outside a density's domain, of which a call can be told (``noticed``), where the x of the three kinds of
counts is not a whole number of 0 or more, or the q of a scaled Bernoulli not within 0 and 1; NaN always is.

Of each pixel, over its C = 1 or 3 channels and M mixture components:

    "discretized_logistic_mixture"                log sum_m exp(log_softmax(l)_m + sum_c log P_cm)

        P_cm = sigmoid(a) - sigmoid(b), the part of a logistic that falls on the level x of 0..255
        a = (y + 1/255 - mean_cm) exp(-s_cm), but infinite at level 255     y = 2 x / 255 - 1
        b = (y - 1/255 - mean_cm) exp(-s_cm), but -infinite at level 0      s = max(log scale, -7)
        log P = log(1 - exp(b - a)) - softplus(-a) + -softplus(b), wherever neither is infinite
        mean_1m = m_1m + tanh(k_0m) y_0     mean_2m = m_2m + tanh(k_1m) y_0 + tanh(k_2m) y_1     (red, green, blue)

(Salimans et al., arXiv 1701.05517, PixelCNN++.) Its one parameter has the channels l (M), then for each of the C means,
log scales and, with C = 3, coefficients k (M each): 3 M or 10 M of them. x is in [0, 1], or of an integer dtype
in 0..255; ``low`` is the bound of s.
"""

from __future__ import annotations

import functools
import math
from typing import Final, NamedTuple

from .latent_spec import decode, encode

__all__ = [
    "COUNTS", "EPS", "KINDS", "LEAST_LOG", "LEAST_VARIANCE", "LOWEST_LOG", "MIXTURE", "NOTICING", "NO_BOUNDS",
    "Bounds", "Kind", "LikelihoodSpec", "channels_of_mixture", "decode_likelihood_spec", "likelihood_spec",
]  # fmt: skip


class Kind(NamedTuple):
    """What the code around the formulas has to know of a kind."""

    parameters: int  # how many it takes
    counts: bool = False  # x is of whole numbers, 0 or more
    # Values of x, and of each parameter, at which log p is 0: they stand in for what is missing.
    absent: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    # The parameters, by place, that have a gradient of 0 there whatever their value: one that rows share can stay.
    inert: tuple[int, ...] = ()


_CERTAIN = -60.0  # as a logit or a log rate: log p is -9e-27, and no denormal number, which CPUs are slow with
_UNIT_DENSITY = -math.log(2 * math.pi)  # the log variance of a normal whose density at its mean is 1

# In the order of the enumeration in cpu/call.h.
KINDS = {
    "bernoulli": Kind(1, absent=(0.0, _CERTAIN)),
    "continuous_bernoulli": Kind(1),
    "gaussian": Kind(2, absent=(0.0, 0.0, _UNIT_DENSITY)),
    "laplace": Kind(2, absent=(0.0, 0.0, -math.log(2))),
    "log_normal": Kind(2, absent=(1.0, 0.0, _UNIT_DENSITY)),
    "poisson": Kind(1, counts=True, absent=(0.0, _CERTAIN)),
    "negative_binomial": Kind(2, counts=True, absent=(0.0, 0.0, 1.0), inert=(1,)),
    "zero_inflated_negative_binomial": Kind(3, counts=True, absent=(0.0, 0.0, 1.0, 0.0), inert=(1,)),
    "scaled_bernoulli": Kind(3, inert=(1, 2)),
    "discretized_logistic_mixture": Kind(1),
}
MIXTURE: Final = "discretized_logistic_mixture"
COUNTS = tuple([name for name, kind in KINDS.items() if kind.counts])
# Of these `noticed` tells that a value is outside the domain.
NOTICING = (*COUNTS, "scaled_bernoulli")

# Counts below it are zero, and what keeps logarithms of means finite.
EPS = 1e-8
# PyTorch's bounds in a binary cross entropy: of a logarithm, and of the denominator of its derivative.
LOWEST_LOG = -100.0
LEAST_VARIANCE = 1e-12
# Of a log-normal, where log x is subtracted.
LEAST_LOG = -745.0


class LikelihoodSpec(NamedTuple):
    """What a likelihood is: hashable, the key of everything that is remembered."""

    kind: str
    reduction: str = (
        "sample"  # "none", "sample", "sum", "batchmean", or "channel": over all dimensions behind the second
    )
    clamp: bool = False  # the logvar or logscale is clamped to `Bounds`
    components: int = 0  # of a mixture

    def encode(self) -> str:
        """As a string, for the schema of a registered op."""
        return encode(self)


likelihood_spec = functools.partial(tuple.__new__, LikelihoodSpec)  # from a tuple, in half the time


@functools.lru_cache(maxsize=1024)
def decode_likelihood_spec(text: str) -> LikelihoodSpec:
    return LikelihoodSpec(*decode(text))


class Bounds(NamedTuple):
    """The numbers of a call: run-time arguments of every kernel, never part of a compile key."""

    low: float = -math.inf  # of the clamp; of the log scale of a mixture
    high: float = math.inf


NO_BOUNDS = Bounds()


def channels_of_mixture(channels: int, components: int) -> int:
    """Channels of the parameter of a discretized logistic mixture over 1 or 3 channels."""
    return components * (1 + (3 if channels == 3 else 2) * channels)
