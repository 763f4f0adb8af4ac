"""Training on Lightning, behind the command line ``fastvae train`` and for programs of one's own.

Lightning runs the loop, the processes, the precision and the loggers. What is here: `VAEModule`, a model with its
objective and its noise; `VAEDataModule`, data and batches that are the same on any number of devices; and what the
command line makes of a run: checkpoints, pictures and a report.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import TrainingError

if TYPE_CHECKING:
    from .batches import Batch
    from .data import VAEDataModule
    from .datasets import Source
    from .module import VAEModule
    from .samples import Samples

__all__ = ["Batch", "Samples", "Source", "TrainingError", "VAEDataModule", "VAEModule"]

_HOMES = {
    "Batch": "batches",
    "Samples": "samples",
    "Source": "datasets",
    "VAEDataModule": "data",
    "VAEModule": "module",
}


if not TYPE_CHECKING:  # for which every name would be there

    def __getattr__(name: str) -> Any:
        """Modules that need Lightning are imported when they are asked for: their neighbours do without."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
