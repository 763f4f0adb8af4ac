"""The decoder's last layer and the likelihood in one op, against both in plain PyTorch: time and peak memory.

python -m bench head [NAME ...] [--results FOLDER]

Forward and backward of the mean of log p(x|z), with the gradients of hidden units, layers and dispersions; between the
two, the fused likelihood after ``F.linear``. iwae: a whole training step of the 784-400-20 VAE with 50 draws.

Beside them what no fusing can save: the last layers' matrix products alone, chunk by chunk, and the kernel alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastvae.likelihoods as L
from fastvae.kernels.backend import implementation
from fastvae.kernels.head_spec import HeadSpec, rows_of_chunk
from fastvae.kernels.likelihood_spec import NO_BOUNDS
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.objectives import IWAE

from . import eager_likelihoods as eager
from .agreement import Disagreement
from .measure import keep_freed_memory, optimiser_step
from .memory import give_memory_back, peak_beyond, peak_in_new_process
from .records import named, save, show
from .tables import HEAD
from .timing import OtherLoad, interleaved_medians, plan
from .training import EagerBernoulli, EagerVAE

CONTENDERS = ("eager", "fused likelihood", "fastvae")
ZEROS = 0.87  # the share of zeros in counts
DRAWS = 50


class Head(NamedTuple):
    kind: str
    rows: int
    hidden: int
    outputs: int

    @property
    def shape_name(self) -> str:
        return f"{self.rows} x {self.hidden} -> {self.outputs}"


HEADS = {
    "bernoulli": Head("bernoulli", 1024, 400, 784),
    "bernoulli_wide": Head("bernoulli", 5120, 128, 20000),
    "counts": Head("zero_inflated", 128, 128, 2000),
    "counts_wide": Head("zero_inflated", 2048, 128, 20000),
    "iwae": Head("iwae", 100, 400, 784),
}

Step = Callable[[], Any]

_INFLATED: Final = "zero_inflated_negative_binomial"


def steps_of(head: Head) -> dict[str, Step]:
    """Each contender's step, on the same tensors; it gives the gradients (of an iwae the loss)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"bernoulli": _bernoulli, "zero_inflated": _counts, "iwae": _iwae}[head.kind](head)


def _leaves(head: Head, layers: int) -> tuple[Tensor, list[L.Linear]]:
    hidden = torch.randn(head.rows, head.hidden, requires_grad=True)
    weights = [(0.1 * torch.randn(head.outputs, head.hidden)).requires_grad_() for _ in range(layers)]
    return hidden, [L.Linear(weight, torch.zeros(head.outputs, requires_grad=True)) for weight in weights]


def _gradients(of: Sequence[Tensor], log_prob: Callable[[], Tensor]) -> Step:
    return lambda: torch.autograd.grad(-log_prob().mean(), of)


def _bernoulli(head: Head) -> dict[str, Step]:
    hidden, (layer,) = _leaves(head, 1)
    x, given = torch.rand(head.rows, head.outputs).round(), (hidden, layer.weight, layer.bias)
    made: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: eager.bernoulli(x, F.linear(*given)).sum(1),
        "fused likelihood": lambda: L.bernoulli_log_prob(F.linear(*given), x),
        "fastvae": lambda: L.linear_log_prob("bernoulli", hidden, [layer], x),
    }
    return {name: _gradients(given, log_prob) for name, log_prob in made.items()}


def _data(head: Head) -> tuple[Tensor, Tensor]:
    """Counts, and the library size of each row."""
    present = torch.rand(head.rows, head.outputs) < (1 - ZEROS) / 0.95
    x = torch.poisson(3.0 * present)
    return x, x.sum(1).clamp_min(1e-8)


def _counts(head: Head) -> dict[str, Step]:
    """As scVI has them: the mean is the library size times a softmax, and each gene has a dispersion."""
    hidden, (of_mean, of_zeros) = _leaves(head, 2)
    log_theta = torch.zeros(head.outputs, requires_grad=True)
    x, library = _data(head)

    def parameters() -> tuple[Tensor, Tensor, Tensor]:
        mean = torch.softmax(F.linear(hidden, *of_mean[:2]), 1) * library.unsqueeze(1)
        return mean, log_theta.exp(), F.linear(hidden, *of_zeros[:2])

    def fused() -> Tensor:
        layers = [of_mean._replace(activation="softmax"), log_theta.exp(), of_zeros]
        return L.linear_log_prob(_INFLATED, hidden, layers, x, library=library)

    made: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: eager.zero_inflated_negative_binomial(x, *parameters()).sum(1),
        "fused likelihood": lambda: L.zero_inflated_negative_binomial_log_prob(*parameters(), x),
        "fastvae": fused,
    }
    given = (hidden, *of_mean[:2], *of_zeros[:2], log_theta)
    return {name: _gradients(given, log_prob) for name, log_prob in made.items()}


