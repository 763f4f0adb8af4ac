"""What an op costs on the host before a GPU computes anything, measured without a GPU.

python -m bench host [--shape 128x10] [--compilations]

Triton launches through a driver of functions that do nothing (`bench.stub_driver`), with CPU tensors in place of a
GPU's. Compared with it is eager PyTorch's step on the CPU, of the same shape and in the same process. Times are the
least of many rounds: anything else that runs on the machine only adds to them.

With --compilations: how many kernels a training run asks Triton for, with every last batch and annealed numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from fastvae.kernels.likelihood_spec import Bounds, LikelihoodSpec

from . import eager, eager_likelihoods, stub_driver

ROUNDS, CALLS = 1000, 5


def least(function: Callable[[], object]) -> float:
    """Microseconds of a call."""
    return least_in_turns(function)[0]


def least_in_turns(*functions: Callable[[], object]) -> list[float]:
    """Microseconds of a call of each; they take turns, so that other work on the machine meets all."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for _ in range(ROUNDS):
        for index, function in enumerate(functions):
            begin = time.perf_counter()
            for _ in range(CALLS):
                function()
            best[index] = min(best[index], time.perf_counter() - begin)
    return [1e6 * seconds / CALLS for seconds in best]


def install() -> stub_driver.StubDriver:
    """The stub driver, with CPU tensors served by the Triton backend in the way of a GPU's; once a process."""
    if "TRITON_INTERPRET" in os.environ:
        raise RuntimeError("TRITON_INTERPRET is set: nothing is launched in this process. Unset it.")
    driver = stub_driver.install()
    from fastvae.kernels import backend, triton

    # What tells the CPU's tensors from a GPU's.
    torch.Tensor.is_cpu, torch.Tensor.is_cuda = False, True  # type: ignore[assignment]
    triton.device_types = lambda: ("cpu",)
    triton.unavailable = lambda: ""
    backend._unavailable.pop("triton", None)
    return driver


def calls(rows: int, event: int) -> dict[str, Any]:
    """Every op of the backend, by a name."""
    from .roofline.compiled import Latent, latent_call, likelihood_call, noise_call

    def tensor() -> Tensor:
        return torch.rand(rows, event)

    many = Latent(LatentSpec(free_bits="coordinate"), LatentScalars(num_samples=8, free_bits=0.1), "shared")
    return {
        "latent": latent_call(Latent(), tensor),
        "latent, prior, 8 draws, free bits": latent_call(many, tensor, wants_prior=False),
        "Bernoulli": likelihood_call("bernoulli", tensor),
        "Gaussian": likelihood_call("gaussian", tensor),
        "negative binomial": likelihood_call("negative_binomial", tensor),
        "noise": noise_call(tensor),
    }


