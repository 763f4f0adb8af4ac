"""Fused log-likelihoods log p(x|z) as functions of the data and the decoder's parameters: one pass forward, one back.

Conventions of all functions:

    x           the data, (B, *event), row b is sample b; float32, bfloat16, float16, float64, an integer dtype or bool
    parameters  floating-point tensors on x's device, of any dtypes; the first has x's shape. Each other one has that
                shape, or a shape that broadcasts to the event (shared by the batch: its gradient is summed over the
                batch in the same pass), or (B, 1, ...), one number for each row, or one element.
    draws       the first parameter may have one more dimension, (K, B, *event): K draws for each row of x, which is
                not copied; log p is then (K, B), or (K, B, *event) for "none"
    reduction   "none" (each coordinate), "sample" (summed over the event: (B,)), "sum", "batchmean" (sum / B)
    check       first check that all values are in the density's domain; the error names the index of the first that
                is not. Synchronises the device.
    mask        bool, True where x is observed, of a shape that broadcasts to x's (to (B, *spatial) for a mixture). A
                missing entry, NaN and infinity included, contributes exactly 0 to log p and gets gradients of 0, as do
                its own parameters. Sums are over the observed entries; "batchmean" divides by all B rows. x and the
                parameters are copied, which takes several times as long as log p without a mask.

Log-likelihoods are in nats, computed and returned in float32 even for bfloat16 and float16 (float64 if x or a parameter
is float64). Saved for backward: the inputs. The gradient of x and second derivatives are computed in plain PyTorch.
Every function raises TypeError or ValueError, naming the argument, and RuntimeError if the requested backend does not
support the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..autograd import run_likelihood
from ..checks import check_clamp, check_dense, check_flag, check_reduction, check_tensor, fit_to_rows, refuse_first
from ..fast_path import are_alike
from ..kernels.likelihood_spec import MIXTURE, NO_BOUNDS, Bounds, channels_of_mixture, likelihood_spec
from ..kernels.reference.functions import between
from ..latent_options import Reduction, shows_options
from ..size_checks import check_count
from .masks import check_mask, observed_part, reduce_observed, zero_without_data

__all__ = [
    "INTEGERS", "LOWEST_LOG_SCALE", "LikelihoodOptions", "Rule", "bernoulli_log_prob",
    "continuous_bernoulli_log_prob", "discretized_logistic_mixture_log_prob", "gaussian_log_prob", "laplace_log_prob",
    "log_normal_log_prob", "negative_binomial_log_prob", "poisson_log_prob", "scaled_bernoulli_log_prob",
    "zero_inflated_negative_binomial_log_prob",
]  # fmt: skip

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)

# PixelCNN++'s lower bound of a logistic's log scale.
LOWEST_LOG_SCALE = -7.0

Parameters = dict[str, Tensor]  # by name, in the order that the kernels take them
Rule = tuple[str, Callable[[Tensor], Tensor], str]  # of `check`: argument's name, which values are valid, in words


class LikelihoodOptions(TypedDict, total=False):
    """The keywords of every function here; the module's docstring says what each means."""

    reduction: Annotated[Reduction, "sample"]
    check: Annotated[bool, False]
    mask: Annotated[Tensor | None, None]


class ClampedOptions(LikelihoodOptions, total=False):
    """Those of densities whose last parameter may be kept in (low, high)."""

    clamp: Annotated[Sequence[float] | None, None]


@shows_options(LikelihoodOptions)
def bernoulli_log_prob(logits: Tensor, x: Tensor, **options: Unpack[LikelihoodOptions]) -> Tensor:
    """Binary pixels, p(x = 1) = sigmoid(l):  x l - log(1 + exp(l)).

    (Kingma & Welling, arXiv 1312.6114, appendix C.1.) Targets are in [0, 1]. Grey levels between 0 and 1 give minus the
    cross entropy, which is not the log of a normalised density. For the arguments see `fastvae.likelihoods.functional`.

    >>> import torch
    >>> from fastvae.likelihoods import bernoulli_log_prob
    >>> bernoulli_log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # three fair coins: -3 log 2
    tensor([-2.0794, -2.0794])
    """
    return _log_prob("bernoulli", x, {"logits": logits}, options, _IN_UNIT_INTERVAL)


