"""Log-likelihoods log p(x|z) as functions of the data and the decoder's parameters, fused: one pass forward, one back.

What they share:

    x           the data, (B, *event), row b is sample b; float32, bfloat16, float16, float64, an integer dtype or bool
    parameters  floating-point tensors on x's device; the first of them is of x's shape. Any other one is of that shape
                too, of the event's shape or one that broadcasts to it (shared by the batch: its gradient is summed over
                the batch in the same pass), or has one element. Each may have a dtype of its own.
    draws       the first parameter may have one dimension more, (K, B, *event): K draws for each row of x, which is
                neither copied nor read K times from memory; log p is then (K, B), or (K, B, *event) for "none"
    reduction   "none" (each coordinate), "sample" (summed over the event: (B,)), "sum", "batchmean" (sum / B)
    check       look for values that the density does not have first; the error names the first one's index

Log-likelihoods are in nats, computed and returned in float32 even for bfloat16 and float16 (float64 if x or a parameter
is float64). Saved for backward: the inputs. The gradient of x, and second derivatives, go through plain PyTorch.
Every function raises TypeError or ValueError, naming the argument, and RuntimeError where the backend asked for by name
cannot serve the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import plain
from ..arguments import check_flag, check_reduction, check_tensor, fit_to_rows, refuse_first
from ..autograd import log_likelihood
from ..kernels.likelihoods import MIXTURE, Density, channels_of_mixture
from ..options import check_clamp
from ..plain import observed
from ..sizes import check_count

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)

# Where PixelCNN++ stops a logistic from becoming narrower.
LOWEST_LOG_SCALE = -7.0

# A parameter by its name, and a test of its values: what is wrong, and what was expected.
Parameter = tuple[str, Tensor]
Rule = tuple[str, Callable[[Tensor], Tensor], str]


def bernoulli_log_prob(logits: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
    """Binary pixels, p(x = 1) = sigmoid(l):  x l - log(1 + exp(l)).

    (Kingma & Welling, arXiv 1312.6114, appendix C.1.) Targets lie in [0, 1]; those between, grey levels, give minus the
    cross entropy, which is not the log of a normalised density. `fastvae.likelihoods.functional` says what x and the
    other arguments are.

    >>> import torch
    >>> from fastvae.likelihoods import bernoulli_log_prob
    >>> bernoulli_log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # three fair coins: -3 log 2
    tensor([-2.0794, -2.0794])
    """
    return _log_prob(x, [("logits", logits)], Density("bernoulli"), reduction, check, _IN_UNIT_INTERVAL)


def continuous_bernoulli_log_prob(
    logits: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False
) -> Tensor:
    """A density on [0, 1] with the Bernoulli's form:  x l - log(1 + exp(l)) + log C(l),  C = l / tanh(l/2), 2 at 0.

    (Loaiza-Ganem & Cunningham, arXiv 1907.06845, equation 8, with l = log(lambda / (1 - lambda)).) Exact near l = 0.

    >>> import torch
    >>> from fastvae.likelihoods import continuous_bernoulli_log_prob
    >>> continuous_bernoulli_log_prob(torch.zeros(2, 3), torch.rand(2, 3)).abs() < 1e-6   # the uniform density
    tensor([True, True])
    """
    return _log_prob(x, [("logits", logits)], Density("continuous_bernoulli"), reduction, check, _IN_UNIT_INTERVAL)


def gaussian_log_prob(
    mean: Tensor,
    logvar: Tensor,
    x: Tensor,
    *,
    clamp: Sequence[float] | None = None,
    reduction: str = "sample",
    check: bool = False,
) -> Tensor:
    """Real values around the mean f with variance exp(v):  -1/2 ((x - f)^2 exp(-v) + v + log(2 pi)).

    (Kingma & Welling, arXiv 1312.6114, appendix C.2.) ``logvar`` has a value for each element, for each coordinate, or
    one; ``clamp`` keeps it in (low, high), with a gradient of 1 on the bounds: a decoder that fits a pixel exactly
    would otherwise drive it to minus infinity.

    >>> import torch
    >>> from fastvae.likelihoods import gaussian_log_prob
    >>> gaussian_log_prob(torch.zeros(2, 3), torch.zeros(1), torch.zeros(2, 3))   # -3/2 log(2 pi)
    tensor([-2.7568, -2.7568])
    """
    density = Density("gaussian", *_bounds(clamp))
    return _log_prob(x, [("mean", mean), ("logvar", logvar)], density, reduction, check)


def laplace_log_prob(
    mean: Tensor,
    logscale: Tensor,
    x: Tensor,
    *,
    clamp: Sequence[float] | None = None,
    reduction: str = "sample",
    check: bool = False,
) -> Tensor:
    """Real values around the median f with scale exp(v):  -|x - f| exp(-v) - v - log 2.

    The absolute error instead of the squared one; its gradient at x = f is 0. ``clamp`` as for `gaussian_log_prob`.

    >>> import torch
    >>> from fastvae.likelihoods import laplace_log_prob
    >>> laplace_log_prob(torch.zeros(2, 3), torch.zeros(1), torch.ones(2, 3))   # -3 (1 + log 2)
    tensor([-5.0794, -5.0794])
    """
    density = Density("laplace", *_bounds(clamp))
    return _log_prob(x, [("mean", mean), ("logscale", logscale)], density, reduction, check)


def poisson_log_prob(log_rate: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False) -> Tensor:
    """Counts with rate exp(r):  x r - exp(r) - log x!.

    >>> import torch
    >>> from fastvae.likelihoods import poisson_log_prob
    >>> poisson_log_prob(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))   # three zeros at rate 1
    tensor([-3., -3.])
    """
    return _log_prob(x, [("log_rate", log_rate)], Density("poisson"), reduction, check, _COUNTS)


def negative_binomial_log_prob(
    mean: Tensor, theta: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False
) -> Tensor:
    """Counts of a given mean m and inverse dispersion t; their variance is m + m^2 / t.

        t log(t / (t + m)) + x log(m / (t + m)) + log Gamma(x + t) - log Gamma(t) - log x!

    with 1e-8 added to the arguments of the logarithms (scVI, Lopez et al. 2018). ``mean`` is 0 or more and ``theta``
    positive: one for each gene (event), for each cell and gene, or (B, 1) for each cell. Most counts of a gene
    expression matrix are 0: their log p has no gamma functions. The CPU kernel computes those for what is not a whole
    count up to 8, and of the others, where theta is at most 10,000, the logarithm of a product.

    >>> import torch
    >>> from fastvae.likelihoods import negative_binomial_log_prob
    >>> negative_binomial_log_prob(torch.ones(2, 3), torch.ones(3), torch.zeros(2, 3))   # -3 log 2
    tensor([-2.0794, -2.0794])
    """
    parameters = [("mean", mean), ("theta", theta)]
    return _log_prob(x, parameters, Density("negative_binomial"), reduction, check, _COUNTS, _MEAN, _THETA)


def zero_inflated_negative_binomial_log_prob(
    mean: Tensor, theta: Tensor, zero_logits: Tensor, x: Tensor, *, reduction: str = "sample", check: bool = False
) -> Tensor:
    """A negative binomial with further zeros: 0 with probability sigmoid(l), else as `negative_binomial_log_prob`.

        x = 0: log(sigmoid(l) + (1 - sigmoid(l)) (t / (t + m))^t)      else: log(1 - sigmoid(l)) + log NB(x; m, t)

    (scVI, Lopez et al. 2018; l is its dropout logit.) Counts below 1e-8 are zeros.

    >>> import torch
    >>> from fastvae.likelihoods import zero_inflated_negative_binomial_log_prob
    >>> ones = torch.ones(2, 3)
    >>> zero_inflated_negative_binomial_log_prob(ones, torch.ones(3), 0 * ones, 0 * ones)   # 3 log(1/2 + 1/4)
    tensor([-0.8630, -0.8630])
    """
    parameters = [("mean", mean), ("theta", theta), ("zero_logits", zero_logits)]
    density = Density("zero_inflated_negative_binomial")
    return _log_prob(x, parameters, density, reduction, check, _COUNTS, _MEAN, _THETA)


def discretized_logistic_mixture_log_prob(
    parameters: Tensor, x: Tensor, *, components: int = 10, reduction: str = "sample", check: bool = False
) -> Tensor:
    """8-bit images: each pixel's levels under a mixture of logistics, cut into 256 bins.

    (Salimans et al., arXiv 1701.05517; NVAE and VDVAE use it too.) With M ``components``, one channel of x takes 3 M
    channels of ``parameters``, (B, 3 M, *spatial): M logits, M means, M log scales. Three channels take 10 M: M logits,
    then for each of red, green and blue M means, M log scales and M coefficients, by whose tanh the means of green and
    blue depend on the levels before them. Means are in [-1, 1]; log scales count as -7 at least. The probability of a
    bin is computed in a form that needs none of the original's special cases for small ones.

    Args:
        parameters: the decoder's output.
        x: images, (B, 1 or 3, *spatial); levels k / 255 in [0, 1], or an integer dtype with k in 0..255.
        components: M.
        reduction: as elsewhere; "none" gives (B, *spatial): log p of each pixel.

    >>> import torch
    >>> from fastvae.likelihoods import discretized_logistic_mixture_log_prob
    >>> x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    >>> discretized_logistic_mixture_log_prob(torch.zeros(2, 100, 4, 4), x).shape
    torch.Size([2])
    """
    _check_inputs(x, [("parameters", parameters)])
    check_count("components", components, 1)
    if x.dim() < 2 or x.shape[1] not in (1, 3):
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, 1 or 3, *spatial)")
    draws = parameters.dim() == x.dim() + 1
    channels = channels_of_mixture(x.shape[1], components)
    expected = (*parameters.shape[: int(draws)], x.shape[0], channels, *x.shape[2:])
    if tuple(parameters.shape) != expected:
        raise ValueError(
            f"parameters has shape {tuple(parameters.shape)}, expected {expected} for x of shape {tuple(x.shape)} and"
            f" {components} components"
        )
    check_reduction(reduction)
    _check_draws(draws, reduction)
    if check_flag("check", check):
        highest = 1.0 if x.is_floating_point() else 255
        refuse_first("x", x, ~((x >= 0) & (x <= highest)), f"0 to {highest:g}")
    density = Density(MIXTURE, low=LOWEST_LOG_SCALE, components=int(components))
    if not draws:
        return log_likelihood(x, [parameters], reduction, density)
    rows = parameters.flatten(0, 1)
    x = x.expand(parameters.shape[0], *x.shape).flatten(0, 1)
    log_prob = log_likelihood(x, [rows], reduction, density)
    return log_prob.unflatten(0, parameters.shape[:2])


_IN_UNIT_INTERVAL: Rule = ("x", lambda x: (x >= 0) & (x <= 1), "0 to 1")
_COUNTS: Rule = ("x", lambda x: (x >= 0) & torch.isfinite(x), "a finite count of 0 or more")
_MEAN: Rule = ("mean", lambda mean: (mean >= 0) & torch.isfinite(mean), "a finite number of 0 or more")
_THETA: Rule = ("theta", lambda theta: (theta > 0) & torch.isfinite(theta), "a finite number above 0")


def _log_prob(
    x: Tensor, parameters: list[Parameter], density: Density, reduction: str, check: bool, *rules: Rule
) -> Tensor:
    _check_inputs(x, parameters)
    check_reduction(reduction)
    (name, first), *others = parameters
    draws = first.dim() == x.dim() + 1 and first.shape[1:] == x.shape
    if not draws and first.shape != x.shape:
        # Broadcasting here would hide a transposed image or a lost batch dimension in a plausible number.
        raise ValueError(
            f"x has shape {tuple(x.shape)}, {name} has {tuple(first.shape)}; expected the same shape, or that of"
            f" several draws, (K, {', '.join(map(str, x.shape))}), for {name}"
        )
    _check_draws(draws, reduction)
    if check_flag("check", check):
        _check_values(x, parameters, rules)
    if not draws:
        fitted = [fit_to_rows(other_name, other, "x", x) for other_name, other in others]
        return log_likelihood(x, [first, *fitted], reduction, density)
    # As rows of an event that holds all draws: (B, K, *event), in which x repeats itself without taking memory.
    fitted = [_beside_draws(other_name, other, first, x) for other_name, other in others]
    repeated = x.unsqueeze(1).expand(x.shape[0], first.shape[0], *x.shape[1:])
    over = "channel" if reduction == "sample" else reduction
    return log_likelihood(repeated, [first.transpose(0, 1), *fitted], over, density).transpose(0, 1)


def _beside_draws(name: str, given: Tensor, first: Tensor, x: Tensor) -> Tensor:
    if given.shape == first.shape:
        return given.transpose(0, 1)
    fitted = fit_to_rows(name, given, "x", x)
    if fitted.numel() == 1:
        return fitted.reshape((1,) * first.dim())
    if fitted.dim() < x.dim():
        fitted = fitted.unsqueeze(0)
    return fitted.unsqueeze(1).expand(fitted.shape[0], first.shape[0], *x.shape[1:])


def _check_inputs(x: Tensor, parameters: list[Parameter]) -> None:
    if not observed() and plain.alike_on_cpu(parameters[0][1], x):
        parameters = parameters[1:]
    elif isinstance(x, Tensor) and x.dtype in INTEGERS:
        if x.dim() == 0:
            raise ValueError("x is 0-d, expected shape (batch, *event)")
    else:
        check_tensor("x", x)
    for name, given in parameters:
        if isinstance(given, Tensor) and given.dim() == 0:
            given = given.reshape(1)
        check_tensor(name, given)
        if given.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {given.device}; expected the same device")


def _check_draws(draws: bool, reduction: str) -> None:
    if draws and reduction not in ("none", "sample"):
        raise ValueError(f"reduction is {reduction!r} with several draws, expected 'none' or 'sample'")


def _check_values(x: Tensor, parameters: list[Parameter], rules: tuple[Rule, ...]) -> None:
    """Rules where there are some, finite numbers elsewhere."""
    ruled = {name: (holds, expected) for name, holds, expected in rules}
    for name, tensor in (("x", x), *parameters):
        holds, expected = ruled.get(name, (torch.isfinite, "a finite number"))
        refuse_first(name, tensor, ~holds(tensor), expected)


def _bounds(clamp: Sequence[float] | None) -> tuple[float, float]:
    return (float("-inf"), float("inf")) if clamp is None else check_clamp(clamp)
