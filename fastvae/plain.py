"""Plain calls: plain tensors, and nobody who looks at the operators that are called.

PyTorch's dispatcher, and careful checks in Python, take longer than the kernel of a small latent. What is plain goes a
shorter way; whatever is not found to be plain here goes the long one, which is right for all.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .kernels import selection
from .kernels.selection import kernels_for

# A subclass of Tensor may have its own idea of what an operator does.
PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_SIMPLE_TYPES = frozenset({type(None), int, float, bool, str, tuple, torch.Size, torch.dtype})

# Each call asks these, so they are looked up once.
is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack  # torch.set_default_device is one
_transforms_are_active = torch._C._are_functorch_transforms_active
_profiler_is_on = torch.autograd._profiler_enabled
_tracing_state = torch._C._get_tracing_state


def observed() -> object:
    """True in effect if a compiler, mode, transform, profiler or tracer looks at the operators that are called."""
    return (
        is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _transforms_are_active()
        or _profiler_is_on()
        or _tracing_state()
    )


def plain_on_cpu(tensors: int, *arguments: object) -> bool:
    """Whether the first so many arguments are plain tensors in the CPU's memory, or None, and the others Python's own
    numbers, strings and tuples. False also where the C extension cannot tell."""
    return _ask_extension()[0](tensors, *arguments)


def alike_on_cpu(mu: object, logvar: object) -> bool:
    """Whether both are plain tensors in the CPU's memory, of one shape, neither () nor empty, and of one dtype for
    which there are kernels."""
    return _ask_extension()[1](mu, logvar)


def _ask_extension() -> tuple[Callable[..., bool], Callable[..., bool]]:
    """At the first call, as no backend is loaded sooner: the C functions take the place of the two above."""
    global plain_on_cpu, alike_on_cpu
    try:
        from .kernels.cpu import alike_on_cpu, plain_on_cpu
    except ImportError:  # the extension was not built
        plain_on_cpu, alike_on_cpu = _cannot_tell, _cannot_tell  # type: ignore[assignment]
    return plain_on_cpu, alike_on_cpu


def _cannot_tell(*arguments: object) -> bool:
    return False


def are_plain(tensors: int, *arguments: Any) -> bool:
    """Whether operators may be called past PyTorch's dispatcher with these: plain arguments, and nobody observes."""
    return not observed() and (plain_on_cpu(tensors, *arguments) or plain_elsewhere(tensors, *arguments))


def may_go_directly(tensors: int, *arguments: Any) -> bool:
    """`are_plain`, and certainly so: what calls kernels itself has no operator to fall back on.

    Of CPU tensors the extension has the last word, as there are some without memory that look like any other.
    """
    if observed():
        return False
    return plain_on_cpu(tensors, *arguments) or (
        plain_elsewhere(tensors, *arguments)
        and not any(tensor is not None and tensor.is_cpu for tensor in arguments[:tensors])
    )


def plain_kernels(mu: Tensor, logvar: Tensor) -> ModuleType | None:
    """The kernels for a posterior that needs no further check and that nobody observes; None of any other."""
    if observed() or not alike_on_cpu(mu, logvar):
        return None
    return kernels_for(selection.requested, mu)


def plain_elsewhere(tensors: int, *arguments: Any) -> bool:
    """The same in Python, for any device: no subclass, and memory holds the values as they are, signs included."""
    for tensor in arguments[:tensors]:
        if tensor is not None and (type(tensor) not in PLAIN_TENSORS or tensor.is_meta or tensor.is_neg()):
            return False
    return _SIMPLE_TYPES.issuperset(map(type, arguments[tensors:]))
