"""torch.distributions under `fastvae.patch`: sampling from Normals, and the KL between them.

Replaced are ``Normal.rsample``, inherited by its subclasses, the constructor of Normal, whose argument validation takes
half of its time and becomes one pass, and the registered KLs between Normals and between Independent Normals. torch's
own code runs for float64, 0-d parameters, devices without kernels, `torch.compile`, torch.func and torch.jit.trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.distributions import kl as torch_kl

from . import normal_ops
from .monkeypatch import MonkeyPatch
from .patching import setting_of

__all__ = ["install", "replace_normal"]

_NO_EVENT = torch.Size()


def install(monkeypatch: MonkeyPatch) -> None:
    original_init = Normal.__init__

    def init(self: Normal, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        validate = Distribution._validate_args if validate_args is None else validate_args
        plain = type(self).arg_constraints is Normal.arg_constraints
        if not (setting_of("torch") and plain and normal_ops.init(self, loc, scale, validate)):
            original_init(self, loc, scale, validate_args)
            return
        if type(self) is Normal:  # the rest of torch's constructor
            self._batch_shape, self._event_shape = loc.size(), _NO_EVENT
            if validate_args is not None:
                self._validate_args = validate_args
            return
        super(Normal, self).__init__(loc.size(), validate_args=False)
        if validate_args is None:
            del self._validate_args  # the class attribute applies
        else:
            self._validate_args = validate_args

    monkeypatch.setattr(Normal, "__init__", init)
    replace_normal(monkeypatch, "torch", Normal, Independent)


def replace_normal(monkeypatch: MonkeyPatch, library: str, normal: Any, independent: type, smallest: int = 0) -> None:
    """Fused draws of at least ``smallest`` numbers, and the fused KL between two of each class.

    The function that was there before runs where the fused one returns None.
    """
    original = normal.rsample

    def rsample(self: Any, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 as in torch
        small = smallest and self._extended_shape(sample_shape).numel() < smallest
        z = None if small else normal_ops.draw_if_patched(library, self, sample_shape)
        return original(self, sample_shape) if z is None else z

    monkeypatch.setattr(normal, "rsample", rsample)
    replace_kl(monkeypatch, library, normal, normal_ops.kl)
    replace_kl(monkeypatch, library, independent, normal_ops.kl_independent)


def replace_kl(monkeypatch: MonkeyPatch, library: str, kind: type, fused: Callable[[Any, Any], Tensor | None]) -> None:
    original = torch_kl._dispatch_kl(kind, kind)

    def kl(p: Any, q: Any) -> Tensor:
        result = fused(p, q) if setting_of(library) else None
        return original(p, q) if result is None else result

    # torch caches which function it chose for two classes: the cache is cleared now, and when the patch is undone.
    monkeypatch.on_undo(torch_kl._KL_MEMOIZE.clear)
    monkeypatch.setitem(torch_kl._KL_REGISTRY, (kind, kind), kl, f"the KL between two of {kind.__name__}")
    torch_kl._KL_MEMOIZE.clear()
