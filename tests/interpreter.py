"""Triton's interpreter in a quarter of its time, by the same arithmetic.

The interpreter patches ``triton.language`` at every call of a device function, where once a launch is enough; builds a
table of all dtypes to look one up; calls a custom combine function of ``tl.reduce`` once for each element, where once
for each halving of the axis does; computes whether integers overflow and then asserts nothing, as it is not in its
debug mode; checks and describes shapes anew for every value; and goes through several functions for each operation and
each constant. Parts that another release of Triton does not have are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from typing import Any

import numpy


def speed_up() -> None:
    try:
        from triton import language
        from triton.runtime import interpreter
    except Exception:  # no Triton, or one that this machine cannot import: the backend says why
        return
    if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "GridExecutor"):
        patch_once_a_launch(language, interpreter)
    if hasattr(interpreter, "_get_np_dtype"):
        remember_dtypes(language, interpreter)
    if hasattr(interpreter, "interpreter_builder") and hasattr(language.core, "block_type"):
        leave_overflow_out(interpreter)
        remember_shapes(language.core)
    if hasattr(interpreter, "interpreter_semantic") and hasattr(interpreter, "_patch_attr"):
        call_operations_directly(language.core, interpreter)
    if hasattr(interpreter, "ReduceOps") and hasattr(interpreter.ReduceOps, "generic_reduce"):
        interpreter.ReduceOps.generic_reduce = reduce_by_halves


def patch_once_a_launch(language: Any, interpreter: Any) -> None:
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()
    one_at_a_time = threading.Lock()

    @functools.cache
    def modules_of(function: Any) -> frozenset[int]:
        """The modules that patching a function patches."""
        modules = filter(inspect.ismodule, function.__globals__.values())
        return frozenset(id(module) for module in modules if module in (language, language.core))

    def patch_what_is_new(function: Any) -> Any:
        if modules_of(function) <= patched:
            return None
        patched.update(modules_of(function))
        return patch(function)

    def launch_anew(self: Any, *arguments: Any, **constants: Any) -> Any:
        with one_at_a_time:  # triton.language is patched for all threads
            patched.clear()
            return launch(self, *arguments, **constants)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_what_is_new, launch_anew


def remember_dtypes(language: Any, interpreter: Any) -> None:
    own = interpreter._get_np_dtype
    remembered = functools.cache(own)

    def dtype_of(type: Any) -> Any:
        element = type.element_ty if isinstance(type, language.block_type) else type
        # Pointer types cannot be hashed.
        return own(element) if isinstance(element, language.pointer_type) else remembered(element)

    interpreter._get_np_dtype = dtype_of


def leave_overflow_out(interpreter: Any) -> None:
    options = getattr(interpreter.interpreter_builder, "options", None)
    if options and hasattr(options, "sanitize_overflow") and not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


def call_operations_directly(core: Any, interpreter: Any) -> None:
    semantic = interpreter.interpreter_semantic
    wrapper = core.builtin(lambda: None).__code__  # it only asks whether there is a ``_semantic``

    def patch_attribute(object: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function = member.__wrapped__ if getattr(member, "__code__", None) is wrapper else member

        def interpreted(*arguments: Any, **given: Any) -> Any:
            given["_semantic"] = semantic
            return function(*arguments, **given)

        scope.set_attr(object, name, interpreted)

    interpreter._patch_attr = patch_attribute
    own_constant = semantic.scalar_constant

    @functools.cache
    def remembered(value: Any, kind: type, dtype: Any) -> Any:
        return own_constant(value, dtype)

    semantic.scalar_constant = lambda value, dtype: remembered(value, type(value), dtype)


def remember_shapes(core: Any) -> None:
    """Of types and tensors; every operation makes several of them, of few different shapes."""
    own_type, own_tensor = core.block_type.__init__, core.tensor.__init__

    @functools.cache
    def of_type(sizes: tuple[int, ...]) -> tuple[Any, int, str]:
        type = object.__new__(core.block_type)
        own_type(type, core.int32, list(sizes))  # raises where the shape is not allowed
        return type.shape, type.numel, str(type.shape)

    @functools.cache
    def of_tensor(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        tensor = object.__new__(core.tensor)
        own_tensor(tensor, None, core.block_type(core.int32, list(sizes)) if sizes else core.int32)
        return tensor.shape, tensor.numel

    def make_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, core.constexpr) else size for size in shape])
        self.element_ty = element_ty
        self.shape, self.numel, description = of_type(sizes)
        self.name = f"<{description}, {element_ty}>"

    def make_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_tensor(tuple(type.shape) if type.is_block() else ())

    core.block_type.__init__, core.tensor.__init__ = make_type, make_tensor


def reduce_by_halves(self: Any, input: Any) -> list[Any]:
    """As a GPU does it: the combine function on the two halves of the axis, until one element is left."""
    parts, axis = self.unravel(input, self.axis)
    values = [part.handle.data for part in parts]
    while values[0].shape[axis] > 1:
        halves = zip(*(numpy.split(value, 2, axis) for value in values), strict=True)
        first, second = (
            [self.to_tensor(half, part.dtype) for half, part in zip(half_of_each, parts, strict=True)]
            for half_of_each in halves
        )
        combined = self.combine_fn.fn(*first, *second)
        values = [one.handle.data for one in (combined if isinstance(combined, tuple) else (combined,))]
    if self.keep_dims:
        shape = None if self.axis is not None else (1,) * input[0].handle.data.ndim
        values = [value if shape is None else value.reshape(shape) for value in values]
    else:
        values = [value.item() if self.axis is None else value.squeeze(axis) for value in values]
    return [self.to_tensor(value, part.dtype) for value, part in zip(values, parts, strict=True)]
