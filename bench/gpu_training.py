"""A training step of the 784-400-20 VAE on a GPU, and CUDA graphs of a step of the latent op; for `bench gpu`.

The contenders of a training step; the seed of the noise is drawn on the device at every step, before the step:

    eager                  plain PyTorch, with its own noise
    torch.compile          the same, compiled for the shape
    fastvae                the fused ops
    fastvae, compiled      under torch.compile
    fastvae, CUDA graphs   under torch.compile(mode="reduce-overhead")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvae import noise
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder

from .agreement import Disagreement
from .cases import Case
from .gpu_meter import GpuMeter, Job
from .measure import make_steps, optimiser_step
from .records import Row
from .training import LATENT, EagerBernoulli, EagerVAE

CONTENDERS = ("eager", "torch.compile", "fastvae", "fastvae, compiled", "fastvae, CUDA graphs")
FOLLOW_SEED = CONTENDERS[2:]
# Relative, of sums over 784 pixels and a batch in float32, in any order.
TOLERANCE = 2e-4


class Training(NamedTuple):
    """A contender: its model, what it computes of a batch and a seed, and a step of its optimiser."""

    model: VAE
    terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # the loss, and the KL of each row
    step: Callable[[], Tensor]


def make_training(name: str, vae: VAE, x: Tensor, seed: Tensor) -> Training:
    vae = copy.deepcopy(vae)
    model = EagerVAE(vae.encoder, vae.decoder, EagerBernoulli()) if name in ("eager", "torch.compile") else vae

    def terms(x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        found = model.elbo(x, seed=seed)
        return -found.elbo.mean(), found.kl

    run = terms
    if name != "eager" and name != "fastvae":
        mode = "reduce-overhead" if "graphs" in name else "default"
        run = torch.compile(terms, fullgraph=True, dynamic=False, mode=mode)

    def loss() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        seed.random_()
        return run(x, seed)[0]

    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    return Training(model, run, optimiser_step(optimiser, loss))


def check_training(name: str, training: Training, right: EagerVAE, x: Tensor) -> None:
    """Compare loss, KL and gradients with plain PyTorch's, for noise of the same seed. Raises Disagreement.

    Contenders that draw their own noise are compared in the KL alone, which does not depend on it.
    """
    seed = torch.full((1,), 7, device=x.device)
    right.eps = noise(seed, (len(x), LATENT), device=x.device)
    expected = right.elbo(x)
    torch.compiler.cudagraph_mark_step_begin()
    loss, kl = training.terms(x, seed)
    found, wanted = {"kl": kl.detach().clone()}, {"kl": expected.kl.detach()}
    if name in FOLLOW_SEED:
        found["loss"], wanted["loss"] = loss.detach().clone(), -expected.elbo.detach().mean()
        of_right = torch.autograd.grad(-expected.elbo.mean(), list(right.parameters()))
        ours = torch.autograd.grad(loss, list(training.model.parameters()))
        for (of, _), one, other in zip(right.named_parameters(), ours, of_right, strict=True):
            found[f"gradient of {of}"], wanted[f"gradient of {of}"] = one.clone(), other
    for what, value in found.items():
        error, scale = (value - wanted[what]).abs().max().item(), wanted[what].abs().max().item()
        if not error <= TOLERANCE * max(scale, 1e-3):
            raise Disagreement(f"training step of {len(x)} rows, {name}: {what} is off by {error:.3g} of {scale:.3g}")


def training_rows(batch: int, meter: GpuMeter, names: Sequence[str] = CONTENDERS) -> Iterator[Row]:
    """A row for each contender, all checked before one is timed. Raises Disagreement."""
    torch.compiler.reset()
    torch.manual_seed(0)
    vae = VAE(MLPEncoder(784, 400, LATENT), MLPDecoder(LATENT, 400, 784), Bernoulli()).to(meter.device)
    x = torch.rand(batch, 784, device=meter.device).round()
    seed = torch.zeros(1, dtype=torch.int64, device=meter.device)
    right = EagerVAE(vae.encoder, vae.decoder, EagerBernoulli())
    trainings = {name: make_training(name, vae, x, seed) for name in names}
    for name, training in trainings.items():
        check_training(name, training, right, x)
    steps: dict[str, Callable[[], object]] = {name: training.step for name, training in trainings.items()}
    seconds = meter.seconds(steps)
    for name in names:
        yield {
            "batch": batch,
            "contender": name,
            "seconds": seconds[name],
            "speed_against_eager": seconds["eager"] / seconds[name],
            "peak_bytes": meter.peak_bytes(Job(lambda _, name=name: steps[name]())),
        }


def graph_rows(case: Case, meter: GpuMeter, names: Sequence[str] = ("eager", "fastvae")) -> Iterator[Row]:
    """A step of the latent op, called and as a captured CUDA graph. Raises Disagreement.

    A replay that is right draws anew; what it computes is checked as the call is, by what its outputs must satisfy.
    """
    steps = make_steps(case, names, case.tensors(meter.device))
    runs: dict[str, Callable[[], object]] = {}
    for name, step in steps.items():

        def run(step: Any = step) -> tuple[Tensor, ...]:
            z, kl = step.forward()  # type: ignore[misc]
            return z, kl, *step.gradients((z, kl))

        torch.manual_seed(1)
        expected = [tensor.detach().clone() for tensor in run()]
        replay, outputs = meter.graph(run)
        torch.manual_seed(1)
        replay()
        for what, one, other in zip(("z", "kl", "grad_mu", "grad_logvar"), outputs, expected, strict=True):
            if not torch.allclose(one, other, rtol=1e-5, atol=1e-5):
                raise Disagreement(f"{case}, {name}: {what} of a replayed CUDA graph is not that of the call")
        before = outputs[0].detach().clone()
        replay()
        if torch.equal(outputs[0], before):
            raise Disagreement(f"{case}, {name}: a second replay of a CUDA graph draws the same z")
        runs |= {f"{name}, called": step.both, f"{name}, CUDA graph": replay}
    seconds = meter.seconds(runs)
    for name in runs:
        yield {
            "case": str(case),
            "contender": name,
            "seconds": seconds[name],
            "speed_against_eager": seconds["eager, called"] / seconds[name],
        }
