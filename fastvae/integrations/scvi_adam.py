"""The optimizer of scvi-tools' training plans under `fastvae.patch`: PyTorch's fused Adam and AdamW."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .patching import setting_of

__all__ = ["with_fused_optimizer"]


def with_fused_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a plan that returns a creator of its default optimizer."""

    @functools.wraps(original)
    def _optimizer_creator_fn(self: Any, optimizer_cls: Any) -> Any:
        setting = setting_of("scvi")
        # A fused optimizer unscales float16's gradients itself, and Lightning then refuses to clip them.
        if setting is None or not setting.optimizer or optimizer_cls not in (Adam, AdamW) or _scales_loss(self):
            return original(self, optimizer_cls)
        return original(self, functools.partial(_fused, optimizer_cls))

    return _optimizer_creator_fn


def _scales_loss(plan: Any) -> bool:
    try:
        return str(plan.trainer.precision) == "16-mixed"
    except RuntimeError:  # it is not attached to a trainer
        return False


def _fused(optimizer_cls: type[Adam], params: Iterable[Tensor], **options: Any) -> Optimizer:
    params = list(params)
    if not params or not all(one.is_floating_point() and one.device.type in ("cpu", "cuda") for one in params):
        return optimizer_cls(params, **options)
    optimizer = optimizer_cls(params, **{**options, "fused": True})  # scvi-tools 1.5 asks for it, too
    optimizer.register_step_post_hook(_count_step)
    return optimizer


def _count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Fused steps leave the version counters, which tell deferred tensors that weights have changed."""
    torch.autograd.graph.increment_version([one for group in optimizer.param_groups for one in group["params"]])
