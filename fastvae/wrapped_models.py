"""Models inside of others: DistributedDataParallel, torch.compile and other modules that call the one they hold.

A gradient that processes share is one of a computation inside the wrapper's forward. So `through_wrappers` calls the
wrapper, and has the model run one of its other methods in the place of forward. What torch.compile has wrapped is
compiled, with the same settings, for that method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["model_method", "through_wrappers"]


def model_method(model: nn.Module, name: str) -> Callable[..., Any]:
    """The method of the model inside all wrappers, without their forward: for results that get no gradient."""
    return _method(_layers(model, name)[-1], name)


def through_wrappers(model: nn.Module, name: str, finish: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """The method of the model inside, run by the forward of its wrappers.

    Args:
        finish: applied to the result inside of the wrappers' forward; with it the method is not compiled.

    Raises:
        TypeError: the model has no such method, or is in a DataParallel, whose replicas have a forward only.
    """
    layers = _layers(model, name)
    method = run = _method(layers[-1], name)
    if finish is not None:

        def run(*arguments: Any, **keywords: Any) -> Any:
            return finish(method(*arguments, **keywords))

    for compiled in filter(_is_compiled, layers):
        if finish is None:
            run = compiled.dynamo_ctx(run)
    while _is_compiled(layers[0]):
        layers = layers[1:]
    for layer in layers:
        if isinstance(layer, nn.DataParallel):
            raise TypeError("model is a DataParallel, expected a DistributedDataParallel or the model that it holds")
    if len(layers) == 1:
        return run
    # Between a wrapper and the model that torch.compile has wrapped, it is the latter's forward that is called.
    return _in_forward(layers[0], next(filter(_is_compiled, layers), layers[-1]), run)


def _in_forward(wrapper: nn.Module, held: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        before = vars(held).get("forward")

        def put_back() -> None:
            if before is None:
                vars(held).pop("forward", None)
            else:
                vars(held)["forward"] = before

        def forward(*arguments: Any, **keywords: Any) -> Any:
            put_back()  # the method may call it
            return run(*arguments, **keywords)

        vars(held)["forward"] = forward
        try:
            return wrapper(*arguments, **keywords)
        finally:
            put_back()

    return call


def _layers(model: nn.Module, name: str) -> list[Any]:
    """The model and what it wraps, from the outside in, up to the one whose class has the method."""
    layers = [model]
    while not hasattr(type(layers[-1]), name) and isinstance(layers[-1], nn.Module):
        inside = getattr(layers[-1], "_orig_mod" if _is_compiled(layers[-1]) else "module", None)
        if not isinstance(inside, nn.Module):
            break
        layers.append(inside)
    return layers


def _is_compiled(model: object) -> bool:
    """By the name of the class, as importing torch.compile takes seconds."""
    return type(model).__name__ == "OptimizedModule"


def _method(model: nn.Module, name: str) -> Callable[..., Any]:
    method = getattr(model, name, None)
    if not callable(method):
        raise TypeError(
            f"model is a {type(model).__name__}, expected one with the method {name}, as fastvae.nn.VAE has"
        )
    return method
