"""A whole training step of the 784-400-20 VAE with the fused ops and in plain PyTorch, and the latent op's share.

python -m bench.training [--results bench/results]

The model and optimiser are those of examples/digits.py, the inputs made up: what they show does not change the time.
Times are medians, taken in turns (`bench.timing`). Written to training.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvae.files import save_json
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder, VAEOutput

from . import eager, eager_likelihoods
from .cases import Case
from .gpu_checks import Disagreement
from .machine import describe_machine
from .measure import checked_steps
from .timing import Elsewhere, interleaved_medians, plan

LATENT = 20
BATCHES = (128, 1024, 8192)
CONTENDERS = ("eager", "fastvae")


class EagerBernoulli(Bernoulli):
    """The same likelihood in plain PyTorch."""

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return eager_likelihoods.bernoulli(x, parameters).sum(1)


class EagerVAE(VAE):
    """The same VAE with its latent op in plain PyTorch."""

    def forward(self, x: Tensor, **_: Any) -> VAEOutput:
        mu, logvar = self.encode(x)
        z, kl = eager.sample_and_kl(mu, logvar)
        return VAEOutput(z, mu, logvar, kl, self.decoder(z))


def training_steps(vae: VAE, x: Tensor) -> dict[str, Callable[[], None]]:
    """A training step on x of a copy of ``vae``, by contender."""
    models = {"eager": EagerVAE(vae.encoder, vae.decoder, EagerBernoulli()), "fastvae": vae}
    return {name: _training_step(copy.deepcopy(model), x) for name, model in models.items()}


def _training_step(vae: VAE, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (-vae.elbo(x).elbo.mean()).backward()
        optimizer.step()

    return step


def measure_batch(batch: int, *, budget: float = 8.0) -> dict[str, Any]:
    """Seconds by contender of a step on a batch and of the latent op alone. Raises Disagreement."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = Case("sample_and_kl_packed", (batch, LATENT), "float32")
        latent = checked_steps(case, CONTENDERS, case.tensors(torch.device("cpu")))
        vae = VAE(MLPEncoder(784, 400, LATENT), MLPDecoder(LATENT, 400, 784), Bernoulli())
        steps = training_steps(vae, torch.rand(batch, 784).round())
        jobs = {("step", name): step for name, step in steps.items()}
        jobs |= {("latent", name): step.both for name, step in latent.items()}
        # No calls ahead: inside of a step too, the latent op meets what other work has left in the caches.
        how, others = plan(jobs, budget)._replace(ahead=0), Elsewhere()
        medians = interleaved_medians(jobs, **how._asdict())
        elsewhere = others.share()
    seconds = {what: {name: float(f"{medians[what, name]:.4g}") for name in CONTENDERS} for what in ("step", "latent")}
    share = {name: round(medians["latent", name] / medians["step", name], 4) for name in CONTENDERS}
    return {
        "batch": batch,
        "step_seconds": seconds["step"],
        "latent_seconds": seconds["latent"],
        "latent_share": share,
        "elsewhere": elsewhere,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a contender was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="folder for training.json")
    options = parser.parse_args(arguments)
    rows = []
    for batch in BATCHES:
        try:
            rows.append(row := measure_batch(batch))
        except Disagreement as error:
            print(f"bench.training: nothing was written, a result is wrong: {error}", file=sys.stderr)
            return 1
        seconds, share = row["step_seconds"], row["latent_share"]
        parts = (f"{1e3 * seconds[name]:.2f} ms with {name} ({share[name]:.1%} latent op)" for name in CONTENDERS)
        print(f"batch {batch}: a step takes {', '.join(parts)}", flush=True)
    result = {"machine": describe_machine(torch.device("cpu")), "model": "784-400-20", "rows": rows}
    path = options.results / "training.json"
    save_json(result, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
