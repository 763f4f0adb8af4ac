"""Compile the Triton kernels for GPUs that need not be there, exactly as the launch code would start them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastvae.kernels.head_spec import HeadSpec
from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from fastvae.kernels.likelihood_spec import Bounds, LikelihoodSpec

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

    As at a real launch: None is a constant, and so is an integer 1; integers are 32 bits wide where they fit; pointers
    and integers divisible by 16 are known to be so. The last two but for what the kernel is not to be specialised on.
    """
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}

    def specialise(value: Any, place: tuple[int, ...], parameter: Any) -> Any:
        """The type of an argument, or of a part of one that is a tuple."""
        if isinstance(value, tuple) and not parameter.is_constexpr:
            return tuple([specialise(part, (*place, at), parameter) for at, part in enumerate(value)])
        specialises = not parameter.do_not_specialize
        if value is None or parameter.is_constexpr or (specialises and type(value) is int and value == 1):
            constants[place] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, torch.Tensor):
            specialises = specialises and not parameter.do_not_specialize_on_alignment
            kind, divisible = _POINTERS[value.dtype], value.data_ptr() % 16 == 0
        else:
            kind, divisible = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        if specialises and divisible:
            attributes[place] = [["tt.divisibility", 16]]
        return parameter.annotation_type or kind

    values = (*launch.arguments, *[launch.constants[name] for name in launch.kernel.arg_names[len(launch.arguments) :]])
    for parameter, value in zip(launch.kernel.params, values, strict=True):
        signature[parameter.name] = specialise(value, (parameter.num,), parameter)
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_for(launch: Any, target: str) -> Any:
    """Triton's compiled kernel of ``launch`` for one of TARGETS; its ``asm`` holds every stage down to the binary."""
    from fastvae.kernels.triton.launch import ptx_level

    # The launch was described on a machine that need not be the target's.
    gpu = TARGETS[target]
    level = ptx_level(gpu.arch if gpu.backend == "cuda" else None)
    launch = launch._replace(
        constants=launch.constants | {"TILES": launch.constants["TILES"]._replace(ptx_level=level)}
    )
    return triton.compile(source(launch), target=gpu, options={"num_warps": launch.num_warps})


class Latent(NamedTuple):
    """What a latent op is."""

    spec: LatentSpec = LatentSpec()
    scalars: LatentScalars = LatentScalars()
    prior: str | None = None  # "full": of every row; "shared" by the rows


KL_ALONE = LatentSpec(sample=False)
LATENTS = {
    "sample_and_kl": Latent(),
    "reparameterize": Latent(LatentSpec(reduction=None)),
    "gaussian_kl": Latent(KL_ALONE),
    "gaussian_kl_two": Latent(KL_ALONE, prior="full"),
    "gaussian_kl_shared_prior": Latent(KL_ALONE, prior="shared"),
    "sample_and_kl_prior": Latent(prior="full"),
    "sample_and_kl_shared_prior": Latent(prior="shared"),
    "sample_and_kl_std": Latent(LatentSpec(scale="std")),
    "sample_and_kl_softplus": Latent(LatentSpec(scale="softplus"), LatentScalars(floor=1e-4)),
    "sample_and_kl_soft_clamp": Latent(LatentSpec(clamp="soft"), LatentScalars(high=5.0)),
    # With log probabilities, as an importance-weighted bound needs them.
    "iwae_50": Latent(LatentSpec(reduction=None, log_probs=True), LatentScalars(num_samples=50)),
}

# Of a likelihood, how much there is of each parameter: "full", "shared" by the rows, or "rows", one number for each.
LIKELIHOODS = {
    "bernoulli": ("full",),
    "gaussian": ("full", "full"),
    "negative_binomial": ("full", "shared"),
    "scaled_bernoulli": ("full", "rows", "shared"),
}

# Heads, with their gradients: one layer's outputs; and those of a softmax with a dispersion for each gene.
HEADS = {
    "head_bernoulli": HeadSpec("bernoulli"),
    "head_negative_binomial": HeadSpec("negative_binomial", "softmax", "given"),
}


class Call(NamedTuple):
    """An op: the backend's two functions, to be called without arguments."""

    forward: Callable[[], Any]
    backward: Callable[[], Any]


def latent_call(latent: Latent, tensor: Callable[[], torch.Tensor], *, wants_prior: bool = True) -> Call:
    """A latent whose parameters are made by ``tensor``. The forward pass is called once, for the gradients' shapes."""
    from fastvae.kernels.triton import latent_backward, latent_forward

    spec, scalars, prior = latent
    priors = (None, None) if prior is None else (tensor(), tensor())
    if prior == "shared":
        priors = tuple([of_row[:1] for of_row in priors])
    inputs = LatentInputs(tensor(), tensor(), *priors, torch.zeros(1, dtype=torch.int64) if spec.sample else None)
    outputs = latent_forward(inputs, spec, scalars)
    grads = LatentOutputs(*[None if output is None else torch.zeros_like(output) for output in outputs])
    given = inputs
    if grads[1:] == (None,) * 4:  # z alone: its gradient is that of mu
        given = inputs._replace(mu=None)
    return Call(
        lambda: latent_forward(inputs, spec, scalars),
        lambda: latent_backward(grads, given, spec, scalars, wants_prior and prior is not None),
    )


