"""What ops compute, from the definitions, in NumPy's float64: values, gradients, and the size of the terms in them.

Nothing here comes from `fastvae`: the KL is between normal densities, likelihoods are log-densities by SciPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import special

Array = np.ndarray
LOG_2_PI = np.log(2.0 * np.pi)


class Scale(NamedTuple):
    std: Array
    logvar: Array
    std_slope: Array  # by the parameter as given
    logvar_slope: Array


def scale_of(raw: Array, scale: str, clamp: Any, soft_clamp: float | None, floor: float) -> Scale:
    x, slope = raw, np.ones_like(raw)
    if clamp is not None:
        x, slope = np.clip(raw, *clamp), ((raw >= clamp[0]) & (raw <= clamp[1])).astype(float)
    if soft_clamp is not None:
        x, slope = soft_clamp * np.tanh(raw / soft_clamp), 1.0 / np.cosh(raw / soft_clamp) ** 2
    if scale == "logvar":
        std, std_slope = np.exp(x / 2), np.exp(x / 2) / 2
    elif scale == "logstd":
        std, std_slope = np.exp(x), np.exp(x)
    elif scale == "std":
        std, std_slope = x, np.ones_like(x)
    elif scale == "var":
        std, std_slope = np.sqrt(x), 0.5 / np.sqrt(x)
    else:
        std, std_slope = np.logaddexp(0.0, x) + floor, special.expit(x)
    return Scale(std, 2 * np.log(std), std_slope * slope, 2 * std_slope / std * slope)


class Latent(NamedTuple):
    """Outputs of (draws, B, event) and (B, event) arrays, gradients of the inputs, and sizes of what both add up."""

    z: Array
    kl: Array
    log_q: Array
    log_p: Array
    gradients: list[Array]
    sizes: list[Array]


def latent(
    inputs: list[Array], eps: Array, grads: tuple[Array, Array, Array, Array], options: dict[str, Any]
) -> Latent:
    """``inputs``: mu, scale and, with a prior, its two, all broadcast to (B, event); grads: of z, KL, log q, log p."""
    of_z, of_kl, of_log_q, of_log_p = grads
    form = {name: options.get(name) for name in ("scale", "clamp", "soft_clamp")} | {"floor": options.get("floor", 0.0)}
    temperature, residual = options.get("temperature", 1.0), options.get("residual", False)
    mu, raw, *prior = inputs
    if prior:
        p = scale_of(prior[1], **form)
        prior_mu = prior[0]
    else:
        zero = np.zeros_like(mu)
        p, prior_mu = Scale(zero + 1, zero, zero, zero), zero
    if residual:
        mu, raw = mu + prior_mu, raw + prior[1]
    q = scale_of(raw, **form)
    z = mu + temperature * q.std * eps
    precision, ratio = np.exp(-p.logvar), q.logvar - p.logvar
    apart, distance = mu - prior_mu, z - prior_mu
    kl = 0.5 * (apart**2 * precision + np.expm1(ratio) - ratio)
    log_q = -0.5 * ((temperature * eps) ** 2 + q.logvar + LOG_2_PI)
    log_p = -0.5 * (distance**2 * precision + p.logvar + LOG_2_PI)
    toward = of_log_p * distance * precision
    parts_mu = [of_kl * apart * precision, *(of_z - toward)]
    parts_std = list(temperature * eps * (of_z - toward))
    parts_logvar = [of_kl * 0.5 * np.expm1(ratio), *(-0.5 * of_log_q)]
    gradients = [sum(parts_mu), sum(parts_std) * q.std_slope + sum(parts_logvar) * q.logvar_slope]
    # z - prior_mu is a sum, rounded; so is z's gradient
    distances = np.abs(mu) + np.abs(prior_mu) + np.abs(temperature * q.std * eps)
    of_drawn = np.abs(of_z) + np.abs(of_log_p) * distances * precision
    sizes = [
        np.abs(parts_mu[0]) + np.abs(of_kl) * (np.abs(mu) + np.abs(prior_mu)) * precision + sum(of_drawn),
        sum(np.abs(temperature * eps) * of_drawn) * np.abs(q.std_slope)
        + (sum(map(np.abs, parts_logvar)) + np.abs(of_kl) * np.exp(ratio)) * np.abs(q.logvar_slope),
    ]
    if prior:
        parts_prior = [-of_kl * apart * precision, *toward]
        parts = [-0.5 * of_kl * (np.expm1(ratio) + apart**2 * precision)]
        parts += list(0.5 * (toward * distance - of_log_p))
        of_prior = [sum(parts_prior), sum(parts) * p.logvar_slope]
        size = np.abs(of_kl) * (1 + np.exp(ratio) + (np.abs(mu) + np.abs(prior_mu)) ** 2 * precision)
        size = size + sum(np.abs(of_log_p) * (1 + distances**2 * precision))
        size_prior = [sizes[0], size * np.abs(p.logvar_slope)]
        if residual:
            of_prior = [one + other for one, other in zip(of_prior, gradients, strict=True)]
            size_prior = [one + other for one, other in zip(size_prior, sizes, strict=True)]
        gradients, sizes = gradients + of_prior, sizes + size_prior
    return Latent(z, kl, log_q, log_p, gradients, sizes)


class Likelihood(NamedTuple):
    log_prob: Array
    slopes: list[Array]
    size: Array  # of the terms of log p
    slope_sizes: list[Array]


def log_gamma(y: Array) -> Array:
    """In long doubles from 10 on, by Stirling's series: there are differences of these that are much smaller."""
    large = np.maximum(np.asarray(y, np.longdouble), 10)
    inverse = 1 / large
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 * (1 / 1260 - inverse**2 / 1680)))
    half_log_2_pi = np.log(2 * np.arccos(np.longdouble(-1))) / 2
    return np.where(
        y < 10,
        special.gammaln(np.minimum(y, 10).astype(float)),
        (large - 0.5) * np.log(large) - large + half_log_2_pi + series,
    )


