"""Adam's parameter groups and the learning rate over a run, for `fastvae.training.VAEModule`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..nn.model import LatentVariableModel
from .lightning import Trainer

__all__ = [
    "LEAST_LOG_SCALE", "LearningRateFactor", "learned_scale", "parameter_groups",
    "steps_of_run",
]  # fmt: skip

RATE_OF_SCALE = 10.0
"""Learning rate of a likelihood's one scale, as a multiple of that of the weights."""
LEAST_LOG_SCALE = -16.0
"""Bound for data that the decoder reproduces exactly, where the best scale is 0."""


@dataclass(frozen=True)
class LearningRateFactor:
    """Linear up to 1 over the first ``warmup`` steps, times a cosine from 1 to 0 over ``steps``; no cosine if None."""

    warmup: int
    steps: int | None

    def __call__(self, step: int) -> float:
        cosine = 1.0 if self.steps is None else 0.5 * (1 + math.cos(math.pi * min(step, self.steps) / self.steps))
        return cosine * min(1.0, (step + 1) / (self.warmup + 1))


def parameter_groups(model: LatentVariableModel, learning_rate: float) -> list[dict[str, Any]]:
    """Adam's groups; "rate" of each is its learning rate as a multiple of ``learning_rate``."""
    scale = learned_scale(model)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in model.parameters() if one is not scale and one.requires_grad], "rate": 1.0}
    ]
    if scale is not None:
        # log sigma^2 has to fall by 4 or more while the decoder learns. At the pace of the weights it would stay too
        # large for most of the run, and reconstructions blurred.
        groups.append({"params": [scale], "rate": RATE_OF_SCALE})
    return [{**group, "lr": group["rate"] * learning_rate} for group in groups]


def learned_scale(model: LatentVariableModel) -> nn.Parameter | None:
    """The likelihood's logarithm of one scale for all coordinates, if it is learned."""
    likelihood = getattr(model.likelihood, "likelihood", model.likelihood)  # inside MissingAsNaN
    for name in ("logvar", "logscale"):
        scale = getattr(likelihood, name, None)
        if isinstance(scale, nn.Parameter) and scale.dim() == 0:
            return scale
    return None


def steps_of_run(trainer: Trainer) -> int | None:
    """None where the length is not known: a loader without length and no ``max_steps``, or ``max_epochs=-1``."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps >= 1 else None
