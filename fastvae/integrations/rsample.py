"""Draws from Normals in which backward may go through the draw and its KL one after the other, as in torch.

The Function of `fastvae.autograd` saves tensors by autograd's own means, which frees them after the first backward.
Here a draw and its KL are two results of the library's own calls, whose backwards come separately: so this Function
keeps its inputs itself, until both backwards, or with the graph.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..autograd import backward_of_latent
from ..checks import seed_tensor
from ..fast_path import direct_kernels
from ..functional import reparameterize
from ..kernels import backend as selected
from ..kernels.latent_spec import LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from ..ops import LatentRun, latent_run
from ..torch_internals import fast_apply, has_saved_tensor_hooks, is_graph_kept

__all__ = ["draw"]

_DRAW_ALONE = LatentSpec(scale="std", reduction=None)
_DRAW_AND_KL = LatentSpec(scale="std", reduction="none")
_SCALARS = LatentScalars()
_DRAW, _KL = 1, 2  # the backwards that have yet to come
_NAMES = {_DRAW: "draw", _KL: "KL", _DRAW | _KL: "draw and the KL"}

_is_grad_enabled = torch.is_grad_enabled


def draw(
    loc: Tensor, scale: Tensor, kernels: ModuleType | None, draws: int | None = None, *, with_kl: bool = False
) -> tuple[Tensor, Tensor | None]:
    """loc + scale eps, and on request the KL of each coordinate to N(0, 1), in nats.

    The KL is None, too, where there is no backward that both would share.

    Args:
        kernels: those that `support` has found.
        draws: how many, stacked in front.
    """
    recorded = (
        _is_grad_enabled()
        and (loc.requires_grad or scale.requires_grad)
        and not (loc.is_inference() or scale.is_inference())
        and not has_saved_tensor_hooks(True)  # which offload or recompute what autograd saves
    )
    if not recorded:
        return reparameterize(loc, scale, scale="std", num_samples=draws), None
    backend = selected.requested
    seed = seed_tensor(None, None, loc.device, alike=kernels is not None)
    if kernels is None:
        kernels = direct_kernels(backend, loc, scale)
    scalars = _SCALARS if draws is None else _SCALARS._replace(num_samples=draws)
    run = latent_run((_DRAW_AND_KL if with_kl else _DRAW_ALONE, scalars, backend, kernels))
    outputs = _apply(loc, scale, seed, run)
    return outputs if with_kl else (outputs[0], None)


class _Draw(Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, seed: Tensor, run: LatentRun) -> tuple[Tensor, ...]:
        ctx.kept = LatentInputs(loc, scale, None, None, seed), loc._version, scale._version
        ctx.run = run
        ctx.ahead = _DRAW if run.spec.reduction is None else _DRAW | _KL
        ctx.set_materialize_grads(False)
        z, kl, *_ = ops.latent(ctx.kept[0], run)
        return (z,) if kl is None else (z, kl)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None = None) -> tuple[Tensor | None, ...]:
        through = (0 if grad_z is None else _DRAW) | (0 if grad_kl is None else _KL)
        if not through:
            return None, None, None, None
        if through & ~ctx.ahead:
            raise RuntimeError(
                f"backward goes through the {_NAMES[through & ~ctx.ahead]} of a Normal a second time, expected"
                " retain_graph=True the first time"
            )
        inputs, loc_version, scale_version = ctx.kept
        # The gradient of a draw is eps, whatever has become of loc and scale since.
        if grad_kl is not None and (loc_version != inputs.mu._version or scale_version != inputs.scale._version):
            raise RuntimeError(
                "loc or scale of a Normal was changed in place after a draw and before backward through its KL,"
                " expected both as they were"
            )
        if not is_graph_kept():
            ctx.ahead &= ~through
            if not ctx.ahead:
                del ctx.kept
        of_loc, of_scale, *_ = backward_of_latent(LatentOutputs(grad_z, grad_kl), inputs, ctx.run, wants_prior=False)
        return of_loc, of_scale, None, None


_apply = fast_apply(_Draw)
