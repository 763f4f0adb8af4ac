"""The registry of what is timed: ops, their inputs and outputs, shapes and dtypes; and the tensors of a case.

An op is timed in up to three directions:

    forward    the call, with the graph that autograd records
    backward   the gradients alone, on a graph made beforehand and retained
    both       forward and backward together, as in a training step

To add an op: an entry in LATENTS or LIKELIHOODS, its plain PyTorch in `bench.eager` or `bench.eager_likelihoods`
(latents: its formula in `bench.formulas`, too), and a `Case` in SUITE or LIKELIHOOD_SUITE.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvae.kernels.likelihood_spec import channels_of_mixture

Function = Callable[..., Tensor | tuple[Tensor, ...]]

DIRECTIONS = ("forward", "backward", "both")
DTYPES = ("float32", "bfloat16", "float16")

SAMPLES = 50  # the largest K of Burda et al., arXiv 1509.00519
FLOOR = 1e-4  # of stable-audio
FREE_BITS = 0.02  # nats a coordinate: between those of collapsed coordinates and those of the others
COMPONENTS = 10  # of a mixture of logistics, as in PixelCNN++ (arXiv 1701.05517)


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


_POSTERIOR = {"mu": "posterior", "logvar": "posterior"}


class Op(NamedTuple):
    """An op that is timed: which function of fastvae it is, what goes in and what comes out."""

    function: str  # of `fastvae`, or of `fastvae.likelihoods` for a log-likelihood
    about: str  # what it computes, in a line
    outputs: tuple[str, ...] = ("z", "kl")  # in the order returned; eps is bare noise, log_prob that of a likelihood
    inputs: Mapping[str, str] = _POSTERIOR
    """Name -> kind of values (`Case.draw`), in the order of the contenders' arguments. All but x and mask want
    gradients.

    A "shared" kind has one value for each coordinate, a "row" kind one for each row.
    """
    packed: bool = False  # mu and logvar are one argument, side by side in dimension 1, as encoders give them
    options: Mapping[str, Any] = {}  # keywords of fastvae's function
    directions: tuple[str, ...] = DIRECTIONS
    eager_error: float = 1.0
    """The error of plain PyTorch in float32, compiled or not, in units of `bench.agreement.TOLERANCE`; of others: 1."""

    @property
    def drawn(self) -> str | None:
        """The output from which the noise can be computed; None if the op draws none."""
        return self.outputs[0] if self.outputs[0] in ("z", "eps") else None

    @property
    def num_samples(self) -> int | None:
        return self.options.get("num_samples")

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The inputs that want gradients."""
        return tuple(name for name in self.inputs if name not in ("x", "mask"))

    @property
    def masked(self) -> bool:
        """Whether the last input is the mask of observed entries."""
        return "mask" in self.inputs

    @property
    def by_row(self) -> bool:
        """Whether row b of each output depends on row b of the inputs alone, and stands in row b."""
        shared = any(kind.startswith("shared") for kind in self.inputs.values())
        return not (shared or self.num_samples or self.options.get("reduction") == "batchmean")


_WITH_PRIOR = _POSTERIOR | {"prior_mu": "prior", "prior_logvar": "prior"}