@shows_options(LikelihoodOptions)
def continuous_bernoulli_log_prob(logits: Tensor, x: Tensor, **options: Unpack[LikelihoodOptions]) -> Tensor:
    """The normalised Bernoulli density on [0, 1]:  x l - log(1 + exp(l)) + log C(l),  C = l / tanh(l/2), 2 at 0.

    (Loaiza-Ganem & Cunningham, arXiv 1907.06845, equation 8, with l = log(lambda / (1 - lambda)).) Accurate near l = 0.

    >>> import torch
    >>> from fastvae.likelihoods import continuous_bernoulli_log_prob
    >>> continuous_bernoulli_log_prob(torch.zeros(2, 3), torch.rand(2, 3)).abs() < 1e-6   # the uniform density
    tensor([True, True])
    """
    return _log_prob("continuous_bernoulli", x, {"logits": logits}, options, _IN_UNIT_INTERVAL)


@shows_options(ClampedOptions)
def gaussian_log_prob(mean: Tensor, logvar: Tensor, x: Tensor, **options: Unpack[ClampedOptions]) -> Tensor:
    """Real values around the mean f with variance exp(v):  -1/2 ((x - f)^2 exp(-v) + v + log(2 pi)).

    (Kingma & Welling, arXiv 1312.6114, appendix C.2.) ``logvar`` has one value for each element, one for each
    coordinate, or a single one. ``clamp`` keeps it in (low, high), with a gradient of 1 on the bounds; without it, a
    decoder that fits a pixel exactly drives it to minus infinity.

    >>> import torch
    >>> from fastvae.likelihoods import gaussian_log_prob
    >>> gaussian_log_prob(torch.zeros(2, 3), torch.zeros(1), torch.zeros(2, 3))   # -3/2 log(2 pi)
    tensor([-2.7568, -2.7568])
    """
    return _log_prob("gaussian", x, {"mean": mean, "logvar": logvar}, options, clamp=options.pop("clamp", None))


@shows_options(ClampedOptions)
def laplace_log_prob(mean: Tensor, logscale: Tensor, x: Tensor, **options: Unpack[ClampedOptions]) -> Tensor:
    """Real values around the median f with scale exp(v):  -|x - f| exp(-v) - v - log 2.

    Its gradient at x = f is 0. ``clamp`` as for `gaussian_log_prob`.

    >>> import torch
    >>> from fastvae.likelihoods import laplace_log_prob
    >>> laplace_log_prob(torch.zeros(2, 3), torch.zeros(1), torch.ones(2, 3))   # -3 (1 + log 2)
    tensor([-5.0794, -5.0794])
    """
    return _log_prob("laplace", x, {"mean": mean, "logscale": logscale}, options, clamp=options.pop("clamp", None))


@shows_options(ClampedOptions)
def log_normal_log_prob(mu: Tensor, logvar: Tensor, x: Tensor, **options: Unpack[ClampedOptions]) -> Tensor:
    """Positive values, whose log has mean m and variance exp(v):  -1/2 ((log x - m)^2 exp(-v) + v + log(2 pi)) - log x.

    (Johnson, Kotz & Balakrishnan 1994, "Continuous univariate distributions", chapter 14.) It is a density of x, in x's
    units. At x = 0 log p is -infinity and gradients are infinite; below, they are NaN. ``clamp`` as for
    `gaussian_log_prob`.

    >>> import torch
    >>> from fastvae.likelihoods import log_normal_log_prob
    >>> log_normal_log_prob(torch.zeros(2, 3), torch.zeros(1), torch.full((2, 3), 2.0))
    tensor([-5.5569, -5.5569])
    """
    clamp = options.pop("clamp", None)
    return _log_prob("log_normal", x, {"mu": mu, "logvar": logvar}, options, _POSITIVE, clamp=clamp)


