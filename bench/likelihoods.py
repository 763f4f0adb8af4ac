"""The fused likelihoods against the same formulas in plain PyTorch: times of forward and backward, and memory.

python -m bench.likelihoods [NAME ...] [--results bench/results]

Results and gradients are compared with float64 before anything is timed. Times are medians, taken in turns
(`bench.timing`). Written to likelihoods.json. Counts are drawn with a share of zeros, as a gene expression matrix has
them; theta is one for each gene, and the gradients of all parameters are wanted.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastvae
from fastvae import likelihoods
from fastvae.files import save_json
from fastvae.kernels.likelihoods import channels_of_mixture

from . import eager_likelihoods as eager
from .gpu_checks import Disagreement
from .machine import describe_machine
from .measure import keep_released_memory
from .memory import saved_bytes
from .timing import Elsewhere, interleaved_seconds, plan, speed_against

COMPONENTS = 10
CONTENDERS = ("eager", "fastvae", "fastvae reference")
CALLS, AHEAD = 3, 2
# Errors may be twice those of eager float32, and this much more relative to the values' size.
TOLERANCE = 1e-5

Function = Callable[..., Tensor]


class Likelihood(NamedTuple):
    fused: Function  # of the parameters and x: log p of each sample
    eager: Function  # of x and the parameters: log p of each coordinate or pixel
    data: str  # "binary", "real", "counts" or "image"
    parameters: tuple[str, ...]  # "real", "positive", or "theta", which is positive and one for each gene


LIKELIHOODS = {
    "bernoulli": Likelihood(likelihoods.bernoulli_log_prob, eager.bernoulli, "binary", ("real",)),
    "continuous_bernoulli": Likelihood(
        likelihoods.continuous_bernoulli_log_prob, eager.continuous_bernoulli, "unit", ("real",)
    ),
    "gaussian": Likelihood(likelihoods.gaussian_log_prob, eager.gaussian, "real", ("real", "real")),
    "laplace": Likelihood(likelihoods.laplace_log_prob, eager.laplace, "real", ("real", "real")),
    "poisson": Likelihood(likelihoods.poisson_log_prob, eager.poisson, "counts", ("real",)),
    "negative_binomial": Likelihood(
        likelihoods.negative_binomial_log_prob, eager.negative_binomial, "counts", ("positive", "theta")
    ),
    "zero_inflated": Likelihood(
        likelihoods.zero_inflated_negative_binomial_log_prob,
        eager.zero_inflated_negative_binomial,
        "counts",
        ("positive", "theta", "real"),
    ),
    "mixture": Likelihood(
        functools.partial(likelihoods.discretized_logistic_mixture_log_prob, components=COMPONENTS),
        functools.partial(eager.discretized_logistic_mixture, components=COMPONENTS),
        "image",
        ("real",),
    ),
}


class Case(NamedTuple):
    name: str
    shape: tuple[int, ...]  # of x
    zeros: float | None = None  # their share, of counts

    def __str__(self) -> str:
        zeros = "" if self.zeros is None else f", {self.zeros:.0%} zeros"
        return f"{self.name} {'x'.join(map(str, self.shape))}{zeros}"

    def tensors(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x, and the parameters, leaves that want gradients."""
        likelihood = LIKELIHOODS[self.name]
        if likelihood.data == "image":
            x = torch.randint(0, 256, self.shape) / 255
            shape = (self.shape[0], channels_of_mixture(self.shape[1], COMPONENTS), *self.shape[2:])
            return x, ((0.5 * torch.randn(shape)).requires_grad_(),)
        made = {
            "real": lambda: torch.randn(self.shape),
            "unit": lambda: torch.rand(self.shape),
            "binary": lambda: torch.rand(self.shape).round(),
            "positive": lambda: torch.exp(torch.randn(self.shape)),
            "theta": lambda: torch.exp(torch.randn(self.shape[1:])),
            "counts": self._counts,
        }
        x = made[likelihood.data]()
        return x, tuple(made[kind]().requires_grad_() for kind in likelihood.parameters)

    def _counts(self) -> Tensor:
        """Poisson counts of mean 3 where there is anything, so that about the given share is 0."""
        present = (1 - (self.zeros or 0.0)) / (1 - torch.exp(torch.tensor(-3.0)))
        return torch.poisson(3.0 * torch.bernoulli(present.clamp_max(1.0).expand(self.shape)))