LATENTS = {
    "sample_and_kl": Op("sample_and_kl", "z and its KL to N(0, I)"),
    "sample_and_kl_packed": Op("sample_and_kl_packed", "z and its KL to N(0, I), packed", packed=True),
    "sample_and_kl_packed_prior": Op(
        "sample_and_kl_packed", "z and its KL to a prior of z's shape, packed", inputs=_WITH_PRIOR, packed=True
    ),
    "sample_and_kl_softplus": Op(
        "sample_and_kl",
        f"z and its KL to N(0, I), sigma = softplus(.) + {FLOOR:g}",
        options={"scale": "softplus", "floor": FLOOR},
    ),
    "sample_and_kl_free_bits": Op(
        "sample_and_kl",
        f"z and the batch's mean KL to N(0, I), at least {FREE_BITS:g} nats a coordinate",
        options={"reduction": "batchmean", "free_bits": FREE_BITS, "free_bits_over": "batch"},
    ),
    "iwae_50": Op(
        "sample_and_log_prob",
        f"{SAMPLES} samples of each posterior, their log q and log p (IWAE)",
        outputs=("z", "log_q", "log_p"),
        options={"num_samples": SAMPLES},
    ),
    "reparameterize": Op("reparameterize", "z alone", outputs=("z",)),
    "gaussian_kl": Op("gaussian_kl", "KL to N(0, I)", outputs=("kl",)),
    "gaussian_kl_two": Op("gaussian_kl", "KL of two Gaussians", outputs=("kl",), inputs=_WITH_PRIOR),
    "gaussian_kl_shared_prior": Op(
        "gaussian_kl",
        "KL to a prior that the batch shares",
        outputs=("kl",),
        inputs=_POSTERIOR | {"prior_mu": "shared prior", "prior_logvar": "shared prior"},
    ),
    # The noise takes a shape and a dtype: those of a tensor.
    "noise": Op("noise", "eps alone", outputs=("eps",), inputs={"mu": "posterior"}, directions=("forward",)),
}


def _likelihood(function: str, about: str, inputs: Mapping[str, str], **others: Any) -> Op:
    return Op(f"{function}_log_prob", about, outputs=("log_prob",), inputs=inputs, **others)


_COUNTS = {"x": "counts", "mean": "positive", "theta": "shared positive"}

LIKELIHOODS = {
    "bernoulli": _likelihood("bernoulli", "of binary pixels", {"x": "binary", "logits": "real"}),
    # torch.distributions subtracts nearly equal terms beside its Taylor series around 1/2.
    "continuous_bernoulli": _likelihood(
        "continuous_bernoulli", "of values from 0 to 1", {"x": "unit", "logits": "real"}, eager_error=500.0
    ),
    "gaussian": _likelihood("gaussian", "of real values", {"x": "real", "mean": "real", "logvar": "real"}),
    "gaussian_masked": _likelihood(
        "gaussian",
        "of real values, a fifth of them missing",
        {"x": "real", "mean": "real", "logvar": "real", "mask": "mask"},
    ),
    "laplace": _likelihood("laplace", "of real values", {"x": "real", "mean": "real", "logscale": "real"}),
    "log_normal": _likelihood("log_normal", "of positive values", {"x": "positive", "mu": "real", "logvar": "real"}),
    "poisson": _likelihood("poisson", "of counts", {"x": "counts", "log_rate": "real"}),
    "negative_binomial": _likelihood("negative_binomial", "of counts of genes", _COUNTS),
    "zero_inflated": _likelihood("zero_inflated_negative_binomial", "of counts of genes", _COUNTS | {"logits": "real"}),
    "scaled_bernoulli": _likelihood(
        "scaled_bernoulli",
        "of the accessibility of regions",
        {"x": "counts", "probs": "unit", "row_factor": "row unit", "event_factor": "shared unit"},
    ),
    # The formula of PixelCNN++ subtracts the distribution function at the edges of a bin.
    "mixture": _likelihood(
        "discretized_logistic_mixture",
        "of pixels",
        {"x": "pixels", "parameter": "mixture"},
        options={"components": COMPONENTS},
        eager_error=100.0,
    ),
}

OPS = LATENTS | LIKELIHOODS


