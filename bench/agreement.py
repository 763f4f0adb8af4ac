"""No time without a right result: contenders are compared with the formulas before any of them is timed.

`bench.gpu_checks` compares z, the KL and the gradients with float64; here each op is made into the latent op that it
checks. A contender that draws in its own way is held to the z it drew; fastvae to the noise stream of its seed. Of
large tensors, which are computed whole, the first rows are compared: float64 takes its time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

import fastvae

from .cases import OPS, Case, Function
from .contenders import fastvae_backends
from .gpu_checks import Disagreement, Tensors, check
from .gpu_checks import Op as LatentOp

COMPARED_ELEMENTS = 2**22


def refuse_disagreement(case: Case, functions: Mapping[str, Function], tensors: Tensors) -> None:
    """Raise Disagreement, naming the case and the contender, unless all compute the same. Torch's generator is kept."""
    op = OPS[case.op]
    backends = fastvae_backends(tensors.mu.device)
    rows = max(1, COMPARED_ELEMENTS // math.prod(case.shape[1:]))
    compared = Tensors(*(tensor.detach()[:rows].requires_grad_(tensor.requires_grad) for tensor in tensors))
    with torch.random.fork_rng():
        for name, function in functions.items():
            ours = name in backends and op.draws  # a KL alone is completed with a z of plain PyTorch
            # Backends agree in the noise within the contract of the stream, which is wider than rounding: each is held
            # to the noise that it draws itself, and that noise to the contract.
            backend = fastvae.use_backend(backends[name]) if ours else contextlib.nullcontext()
            try:
                with backend:
                    check({"fastvae" if ours else "other": _of_rows(op.completed(function), case, tensors)}, compared)
            except Disagreement as error:
                raise Disagreement(f"{case}, {name}: {str(error).partition(': ')[2]}") from None


def _of_rows(op: LatentOp, case: Case, tensors: Tensors) -> LatentOp:
    """The op as the check calls it: on the first rows, events flattened. The other rows are computed with them."""

    def of_rows(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(mu)
        if rows < case.shape[0]:
            mu, logvar = (
                torch.cat([mu, tensors.mu.detach()[rows:]]),
                torch.cat([logvar, tensors.logvar.detach()[rows:]]),
            )
        z, kl = op(mu.view(case.shape), logvar.view(case.shape))
        if z.shape != case.shape or kl.shape != case.shape[:1]:
            raise Disagreement(
                f"op: z and kl have shapes {tuple(z.shape)} and {tuple(kl.shape)}, "
                f"expected {case.shape} and {case.shape[:1]}"
            )
        return z.flatten(1)[:rows], kl[:rows]

    return of_rows
