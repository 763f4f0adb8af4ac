"""`Level`, one level of latents of a `HierarchicalVAE`, and helpers: MLP levels, a seed for each level, row order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..size_checks import event_shape, latent_shape_of, positive_size
from .inputs import check_rows
from .mlp import MLPDecoder, MLPEncoder
from .model import check_module
from .posterior import EncoderOutput, Gaussian, encode

__all__ = ["Level", "check_levels", "draws_of", "level_seeds", "mlp_levels", "rows_of"]


class Level(nn.Module):
    """One level of latents: its posterior, its prior, and the state that it passes down.

    Args:
        posterior: module with ``posterior(features, state) -> (mu, logvar)`` or moments, as the encoder of a
            `fastvae.nn.VAE`; at the top ``posterior(features)``.
        merge: module with ``merge(z, state) -> state``, the state for the level below, or for the decoder below the
            last level; at the top ``merge(z)``.
        prior: module with ``prior(state) -> (mu, logvar)`` or moments; None at the top, where the prior is N(0, I).
        latent_shape: shape of one z; ``posterior.latent_shape`` or ``posterior.latent_dim`` if None.
    """

    def __init__(
        self,
        posterior: nn.Module,
        merge: nn.Module,
        prior: nn.Module | None = None,
        *,
        latent_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_module("posterior", posterior)
        check_module("merge", merge)
        if prior is not None:
            check_module("prior", prior)
        self.posterior = posterior
        self.merge = merge
        self.prior = prior
        self.latent_shape = latent_shape_of(posterior, latent_shape)

    # The state is None at the top.

    def posterior_given(self, features: Tensor, state: Tensor | None) -> EncoderOutput:
        return encode("posterior", self.posterior, features, state)

    def prior_given(self, state: Tensor | None) -> Gaussian | None:
        if state is None or self.prior is None:
            return None
        return encode("prior", self.prior, state)[:2]

    def state_below(self, z: Tensor, state: Tensor | None) -> Tensor:
        return self.merge(z) if state is None else self.merge(z, state)

    def extra_repr(self) -> str:
        return f"latent_shape={self.latent_shape}"


def check_levels(bottom_up: Sequence[nn.Module], levels: Sequence[Level]) -> None:
    for name, modules, kind in (("bottom_up", bottom_up, nn.Module), ("levels", levels, Level)):
        for index, module in enumerate(modules):
            if not isinstance(module, kind):
                raise TypeError(f"{name}[{index}] is a {type(module).__name__}, expected a {kind.__name__}")
    if len(bottom_up) != len(levels) or not levels:
        raise ValueError(
            f"bottom_up has {len(bottom_up)} modules, levels has {len(levels)}; expected one for each level, 1 or more"
        )
    for index, level in enumerate(levels):
        if (level.prior is None) != (index == 0):
            expected = "None: the top level's is N(0, I)" if index == 0 else "a module: only the top level has none"
            actual = "None" if level.prior is None else type(level.prior).__name__
            raise ValueError(f"levels[{index}].prior is {actual}, expected {expected}")


def mlp_levels(
    input_shape: int | Sequence[int], hidden: int, latent_dims: Sequence[int], activation: Callable[[], nn.Module]
) -> tuple[list[nn.Module], list[Level], nn.Module]:
    """bottom_up, levels and decoder of `HierarchicalVAE.of_mlps`."""
    shape = event_shape("input_shape", input_shape)
    hidden = positive_size("hidden", hidden)
    top_dim, *dims = event_shape("latent_dims", latent_dims)
    make: dict[str, Any] = {"activation": activation}
    below: dict[str, Any] = {"activation": activation, "condition_dim": hidden}
    top = Level(MLPEncoder(hidden, hidden, top_dim, **make), MLPDecoder(top_dim, hidden, hidden, **make))
    levels = [
        Level(
            MLPEncoder(hidden, hidden, dim, **below),
            MLPDecoder(dim, hidden, hidden, **below),
            MLPEncoder(hidden, hidden, dim, **make),
        )
        for dim in dims
    ]
    bottom_up: list[nn.Module] = [_Features(shape, hidden, activation)]
    bottom_up += [_Features((hidden,), hidden, activation) for _ in dims]
    return bottom_up, [top, *levels], MLPDecoder(hidden, hidden, shape, **make)


class _Features(nn.Module):
    """One bottom-up layer; flattens its input."""

    def __init__(self, input_shape: tuple[int, ...], width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.layers = nn.Sequential(nn.Linear(math.prod(input_shape), width), activation())

    def forward(self, x: Tensor) -> Tensor:
        check_rows("x", x, self.input_shape)
        return self.layers(x.flatten(1))


_LEVEL_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads the seeds of the levels over the 64-bit range


def level_seeds(seed: Tensor, levels: int) -> list[Tensor]:
    """seed + l 0x9E3779B97F4A7C15 modulo 2^64 for each level l, without reading the seed back from the device."""
    return [seed + ((level * _LEVEL_STEP + 2**63) % 2**64 - 2**63) for level in range(levels)]


def rows_of(draws: Tensor) -> Tensor:
    """(K, B, ...) to rows (B K, ...): draw k of row b is row b K + k."""
    return draws.transpose(0, 1).flatten(0, 1)


def draws_of(rows: Tensor, num_samples: int) -> Tensor:
    """Rows (B K, ...) to (K, B, ...)."""
    return rows.unflatten(0, (len(rows) // num_samples, num_samples)).transpose(0, 1)
