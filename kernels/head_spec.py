"""What a head is: a likelihood whose parameters come from linear layers of the decoder's last hidden units h.

Each parameter of the kind, with a_d the output of its layer for coordinate d, is

    "identity"  a_d             "exp"  exp(a_d)             "softplus"  log(1 + exp(a_d))
    "softmax"   l softmax(a)_d: of counts alone, and of their mean; l is the library size of the row. Of Poisson counts
                it is the rate, whose logarithm is the parameter
    "given"     no layer's: a tensor that the batch shares, (*event) or one element

The derivative of log p by an output is that by the parameter times that of these functions. Of a softmax, with g_d the
derivative by the logarithm of mean d, it is g_d - softmax(a)_d sum_d g_d, and that by the library size (sum_d g_d) / l.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .latent_spec import decode, encode
from .likelihood_spec import KINDS, LikelihoodSpec

__all__ = [
    "ACTIVATIONS", "DENSITIES", "Activation", "Density", "HeadResults", "HeadSpec", "decode_head_spec", "rows_of_chunk",
]  # fmt: skip

Activation = Literal["identity", "exp", "softplus", "softmax"]
ACTIVATIONS = (*get_args(Activation), "given")  # the numbers of the C kernels
# Of the kinds, all but probabilities that are products, which come from no layer.
Density = Literal[
    "bernoulli", "continuous_bernoulli", "gaussian", "laplace", "log_normal", "poisson", "negative_binomial",
    "zero_inflated_negative_binomial", "discretized_logistic_mixture",
]  # fmt: skip
DENSITIES = get_args(Density)


class HeadSpec(NamedTuple):
    """Hashable, the key of everything that is remembered."""

    kind: str  # a kind of `likelihood_spec`
    first: str = "identity"  # how each parameter comes from its layer's outputs; None: the kind does not have it
    second: str | None = None
    third: str | None = None
    clamp: bool = False
    components: int = 0

    @property
    def activations(self) -> tuple[str, ...]:
        """One for each parameter of the kind."""
        return self[1 : 1 + KINDS[self.kind].parameters]  # type: ignore[return-value]

    @property
    def likelihood(self) -> LikelihoodSpec:
        return LikelihoodSpec(self.kind, "sample", self.clamp, self.components)

    def encode(self) -> str:
        """As a string, for the schema of a registered op."""
        return encode(self)


@functools.lru_cache(maxsize=1024)
def decode_head_spec(text: str) -> HeadSpec:
    return HeadSpec(*decode(text))


class HeadResults(NamedTuple):
    """What a backend's `head` returns; the gradients of outputs have taken their place."""

    log_prob: Tensor  # (rows,)
    given: tuple[Tensor | None, ...] = ()  # gradients of the parameters that are given, summed over the rows
    library: Tensor | None = None  # (rows,)


# Bytes of a chunk of outputs where the size of the cache is not known, and what they are at most.
_USUAL_CACHE = 8 * 2**20
_LARGEST_CHUNK = 4 * 2**20
# Rows of a chunk, at least: each reads all weights, and adds to all their gradients.
_FEWEST_ROWS = 192


@functools.cache
def _cache_bytes(device: torch.device) -> int:
    """Of a GPU's second-level cache, or of the CPU's last level."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or _USUAL_CACHE
    try:  # of Linux: "48K", "2048K", "307200K"
        found = [one.read_text().strip() for one in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
        return max([1024 * int(size.removesuffix("K")) for size in found], default=_USUAL_CACHE)
    except (OSError, ValueError):
        return _USUAL_CACHE


def rows_of_chunk(rows: int, bytes_a_row: int, device: torch.device, *, convolved: bool = False, group: int = 1) -> int:
    """Groups of rows whose outputs, of ``bytes_a_row``, are held at once: half the cache, in chunks of about one size.

    ``convolved``: rows are images, and the weights, of 1x1 convolutions, are small. 0 if a group is too much.
    """
    most = min(_cache_bytes(device) // 2, _LARGEST_CHUNK)
    fitting = max(most // max(bytes_a_row, 1), 1 if convolved else _FEWEST_ROWS)
    groups, fitting = rows // max(group, 1), fitting // max(group, 1)
    if fitting == 0:
        return 0
    chunks = max(-(-groups // fitting), 1)
    return max(-(-groups // chunks), 1)