class Tensors(NamedTuple):
    """What a case works on: the inputs and the gradients of the outputs, by name."""

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Case(NamedTuple):
    op: str
    shape: tuple[int, ...]
    """Of mu or x, (B, *event); a packed tensor has twice as many channels, K samples have K times as many rows."""
    dtype: str = "float32"
    zeros: float | None = None  # the share of zeros in counts

    @property
    def directions(self) -> tuple[str, ...]:
        return OPS[self.op].directions

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def array_bytes(self) -> int:
        """Bytes of an array of the size of mu or x."""
        return self.elements * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def shape_name(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def share_of_zeros(self) -> str:
        return "" if self.zeros is None else f", {self.zeros:.0%} zeros"

    def __str__(self) -> str:
        return f"{self.op} {self.shape_name} {self.dtype}{self.share_of_zeros}"

    def input_shape(self, name: str) -> tuple[int, ...]:
        kind = OPS[self.op].inputs[name]
        if kind == "mixture":
            return (self.shape[0], channels_of_mixture(self.shape[1], COMPONENTS), *self.shape[2:])
        if kind.startswith("row "):
            return (self.shape[0],) + (1,) * (len(self.shape) - 1)
        return self.shape[1:] if kind.startswith("shared") else self.shape

    def output_shape(self, name: str) -> tuple[int, ...]:
        op = OPS[self.op]
        draws = () if op.num_samples is None else (op.num_samples,)
        of_rows = () if op.options.get("reduction") == "batchmean" else self.shape[:1]
        if name in ("log_q", "log_p"):
            return (*draws, self.shape[0])
        return of_rows if name in ("kl", "log_prob") else (*draws, *self.shape)

    def moved_bytes(self, direction: str) -> int:
        """What an implementation has to move if it reads each input and writes each output once.

        Backward reads the inputs again, and the gradients of the outputs. The seed's 8 bytes are left out.
        """
        op, size = OPS[self.op], self.torch_dtype.itemsize
        read = {name: size * math.prod(self.input_shape(name)) for name in op.inputs if op.drawn != "eps"}
        if op.masked:
            read["mask"] //= size  # of one byte each
        made = sum((size if name in ("z", "eps") else 4) * math.prod(self.output_shape(name)) for name in op.outputs)
        forward = sum(read.values()) + made
        backward = forward + sum(size for name, size in read.items() if name in op.differentiable)
        return {"forward": forward, "backward": backward, "both": forward + backward}[direction]

    def draw(self, name: str, generator: torch.Generator) -> Tensor:
        """Values for an input, of its kind, in float32; a mask in bool."""
        kind = OPS[self.op].inputs[name].removeprefix("shared ").removeprefix("row ")
        how = {"size": self.input_shape(name), "device": generator.device, "generator": generator}
        uniform, normal = torch.rand(**how), torch.randn(**how)
        if kind == "posterior":  # every other coordinate has collapsed: its mu and logvar are nearly 0
            normal.flatten(1)[:, 1::2] *= 0.1
            return 0.5 * normal
        if kind == "counts":  # Poisson of mean 3, and more zeros than these have, so that their share is as asked for
            present = min((1 - (self.zeros or 0.0)) / (1 - math.exp(-3.0)), 1.0)
            return torch.poisson(3.0 * (uniform < present), generator)
        kinds = {
            "prior": 0.5 * normal,
            "real": normal,
            "unit": uniform,
            "binary": uniform.round(),
            "positive": torch.exp(normal),
            "pixels": (255 * uniform).round() / 255,
            "mixture": 0.5 * normal,
            "mask": uniform < 0.8,
        }
        return kinds[kind]

    def tensors(self, device: torch.device) -> Tensors:
        """The same at every call."""
        op, dtype = OPS[self.op], self.torch_dtype
        generator = torch.Generator(device=device).manual_seed(self.elements)
        drawn = {name: self.draw(name, generator) for name in op.inputs}
        inputs = {name: tensor if name == "mask" else tensor.to(dtype) for name, tensor in drawn.items()}
        gradients = {}
        for name in op.outputs:
            draw = torch.randn if name == "z" else torch.rand
            gradient = draw(self.output_shape(name), device=device, generator=generator)
            gradients[name] = (0.5 * gradient).to(dtype) if name == "z" else gradient
        return Tensors(inputs, gradients)

    def arguments(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """What the contenders take: leaves, of which the differentiable ones want gradients."""
        op = OPS[self.op]
        given = {name: tensors.inputs[name].detach() for name in op.inputs}
        if op.packed:
            given["mu"] = torch.cat([given["mu"], given.pop("logvar")], dim=1)
        return tuple(argument.requires_grad_(name in op.differentiable) for name, argument in given.items())

    def incoming(self, tensors: Tensors, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients of what a function returned, which may return a KL in the dtype of z."""
        given = zip(OPS[self.op].outputs, outputs, strict=True)
        return tuple(tensors.gradients[name].to(output.dtype) for name, output in given)

    def by_input(self, gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Gradients of the arguments as those of mu, logvar and the op's other inputs."""
        op, found = OPS[self.op], list(gradients)
        if op.packed:
            found[:1] = found[0].chunk(2, dim=1)
        return dict(zip(op.differentiable, found, strict=True))


# Small and large latents of vectors, those of images, and those of an IWAE (Burda et al., arXiv 1509.00519).
SMALL, MEDIUM, IMAGE, LARGE, IWAE = (128, 10), (4096, 256), (16, 4, 64, 64), (65536, 256), (100, 50)

# `make bench` has ten minutes on two cores for everything.
SUITE = (
    *(Case("sample_and_kl", shape, "float32") for shape in (SMALL, MEDIUM, IMAGE, LARGE)),
    *(Case("sample_and_kl", shape, "bfloat16") for shape in (SMALL, MEDIUM, IMAGE, LARGE)),
    Case("sample_and_kl", MEDIUM, "float16"),
    *(Case("sample_and_kl_packed", shape, "float32") for shape in (SMALL, MEDIUM, IMAGE)),
    *(Case("sample_and_kl_packed", shape, "bfloat16") for shape in (MEDIUM, IMAGE)),
    Case("sample_and_kl_packed_prior", IMAGE, "float32"),
    Case("sample_and_kl_softplus", MEDIUM, "float32"),
    Case("sample_and_kl_free_bits", MEDIUM, "float32"),
    Case("iwae_50", IWAE, "float32"),
    *(Case(op, shape, "float32") for op in ("reparameterize", "gaussian_kl") for shape in (SMALL, MEDIUM)),
    *(Case(op, MEDIUM, "bfloat16") for op in ("reparameterize", "gaussian_kl")),
    *(Case("gaussian_kl_two", shape, "float32") for shape in (MEDIUM, IMAGE)),
    Case("gaussian_kl_two", MEDIUM, "bfloat16"),
    Case("gaussian_kl_shared_prior", MEDIUM, "float32"),
    *(Case("noise", shape, "float32") for shape in (SMALL, MEDIUM)),
    Case("noise", MEDIUM, "bfloat16"),
)

LIKELIHOOD_SUITE = (
    *(Case(op, (1024, 784)) for op in ("bernoulli", "continuous_bernoulli", "gaussian", "gaussian_masked")),
    *(Case(op, (1024, 784)) for op in ("laplace", "log_normal")),
    *(
        Case(op, shape, zeros=zeros)
        for op in ("negative_binomial", "zero_inflated")
        for shape, zeros in (((128, 2000), 0.9), ((1024, 4000), 0.9), ((1024, 4000), 0.5))
    ),
    Case("poisson", (1024, 4000), zeros=0.9),
    Case("scaled_bernoulli", (128, 20000), zeros=0.95),
    Case("mixture", (32, 3, 32, 32)),
)


def parse_shape(text: str) -> tuple[int, ...]:
    """(4096, 256) of a command line's "4096x256"."""
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split("x"))
    if len(sizes) < 2 or min(sizes) < 1:
        message = f"shape is {text!r}, expected a batch and sizes of the latent such as 4096x256 or 16x4x64x64"
        raise argparse.ArgumentTypeError(message)
    return sizes
