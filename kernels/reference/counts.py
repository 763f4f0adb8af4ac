"""Likelihoods of counts (`fastvae.kernels.likelihood_spec` has the formulas), arranged so that nothing large cancels.

Large counts and large theta make large terms, whose sum may be a millionth of them. With R the rest of Stirling's
series, lgamma(y) = (y - 1/2) log y - y + 1/2 log(2 pi) + R(y), and g(e) = e - log(1 + e), of a Poisson (d = r - log x)

    log p = -x (expm1(d) - d) - 1/2 log(2 pi x) - R(x)

and of a negative binomial, with eps as in the spec, s = t + eps, w = s + m, and b = x + t

    log p = -x g(u) - t g(v) + 1/2 log(t / (2 pi b x)) + R(b) - R(t) - R(x)
    u = t (m + eps - x) / (w x),   v = (x - m) / w

(C. Loader's form of the binomial, "Fast and accurate computation of binomial probabilities", 2000). R needs arguments
of 1 or more: where t is less than 1, a = t + 1 stands for t, and b = x + a; where x is, c = x + 1 for x. Then x u + t v
is added, which is 0 otherwise but for eps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..likelihood_spec import EPS
from .functions import excess_over_log

LOG_2_PI = math.log(2.0 * math.pi)

# Of Stirling's series for lgamma and digamma (Abramowitz & Stegun 6.1.41 and 6.3.18), the lowest power first.
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
STIRLING_SLOPE = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)


def poisson(x: Tensor, lograte: Tensor) -> Tensor:
    """log p. Away from its largest value the parts do not cancel, and there autograd gives the gradient of x."""
    difference = lograte - torch.log(torch.where(x >= 1.0, x, 1.0))
    near = (x >= 1.0) & (difference.abs() < 1.0)
    count, d = torch.where(near, x, 1.0), torch.where(near, difference, 0.0)
    at_mode = -count * (torch.expm1(d) - d) - 0.5 * (LOG_2_PI + torch.log(count)) - stirling(count)
    power = x * torch.where((x == 0.0) & (lograte == -math.inf), 0.0, lograte)
    return torch.where(near, at_mode, power - torch.exp(lograte) - torch.lgamma(x + 1.0))


class Parts(NamedTuple):
    """What the module's docstring calls so."""

    few: Tensor  # whether t < 1
    a: Tensor
    b: Tensor
    w: Tensor
    v: Tensor
    v_ratio: Tensor  # 1 + v


def parts_of(x: Tensor, mean: Tensor, theta: Tensor) -> Parts:
    few = theta < 1.0
    s = theta + EPS
    a = theta + few.to(theta.dtype)
    b, w = x + a, s + mean
    return Parts(few, a, b, w, (x * (s / a) - mean) / w, s / a * (b / w))


def negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """log p of x > 0."""
    few, a, b, w, v, v_ratio = parts_of(x, mean, theta)
    below_1 = x < 1.0
    c = torch.where(below_1, x + 1.0, x)
    # t / w: autograd would cancel in its derivative where t is large
    share = torch.where(theta > mean, 1.0 - (mean + EPS) / w, theta / w)
    u = (share * (mean - x + EPS) + torch.where(few, (mean + EPS) / w, 0.0)) / c - torch.where(below_1, 1.0 / c, 0.0)
    of_means = x * excess_over_log(u, (mean + EPS) / w * (b / c)) + theta * excess_over_log(v, v_ratio)
    linear = torch.where(few | below_1, x * u + theta * v + below_1.to(x.dtype), EPS * (x + theta) / w)
    # Gamma(t) = Gamma(a) / t and Gamma(x + t) = Gamma(b) / (x + t)
    shift = torch.where(few, torch.log(theta / a) - torch.log((x + theta) / b), 0.0)
    gammas = -0.5 * (torch.log1p(x / a) + torch.log(c) + LOG_2_PI) + (stirling(b) - stirling(a) - stirling(c)) + shift
    return linear - of_means + gammas


def negative_binomial_at_zero(mean: Tensor, theta: Tensor) -> Tensor:
    """-t log1p(m / s). Where m / s is small, by g: autograd would cancel in the derivative by theta."""
    s = theta + EPS
    ratio = mean / s
    small = ratio < 0.2
    inner = torch.where(small, ratio, 0.0)
    by_excess = s * excess_over_log(inner, 1.0 + inner) + EPS * torch.log1p(inner) - mean
    return torch.where(small, by_excess, -theta * torch.log1p(torch.where(small, 0.0, ratio)))


def negative_binomial_slopes(x: Tensor, mean: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of log p by mean and theta; x may be 0."""
    few, a, b, w, v, v_ratio = parts_of(x, mean, theta)
    of_mean = theta / w * ((x - mean - EPS) / (mean + EPS))
    s = theta + EPS
    linear = (torch.where(few, x * (1.0 - EPS) / a, -EPS * x / theta) + mean * EPS / s) / w  # (x - t m / s) / w - v
    at_zero = -excess_over_log(v, v_ratio) - linear
    rise = stirling_slope_rise(x, a, b) + torch.where(few, x / (theta * (x + theta)), 0.0)
    return of_mean, torch.where(x.abs() < EPS, at_zero, at_zero + rise)


def _first_far(dtype: torch.dtype) -> float:
    """From where on the series are good to a unit in the last place."""
    return 10.0 if dtype == torch.float64 else 3.0


def _series(square: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.zeros_like(square)
    for coefficient in reversed(coefficients):
        value = value * square + coefficient
    return value


def stirling(y: Tensor) -> Tensor:
    """R(y) for y >= 1."""
    far = y >= _first_far(y.dtype)
    inverse = 1.0 / torch.where(far, y, _first_far(y.dtype))
    near = torch.where(far, 1.0, y)
    direct = torch.lgamma(near) - ((near - 0.5) * torch.log(near) - near + 0.5 * LOG_2_PI)
    return torch.where(far, inverse * _series(inverse.square(), STIRLING), direct)


def stirling_slope_rise(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """R'(y) = digamma(y) - log y + 1/(2y): this is (digamma(b) - log b) - (digamma(a) - log a), b = x + a, a >= 1."""
    far = a >= _first_far(a.dtype)
    of_a, of_b = 1.0 / a, 1.0 / b
    series_a, series_b = (_series(inverse.square(), STIRLING_SLOPE) for inverse in (of_a, of_b))
    fall = x * of_a * of_b  # 1/a - 1/b
    series = fall * (0.5 + (of_a + of_b) * series_b) + of_a.square() * (series_a - series_b)
    near_a, near_b = torch.where(far, 1.0, a), torch.where(far, 1.0, b)
    direct = (torch.digamma(near_b) - torch.log(near_b)) - (torch.digamma(near_a) - torch.log(near_a))
    return torch.where(far, series, direct)