def parts(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of a call and of what it consists of, and of what it would take by Triton's own launch."""
    from fastvae.kernels.triton.launch import Template

    starts: list[tuple[Any, ...]] = []
    start = Template.start
    Template.start = lambda *arguments: starts.append(arguments)  # type: ignore[method-assign]
    try:
        call()
        rest = least(call)
    finally:
        Template.start = start  # type: ignore[method-assign]
    template, pointers, numbers = starts[0]
    whole, launch = least(call), template.launch(pointers, numbers)
    addresses = [None if pointer is None else pointer.data_ptr() for pointer in pointers]
    (started,) = template._started.values()
    return {
        "call": whole,
        "look-up, outputs": rest,
        "start": least(lambda: template.start(pointers, numbers)),
        "of which Triton's launcher": least(lambda: started.again(0, (*addresses, *numbers, *template.arguments))),
        "by Triton alone": least(lambda: launch.run(template.device)),
    }


def steps(rows: int, event: int) -> Iterator[tuple[str, float, float]]:
    """The public op forward and backward, and eager PyTorch's on the CPU."""
    import fastvae
    from fastvae import likelihoods

    mu, logvar = (torch.randn(rows, event).requires_grad_() for _ in range(2))
    data = torch.rand(rows, event)

    def both(function: Callable[[], Sequence[Tensor]]) -> Callable[[], object]:
        grads = [torch.ones_like(output) for output in function()]
        return lambda: torch.autograd.grad(function(), (mu, logvar), grads, allow_unused=True)

    ours = {
        "latent": lambda: fastvae.sample_and_kl(mu, logvar),
        "Gaussian": lambda: (likelihoods.gaussian_log_prob(mu, logvar, data),),
    }
    theirs = {
        "latent": lambda: eager.sample_and_kl(mu, logvar),
        "Gaussian": lambda: (eager_likelihoods.gaussian(data, mu, logvar).sum(1),),
    }
    with fastvae.use_backend("triton"):
        for name, function in theirs.items():
            yield name, *least_in_turns(both(ours[name]), both(function))


class Asked(NamedTuple):
    """What a run asked Triton for."""

    kernels: int
    launchers: int  # that Triton up to 3.6 compiles in C, one a signature


def asked_for(run: Callable[[], Any]) -> dict[str, Asked]:
    """By kernel, what a run of backend calls would have Triton compile; nothing is compiled."""
    import triton

    from fastvae.kernels.triton import launch

    found: dict[str, set[tuple[str, str]]] = {}

    def hook(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        signature = str(tuple([kind for kind in compile["signature"].values() if kind != "constexpr"]))
        found.setdefault(fn.name.rpartition(".")[2], set()).add((str(compile["key"]), signature))
        return True  # do not compile it

    before, triton.knobs.runtime.jit_cache_hook = triton.knobs.runtime.jit_cache_hook, hook
    launch.forget()
    try:
        run()
    finally:
        triton.knobs.runtime.jit_cache_hook = before
        launch.forget()
    return {
        name: Asked(len(asked), len({signature for _, signature in asked})) for name, asked in sorted(found.items())
    }


def training_run(rows: int, event: int) -> None:
    """Batches of one event with every last batch, annealed numbers, and rows of other ranks' batches before them."""
    from fastvae.kernels import triton as backend

    spec, seeds = LatentSpec(clamp="hard", free_bits="coordinate"), torch.zeros(3, dtype=torch.int64)
    of_data = LikelihoodSpec("gaussian", clamp=True)
    for step, batch in enumerate((rows, *range(1, rows))):
        mu, logvar, grad_z = (torch.randn(batch, event) for _ in range(3))
        grad, seed = torch.randn(batch), seeds[step % 3 :][:1]
        for offset in (0, 1, 2, 16, 2**31, 2**31 + 1) if batch == rows else (step * rows,):
            part = step / rows
            scalars = LatentScalars(offset, None, 0.5 + part, -5 - part, 5 + part, 0.0, 0.1 * part)
            inputs = LatentInputs(mu, logvar, seed=seed)
            backend.latent_forward(inputs, spec, scalars)
            backend.latent_backward(LatentOutputs(grad_z, grad), inputs, spec, scalars, False)
            backend.noise(seed, (batch, event), offset, torch.float32, step)
        bounds = Bounds(-5 - step, 5 + step)
        backend.likelihood_forward(grad_z, (mu, logvar), of_data, bounds)
        backend.likelihood_backward(grad, grad_z, (mu, logvar), of_data, bounds, (True, True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="128x10", help="rows x event, such as 128x10")
    parser.add_argument("--compilations", action="store_true", help="count kernels instead of measuring times")
    options = parser.parse_args(arguments)
    try:
        rows, event = map(int, options.shape.split("x"))
    except ValueError:
        parser.error(f"--shape is {options.shape}, expected rows x event, such as 128x10")
    torch.set_num_threads(1)
    try:
        install()
    except RuntimeError as error:
        print(f"bench host: {error}", file=sys.stderr)
        return 2
    if options.compilations:
        print(f"Batches of 1 to {rows} rows of {event}, annealed temperature, free bits and bounds, other row offsets:")
        for name, asked in asked_for(lambda: training_run(rows, event)).items():
            print(f"  {name:<28} {asked.kernels} kernels, {asked.launchers} launchers")
        return 0
    print(f"{options.shape}, microseconds of the host")
    print(
        "| backend's call | | "
        + " | ".join(("whole", "look-up, outputs", "start", "launcher", "by Triton alone"))
        + " |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, call in calls(rows, event).items():
        for direction, function in call._asdict().items():
            if name != "noise" or direction == "forward":
                numbers = " | ".join(f"{value:.1f}" for value in parts(function).values())
                print(f"| {name} | {direction} | {numbers} |", flush=True)
    print("\n| step, forward and backward | fastvae | eager PyTorch on the CPU | part of it |")
    print("|---|---|---|---|")
    for name, ours, theirs in steps(rows, event):
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)
    return 0
