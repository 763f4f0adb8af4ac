"""Atomic file writes, and file locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["locked", "save_figure", "save_json", "whole_file"]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to ``path`` when the context ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, as there is one writer at a time: the next one overwrites what a killed one left.
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        yield unfinished
        # To the disk, so that the rename cannot come before the contents; Windows does not flush a read-only handle.
        with unfinished.open("r+b") as written:
            os.fsync(written.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock until the context or the process ends; yields whether this process got it.

    Where there are no locks it yields True: on Windows, and, with a warning, on file systems without flock.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        # A forked child (a data loader's worker) may outlive a killed parent and must not keep the lock.
        os.register_at_fork(after_in_child=lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a second process"
                " out of this folder",
                stacklevel=3,
            )
        yield True


# Of network file systems that do not offer flock, or whose lock server is away.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


def save_json(value: Any, path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1) + "\n")


def save_figure(figure: Figure, path: Path, description: str = "") -> None:
    """A matplotlib figure as PNG, with a text in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # An explicit Agg canvas, instead of matplotlib.use("Agg"), leaves matplotlib's global backend unchanged.
    metadata = {"Description": description} if description else None
    with whole_file(path) as unfinished:
        FigureCanvasAgg(figure).print_figure(unfinished, dpi=150, metadata=metadata)
