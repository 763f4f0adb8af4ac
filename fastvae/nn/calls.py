"""For type checkers: calling a module is calling its ``forward``, which torch.nn.Module leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["like"]

Forward = TypeVar("Forward", bound=Callable[..., Any])


def like(forward: Forward) -> Callable[[Callable[..., Any]], Forward]:
    """Gives a module's ``__call__`` the parameters and results, overloads included, of its ``forward``.

    Under TYPE_CHECKING only, in the class: at run time ``__call__`` stays PyTorch's.
    """
    return lambda _: forward