def likelihood(kind: str, x: Array, parameters: list[Array], clamp: tuple[float, float] | None = None) -> Likelihood:
    """log p of each coordinate and its derivatives by each parameter."""
    first, *others = parameters
    one = np.ones_like(first)
    if kind in ("bernoulli", "continuous_bernoulli"):
        log_prob, slope = x * first - np.logaddexp(0, first), x - special.expit(first)
        if kind == "continuous_bernoulli":
            logit = np.where(np.abs(first) < 1e-3, 1.0, first)
            constant = np.log(logit / np.tanh(logit / 2))
            log_prob = log_prob + np.where(logit == first, constant, np.log(2) + first**2 / 12)
            slope = slope + np.where(logit == first, 1 / logit - 1 / np.sinh(logit), first / 6)
        return Likelihood(log_prob, [slope], 1 + np.abs(x * first) + np.abs(first), [one])
    if kind in ("gaussian", "laplace", "log_normal"):
        v, inside = others[0], one
        if clamp is not None:
            inside = ((v >= clamp[0]) & (v <= clamp[1])).astype(float)
            v = np.clip(v, *clamp)
        data = np.log(x) if kind == "log_normal" else x
        apart, inverse = data - first, np.exp(-v)
        if kind != "laplace":
            log_prob = -0.5 * (apart**2 * inverse + v + LOG_2_PI)
            slopes = [apart * inverse, 0.5 * (apart**2 * inverse - 1) * inside]
            size, slope_sizes = 1 + np.abs(log_prob), [np.abs(slopes[0]), 1 + apart**2 * inverse]
            if kind == "log_normal":  # log x is rounded before the mean is subtracted
                rounded = np.abs(data) * inverse
                size = size + np.abs(data) + np.abs(apart) * rounded
                slope_sizes = [slope_sizes[0] + rounded, slope_sizes[1] + np.abs(apart) * rounded]
                log_prob = log_prob - data
            return Likelihood(log_prob, slopes, size, slope_sizes)
        log_prob = -np.abs(apart) * inverse - v - np.log(2)
        slopes = [np.sign(apart) * inverse, (np.abs(apart) * inverse - 1) * inside]
        return Likelihood(log_prob, slopes, 1 + np.abs(apart) * inverse, [inverse, 1 + np.abs(apart) * inverse])
    if kind == "poisson":
        rate = np.exp(first)
        log_prob = (np.longdouble(x) * first - np.exp(np.longdouble(first)) - log_gamma(np.longdouble(x) + 1)).astype(
            float
        )
        size = np.abs(log_prob) + np.abs(first * (x - rate))
        return Likelihood(log_prob, [x - rate], size, [x + rate * (1 + np.abs(first))])  # the rate is rounded, too
    if kind == "scaled_bernoulli":
        row, event = others
        q, came = first * row * event, x > 0
        with np.errstate(divide="ignore"):
            log_prob = np.maximum(np.where(came, np.log(q), np.log1p(-q)), -100.0)
        of_q = (came - q) / np.maximum(q * (1 - q), 1e-12)
        size = np.abs(of_q) * (1 + q * np.abs(of_q))  # rounding q moves it by this much
        factors = (row * event, first * event, first * row)
        slopes = [of_q * factor for factor in factors]
        return Likelihood(log_prob, slopes, 1 + np.abs(log_prob) + q * np.abs(of_q), [size * one for one in factors])
    if not kind.endswith("negative_binomial"):
        raise ValueError(f"kind is {kind!r}, which has no formula here")
    theta, eps = others[0], 1e-8
    at_zero = -theta * np.log1p(first / (theta + eps))
    whole = theta + first + eps
    zero_mean, zero_theta = -theta / whole, theta * first / ((theta + eps) * whole) - np.log1p(first / (theta + eps))
    t, m = np.longdouble(theta), np.longdouble(first)
    log_prob = x * np.log((m + eps) / (t + m + eps)) - t * np.log1p(m / (t + eps))
    log_prob = (log_prob + log_gamma(x + t) - log_gamma(t) - log_gamma(np.longdouble(x) + 1)).astype(float)
    of_mean = zero_mean + x / (first + eps) - x / whole
    of_theta = zero_theta + special.digamma(x + theta) - special.digamma(theta) - x / whole
    zero = np.abs(x) < eps
    log_prob, of_mean = np.where(zero, at_zero, log_prob), np.where(zero, zero_mean, of_mean)
    of_theta = np.where(zero, zero_theta, of_theta)
    # rounding the mean or theta moves log p by this much
    size = 1 + np.abs(log_prob) + np.abs(of_mean * first) + np.abs(of_theta * theta)
    sizes = [np.abs(of_mean) + x / (first + eps) ** 2 * first + 1 / whole, np.abs(of_theta) + 1 / theta]
    if kind == "negative_binomial":
        return Likelihood(log_prob, [of_mean, of_theta], size, sizes)
    logits = others[1]
    counted = np.where(zero, special.expit(at_zero - logits), 1.0)
    both = np.logaddexp(0, at_zero - logits) - np.logaddexp(0, -logits)
    of_logits = np.where(zero, special.expit(-logits) - counted, -special.expit(logits))
    log_prob = np.where(zero, both, log_prob - np.logaddexp(0, logits))
    slopes = [counted * of_mean, counted * of_theta, of_logits]
    # at_zero is rounded before it is exponentiated
    sizes = [one + np.abs(slope * at_zero) for one, slope in zip(sizes, slopes[:2], strict=True)]
    return Likelihood(log_prob, slopes, size + np.abs(logits), [*sizes, 1 + np.abs(at_zero)])