SUITE = (
    Case("bernoulli", (1024, 784)),
    Case("continuous_bernoulli", (1024, 784)),
    Case("gaussian", (1024, 784)),
    Case("laplace", (1024, 784)),
    *(
        Case(name, shape, zeros)
        for name in ("negative_binomial", "zero_inflated")
        for shape, zeros in (((128, 2000), 0.9), ((1024, 4000), 0.9), ((1024, 4000), 0.5))
    ),
    Case("poisson", (1024, 4000), 0.9),
    Case("mixture", (32, 3, 32, 32)),
)


class Step(NamedTuple):
    """A contender, ready to be timed."""

    function: Function  # of the parameters: log p of each sample
    arguments: tuple[Tensor, ...]

    def forward(self) -> Tensor:
        return self.function(*self.arguments)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward().mean(), self.arguments)


def make_step(case: Case, contender: str, x: Tensor, parameters: tuple[Tensor, ...]) -> Step:
    likelihood = LIKELIHOODS[case.name]
    if contender == "eager":
        return Step(lambda *given: likelihood.eager(x, *given).flatten(1).sum(1), parameters)
    if contender == "fastvae":
        return Step(lambda *given: likelihood.fused(*given, x), parameters)

    def on_reference(*given: Tensor) -> Tensor:
        with fastvae.use_backend("reference"):
            return likelihood.fused(*given, x)

    return Step(on_reference, parameters)


def refuse_disagreement(case: Case, steps: dict[str, Step], x: Tensor) -> None:
    """Raise Disagreement unless all contenders have the result and the gradients of eager float64."""
    wide = tuple(argument.detach().double().requires_grad_() for argument in steps["eager"].arguments)
    exact_step = make_step(case, "eager", x.double(), wide)
    exact = (exact_step.forward().detach(), *exact_step.both())
    found = {name: (step.forward().detach(), *step.both()) for name, step in steps.items()}
    for name, tensors in found.items():
        for what, tensor in enumerate(tensors):
            right = exact[what]
            error = (tensor.double() - right).abs().max()
            of_eager = (found["eager"][what].double() - right).abs().max()
            allowed = 2 * of_eager + TOLERANCE * right.abs().max()
            if not error <= allowed:
                part = "log p" if what == 0 else f"the gradient of parameter {what}"
                raise Disagreement(f"{case}, {name}: {part} is off by {error:.3g}, expected at most {allowed:.3g}")


def measure(case: Case, budget: float = 3.0) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        keep_released_memory()
        x, parameters = case.tensors()
        steps = {name: make_step(case, name, x, parameters) for name in CONTENDERS}
        refuse_disagreement(case, steps, x)
        jobs = {name: step.both for name, step in steps.items()}
        others = Elsewhere()
        # Eager leaves hundreds of megabytes of released temporaries behind: the second call after it is as in a loop.
        how = plan(jobs, budget / (CALLS + AHEAD))._replace(calls=CALLS, ahead=AHEAD)
        seconds = interleaved_seconds(jobs, **how._asdict())
    return {
        "likelihood": case.name,
        "shape": "x".join(map(str, case.shape)),
        "zeros": None if case.zeros is None else round((x == 0).double().mean().item(), 3),
        "elements": x.numel(),
        "seconds": {name: float(f"{statistics.median(values):.4g}") for name, values in seconds.items()},
        "speed_against_eager": {name: round(speed_against(seconds, name), 3) for name in seconds},
        "saved_bytes": {name: kept_bytes(step, x) for name, step in steps.items()},
        "elsewhere": others.share(),
    }


def kept_bytes(step: Step, x: Tensor) -> int:
    """What is kept for backward beyond the parameters and the data."""
    return saved_bytes(Step(lambda *_: step.forward(), (*step.arguments, x)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a contender was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.likelihoods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LIKELIHOODS)}; all if left out")
    parser.add_argument("--results", type=Path, help="folder for likelihoods.json; nothing is written if left out")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(LIKELIHOODS)
    if unknown:
        parser.error(f"NAME is {', '.join(map(repr, sorted(unknown)))}, expected some of {', '.join(LIKELIHOODS)}")
    rows = []
    for case in SUITE:
        if options.names and case.name not in options.names:
            continue
        try:
            rows.append(row := measure(case))
        except Disagreement as error:
            print(f"bench.likelihoods: nothing was written, a result is wrong: {error}", file=sys.stderr)
            return 1
        parts = (
            f"{name} {1e9 * row['seconds'][name] / row['elements']:.2f} ns (x{row['speed_against_eager'][name]:.1f})"
            for name in CONTENDERS
        )
        print(f"{case}: an element takes {', '.join(parts)}", flush=True)
    if options.results is not None:
        save_json(
            {"machine": describe_machine(torch.device("cpu")), "rows": rows}, options.results / "likelihoods.json"
        )
        print(f"wrote {options.results / 'likelihoods.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
