"""What a patch puts in the place of a library's own, with the way back for each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

_MISSING = object()


class Replacements:
    """A record of replaced attributes and entries; `undo` puts all of them back, the last one first.

    What somebody else has replaced in the meantime stays theirs, with a warning.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def attribute(self, owner: Any, name: str, new: Any) -> None:
        """``owner.name``, of a class or a module; one that a class inherits is the class's own until `undo`."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, new)

        def undo() -> None:
            if vars(owner).get(name, _MISSING) is not new:
                _warn_of(f"{owner.__name__}.{name}")
            elif before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(undo)

    def entry(self, mapping: MutableMapping[Any, Any], key: Any, new: Any, name: str) -> None:
        """``mapping[key]``; ``name`` is what a warning calls it."""
        before = mapping.get(key, _MISSING)
        mapping[key] = new

        def undo() -> None:
            if mapping.get(key, _MISSING) is not new:
                _warn_of(name)
            elif before is _MISSING:
                del mapping[key]
            else:
                mapping[key] = before

        self._undo.append(undo)

    def everywhere(self, home: Any, name: str, new: Any) -> None:
        """``home.name``, and that name in every module that has imported it from there.

        Modules that are imported later find the new one; `undo` finds them.
        """
        before = getattr(home, name)
        _rebind(name, before, new)
        self._undo.append(lambda: _rebind(name, new, before))

    def after(self, action: Callable[[], None]) -> None:
        """Do this too when all is undone."""
        self._undo.append(action)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


def _rebind(name: str, old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def _warn_of(what: str) -> None:
    warnings.warn(f"{what} was replaced by somebody else since fastvae.patch, and stays so", stacklevel=4)
