"""How a scale parameter is read, and the chain rule back to it, a function a step (`fastvae.kernels.latent_spec`).

    raw -> x = clamped(raw) -> std, logvar -> ratio = std / std_p, log_ratio = logvar - logvar_p

The linear scales (std, var, softplus) have a logarithm to take, the others exponentials. From PTX_LEVEL 1 on (see
`philox`) these are approximate instructions, whose errors the PTX ISA publishes: lg2 2^-22 absolute in (1/2, 2), else
relative; rcp 2^-23 relative; ex2 2^-22 relative. So

    logvar      of a linear scale is off by 2^-22 of itself, but by 3.3e-7 where std is in (1/2, 2)
    softplus    by 5e-7 of itself, and by -x 2^-23 of itself from rounding the exponent where x < 0
    tanh        by 1.2e-7 of itself below 0.625, else by 2.5e-7

A KL near 0 does not see the first: it is d^2 / 2 there (`functions.kl_terms`), where d is the difference of two logvar.
"""

import triton
import triton.language as tl

from .functions import scale_of

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Added to std and to its derivative under softplus: without a floor their quotient goes to 1 where both underflow.
SMALL_STD: tl.constexpr = tl.constexpr(2.0**-100)


@triton.jit
def log(x, PTX_LEVEL: tl.constexpr):
    if PTX_LEVEL:  # with the product, which the compiler would fuse with the difference of two logarithms
        return tl.inline_asm_elementwise(
            "{ .reg .f32 power; lg2.approx.ftz.f32 power, $1; mul.f32 $0, power, 0f3F317218; }",
            "=f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.log(x)


@triton.jit
def reciprocal(x, PTX_LEVEL: tl.constexpr):
    if PTX_LEVEL:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def tanh(x, PTX_LEVEL: tl.constexpr):
    """x + x^3 T(x^2) below 0.625, T a minimax polynomial; beyond, 1 - 2e / (1 + e), e = exp(-2 |x|), with x's sign."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    far = 1.0 - 2.0 * e * reciprocal(1.0 + e, PTX_LEVEL)
    x2 = x * x
    t = 0.020997358 + x2 * -0.0060969414
    t = -0.05385095 + x2 * t
    t = 0.13332771 + x2 * t
    t = -0.33333328 + x2 * t
    return tl.where(tl.abs(x) < 0.625, x + x * x2 * t, tl.where(x < 0.0, -far, far))


@triton.jit
def tanh_slope(x, PTX_LEVEL: tl.constexpr):
    """1 - tanh(x)^2, which would cancel: 4e / (1 + e)^2, from the exponential that tanh uses too."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    inverse = reciprocal(1.0 + e, PTX_LEVEL)
    return 4.0 * e * inverse * inverse


@triton.jit
def log1p(e):
    """log(1 + e) for e in [0, 1]: e + e^2 P(e), minimax of relative error 4.7e-9."""
    p = 0.019851463 + e * -0.0032440247
    p = -0.05695954 + e * p
    p = 0.10603656 + e * p
    p = -0.1530559 + e * p
    p = 0.1967594 + e * p
    p = -0.24954134 + e * p
    p = 0.33329964 + e * p
    p = -0.499999 + e * p
    return e + e * (e * p)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp2(tl.abs(x) * -LOG2_E))


@triton.jit
def sigmoid(x, PTX_LEVEL: tl.constexpr):
    """The derivative of softplus, from the exponential that it uses too."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    positive = reciprocal(1.0 + e, PTX_LEVEL)
    return tl.where(x >= 0.0, positive, e * positive)


@triton.jit
def clamped(raw, low, high, CLAMP: tl.constexpr, PTX_LEVEL: tl.constexpr):
    if CLAMP == "hard":  # NaN stays NaN
        return tl.where(raw < low, low, tl.where(raw > high, high, raw))
    if CLAMP == "soft":
        return high * tanh(raw * tl.math.div_rn(1.0, high), PTX_LEVEL)
    return raw


@triton.constexpr_function
def is_linear(scale):
    return scale in ("std", "var", "softplus")


@triton.constexpr_function
def adds_up(scale):
    return scale in ("logvar", "logstd")


@triton.constexpr_function
def harmless(scale):
    """A parameter that has a logarithm and an inverse, for where a mask is off."""
    return 1.0 if scale in ("std", "var") else 0.0


@triton.jit
def std_of(x, floor, SCALE: tl.constexpr, PTX_LEVEL: tl.constexpr):
    if SCALE == "logvar":
        return scale_of(x, PTX_LEVEL)[0]
    if SCALE == "logstd":
        return scale_of(2.0 * x, PTX_LEVEL)[0]
    if SCALE == "var":
        return tl.sqrt(x)
    return x if SCALE == "std" else softplus(x) + floor


@triton.jit
def logvar_of(x, std, SCALE: tl.constexpr, PTX_LEVEL: tl.constexpr):
    if SCALE == "logvar":
        return x
    if SCALE == "logstd":
        return 2.0 * x
    return log(x, PTX_LEVEL) if SCALE == "var" else 2.0 * log(std, PTX_LEVEL)


@triton.jit
def inverse_std_of(std, logvar, SCALE: tl.constexpr, PTX_LEVEL: tl.constexpr):
    if not is_linear(SCALE):
        return scale_of(-logvar, PTX_LEVEL)[0]
    return reciprocal(std + SMALL_STD if SCALE == "softplus" else std, PTX_LEVEL)


@triton.jit
def ratio_of(std, log_ratio, inverse_prior_std, SCALE: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """std / std_p and its square less 1, each from what is exact where they are near 1."""
    if not is_linear(SCALE):
        return scale_of(log_ratio, PTX_LEVEL)
    ratio = std * inverse_prior_std
    return ratio, ratio * ratio - 1.0


@triton.jit
def gradient_through_std(grad_std, std, inverse_std, x, SCALE: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """The gradient of x that reaches it through std."""
    if SCALE == "softplus":
        return grad_std * sigmoid(x, PTX_LEVEL)
    if SCALE == "logvar":
        return 0.5 * (grad_std * std)
    if SCALE == "logstd":
        return grad_std * std
    return 0.5 * (grad_std * inverse_std) if SCALE == "var" else grad_std


@triton.jit
def gradient_through_logvar(grad_logvar, inverse_std, x, SCALE: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """The gradient of x that reaches it through logvar: none from 0, also where std is 0 and its inverse infinite."""
    if SCALE == "logvar":
        return grad_logvar
    if SCALE == "logstd":
        return 2.0 * grad_logvar
    if SCALE == "softplus":
        inverse_std = inverse_std * (sigmoid(x, PTX_LEVEL) + SMALL_STD)
    grad = grad_logvar * inverse_std * inverse_std if SCALE == "var" else 2.0 * (grad_logvar * inverse_std)
    return tl.where(grad_logvar == 0.0, 0.0, grad)


@triton.jit
def gradient_of_raw(grad, raw, low, high, CLAMP: tl.constexpr, PTX_LEVEL: tl.constexpr):
    """From the gradient of x to that of the parameter as given."""
    if CLAMP == "hard":
        return tl.where((raw >= low) & (raw <= high), grad, 0.0)
    if CLAMP == "soft":
        return grad * tanh_slope(raw * tl.math.div_rn(1.0, high), PTX_LEVEL)
    return grad
