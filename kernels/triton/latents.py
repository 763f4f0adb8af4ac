"""Posterior and prior of a latent (`fastvae.kernels.latent_spec` has the formulas): what its two kernels share.

The kernels compute with s = std / std_p, d = log s^2 and m = (mu - mu_p) / std_p, and for each draw with
t = (z - mu_p) / std_p = m + temperature s eps.

A prior's mu and scale may each be there for every row, once for all rows, or as one element: a tile of it then has one
row, or one element, and what depends on the prior alone is computed once for them.
"""

import triton
import triton.language as tl

from .functions import kl_terms
from .parameterisation import clamped, inverse_std_of, is_linear, logvar_of, std_of
from .tiles import ABSENT, ONE


@triton.jit
def resolve(
    mu, raw, prior_mu, prior_raw, low, high, floor,
    PRIOR_SCALE: tl.constexpr, SCALE: tl.constexpr, CLAMP: tl.constexpr, RESIDUAL: tl.constexpr,
    PTX_LEVEL: tl.constexpr,
):  # fmt: skip
    """Posterior and prior from their parameters, and what of them enters the KL.

    Gives: mu; the raw scale and what the clamp makes of it; std and logvar; mu - mu_p and logvar - logvar_p; and of the
    prior the clamped scale, logvar and 1 / std, which are 0, 0 and 1 if there is none.
    """
    WITH_PRIOR: tl.constexpr = PRIOR_SCALE != ABSENT
    # Instructions for two coordinates at once do not take one.
    PRIOR_LEVEL: tl.constexpr = 1 if PTX_LEVEL == 2 and PRIOR_SCALE == ONE else PTX_LEVEL
    prior_x, prior_logvar, inverse = 0.0, 0.0, 1.0
    difference = mu
    if WITH_PRIOR:
        prior_x = clamped(prior_raw, low, high, CLAMP, PRIOR_LEVEL)
        prior_std = std_of(prior_x, floor, SCALE, PRIOR_LEVEL) if is_linear(SCALE) else prior_x
        prior_logvar = logvar_of(prior_x, prior_std, SCALE, PRIOR_LEVEL)
        inverse = inverse_std_of(prior_std, prior_logvar, SCALE, PRIOR_LEVEL)
        if RESIDUAL:
            given = raw
            mu = prior_mu + mu
            raw = prior_raw + raw
        else:
            difference = mu - prior_mu
    x = clamped(raw, low, high, CLAMP, PTX_LEVEL)
    std = std_of(x, floor, SCALE, PTX_LEVEL)
    logvar = logvar_of(x, std, SCALE, PTX_LEVEL)
    if RESIDUAL and CLAMP == "none":  # adding has rounded, subtracting would not bring it back
        log_ratio = logvar_of(given, std, SCALE, PTX_LEVEL)
    elif WITH_PRIOR:
        log_ratio = logvar - prior_logvar
    else:
        log_ratio = logvar
    return mu, raw, x, std, logvar, difference, log_ratio, prior_x, prior_logvar, inverse


@triton.jit
def kl_of(scaled, log_ratio, ratio, expm1, PTX_LEVEL: tl.constexpr):
    """The KL of each coordinate."""
    zero = tl.zeros_like(scaled)
    large, small = kl_terms(zero, zero, scaled, log_ratio, ratio, expm1, PTX_LEVEL)
    return (large + 0.5 * small) * 0.5
