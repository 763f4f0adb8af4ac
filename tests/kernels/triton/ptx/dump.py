"""Compile what the launch code starts for given cases, in a process of its own, and describe each launch as JSON.

python -m tests.kernels.triton.ptx.dump FOLDER      with cases.json in FOLDER: [[target, [op, dtype, layout, ...]], ...]

Triton decides when it is imported whether it interprets or compiles, and under the tests it interprets. The launch code
runs as it is, up to the point where it would start the kernel: instead, the kernel is compiled and its arguments are
written down. FOLDER gets the PTX files and launches.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .cases import Case, latent_of


def inputs(case: Case) -> dict[str, Tensor]:
    """mu and logvar in the case's layout; values do not matter."""
    dtype, shape = getattr(torch, case.dtype), case.shape
    if case.layout == "halves":
        packed = torch.empty(shape[0], 2 * shape[1], *shape[2:], dtype=dtype)
        packed = packed.to(memory_format=torch.channels_last) if len(shape) == 4 else packed
        return dict(zip(("mu", "logvar"), packed.chunk(2, 1), strict=True))
    if case.layout == "unaligned":
        numel = torch.Size(shape).numel()
        return {name: torch.empty(numel + 1, dtype=dtype)[1:].view(shape) for name in ("mu", "logvar")}
    if case.layout == "transposed":
        turned = (*shape[:-2], shape[-1], shape[-2])
        return {name: torch.empty(turned, dtype=dtype).transpose(-1, -2) for name in ("mu", "logvar")}
    return {name: torch.empty(shape, dtype=dtype) for name in ("mu", "logvar")}


def call(case: Case) -> None:
    """The op, as the package's autograd functions call the backend."""
    from fastvae.kernels.triton import launch as backend

    if latent_of(case.op) is not None:
        call_latent(case)
        return
    seed = torch.zeros(1, dtype=torch.int64)
    with_z, with_kl = not case.op.startswith("gaussian_kl"), "kl" in case.op
    reduction = case.reduction if with_kl else None
    mu, logvar = inputs(case).values()
    if case.op == "noise":
        backend.noise(seed, case.shape, case.row_offset, mu.dtype)
    elif not case.op.endswith("_backward"):
        backend.forward(mu, logvar, seed if with_z else None, case.row_offset, reduction)
    else:
        kl_shape = {"none": case.shape, "sample": case.shape[:1]}.get(case.reduction, ())
        expanded = case.layout == "expanded"
        grad_z = torch.empty((), dtype=mu.dtype).expand(case.shape) if expanded else torch.empty_like(mu)
        grad_kl = torch.empty(()).expand(kl_shape) if expanded else torch.empty(kl_shape)
        backend.backward(
            grad_z if with_z else None,
            grad_kl if with_kl else None,
            mu if with_kl else None,
            logvar,
            seed if with_z else None,
            case.row_offset,
            reduction,
        )


def call_latent(case: Case) -> None:
    """The backend's function, with all outputs of the forward pass given a gradient in the backward pass."""
    from fastvae.kernels.layout import draws_like
    from fastvae.kernels.triton import latent_backward, latent_forward

    latent = latent_of(case.op)
    assert latent is not None
    mu, scale = inputs(case).values()
    priors = prior_inputs(mu, latent.prior)
    seed, draws, reduction = torch.zeros(1, dtype=torch.int64), latent.num_samples, case.reduction
    if not case.op.endswith("_backward"):
        latent_forward(
            mu,
            scale,
            *priors,
            seed,
            case.row_offset,
            draws,
            reduction,
            latent.kl_mean,
            latent.log_probs,
            latent.options,
        )
        return
    grad_z = torch.empty_like(mu) if draws is None else draws_like(mu, draws)
    grad_kl = torch.empty({"none": case.shape, "sample": case.shape[:1]}.get(reduction, ()))
    log_shape = case.shape[:1] if draws is None else (draws, case.shape[0])
    grad_log_q, grad_log_p = (torch.empty(log_shape) if latent.log_probs else None for _ in range(2))
    if case.layout == "expanded":
        grad_z, grad_kl = grad_z[..., :1].expand(grad_z.shape), grad_kl[:1].expand(grad_kl.shape)
    latent_backward(
        grad_z, grad_kl, grad_log_q, grad_log_p, mu, scale, *priors, seed, case.row_offset, draws, reduction,
        latent.options, latent.prior is not None
    )  # fmt: skip


def prior_inputs(mu: Tensor, prior: str | None) -> tuple[Tensor | None, Tensor | None]:
    if prior is None:
        return None, None
    shape = {"full": mu.shape, "shared": (1, *mu.shape[1:]), "one": (1,) * mu.dim()}[prior]
    return torch.empty(shape, dtype=mu.dtype), torch.empty(shape, dtype=mu.dtype)


def launches(case: Case) -> list[Any]:
    """What the launch code starts for a case."""
    from fastvae.kernels.triton import latent_launch
    from fastvae.kernels.triton import launch as backend

    started: list[Any] = []
    # A row is split only as far as is needed for this many programs, and a tile halved for this many tiles.
    changed: dict[str, Any] = {"ENOUGH_PROGRAMS": 1, "ENOUGH_TILES": 1} if case.large else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend.Launch, "run", lambda launch, device: started.append(launch))
        for name, value in changed.items():
            patch.setattr(backend, name, value)
        latent_launch.plan_of.cache_clear()
        call(case)
        latent_launch.plan_of.cache_clear()
    return started


def describe(launch: Any) -> dict[str, Any]:
    """Grid and arguments, in the order of the PTX parameters; a tensor by its role, layout and storage."""
    from bench.compiled import source

    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | launch.constants
    signature = source(launch).signature
    storages: dict[int, dict[str, int]] = {}
    arguments = []
    for name in names:
        value = values[name]
        if signature[name] == "constexpr":
            continue
        if not isinstance(value, Tensor):
            arguments.append({"name": name, "value": int(value)})
            continue
        storage = value.untyped_storage()
        storages.setdefault(storage.data_ptr(), {"bytes": storage.nbytes(), "past_alignment": storage.data_ptr() % 16})
        arguments.append(
            {
                "name": name.removesuffix("_ptr"),
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": value.shape,
                "strides": value.stride(),
                "storage": list(storages).index(storage.data_ptr()),
                "offset": value.storage_offset(),
            }
        )
    return {"grid": launch.grid, "arguments": arguments, "storages": list(storages.values())}


def main() -> None:
    from bench.compiled import compile_for

    folder = Path(sys.argv[1])
    found = []
    for target, fields in json.loads((folder / "cases.json").read_text()):
        case = Case(*fields)
        case = case._replace(shape=tuple(case.shape))
        started = launches(case)
        if len(started) != 1:
            raise RuntimeError(f"{case}: {len(started)} kernels started where one was expected")
        kernel = compile_for(started[0], target)
        path = folder / f"{kernel.hash}.ptx"
        path.write_text(kernel.asm["ptx"])
        threads, shared = 32 * kernel.metadata.num_warps, kernel.metadata.shared
        found.append(
            {"target": target, "case": case, "ptx": str(path), "threads": threads, "shared_bytes": shared}
            | describe(started[0])
        )
    (folder / "launches.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