def likelihood_call(kind: str, tensor: Callable[[], torch.Tensor]) -> Call:
    """One of LIKELIHOODS, of data and parameters that are made by ``tensor``."""
    from fastvae.kernels.triton import likelihood_backward, likelihood_forward

    x, spec, bounds = tensor(), LikelihoodSpec(kind), Bounds()
    part = {"full": slice(None), "shared": slice(1), "rows": (slice(None), *[slice(1)] * (x.dim() - 1))}
    parameters = tuple([tensor()[part[given]] for given in LIKELIHOODS[kind]])
    grad, wants = torch.zeros(x.shape[0]), (True,) * len(parameters)
    return Call(
        lambda: likelihood_forward(x, parameters, spec, bounds),
        lambda: likelihood_backward(grad, x, parameters, spec, bounds, wants),
    )


def noise_call(tensor: Callable[[], torch.Tensor]) -> Call:
    """Noise of a tensor's shape and dtype, which has no backward pass."""
    from fastvae.kernels.triton import noise

    like, seed = tensor(), torch.zeros(1, dtype=torch.int64)

    def draw() -> torch.Tensor:
        return noise(seed, like.shape, 0, like.dtype, 0)

    return Call(draw, draw)


def head_call(spec: HeadSpec, tensor: Callable[[], torch.Tensor]) -> Call:
    """A head with its gradients, which has no backward pass of its own."""
    from fastvae.kernels.triton import head

    x, of_rows = tensor().float(), torch.empty(len(tensor()))
    parameters = tuple([tensor()[0].float() if how == "given" else tensor() for how in spec.activations])
    library = of_rows if spec.first == "softmax" else None

    def both() -> Any:
        return head(x, parameters, library, None, spec, Bounds(), (True,) * len(parameters))

    return Call(both, both)


def op_launch(op: str, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor | None = None) -> Any:
    """The launch that one of OPS would start for tensors of this shape and dtype.

    ``like`` gives the memory layout of the tensors; contiguous if None.
    """
    from fastvae.kernels.triton.launch import collected_launches

    strides = torch.empty(shape, device="meta").stride() if like is None else like.stride()

    def tensor() -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype)

    name = op.removesuffix("_backward")
    with collected_launches() as launches:
        if name in LATENTS:
            call = latent_call(LATENTS[name], tensor)
        elif name in LIKELIHOODS:
            call = likelihood_call(name, tensor)
        else:
            call = noise_call(tensor) if name == "noise" else head_call(HEADS[name], tensor)
        launches.clear()
        (call.forward if op == name else call.backward)()
    (launch,) = launches
    return launch


def _both_ways(names: Iterable[str]) -> list[str]:
    return [name + way for way in ("", "_backward") for name in names]


PLAIN = ("sample_and_kl", "reparameterize", "gaussian_kl")
OTHER_LATENTS = tuple([name for name in LATENTS if name not in PLAIN])
OPS = ("noise", *_both_ways(PLAIN), *_both_ways(OTHER_LATENTS), *_both_ways(LIKELIHOODS))
SHIPPED = (*OPS, *HEADS)

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
    name = op.removesuffix("_backward")
    if name in HEADS:
        return shape_name in ("1024x784", "64x65536")
    if name in LIKELIHOODS or shape_name in ("1024x784", "1024x4000"):
        return name in LIKELIHOODS and shape_name in ("1024x784", "1024x4000", "64x65536")
    of_draws = name in LATENTS and LATENTS[name].scalars.num_samples is not None
    if shape_name in ("1024x50", "1024x256") or of_draws:
        return of_draws and shape_name in ("1024x50", "1024x256")
    if shape_name == "512x4096 halves":
        return name == "sample_and_kl"
    if op == "noise":
        return "halves" not in shape_name
    return name in PLAIN or shape_name in ("4096x16", "64x65536")


def shape_and_layout(shape_name: str) -> tuple[tuple[int, ...], torch.Tensor | None]:
    """The shape of one of SHAPES, and a tensor whose memory layout is meant (None: contiguous)."""
    shape = SHAPES[shape_name]
    if "halves" not in shape_name:
        return shape, None
    packed = torch.empty(shape[0], 2 * shape[1], *shape[2:])
    if "channels_last" in shape_name:
        packed = packed.to(memory_format=torch.channels_last)
    return shape, packed.chunk(2, 1)[0]
