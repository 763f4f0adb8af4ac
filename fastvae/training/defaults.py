"""Settings that are not given: derived from the size of the data, the model and ``--quality``.

What is derived is written into the run's config.yaml and its checkpoints like an option that was given, so that a
resumed run does not derive it again.
"""

from __future__ import annotations

import math
from typing import Any

from .datasets import Samples

__all__ = ["QUALITIES", "complete"]

QUALITIES = {"draft": 0.25, "good": 1.0, "best": 4.0}
"""Length of a run, as a multiple of that of "good"."""
_STEPS = {"conv": 2500}
_STEPS_OF_OTHERS = 8000
_LEAST_EPOCHS = 10
"""At quality "good", however many rows there are."""
_STEPS_PER_EPOCH = 20
"""At least, where the data allow: an epoch is what is validated, logged and saved."""
_PIXELS_OF_SMALL_IMAGES = 32 * 32


def complete(config: Any, samples: Samples) -> None:
    """Replace None in the options batch_size, max_epochs, learning_rate, warmup_epochs, warmup_steps, pictures_every
    and trainer.gradient_clip_val."""
    conv = config.model == "conv"
    rows, shape = len(samples), samples.event_shape
    if config.batch_size is None:
        largest = 100 if not conv else 64 if math.prod(shape[1:]) <= _PIXELS_OF_SMALL_IMAGES else 32
        config.batch_size = min(rows, max(8, min(largest, rows // _STEPS_PER_EPOCH)))
    per_epoch = -(-rows // config.batch_size)
    if config.max_epochs is None:
        steps = QUALITIES[config.quality] * _STEPS.get(config.model, _STEPS_OF_OTHERS)
        least = round(QUALITIES[config.quality] * _LEAST_EPOCHS)
        config.max_epochs = max(1, least, round(steps / per_epoch))
    steps = config.max_epochs * per_epoch
    if config.learning_rate is None:
        config.learning_rate = 1e-3 if conv else 2e-3
    if config.warmup_steps is None:
        config.warmup_steps = min(100, steps // 20) if conv else 0
    if config.warmup_epochs is None:
        config.warmup_epochs = 0.1 * config.max_epochs if conv else 0.0
    if config.pictures_every is None:
        config.pictures_every = max(1, -(-config.max_epochs // 5))
    if config.trainer.gradient_clip_val is None:
        # The loss is in nats a sample, a sum over coordinates: this allows a norm of 1 for their mean.
        config.trainer.gradient_clip_val = float(math.prod(shape)) if conv else 0.0
