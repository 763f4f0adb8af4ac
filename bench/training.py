"""A training step of the 784-400-20 VAE with the fused ops and in plain PyTorch, and the latent op's share of it.

python -m bench training [--batch 128,1024,8192] [--results FOLDER]

Model and optimiser are those of examples/digits.py; the inputs are random, as their values do not change the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder, VAEOutput

from . import eager, eager_likelihoods
from .cases import Case
from .measure import make_steps, optimiser_step
from .records import command_line, positive_numbers, save, show
from .tables import TRAINING
from .timing import OtherLoad, interleaved_medians, plan

LATENT = 20
BATCHES = (128, 1024, 8192)
CONTENDERS = ("eager", "fastvae")


class EagerBernoulli(Bernoulli):
    """The same likelihood in plain PyTorch."""

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return eager_likelihoods.bernoulli(x, parameters).sum(1)


class EagerVAE(VAE):
    """The same VAE with its latent op in plain PyTorch; ``eps``, for a check, takes the place of its noise."""

    eps: Tensor | None = None

    def forward(self, x: Tensor, **_: Any) -> VAEOutput:
        mu, logvar = self.encode(x)
        if self.eps is None:
            z, kl = eager.sample_and_kl(mu, logvar)
        else:
            z, kl = mu + torch.exp(0.5 * logvar) * self.eps, eager.gaussian_kl(mu, logvar)
        return VAEOutput(z, mu, logvar, kl, self.decoder(z))


def training_steps(vae: VAE, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """A training step on x of a copy of ``vae``, by contender."""
    models = {"eager": EagerVAE(vae.encoder, vae.decoder, EagerBernoulli()), "fastvae": vae}

    def step(vae: VAE) -> Callable[[], Tensor]:
        return optimiser_step(torch.optim.Adam(vae.parameters(), fused=True), lambda: -vae.elbo(x).elbo.mean())

    return {name: step(copy.deepcopy(model)) for name, model in models.items()}


def measure_batch(batch: int, *, budget: float = 8.0) -> dict[str, Any]:
    """Seconds by contender of a step on a batch and of the latent op alone. Raises Disagreement."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = Case("sample_and_kl_packed", (batch, LATENT), "float32")
        latent = make_steps(case, CONTENDERS, case.tensors(torch.device("cpu")))
        vae = VAE(MLPEncoder(784, 400, LATENT), MLPDecoder(LATENT, 400, 784), Bernoulli())
        steps = training_steps(vae, torch.rand(batch, 784).round())
        jobs = {("step", name): step for name, step in steps.items()}
        jobs |= {("latent", name): step.both for name, step in latent.items()}
        # No calls ahead: within a training step, too, the latent op finds in the caches what other work has left there.
        how, others = plan(jobs, budget)._replace(ahead=0), OtherLoad()
        medians = interleaved_medians(jobs, **how._asdict())
        other_load = others.share()
    seconds = {what: {name: medians[what, name] for name in CONTENDERS} for what in ("step", "latent")}
    return {
        "batch": batch,
        "step_seconds": seconds["step"],
        "latent_seconds": seconds["latent"],
        "latent_share": {name: seconds["latent"][name] / seconds["step"][name] for name in CONTENDERS},
        "other_load": other_load,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("training", __doc__)
    parser.add_argument("--batch", type=positive_numbers, default=BATCHES, help="sizes, separated by commas")
    options = parser.parse_args(arguments)
    save(options.results, "training", show(map(measure_batch, options.batch), TRAINING))
