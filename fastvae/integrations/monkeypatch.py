"""`MonkeyPatch`: set attributes and dict entries of other libraries, and restore all of them later."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

__all__ = ["MonkeyPatch"]

_MISSING = object()


class MonkeyPatch:
    """Records what it replaces; `undo` restores everything, the last change first.

    What other code has replaced in the meantime is left alone, with a warning.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def setattr(self, owner: Any, name: str, new: Any) -> None:
        """Set ``owner.name`` of a class or module. `undo` deletes it again where the class only inherited it."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, new)

        def undo() -> None:
            if vars(owner).get(name, _MISSING) is not new:
                _warn_not_restored(f"{owner.__name__}.{name}")
            elif before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(undo)

    def setitem(self, mapping: MutableMapping[Any, Any], key: Any, new: Any, name: str) -> None:
        """Set ``mapping[key]``; warnings call it ``name``."""
        before = mapping.get(key, _MISSING)
        mapping[key] = new

        def undo() -> None:
            if mapping.get(key, _MISSING) is not new:
                _warn_not_restored(name)
            elif before is _MISSING:
                del mapping[key]
            else:
                mapping[key] = before

        self._undo.append(undo)

    def rebind(self, home: Any, name: str, new: Any) -> None:
        """Set ``home.name``, and that name in every module that has imported it from there.

        Modules imported later get the new object from ``home``; `undo` restores it there too.
        """
        before = getattr(home, name)
        _rebind(name, before, new)
        self._undo.append(lambda: _rebind(name, new, before))

    def on_undo(self, action: Callable[[], None]) -> None:
        """Call ``action`` as a part of `undo`."""
        self._undo.append(action)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


def _rebind(name: str, old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def _warn_not_restored(what: str) -> None:
    warnings.warn(f"{what} was replaced by other code since fastvae.patch and is not restored", stacklevel=4)
