"""Triton's interpreter in half of its time, by the same arithmetic.

The interpreter patches ``triton.language`` at every call of a device function, where once a launch is enough; builds a
table of all dtypes to look one up; and calls a custom combine function of ``tl.reduce`` once for each element, where
once for each halving of the axis does. Parts that another release of Triton does not have are left alone.
"""

from __future__ import annotations

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
