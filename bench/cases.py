"""What is timed on the CPU: ops, shapes and dtypes; and the tensors that a case works on.

An op is timed in up to three directions:

    forward    the call, with the graph that autograd records
    backward   the gradients alone, on a graph made beforehand and retained
    both       the two in turn: a training step's share
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]

DIRECTIONS = ("forward", "backward", "both")
DTYPES = ("float32", "bfloat16", "float16")

SAMPLES = 50  # the largest K of Burda et al., arXiv 1509.00519
FLOOR = 1e-4  # of stable-audio
FREE_BITS = 0.02  # nats a coordinate: between those of collapsed coordinates and those of the others


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Op(NamedTuple):
    """An op that is timed: which function of fastvae it is, what goes in and what comes out."""

    function: str
    about: str
    """What it computes, in a line."""
    outputs: tuple[str, ...] = ("z", "kl")
    """Of z, kl, log_q, log_p and eps (bare noise), in the order in which the function returns them."""
    inputs: tuple[str, ...] = ("mu", "logvar")
    """Of mu, logvar, prior_mu and prior_logvar, in the order of the function's arguments; all want gradients."""
    packed: bool = False
    """mu and logvar are one argument, side by side in dimension 1, as an encoder's last layer gives them."""
    shared_prior: bool = False
    """The prior is of the event's shape, one for the batch."""
    options: Mapping[str, Any] = {}
    """Keywords of fastvae's function."""
    directions: tuple[str, ...] = DIRECTIONS

    @property
    def drawn(self) -> str | None:
        """The output that tells the noise; None if the op draws none."""
        return self.outputs[0] if self.outputs[0] in ("z", "eps") else None

    @property
    def num_samples(self) -> int | None:
        return self.options.get("num_samples")

    @property
    def by_row(self) -> bool:
        """Whether row b of each output depends on row b of the inputs alone, and stands in row b."""
        return not (self.shared_prior or self.num_samples or self.options.get("reduction") == "batchmean")


_WITH_PRIOR = ("mu", "logvar", "prior_mu", "prior_logvar")

OPS = {
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
        "gaussian_kl", "KL to a prior that the batch shares", outputs=("kl",), inputs=_WITH_PRIOR, shared_prior=True
    ),
    # The noise takes a shape and a dtype: those of a tensor.
    "noise": Op("noise", "eps alone", outputs=("eps",), inputs=("mu",), directions=("forward",)),
}


class Tensors(NamedTuple):
    """What a case works on: the inputs and the gradients of the outputs, by name."""

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Case(NamedTuple):
    op: str
    shape: tuple[int, ...]
    """Of mu, (B, *event); a packed tensor has twice as many channels, K samples have K times as many rows."""
    dtype: str

    @property
    def directions(self) -> tuple[str, ...]:
        return OPS[self.op].directions

    @property
    def array_bytes(self) -> int:
        """Bytes of an array of the size of mu."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @property
    def shape_name(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.op} {self.shape_name} {self.dtype}"

    def output_shape(self, name: str) -> tuple[int, ...]:
        op = OPS[self.op]
        draws = () if op.num_samples is None else (op.num_samples,)
        if name == "z":
            return (*draws, *self.shape)
        if name in ("log_q", "log_p"):
            return (*draws, self.shape[0])
        if name == "kl":
            return () if op.options.get("reduction") == "batchmean" else self.shape[:1]
        return self.shape

    def tensors(self, device: torch.device) -> Tensors:
        """The same at every call. Every other coordinate has collapsed: its mu and logvar are nearly 0."""
        op, dtype = OPS[self.op], getattr(torch, self.dtype)
        generator = torch.Generator(device=device).manual_seed(math.prod(self.shape))

        def normal(shape: tuple[int, ...]) -> Tensor:
            return 0.5 * torch.randn(shape, device=device, generator=generator)

        event = self.shape[1:]
        active = torch.ones(event, device=device)
        active.view(-1)[1::2] = 0.1
        inputs = {}
        for name in op.inputs:
            of_prior = name.startswith("prior")
            drawn = normal(event if of_prior and op.shared_prior else self.shape)
            inputs[name] = (drawn if of_prior else active * drawn).to(dtype)
        gradients = {}
        for name in op.outputs:
            shape = self.output_shape(name)
            gradients[name] = (
                normal(shape).to(dtype) if name == "z" else torch.rand(shape, device=device, generator=generator)
            )
        return Tensors(inputs, gradients)

    def arguments(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """What the op takes, leaves that want gradients."""
        given = list(tensors.inputs.values())
        if OPS[self.op].packed:
            given[:2] = [torch.cat(given[:2], dim=1)]
        return tuple(argument.detach().requires_grad_() for argument in given)

    def incoming(self, tensors: Tensors, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients of what a function returned, which may return a KL in the dtype of z."""
        given = zip(OPS[self.op].outputs, outputs, strict=True)
        return tuple(tensors.gradients[name].to(output.dtype) for name, output in given)

    def by_input(self, of_arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The arguments, or their gradients, as mu, logvar and what else the op has for input."""
        op, found = OPS[self.op], list(of_arguments)
        if op.packed:
            found[:1] = found[0].chunk(2, dim=1)
        return dict(zip(op.inputs, found, strict=True))


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


def parse_shape(text: str) -> tuple[int, ...]:
    """(4096, 256) of "4096x256"; raises ValueError."""
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split("x"))
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"shape is {text!r}, expected a batch and sizes of the latent such as 4096x256 or 16x4x64x64")
    return sizes


def parse_device(text: str) -> torch.device:
    """Of a command line: cpu, cuda or cuda:1."""
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a device such as cpu or cuda") from None