def log_sigmoid(x: Array) -> Array:
    return -np.logaddexp(0, -x)


def mixture(x: Array, parameter: Array, components: int) -> Likelihood:
    """log p of each pixel of x, (B, 1 or 3, *spatial), by (B, channels, *spatial): PixelCNN++, arXiv 1701.05517.

    A bin's probability is sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) with a and b its ends, less
    the mean and over the scale; it reaches to infinity at 0 and 255.
    """
    channels = x.shape[1]
    y = 2 * x[:, :, None] - 1  # (B, channels, 1, *spatial), as all below: (B, channels, components, *spatial)
    shape = (x.shape[0], channels, -1, components, *x.shape[2:])
    logits, rest = parameter[:, :components], parameter[:, components:].reshape(shape)
    means, raw_scales = rest[:, :, 0], rest[:, :, 1]
    inverse = np.exp(-np.maximum(raw_scales, -7.0))
    tanh = np.tanh(rest[:, :, 2]) if channels == 3 else np.zeros_like(means)
    centres, sizes = means.copy(), np.abs(means)
    if channels == 3:
        centres[:, 1] += tanh[:, 0] * y[:, 0]
        centres[:, 2] += tanh[:, 1] * y[:, 0] + tanh[:, 2] * y[:, 1]
        sizes[:, 1:] += 2
    above, below = ((y + end - centres) * inverse for end in (1 / 255, -1 / 255))
    width, lowest, highest = 2 / 255 * inverse, y < -0.999, y > 0.999
    inside = log_sigmoid(above) + log_sigmoid(-below) + np.log(-np.expm1(-width))
    each = np.where(lowest, log_sigmoid(above), np.where(highest, log_sigmoid(-below), inside))
    of_above = np.where(highest, 0, special.expit(-above))
    of_below = np.where(lowest, 0, special.expit(below))
    of_centre = (of_below - of_above) * inverse
    of_width = np.where(lowest | highest, 0, width / np.expm1(width))
    of_scale = (of_below * below - of_above * above - of_width) * (raw_scales >= -7.0)
    # How far rounding y, the centre and the scale moves the ends, and with them log p and its slopes.
    moved = (np.abs(y) + sizes + 1) * inverse
    joint = logits - special.logsumexp(logits, 1, keepdims=True) + each.sum(1)
    log_prob = special.logsumexp(joint, 1)
    weights = np.exp(joint - log_prob[:, None])
    size_of_joint = 1 + np.abs(logits).max(1, keepdims=True) + (np.abs(each) + (of_above + of_below) * moved).sum(1)
    size = (weights * size_of_joint).sum(1)
    size_of_weights = weights * (1 + size_of_joint + size[:, None])
    slope_sizes = [
        size_of_weights[:, None] * np.abs(of_centre) + weights[:, None] * (1 + moved) * inverse,
        size_of_weights[:, None] * np.abs(of_scale) + weights[:, None] * (1 + moved) ** 2,
    ]
    parts = [weights[:, None] * of_centre, weights[:, None] * of_scale]
    if channels == 3:
        for found, of_mean in ((parts, parts[0]), (slope_sizes, slope_sizes[0])):
            sources = [(1, y[:, 0]), (2, y[:, 0]), (2, y[:, 1])]
            found.append(np.stack([of_mean[:, i] * source for i, source in sources], 1) * (1 - tanh**2))
        slope_sizes[2] = np.abs(slope_sizes[2])

    def joined(of_logits: Array, rest: list[Array]) -> Array:
        whole = np.stack(rest, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return np.concatenate((of_logits, whole), 1)

    softmax = special.softmax(logits, 1)
    return Likelihood(
        log_prob, [joined(weights - softmax, parts)], size, [joined(size_of_weights + softmax, slope_sizes)]
    )
