"""What goes wrong in a run for a reason outside the program."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["TrainingError", "imported"]


class TrainingError(Exception):
    """Its message, of one line or two, names what is wrong and says what to do; the command line prints it as it is."""


def imported(module: str, why: str, install: str) -> Any:
    """A module that fastvae does without elsewhere; the error says why it is needed and what to give to pip."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise TrainingError(f"{why} ({error}): pip install {install}") from None
