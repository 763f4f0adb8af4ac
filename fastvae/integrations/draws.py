"""Draws from Normals in which backward may go through the draw and its KL one after the other, as in torch.

The ops of `fastvae.functional` keep their inputs by autograd's means, which lets go of them after the first backward.
Here a draw and its KL are two things to the user, who knows nothing of the pass that they share: what is kept goes when
backward has been through both, or with the graph.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import library
from ..arguments import drawn_on_cpu, requested_backend, seed_tensor
from ..autograd import computed_by_autograd, without_detour
from ..functional import reparameterize
from ..kernels.family import Latents, Options
from ..kernels.selection import kernels_for
from ..plain import may_go_directly
from ..recorded import recorded_gradients

_STD = Options(scale="std")
_DRAW, _KL = 1, 2  # what backward has yet to go through
_NAMES = {_DRAW: "draw", _KL: "KL", _DRAW | _KL: "draw and the KL"}

_is_grad_enabled = torch.is_grad_enabled
_is_saving_watched = torch._C._autograd._top_saved_tensors_default_hooks
_is_graph_kept = torch._C._autograd._get_current_graph_task_keep_graph


def draw(loc: Tensor, scale: Tensor, kernels: ModuleType | None, draws: int | None = None) -> Tensor:
    """loc + scale eps; with ``draws`` that many, stacked in front. ``kernels`` are those at hand (`served`), if any."""
    if not _is_recorded(loc, scale):
        return reparameterize(loc, scale, scale="std", num_samples=draws)
    return _apply(loc, scale, (_seed(loc, kernels), draws, None, requested_backend(), kernels))[0]


def draw_and_kl(loc: Tensor, scale: Tensor, kernels: ModuleType | None) -> tuple[Tensor, Tensor | None]:
    """A draw, and the KL of each coordinate to N(0, 1), in nats; None without a backward that both would share."""
    if not _is_recorded(loc, scale):
        return reparameterize(loc, scale, scale="std"), None
    return _apply(loc, scale, (_seed(loc, kernels), None, "none", requested_backend(), kernels))


def _seed(loc: Tensor, kernels: ModuleType | None) -> Tensor:
    return seed_tensor(None, None, loc.device) if kernels is None else drawn_on_cpu()


def _is_recorded(loc: Tensor, scale: Tensor) -> bool:
    """Whether there is a backward to keep things for, and nobody offloads or recomputes what autograd keeps."""
    return (
        _is_grad_enabled()
        and (loc.requires_grad or scale.requires_grad)
        and not (loc.is_inference() or scale.is_inference())
        and not _is_saving_watched(True)
    )


class _Draw(Function):
    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, scale: Tensor, how: tuple[Tensor, int | None, str | None, str, ModuleType | None]
    ) -> tuple[Tensor, ...]:
        seed, draws, reduction, backend, kernels = how  # one argument: autograd looks at each
        if kernels is None and may_go_directly(2, loc, scale):
            kernels = kernels_for(backend, loc)
        ctx.kept = loc, scale, seed, loc._version, scale._version
        ctx.arguments = draws, backend, kernels
        ctx.ahead = _DRAW if reduction is None else _DRAW | _KL
        ctx.set_materialize_grads(False)
        if kernels is not None:
            z, kl, *_ = kernels.latent_forward(loc, scale, None, None, seed, 0, draws, reduction, False, False, _STD)
            return (z,) if kl is None else (z, kl)
        return tuple(library.latent(loc, scale, None, None, seed, 1, 0, draws, reduction, False, False, backend, *_STD))

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None = None) -> tuple[Tensor | None, ...]:
        through = (0 if grad_z is None else _DRAW) | (0 if grad_kl is None else _KL)
        if not through:
            return None, None, None
        if through & ~ctx.ahead:
            raise RuntimeError(
                f"backward goes through the {_NAMES[through & ~ctx.ahead]} of a Normal a second time, expected"
                " retain_graph=True the first time"
            )
        loc, scale, seed, loc_version, scale_version = ctx.kept
        draws, backend, kernels = ctx.arguments
        # The gradient of a draw is eps, whatever has become of loc and scale since.
        if grad_kl is not None and (loc_version != loc._version or scale_version != scale._version):
            raise RuntimeError(
                "loc or scale of a Normal was changed in place after a draw and before backward through its KL,"
                " expected both as they were"
            )
        if not _is_graph_kept():
            ctx.ahead &= ~through
            if not ctx.ahead:
                del ctx.kept
        reduction = None if grad_kl is None else "none"
        if grad_z is None:
            seed = None
        if kernels is not None and not _is_grad_enabled() and may_go_directly(2, grad_z, grad_kl):
            of_loc, of_scale, *_ = kernels.latent_backward(
                grad_z, grad_kl, None, None, loc, scale, None, None, seed, 0, draws, reduction, _STD, False
            )
        elif computed_by_autograd(grad_z, grad_kl):
            gradients = Latents(grad_z, grad_kl, None, None, None)
            of_loc, of_scale, *_ = recorded_gradients(
                gradients, (loc, scale, None, None), seed, 0, draws, reduction, _STD, backend
            )
        else:
            of_loc, of_scale = library.latent_backward(
                loc, scale, None, None, seed, grad_z, grad_kl, None, None, 1, 0, draws, reduction, False, backend, *_STD
            )
        return of_loc, of_scale, None


_apply = without_detour(_Draw)  # transforms have been looked for before
