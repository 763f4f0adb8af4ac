"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the place of ``path`` when the context ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for all writers, of whom there is one at a time: what a killed one left is overwritten by the next.
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """On to the disk, so that no power cut leaves a new name on old contents."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process alone holds the lock, until the context ends or the process does.

    Where there are no such locks, on Windows, everyone is told that it does.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        # A child that outlives a killed parent, as a loader's worker does for a while, must not hold on to it.
        os.register_at_fork(after_in_child=lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def save_json(value: Any, path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1) + "\n")


def save_figure(figure: Figure, path: Path) -> None:
    """A matplotlib figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra: whoever has a figure has it

    # The Agg canvas is named here, for this figure only: nothing that matplotlib shares is changed.
    with whole_file(path) as unfinished:
        FigureCanvasAgg(figure).print_figure(unfinished, dpi=150)
