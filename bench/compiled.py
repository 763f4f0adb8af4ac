"""Compile the Triton kernels for GPUs that need not be there, exactly as the launch code would start them.

python -m bench.compiled [sm_80 sm_90 gfx942 ...]      what was compiled for each target, as JSON
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastvae.kernels.family import PLAIN, Options
from fastvae.kernels.likelihoods import Density

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
    torch.int32: "*i32",
    torch.uint8: "*u8",
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


class Latent(NamedTuple):
    """What of the family of latents an op is."""

    options: Options = PLAIN
    prior: str | None = None  # "full": of every row; "shared" by the rows
    sampled: bool = True
    reduction: str | None = "sample"
    num_samples: int | None = None  # with log probabilities, as an importance-weighted bound needs them


LATENTS = {
    "gaussian_kl_two": Latent(prior="full", sampled=False),
    "gaussian_kl_shared_prior": Latent(prior="shared", sampled=False),
    "sample_and_kl_prior": Latent(prior="full"),
    "sample_and_kl_shared_prior": Latent(prior="shared"),
    "sample_and_kl_std": Latent(Options(scale="std")),
    "sample_and_kl_softplus": Latent(Options(scale="softplus", floor=1e-4)),
    "sample_and_kl_soft_clamp": Latent(Options(clamp="soft", high=5.0)),
    "iwae_50": Latent(reduction=None, num_samples=50),
}

# Of a likelihood, how much there is of each parameter: "full", of every row, or "shared" by the rows.
LIKELIHOODS = {
    "bernoulli": ("full",),
    "gaussian": ("full", "full"),
    "negative_binomial": ("full", "shared"),
}


def _backward_of(op: str) -> tuple[str, bool]:
    return op.removesuffix("_backward"), op.endswith("_backward")


def op_launch(op: str, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor | None = None) -> Any:
    """The launch that one of OPS would start for tensors of this shape and dtype.

    ``like`` gives the memory layout of the tensors; contiguous if None.
    """

    strides = torch.empty(shape, device="meta").stride() if like is None else like.stride()

    def tensor() -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype)

    if _backward_of(op)[0] in LATENTS:
        return _latent_launch(op, tensor)
    if _backward_of(op)[0] in LIKELIHOODS:
        return _likelihood_launch(op, tensor)
    return _plain_launch(op, tensor)


def _latent_launch(op: str, tensor: Callable[[], torch.Tensor]) -> Any:
    from fastvae.kernels.triton.latent_launch import describe_backward, describe_forward

    name, backward = _backward_of(op)
    options, prior, sampled, reduction, draws = LATENTS[name]
    mu, rows = tensor(), tensor().shape[0]
    priors = (None, None) if prior is None else (tensor(), tensor())
    if prior == "shared":
        priors = tuple([of_row[:1] for of_row in priors])
    seed = torch.zeros(1, dtype=torch.int64) if sampled else None
    if not backward:
        return describe_forward(
            mu, tensor(), *priors, seed, 0, draws, reduction, False, draws is not None, options
        ).launch
    grad_z = torch.empty((draws, *mu.shape), dtype=mu.dtype) if draws else torch.empty_like(mu)
    grad_kl = None if reduction is None else torch.empty(rows)
    grad_log_q, grad_log_p = (torch.empty(draws, rows) if draws else None for _ in range(2))
    gradients = (grad_z if sampled else None, grad_kl, grad_log_q, grad_log_p)
    return describe_backward(
        *gradients, mu, tensor(), *priors, seed, 0, draws, reduction, options, prior is not None
    ).launch


def _likelihood_launch(op: str, tensor: Callable[[], torch.Tensor]) -> Any:
    from fastvae.kernels.triton.likelihood_launch import describe_backward, describe_forward

    name, backward = _backward_of(op)
    x, density = tensor(), Density(name)
    parameters = tuple([tensor() if given == "full" else tensor()[:1] for given in LIKELIHOODS[name]])
    if not backward:
        return describe_forward(x, parameters, "sample", density).launch
    return describe_backward(
        torch.empty(x.shape[0]), x, parameters, "sample", density, (True,) * len(parameters)
    ).launch


def _plain_launch(op: str, tensor: Callable[[], torch.Tensor]) -> Any:
    from fastvae.kernels.layout import rows_view
    from fastvae.kernels.triton.launch import backward_launch, forward_launch, shares

    dtype, rows = tensor().dtype, tensor().shape[0]
    name, backward = _backward_of(op)
    with_z, with_kl = name != "gaussian_kl", name in ("sample_and_kl", "gaussian_kl")
    seed = torch.zeros(1, dtype=torch.int64) if with_z else None
    if backward:
        view = rows_view(
            torch.empty_like(tensor()) if with_z else None,
            None,
            tensor() if with_kl else None,
            tensor(),
            tensor() if with_kl else None,
            tensor(),
        )
        shared = shares(view.rows, view.outer * view.inner, dtype)
        grad_kl = torch.empty(rows) if with_kl else None
        return backward_launch(view, grad_kl, "sample" if with_kl else None, seed, 0, shared)
    given = None if name == "noise" else tensor()
    view = rows_view(given, None if given is None else tensor(), torch.empty_like(tensor()) if with_z else None, None)
    shared = shares(view.rows, view.outer * view.inner, dtype)
    sums = torch.empty((rows, shared.grid[1])) if with_kl else None
    return forward_launch(view, sums, seed, 0, shared)


PLAIN_OPS = (
    "noise",
    "sample_and_kl",
    "reparameterize",
    "gaussian_kl",
    "sample_and_kl_backward",
    "reparameterize_backward",
    "gaussian_kl_backward",
)
LATENT_OPS = (*LATENTS, *(f"{name}_backward" for name in LATENTS))
LIKELIHOOD_OPS = (*LIKELIHOODS, *(f"{name}_backward" for name in LIKELIHOODS))
OPS = (*PLAIN_OPS, *LATENT_OPS, *LIKELIHOOD_OPS)

# A short latent, a long one, packed ones: an image's in channels_last, and rows of two halves; rows so long that only
# the loop counts; two of which many draws are made; and two kinds of data, images of digits and counts of genes.
SHAPES = {
    "4096x16": (4096, 16),
    "512x4096": (512, 4096),
    "16x4x64x64 channels_last halves": (16, 4, 64, 64),
    "512x4096 halves": (512, 4096),
    "64x65536": (64, 65536),
    "1024x50": (1024, 50),
    "1024x256": (1024, 256),
    "1024x784": (1024, 784),
    "1024x4000": (1024, 4000),
}


def is_shipped(op: str, shape_name: str) -> bool:
    """Whether an op is looked at in one of SHAPES: what is unlike the other ops in it."""
    name, _ = _backward_of(op)
    if name in LIKELIHOODS or shape_name in ("1024x784", "1024x4000"):
        return name in LIKELIHOODS and shape_name in ("1024x784", "1024x4000", "64x65536")
    of_draws = name in LATENTS and LATENTS[name].num_samples is not None
    if shape_name in ("1024x50", "1024x256") or of_draws:
        return of_draws and shape_name in ("1024x50", "1024x256")
    if shape_name == "512x4096 halves":
        return name == "sample_and_kl"
    if op == "noise":
        return "halves" not in shape_name
    return op in PLAIN_OPS or shape_name in ("4096x16", "64x65536")


def shape_and_layout(shape_name: str) -> tuple[tuple[int, ...], torch.Tensor | None]:
    """The shape of one of SHAPES, and a tensor whose memory layout is meant (None: contiguous)."""
    shape = SHAPES[shape_name]
    if "halves" not in shape_name:
        return shape, None
    packed = torch.empty(shape[0], 2 * shape[1], *shape[2:])
    if "channels_last" in shape_name:
        packed = packed.to(memory_format=torch.channels_last)
    return shape, packed.chunk(2, 1)[0]


def shipped_launches() -> Iterator[tuple[str, str, torch.dtype, Any]]:
    """Every op in its shapes, in float32 and bfloat16: op, shape's name, dtype, launch."""
    for shape_name in SHAPES:
        shape, like = shape_and_layout(shape_name)
        for dtype in (torch.float32, torch.bfloat16):
            for op in OPS:
                if is_shipped(op, shape_name):
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
