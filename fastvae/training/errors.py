"""What goes wrong in a run for a reason outside the program."""

from __future__ import annotations

__all__ = ["TrainingError"]


class TrainingError(Exception):
    """Its message, of one line or two, names what is wrong and says what to do; the command line prints it as it is."""
