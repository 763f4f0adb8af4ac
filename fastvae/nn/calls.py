"""For type checkers: what a call of a module takes and gives, which torch.nn.Module leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, overload

from torch import Tensor
from typing_extensions import Unpack

from ..draw_options import ForwardOverload

__all__ = ["ModelForward", "like", "of_model"]

Forward = TypeVar("Forward", bound=Callable[..., Any])
Output = TypeVar("Output", covariant=True)
Scored = TypeVar("Scored", covariant=True)


def like(forward: Forward) -> Callable[[Callable[..., Any]], Forward]:
    """Gives a module's ``__call__`` the parameters and results, overloads included, of its ``forward``.

    Under TYPE_CHECKING only, in the class: at run time ``__call__`` stays PyTorch's.
    """
    return lambda _: forward


class ModelForward(Protocol[Output, Scored]):
    """``forward`` of a model, by what its flags make it return."""

    @overload
    def __call__(
        self, x: Tensor, *, log_likelihood: Literal[False] = False, per_coordinate: Literal[False] = False,
        **options: Unpack[ForwardOverload],
    ) -> Output: ...  # fmt: skip

    @overload
    def __call__(
        self, x: Tensor, *, log_likelihood: Literal[False] = False, per_coordinate: Literal[True],
        **options: Unpack[ForwardOverload],
    ) -> tuple[Output, tuple[Tensor, ...]]: ...  # fmt: skip

    @overload
    def __call__(
        self, x: Tensor, *, log_likelihood: Literal[True], per_coordinate: Literal[False] = False,
        **options: Unpack[ForwardOverload],
    ) -> Scored: ...  # fmt: skip

    @overload
    def __call__(
        self, x: Tensor, *, log_likelihood: bool = False, per_coordinate: bool = False,
        **options: Unpack[ForwardOverload],
    ) -> Output | Scored | tuple[Output | Scored, tuple[Tensor, ...]]: ...  # fmt: skip


def of_model(
    output: type[Output], scored: type[Scored]
) -> Callable[[Callable[..., Any]], ModelForward[Output, Scored]]:
    """Tells type checkers what a model's ``forward`` returns: ``scored`` with log_likelihood=True."""
    return lambda forward: forward
