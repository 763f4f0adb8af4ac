"""What a Gaussian latent is, and what the backends compute for it. Every backend follows these formulas.

    x       = clamp(scale)                with ``residual``: clamp(prior_scale + scale), and mu stands for prior_mu + mu
    std, logvar of x:
        "logvar"    exp(x/2)              x
        "logstd"    exp(x)                2 x
        "std"       x                     2 log x
        "var"       sqrt(x)               log x
        "softplus"  softplus(x) + floor   2 log std
    clamp           "none"; "hard": clamp(., low, high), its gradient 1 on the bounds; "soft": high tanh(. / high)
    z               mu + temperature std eps, eps the noise of draw k = 0 .. K-1
    kl              1/2 ((mu - mu_p)^2 exp(-logvar_p) + expm1(d) - d), d = logvar - logvar_p; at least ``free_bits``
    log_q           -1/2 sum((temperature eps)^2 + logvar + log 2 pi)
    log_p           -1/2 sum((z - mu_p)^2 exp(-logvar_p) + logvar_p + log 2 pi)

The prior has the same parameterisation and clamp as the posterior. Without one it is N(0, I).

`LatentSpec` holds what a latent *is*: kernels, `torch.compile` graphs and caches are made for one spec. Numbers that
users anneal are in `LatentScalars` and reach the kernels at run time.
"""

from __future__ import annotations

import functools
from ast import literal_eval
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = [
    "CLAMPS", "LOG_SCALES", "REDUCTIONS", "SCALES", "LatentGradients", "LatentInputs", "LatentOutputs", "LatentScalars",
    "LatentSpec", "decode", "decode_latent_spec", "encode", "latent_gradients", "latent_inputs", "latent_outputs",
]  # fmt: skip

SCALES = ("logvar", "logstd", "std", "var", "softplus")
CLAMPS = ("none", "hard", "soft")
REDUCTIONS = ("none", "sample", "sum", "batchmean")

# Scales that add up: those a residual may be given in.
LOG_SCALES = ("logvar", "logstd")


class LatentSpec(NamedTuple):
    """What a latent is: hashable, checked once (`fastvae.latent_options`), the key of everything that is remembered."""

    scale: str = "logvar"
    clamp: str = "none"
    residual: bool = False
    reduction: str | None = "sample"  # of the KL, as the user asked for it; None: no KL
    free_bits: str = "none"  # or the group that they count on: "coordinate", "channel", "latent"
    free_bits_over_batch: bool = False  # on a group's mean over the batch, not on each sample's KL
    per_coordinate: bool = False  # the mean over the batch of each coordinate's KL is wanted
    sample: bool = True  # z is wanted
    log_probs: bool = False  # log q and log p of each draw are wanted
    packed_dim: int | None = None  # mu and scale are the halves of one tensor along this dimension

    @property
    def kernel_reduction(self) -> str | None:
        """What a kernel sums the KL over: "none", "channel", "sample", "sum" or "batchmean"; None: no KL.

        Free bits on groups of coordinates are applied after the kernel, to the sums of these groups.
        """
        if self.free_bits in ("none", "coordinate") and not self.free_bits_over_batch:
            return self.reduction
        if self.free_bits_over_batch:
            return None
        return "sample" if self.free_bits == "latent" else "channel"

    @property
    def kernel_free_bits(self) -> bool:
        """Whether the kernel applies free bits, to each coordinate of each sample."""
        return self.free_bits == "coordinate" and not self.free_bits_over_batch

    @property
    def kl_mean(self) -> bool:
        """Whether the kernel gives the mean over the batch of each coordinate's KL, without free bits."""
        return self.per_coordinate or self.free_bits_over_batch

    def encode(self) -> str:
        """As a string, for the schema of a registered op."""
        return encode(self)


def encode(spec: Sequence[object]) -> str:
    """The fields of a spec: words, integers, True, False and None."""
    return ",".join([str(field) for field in spec])


def decode(text: str) -> list[Any]:
    return [
        field if field.isidentifier() and field not in _CONSTANTS else literal_eval(field) for field in text.split(",")
    ]


_CONSTANTS = ("None", "True", "False")


@functools.lru_cache(maxsize=1024)
def decode_latent_spec(text: str) -> LatentSpec:
    return LatentSpec(*decode(text))


class LatentScalars(NamedTuple):
    """The numbers of a call: run-time arguments of every kernel, never part of a compile key."""

    row_offset: int = 0
    num_samples: int | None = None  # None: one draw, and z has no dimension for it
    temperature: float = 1.0
    low: float = 0.0  # of the hard clamp
    high: float = 0.0  # of the hard clamp; the bound of a soft one
    floor: float = 0.0  # of softplus
    free_bits: float = 0.0  # nats; a smaller KL counts as this much, and has no gradient


class LatentInputs(NamedTuple):
    """Tensors that a latent is computed from.

    ``mu`` and ``scale`` have one shape, (B, *event), and any strides. Of a packed latent (``spec.packed_dim``) ``mu``
    holds both. ``prior_mu`` and ``prior_scale`` are both None or
    both tensors of mu's dtype, each of mu's shape, of shape (*event) or (1, *event), which the batch shares, or of mu's
    rank and of one element. ``seed`` is one int64 element on mu's device.
    """

    mu: Tensor | None  # None in a backward that does not need it: of z alone, whose gradient of mu is grad_z itself
    scale: Tensor | None  # None of a packed latent: mu holds both
    prior_mu: Tensor | None = None
    prior_scale: Tensor | None = None
    seed: Tensor | None = None


class LatentOutputs(NamedTuple):
    """What a latent gives, or the gradients of that; None for what the spec does not ask for.

    z is (B, *event) or (K, B, *event), in mu's dtype. All others are float32 (float64 for float64): kl is reduced by
    ``spec.kernel_reduction``; kl_mean, of shape (*event), is each coordinate's KL averaged over the batch, without free
    bits; log_q and log_p are (B,) or (K, B).
    """

    z: Tensor | None = None
    kl: Tensor | None = None
    kl_mean: Tensor | None = None
    log_q: Tensor | None = None
    log_p: Tensor | None = None


class LatentGradients(NamedTuple):
    """Gradients of `LatentInputs`, each of its input's shape; None for those that were not wanted."""

    mu: Tensor | None
    scale: Tensor | None  # None of a packed latent
    prior_mu: Tensor | None = None
    prior_scale: Tensor | None = None


# The same from a tuple, in half the time: each call makes several.
latent_inputs = functools.partial(tuple.__new__, LatentInputs)
latent_outputs = functools.partial(tuple.__new__, LatentOutputs)
latent_gradients = functools.partial(tuple.__new__, LatentGradients)