def parts_of(head: Head) -> dict[str, Step]:
    """The last layers' products and the kernel in fastvae's step, each alone."""
    if head.kind == "iwae":
        head = Head("bernoulli", DRAWS * head.rows, head.hidden, head.outputs)
    counts = head.kind == "zero_inflated"
    spec = HeadSpec(_INFLATED, "softmax", "given", "identity") if counts else HeadSpec(head.kind)
    count = spec.activations.count("softmax") + spec.activations.count("identity")
    hidden, weights = torch.randn(head.rows, head.hidden), torch.randn(count, head.outputs, head.hidden)
    of_hidden, of_weights = torch.zeros_like(hidden), torch.zeros_like(weights)
    size = rows_of_chunk(head.rows, 4 * head.outputs * count, hidden.device)
    outputs, theta = torch.zeros(count, size, head.outputs), torch.ones(head.outputs)
    x, library = _data(head) if counts else (torch.ones(head.rows, head.outputs), None)

    def products() -> None:
        for h, to in zip(hidden.split(size), of_hidden.split(size), strict=True):
            for weight, of_weight, output in zip(weights, of_weights, outputs, strict=True):
                a = torch.mm(h, weight.t(), out=output[: len(h)])
                to.addmm_(a, weight)
                of_weight.addmm_(a.t(), h)

    def kernel() -> None:
        kernels, wants = implementation("auto", x.device, x.dtype), (True,) * len(spec.activations)
        for first in range(0, head.rows, size):
            rows = slice(first, min(first + size, head.rows))
            made = iter(outputs[:, : rows.stop - first])
            given = tuple([theta if how == "given" else next(made) for how in spec.activations])
            kernels.head(x[rows], given, None if library is None else library[rows], None, spec, NO_BOUNDS, wants)

    return {"products alone": products, "kernel alone": kernel}


class _Composed(torch.nn.Module):
    """A decoder without a head, for a model."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class _EagerOfDraws(EagerBernoulli):
    takes_draws = True

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return eager.bernoulli(x.expand_as(parameters), parameters).sum(-1)


def _iwae(head: Head) -> dict[str, Step]:
    encoder, decoder = MLPEncoder(head.outputs, head.hidden, 20), MLPDecoder(20, head.hidden, head.outputs)
    x = torch.rand(head.rows, head.outputs).round()
    models = {
        "eager": EagerVAE(encoder, decoder, _EagerOfDraws()),
        "fused likelihood": VAE(encoder, _Composed(decoder), L.Bernoulli()),
        "fastvae": VAE(encoder, decoder, L.Bernoulli()),
    }

    def plain(vae: VAE) -> Tensor:
        bound = torch.logsumexp(vae.log_weights(x, DRAWS, seed=0).log_weights, 0) - math.log(DRAWS)
        return -bound.mean()

    def step(name: str) -> Step:
        vae = copy.deepcopy(models[name])
        optimiser = torch.optim.Adam(vae.parameters(), fused=True)
        if name == "eager":
            return optimiser_step(optimiser, lambda: plain(vae))
        return optimiser_step(optimiser, lambda: IWAE(DRAWS)(vae, x, seed=0).loss)

    return {name: step(name) for name in models}


def _refuse_disagreement(head: Head, steps: dict[str, Step]) -> None:
    found = {name: step() for name, step in steps.items()}
    for name, result in found.items():
        pairs = zip(*([one] if isinstance(one, Tensor) else one for one in (result, found["eager"])), strict=True)
        for one, other in pairs:
            error = ((one - other).abs() / (1 + other.abs())).max().item()
            if not error < 1e-4:
                raise Disagreement(f"{name} differs from eager by {error:.2g} in {head.kind} {head.shape_name}")


def peak_bytes(head: Head, name: str) -> int | None:
    """Peak of a step beyond what was there, gradients included, in a process of its own; None if not on Linux."""
    return peak_in_new_process("bench.head", _peak_of_step, head, name)


def _peak_of_step(head: Head, name: str) -> int:
    give_memory_back()
    return peak_beyond(steps_of(head)[name])


def measure_head(head: Head, *, budget: float = 8.0) -> dict[str, Any]:
    """Seconds and peak bytes by contender. Raises Disagreement."""
    keep_freed_memory()
    steps, others = steps_of(head), OtherLoad()
    _refuse_disagreement(head, steps)
    every = steps | parts_of(head)
    medians = interleaved_medians(every, **plan(every, budget)._asdict())
    row = {"kind": head.kind, "shape": head.shape_name, "seconds": medians, "other_load": others.share()}
    return row | {"peak_bytes": {name: peak_bytes(head, name) for name in CONTENDERS}}


def main(arguments: Sequence[str] | None = None) -> None:
    options = named("head", __doc__, "NAME", HEADS, arguments)
    save(options.results, "head", show((measure_head(HEADS[name]) for name in options.names), HEAD))
