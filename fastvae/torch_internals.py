"""Every private name of PyTorch that fastvae uses, what it is for, and what happens where a release lacks it.

All are shortcuts: without one, calls take a slower, public way to the same results. The tests take each away.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.fx import experimental

__all__ = [
    "any_is_batched", "disabled_torch_function", "exportable", "fast_apply", "has_saved_tensor_hooks", "is_compiling",
    "is_dynamo_compiling", "is_graph_kept", "is_in_forward_mode", "is_observed", "is_static", "is_transformed",
    "needs_formula", "only_grad_is_active", "standard_gamma",
]  # fmt: skip

# Public; here because each call asks them beside the private ones. Under torch.export, strict or not, one of them or a
# dispatch mode is active.
is_compiling = torch.compiler.is_compiling
is_dynamo_compiling = torch.compiler.is_dynamo_compiling


def _find(path: str) -> Any:
    """The object at a dotted path, or None."""
    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found


def _yes(*arguments: object) -> bool:
    return True


# Whether somebody looks at the operators that are called. Without one of these nobody can be ruled out: every call goes
# through PyTorch's dispatcher.
_dispatch_modes = _find("torch:_C._len_torch_dispatch_stack") or _yes
_function_modes = _find("torch:_C._len_torch_function_stack") or _yes  # torch.set_default_device is one
_transforms_are_active = _find("torch:_C._are_functorch_transforms_active") or _yes
_profiler_is_on = _find("torch.autograd:_profiler_enabled") or _yes
_tracing_state = _find("torch:_C._get_tracing_state") or _yes


# The level of forward-mode differentiation, -1 for none. Without the name it is assumed to be active.
_forward_mode: Any = forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=0)


def is_observed() -> object:
    """True in effect if a compiler, mode, transform, profiler, tracer or forward-mode differentiation is active."""
    return (
        is_dynamo_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _transforms_are_active()
        or _profiler_is_on()
        or _tracing_state()
        or _forward_mode._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether torch.compile, torch.func, torch.jit.trace or forward-mode differentiation is active.

    Without the names: assumed to be.
    """
    return is_compiling() or needs_formula()


def needs_formula() -> bool:
    """Whether operators need rules for more than gradients: in torch.func, torch.jit.trace and forward mode."""
    return bool(_transforms_are_active() or _tracing_state() or is_in_forward_mode())


def is_in_forward_mode() -> bool:
    return _forward_mode._current_level >= 0


# The transforms of torch.func that are active, and the kind that `torch.func.grad` is.
_active_transforms = _find("torch:_C._functorch.get_interpreter_stack")
_GRAD = _find("torch:_C._functorch.TransformType.Grad")


def only_grad_is_active() -> bool:
    """Whether no transform but torch.func.grad, no compiler and no tracer is active. Without the names: no."""
    if is_compiling() or _active_transforms is None or _GRAD is None or is_in_forward_mode() or _tracing_state():
        return False
    return all(one.key() == _GRAD for one in _active_transforms() or ())


def fast_apply(function: type[Function]) -> Callable[..., Any]:
    """``function.apply`` where no transform of torch.func is active: to prepare for one takes longer than a kernel.

    Autograd finds ``backward`` by a method of the class's ``_backward_cls`` then, which is given ``backward`` itself.
    Without the name it takes one or two microseconds more.
    """
    made: Any = getattr(function, "_backward_cls", None)
    if hasattr(made, "apply"):
        made.apply = function.backward
    return super(Function, function).apply  # type: ignore[misc]


# Tensors that stand for many: of is_grads_batched, of torch.func.vmap. Without the names any gradient may be one, and
# backward is computed in plain PyTorch.
_is_batch_of_gradients = _find("torch:_C._functorch.is_legacy_batchedtensor") or _yes
_is_batch = _find("torch:_C._functorch.is_batchedtensor") or _yes


def any_is_batched(tensors: Iterable[Tensor | None]) -> bool:
    for tensor in tensors:  # noqa: SIM110 - a generator would take as long as all else here
        if tensor is not None and (_is_batch_of_gradients(tensor) or _is_batch(tensor)):
            return True
    return False


# Hooks on saved tensors (offloading, checkpointing). Without the name they are assumed to be there.
has_saved_tensor_hooks: Callable[[bool], object] = _find("torch:_C._autograd._top_saved_tensors_default_hooks") or _yes

# Hooks on all modules. Without the name they are assumed to be there.
_global_hooks = _find("torch.nn.modules.module:_has_any_global_hook") or _yes
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a hook sees what goes into or comes out of a module. Without the names: assumed."""
    return bool(_global_hooks() or any(vars(module).get(name, True) for name in _HOOKS))


# ``retain_graph`` of the backward that is running. Without the name every graph is kept as long as its outputs are.
is_graph_kept: Callable[[], bool] = _find("torch:_C._autograd._get_current_graph_task_keep_graph") or _yes

# Results of operations on a subclass of Tensor come out as plain tensors. Without the name: by a context, slower.
_disabled_torch_function = _find("torch:_C._disabled_torch_function_impl")


def _without_subclass(cls: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **(kwargs or {}))


disabled_torch_function = _disabled_torch_function or classmethod(_without_subclass)

# Draws Gamma(concentration, 1) from a generator. Without the name: torch.distributions, which has none, from a copy of
# the generator's state.
_standard_gamma = _find("torch:_standard_gamma")


def standard_gamma(concentration: Tensor, generator: torch.Generator | None = None) -> Tensor:
    if _standard_gamma is not None:
        return _standard_gamma(concentration, generator=generator)
    gamma = torch.distributions.Gamma(concentration, torch.ones_like(concentration))
    if generator is None:
        return gamma.sample()
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        drawn = gamma.sample()
        generator.set_state(torch.get_rng_state())
    return drawn


# Lets torch.export.save save programs that return a NamedTuple. Without the name it refuses them; they still run.
_register_namedtuple = _find("torch.utils._pytree:_register_namedtuple")

Result = TypeVar("Result", bound=type)


def exportable(result: Result) -> Result:
    """A NamedTuple that exported programs may return."""
    if _register_namedtuple is not None:
        _register_namedtuple(result, serialized_type_name=f"{result.__module__}.{result.__name__}")
    return result


def is_static(number: float) -> bool:
    """Whether ``number`` is a constant of the graph that is being traced, not one of its inputs.

    Asked of PyTorch's compiler, which has loaded `symbolic_shapes` by then: to import that module with fastvae would
    load SymPy as well. Without the name: every number is treated as an input.
    """
    known = getattr(getattr(experimental, "symbolic_shapes", None), "statically_known_true", None)
    if known is None:
        return False
    bound = 1234.5  # that no check compares with: what is known of an input are the checks that it has passed
    return known(number <= bound) or known(number > bound)