@shows_options(LikelihoodOptions)
def poisson_log_prob(log_rate: Tensor, x: Tensor, **options: Unpack[LikelihoodOptions]) -> Tensor:
    """Counts with rate exp(r):  x r - exp(r) - log x!.

    >>> import torch
    >>> from fastvae.likelihoods import poisson_log_prob
    >>> poisson_log_prob(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))   # three zeros at rate 1
    tensor([-3., -3.])
    """
    return _log_prob("poisson", x, {"log_rate": log_rate}, options, _COUNTS)


@shows_options(LikelihoodOptions)
def negative_binomial_log_prob(mean: Tensor, theta: Tensor, x: Tensor, **options: Unpack[LikelihoodOptions]) -> Tensor:
    """Counts with mean m and inverse dispersion t; their variance is m + m^2 / t.

        t log(t / (t + m)) + x log(m / (t + m)) + log Gamma(x + t) - log Gamma(t) - log x!

    with 1e-8 added to the arguments of the logarithms (scVI, Lopez et al. 2018). ``mean`` is 0 or more and ``theta``
    positive: one for each gene (event), for each cell and gene, or (B, 1) for each cell. For x = 0, as most counts of a
    gene expression matrix are, log p needs no gamma functions. For whole counts up to 8 and theta up to 10,000, the CPU
    kernel replaces them by the logarithm of a product.

    >>> import torch
    >>> from fastvae.likelihoods import negative_binomial_log_prob
    >>> negative_binomial_log_prob(torch.ones(2, 3), torch.ones(3), torch.zeros(2, 3))   # -3 log 2
    tensor([-2.0794, -2.0794])
    """
    return _log_prob("negative_binomial", x, {"mean": mean, "theta": theta}, options, _COUNTS, _MEAN, _THETA)


@shows_options(LikelihoodOptions)
def zero_inflated_negative_binomial_log_prob(
    mean: Tensor, theta: Tensor, zero_logits: Tensor, x: Tensor, **options: Unpack[LikelihoodOptions]
) -> Tensor:
    """0 with probability sigmoid(l), else a negative binomial count, as `negative_binomial_log_prob`.

        x = 0: log(sigmoid(l) + (1 - sigmoid(l)) (t / (t + m))^t)      else: log(1 - sigmoid(l)) + log NB(x; m, t)

    (scVI, Lopez et al. 2018; l is its dropout logit.) x < 1e-8 counts as 0.

    >>> import torch
    >>> from fastvae.likelihoods import zero_inflated_negative_binomial_log_prob
    >>> ones = torch.ones(2, 3)
    >>> zero_inflated_negative_binomial_log_prob(ones, torch.ones(3), 0 * ones, 0 * ones)   # 3 log(1/2 + 1/4)
    tensor([-0.8630, -0.8630])
    """
    parameters = {"mean": mean, "theta": theta, "zero_logits": zero_logits}
    return _log_prob("zero_inflated_negative_binomial", x, parameters, options, _COUNTS, _MEAN, _THETA)


@shows_options(LikelihoodOptions)
def scaled_bernoulli_log_prob(
    probs: Tensor, row_factor: Tensor, event_factor: Tensor, x: Tensor, **options: Unpack[LikelihoodOptions]
) -> Tensor:
    """Whether x > 0, as a product of probabilities q = p d f:  log q where x > 0, else log(1 - q).

    (PeakVI, Ashuach et al. 2022, of the accessibility of a region of the genome in a cell: p from the decoder, d from
    the cell's depth, f of the region.) Each logarithm is at least -100 and the derivative by q at most 1e12, as in
    PyTorch's binary cross entropy. Of decoders that give logits, `bernoulli_log_prob` is more accurate.

    Args:
        probs: p in [0, 1], of x's shape.
        row_factor: d in [0, 1], usually (B, 1, ...): one for each row.
        event_factor: f in [0, 1], usually of the event's shape.
        x: counts or a mask; of every value it matters only whether it is above 0.

    >>> import torch
    >>> from fastvae.likelihoods import scaled_bernoulli_log_prob
    >>> x = torch.tensor([[2.0, 0.0]])   # log 1/8 and log 7/8
    >>> scaled_bernoulli_log_prob(torch.full((1, 2), 0.5), torch.full((1, 1), 0.5), torch.full((2,), 0.5), x)
    tensor([-2.2130])
    """
    parameters = {"probs": probs, "row_factor": row_factor, "event_factor": event_factor}
    rules: list[Rule] = [(name, _is_probability, "0 to 1") for name in parameters]
    return _log_prob("scaled_bernoulli", x, parameters, options, *rules)


