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
    """mu and scale in the case's layout; values do not matter."""
    dtype, shape = getattr(torch, case.dtype), case.shape
    if case.layout == "halves":
        packed = torch.empty(shape[0], 2 * shape[1], *shape[2:], dtype=dtype)
        packed = packed.to(memory_format=torch.channels_last) if len(shape) == 4 else packed
        return dict(zip(("mu", "scale"), packed.chunk(2, 1), strict=True))
    if case.layout == "unaligned":
        numel = torch.Size(shape).numel()
        return {name: torch.empty(numel + 1, dtype=dtype)[1:].view(shape) for name in ("mu", "scale")}
    if case.layout == "transposed":
        turned = (*shape[:-2], shape[-1], shape[-2])
        return {name: torch.empty(turned, dtype=dtype).transpose(-1, -2) for name in ("mu", "scale")}
    return {name: torch.empty(shape, dtype=dtype) for name in ("mu", "scale")}


def call(case: Case) -> None:
    """The backend's function, with all outputs of the forward pass given a gradient in the backward pass."""
    from fastvae.kernels import triton as backend
    from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs
    from fastvae.kernels.layout import draws_like

    mu, scale = inputs(case).values()
    seed = torch.zeros(1, dtype=torch.int64)
    if case.op == "noise":
        backend.noise(seed, case.shape, case.row_offset, mu.dtype, 0)
        return
    spec, scalars, prior = latent_of(case.op)
    if spec.reduction is not None:
        spec = spec._replace(reduction=case.reduction)
    scalars = scalars._replace(row_offset=case.row_offset)
    draws = scalars.num_samples
    given = LatentInputs(mu, scale, *prior_inputs(mu, prior), seed if spec.sample else None)
    if not case.op.endswith("_backward"):
        backend.latent_forward(given, spec, scalars)
        return
    grad_z = torch.empty_like(mu) if draws is None else draws_like(mu, draws)
    grad_kl = torch.empty({"none": case.shape, "sample": case.shape[:1]}.get(case.reduction, ()))
    log_shape = case.shape[:1] if draws is None else (draws, case.shape[0])
    grad_log_q, grad_log_p = (torch.empty(log_shape) if spec.log_probs else None for _ in range(2))
    if case.layout == "expanded":
        grad_z, grad_kl = grad_z[..., :1].expand(grad_z.shape), grad_kl[:1].expand(grad_kl.shape)
    grads = LatentOutputs(
        grad_z if spec.sample else None, None if spec.reduction is None else grad_kl, None, grad_log_q, grad_log_p
    )
    if grads[1:] == (None,) * 4:  # z alone: its gradient is that of mu
        given = given._replace(mu=None)
    backend.latent_backward(grads, given, spec, scalars, prior is not None)


def prior_inputs(mu: Tensor, prior: str | None) -> tuple[Tensor | None, Tensor | None]:
    if prior is None:
        return None, None
    shape = {"full": mu.shape, "shared": (1, *mu.shape[1:]), "one": (1,) * mu.dim()}[prior]
    return torch.empty(shape, dtype=mu.dtype), torch.empty(shape, dtype=mu.dtype)


def launches(case: Case) -> list[Any]:
    """What the launch code starts for a case."""
    from fastvae.kernels.triton import launch

    # A row is split only as far as is needed for this many programs, and tiles are large if there are this many.
    changed: dict[str, Any] = {"ENOUGH_PROGRAMS": 1, "ENOUGH_TILES": 1} if case.large else {}
    with pytest.MonkeyPatch.context() as patch, launch.collected_launches() as started:
        for name, value in changed.items():
            patch.setattr(launch, name, value)
        call(case)
    return started


def describe(launch: Any) -> dict[str, Any]:
    """Grid and arguments, in the order of the PTX parameters; a tensor by its role, layout and storage."""
    from bench.roofline.compiled import source

    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False))
    signature = source(launch).signature
    storages: dict[int, dict[str, int]] = {}
    arguments: list[dict[str, Any]] = []

    def add(name: str, value: Any, kind: Any) -> None:
        if isinstance(kind, tuple):
            for part, of_part in zip(value, kind, strict=True):
                add(name, part, of_part)
        elif isinstance(value, Tensor):
            storage = value.untyped_storage()
            start = storage.data_ptr()
            storages.setdefault(start, {"bytes": storage.nbytes(), "past_alignment": start % 16})
            arguments.append(
                {
                    "name": name.removesuffix("_ptr"),
                    "dtype": str(value.dtype).removeprefix("torch."),
                    "shape": value.shape,
                    "strides": value.stride(),
                    "storage": list(storages).index(start),
                    "offset": value.storage_offset(),
                }
            )
        elif kind != "constexpr":
            arguments.append({"name": name, "value": value})

    for name in values:
        add(name, values[name], signature[name])
    return {"grid": launch.grid, "arguments": arguments, "storages": list(storages.values())}


def stop_at_ptx() -> None:
    """Leave out ptxas, whose binaries nothing here runs.

    In a cache of its own: Triton 3.6 does not see from a kernel's key that it has no binary, and would start it.
    """
    import triton

    def leave_out(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str]:
        if stages is not None and "cubin" in stages:
            stages["cubin"] = lambda source, metadata: b"left out"
        return "no binary", "no binary"  # part of the key in the cache of later ones

    triton.knobs.runtime.add_stages_inspection_hook = leave_out
    triton.knobs.cache.dir = str(Path(triton.knobs.cache.dir, "without-binaries"))


def main() -> None:
    from bench.roofline.compiled import compile_for

    stop_at_ptx()
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
