"""Compile the Triton kernels for GPUs that need not be there, exactly as the launch code would start them.

python -m bench.compiled [sm_80 sm_90 gfx942 ...]      what was compiled for each target, as JSON
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


def source(launch: Any) -> ASTSource:
    """The kernel of a `fastvae.kernels.triton.launch.Launch`, specialised to its arguments.

    As at a real launch: a None or an integer 1 is a constant, integers are 32 bits wide where they fit, and pointers
    and integers divisible by 16 are known to be so.
    """
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | launch.constants
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(names):
        value = values[name]
        if value is None or name in launch.constants or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name], divisible = _POINTERS[value.dtype], value.data_ptr() % 16 == 0
        else:
            signature[name], divisible = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_for(launch: Any, target: str) -> Any:
    """Triton's compiled kernel of ``launch`` for one of TARGETS; its ``asm`` holds every stage down to the binary."""
    from fastvae.kernels.triton.launch import hardware

    # The launch was described on a machine that need not be the target's.
    gpu = TARGETS[target]
    capability = gpu.arch if gpu.backend == "cuda" else None
    launch = launch._replace(constants=launch.constants | {"HARDWARE": hardware(capability)})
    return triton.compile(source(launch), target=TARGETS[target], options={"num_warps": launch.num_warps})


def op_launch(op: str, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor | None = None) -> Any:
    """The launch that one of OPS would start for tensors of this shape and dtype.

    ``like`` gives the memory layout of the tensors; contiguous if None.
    """
    from fastvae.kernels.layout import rows_view
    from fastvae.kernels.triton.launch import backward_launch, forward_launch, shares

    def tensor() -> torch.Tensor:
        return torch.empty(shape, dtype=dtype) if like is None else torch.empty_like(like, dtype=dtype)

    name, backward = op.removesuffix("_backward"), op.endswith("_backward")
    with_z, with_kl = name != "gaussian_kl", name in ("sample_and_kl", "gaussian_kl")
    seed = torch.zeros(1, dtype=torch.int64) if with_z else None
    if backward:
        view = rows_view(
            tensor() if with_z else None,
            None,
            tensor() if with_kl else None,
            tensor(),
            tensor() if with_kl else None,
            tensor(),
        )
        shared = shares(view.rows, view.outer * view.inner, dtype)
        grad_kl = torch.empty(shape[0]) if with_kl else None
        return backward_launch(view, grad_kl, "sample" if with_kl else None, seed, 0, shared)
    given = None if name == "noise" else tensor()
    view = rows_view(given, None if given is None else tensor(), tensor() if with_z else None, None)
    shared = shares(view.rows, view.outer * view.inner, dtype)
    sums = torch.empty((shape[0], shared.grid[1])) if with_kl else None
    return forward_launch(view, sums, seed, 0, shared)


OPS = (
    "noise",
    "sample_and_kl",
    "reparameterize",
    "gaussian_kl",
    "sample_and_kl_backward",
    "reparameterize_backward",
    "gaussian_kl_backward",
)

# A short latent, a long one, an image's in channels_last halves of a packed tensor, and rows so long that only the
# loop counts.
SHAPES = {
    "4096x16": (4096, 16),
    "512x4096": (512, 4096),
    "16x4x64x64 channels_last halves": (16, 4, 64, 64),
    "64x65536": (64, 65536),
}


def shape_and_layout(shape_name: str) -> tuple[tuple[int, ...], torch.Tensor | None]:
    """The shape of one of SHAPES, and a tensor whose memory layout is meant (None: contiguous)."""
    shape = SHAPES[shape_name]
    if "halves" not in shape_name:
        return shape, None
    packed = torch.empty(shape[0], 2 * shape[1], *shape[2:]).to(memory_format=torch.channels_last)
    return shape, packed.chunk(2, 1)[0]


def shipped_launches() -> Iterator[tuple[str, str, torch.dtype, Any]]:
    """Every op for the shapes above in float32 and bfloat16: op, shape's name, dtype, launch."""
    for shape_name in SHAPES:
        shape, like = shape_and_layout(shape_name)
        for dtype in (torch.float32, torch.bfloat16):
            for op in OPS:
                if op != "noise" or like is None:
                    yield op, shape_name, dtype, op_launch(op, shape, dtype, like)


def main() -> None:
    """Compile every shipped launch for the targets named on the command line; print what was made, as JSON."""
    report = []
    for target in sys.argv[1:] or TARGETS:
        for op, shape_name, dtype, launch in shipped_launches():
            kernel = compile_for(launch, target)
            assembly = kernel.asm["ptx" if TARGETS[target].backend == "cuda" else "amdgcn"]
            report.append(
                {
                    "target": target,
                    "op": op,
                    "shape": shape_name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "wide_accesses": len(
                        re.findall(r"(?:ld|st)\.global\.v4\.b32|global_(?:load|store)_\w*x4|b128", assembly)
                    ),
                    "local_memory": bool(re.search(r"\b(?:ld|st)\.local|scratch_(?:load|store)", assembly)),
                    "binary_bytes": len(kernel.asm["cubin" if "cubin" in kernel.asm else "hsaco"]),
                }
            )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