@shows_options(LikelihoodOptions)
def discretized_logistic_mixture_log_prob(
    parameters: Tensor, x: Tensor, *, components: int = 10, **options: Unpack[LikelihoodOptions]
) -> Tensor:
    """8-bit images: a mixture of logistics for each pixel, discretised into 256 levels.

    (Salimans et al., arXiv 1701.05517; NVAE and VDVAE use it too.) With M ``components``, one channel of x takes 3 M
    channels of ``parameters``, (B, 3 M, *spatial): M logits, M means, M log scales. Three channels take 10 M: M logits,
    then for each of red, green and blue M means, M log scales and M coefficients; the tanh of the coefficients makes
    the means of green and blue depend linearly on the channels before. Means are in [-1, 1]; log scales are clamped to
    at least -7. The probability of a bin is computed without the original's special cases for small probabilities.

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
    _check_inputs(x, {"parameters": parameters})
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
    reduction, check, mask = _check_options(draws, **options)
    if mask is not None:
        mask = check_mask(mask, x, (x.shape[0], *x.shape[2:]))
        x = torch.where(mask.unsqueeze(1), x, torch.zeros((), dtype=x.dtype, device=x.device))
        parameters = torch.where(mask.unsqueeze(1), parameters, parameters.new_zeros(()))
    if check:
        highest = 1.0 if x.is_floating_point() else 255
        refuse_first("x", x, ~((x >= 0) & (x <= highest)), f"0 to {highest:g}")
    over = reduction if mask is None else "none"
    spec, bounds = likelihood_spec((MIXTURE, over, False, int(components))), Bounds(low=LOWEST_LOG_SCALE)
    if draws:
        rows = parameters.flatten(0, 1)
        x = x.expand(parameters.shape[0], *x.shape).flatten(0, 1)
        log_prob = run_likelihood(x, (rows,), spec, bounds).unflatten(0, parameters.shape[:2])
    else:
        log_prob = run_likelihood(x, (parameters,), spec, bounds)
    return log_prob if mask is None else reduce_observed(log_prob, mask, reduction, draws)


def _is_probability(values: Tensor) -> Tensor:
    return (values >= 0) & (values <= 1)


_IN_UNIT_INTERVAL: Rule = ("x", _is_probability, "0 to 1")
_COUNTS: Rule = ("x", lambda x: (x >= 0) & torch.isfinite(x), "a finite count of 0 or more")
_POSITIVE: Rule = ("x", lambda x: (x > 0) & torch.isfinite(x), "a finite number above 0")
_MEAN: Rule = ("mean", lambda mean: (mean >= 0) & torch.isfinite(mean), "a finite number of 0 or more")
_THETA: Rule = ("theta", lambda theta: (theta > 0) & torch.isfinite(theta), "a finite number above 0")


def _log_prob(
    density: str,
    x: Tensor,
    parameters: Parameters,
    options: LikelihoodOptions,
    *rules: Rule,
    clamp: Sequence[float] | None = None,
) -> Tensor:
    bounds = NO_BOUNDS if clamp is None else Bounds(*check_clamp(clamp))
    tensors = tuple(parameters.values())
    alike = are_alike(x, *tensors)
    draws = not alike and _check_tensors(x, parameters)
    reduction, check, mask = _check_options(draws, **options) if options else _DEFAULTS
    if mask is not None:
        mask = check_mask(mask, x, x.shape)
        if clamp is not None:  # here, as the scale of missing entries may be out of the bounds
            scale = list(parameters)[1]
            parameters = parameters | {scale: between(parameters[scale], *bounds)}
        x, parameters = observed_part(density, x, parameters, mask)
        log_prob = _log_prob(density, x, parameters, {**options, "mask": None}, *rules)
        return zero_without_data(log_prob, mask, reduction)
    if check:
        _check_values(x, parameters, rules)
    spec = likelihood_spec((density, reduction, clamp is not None, 0))
    if alike:
        return run_likelihood(x, tensors, spec, bounds, alike=True)
    first, others = tensors[0], list(parameters.items())[1:]
    if not draws:
        fitted = [_fit(name, other, x) for name, other in others]
        return run_likelihood(x, (first, *fitted), spec, bounds)
    # The draws become the first event dimension, (B, K, *event); x is expanded without a copy.
    fitted = [_beside_draws(name, other, first, x) for name, other in others]
    repeated = x.unsqueeze(1).expand(x.shape[0], first.shape[0], *x.shape[1:])
    if reduction == "sample":
        spec = spec._replace(reduction="channel")
    return run_likelihood(repeated, (first.transpose(0, 1), *fitted), spec, bounds).transpose(0, 1)


def _check_tensors(x: Tensor, parameters: Parameters) -> bool:
    """Whether there are several draws of the first parameter."""
    _check_inputs(x, parameters)
    name, first = next(iter(parameters.items()))
    draws = first.dim() == x.dim() + 1 and first.shape[1:] == x.shape
    if not draws and first.shape != x.shape:
        # No broadcasting: it would turn a transposed image or a missing batch dimension into a plausible result.
        raise ValueError(
            f"x has shape {tuple(x.shape)}, {name} has {tuple(first.shape)}; expected the same shape, or that of"
            f" several draws, (K, {', '.join(map(str, x.shape))}), for {name}"
        )
    return draws


def _fit(name: str, given: Tensor, x: Tensor) -> Tensor:
    """A parameter as the kernels take it; one number a row, (B, 1, ...), stays as it is."""
    one_a_row = given.dim() == x.dim() and given.shape[0] == given.numel() == x.shape[0]
    return given if one_a_row else fit_to_rows(name, given, "x", x)


def _beside_draws(name: str, given: Tensor, first: Tensor, x: Tensor) -> Tensor:
    if given.shape == first.shape:
        return given.transpose(0, 1)
    fitted = _fit(name, given, x)
    if fitted.numel() == 1:
        return fitted.reshape((1,) * first.dim())
    if fitted.numel() == fitted.shape[0] == x.shape[0] and fitted.dim() == x.dim():
        return fitted.unsqueeze(1)  # one number a row
    if fitted.dim() < x.dim():
        fitted = fitted.unsqueeze(0)
    return fitted.unsqueeze(1).expand(fitted.shape[0], first.shape[0], *x.shape[1:])


def _check_inputs(x: Tensor, parameters: Parameters) -> None:
    if isinstance(x, Tensor) and x.dtype in INTEGERS:
        check_dense("x", x)
        if x.dim() == 0:
            raise ValueError("x is 0-d, expected shape (batch, *event)")
    else:
        check_tensor("x", x)
    for name, given in parameters.items():
        if isinstance(given, Tensor) and given.dim() == 0:
            given = given.reshape(1)
        check_tensor(name, given)
        if given.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {given.device}; expected the same device")


_DEFAULTS: tuple[str, bool, Tensor | None] = ("sample", False, None)


def _check_options(
    draws: bool, /, reduction: str = "sample", check: bool = False, mask: Tensor | None = None, **unknown: object
) -> tuple[str, bool, Tensor | None]:
    if unknown:
        raise TypeError(f"unexpected keyword argument {next(iter(unknown))!r}, expected one of reduction, check, mask")
    check_reduction(reduction)
    if draws and reduction not in ("none", "sample"):
        raise ValueError(f"reduction is {reduction!r} with several draws, expected 'none' or 'sample'")
    return reduction, check_flag("check", check), mask


def _check_values(x: Tensor, parameters: Parameters, rules: tuple[Rule, ...]) -> None:
    """Apply the rules; arguments without a rule must be finite."""
    ruled = {name: (holds, expected) for name, holds, expected in rules}
    for name, tensor in {"x": x, **parameters}.items():
        holds, expected = ruled.get(name, (torch.isfinite, "a finite number"))
        refuse_first(name, tensor, ~holds(tensor), expected)
