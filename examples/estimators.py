"""Four estimates of log p(x): why drawing z from the prior fails and an encoder helps. From the root of the repository:

    python -m examples.estimators [--quick] [--output demo] [--seed 0]

The model is a linear-Gaussian VAE with 10 latents, whose log p(x) is known (`examples.linear_gaussian`). Its encoder is
close to the exact posterior, but not equal to it. From K draws each:

    naive           log 1/K sum_k p(x|z_k),    z_k ~ p(z)                         consistent, needs far too many draws
    ELBO            1/K sum_k log w_k,         z_k ~ q(z|x)                       too low by KL(q(z|x) || p(z|x))
    IWAE, 10 draws  the mean of log 1/10 sum_k w_k over groups of ten             too low by less
    importance      log 1/K sum_k w_k          w = p(x|z) p(z) / q(z|x)           consistent, converges fast

(Doersch, arXiv 1606.05908, section 2; Burda et al., arXiv 1509.00519.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae.objectives import iwae_bound, log_marginal, naive_log_marginal

from .common import global_seed, parser
from .figures import COLORS, label, new_figure, save_figure
from .linear_gaussian import LinearGaussian

GROUP = 10
REPETITIONS = 20
NAMES = ("naive", "ELBO", f"IWAE, {GROUP} draws", "importance")
QUANTILES = torch.tensor([0.05, 0.5, 0.95])


class Estimates(NamedTuple):
    exact: float
    """log p(x) in nats."""
    draws: list[int]
    """K, ascending."""
    nats: dict[str, list[Tensor]]
    """For each name and each K: the estimates of all repetitions; NaN where K is smaller than a group of draws."""
    picture: Path


@torch.no_grad()
def estimate(model: LinearGaussian, x: Tensor, num_samples: int, repetitions: int, seed: int) -> dict[str, Tensor]:
    """Each estimate of log p(x) for x (1, *event), repeated with new draws: (repetitions,)."""
    # Rows get independent draws, so copies of x are repetitions.
    copies = x.expand(repetitions, -1)
    seeds = range(seed * repetitions, (seed + 1) * repetitions)
    naive = torch.cat([naive_log_marginal(model, x, num_samples, seed=one).estimate for one in seeds])
    log_weights = model.log_weights(copies, num_samples, seed=seed).log_weights
    groups = log_weights[: num_samples // GROUP * GROUP].unflatten(0, (-1, GROUP)).transpose(0, 1)
    importance = log_marginal(model, copies, num_samples, seed=seed).estimate
    return dict(zip(NAMES, (naive, log_weights.mean(0), iwae_bound(groups).mean(0), importance), strict=True))


def run(*, output: Path, seed: int = 0, quick: bool = False) -> Estimates:
    """Estimate with increasing numbers of draws, print and plot the estimates."""
    with global_seed(seed):
        model = LinearGaussian(data_dim=20, latent_dim=10, variance=0.05, seed=seed)
    model.perturb_encoder(mean=0.1, logvar=0.7)
    x = model.draw(1, torch.Generator().manual_seed(seed))
    exact = model.exact_log_prob(x).item()
    draws = [1, 10, 100, 1000] if quick else [1, 3, 10, 30, 100, 300, 1000, 3000, 10000]
    rounds = [estimate(model, x, count, REPETITIONS, seed + 1) for count in draws]
    nats = {name: [estimates[name] for estimates in rounds] for name in NAMES}

    print(f"log p(x) = {exact:.2f} nats. Estimates from K draws, median and middle 90% of {REPETITIONS} repetitions:")
    print(f"{'K':>6}" + "".join(f"{name:>26}" for name in NAMES))
    for place, count in enumerate(draws):
        print(f"{count:>6}" + "".join(f"{_quantiles(nats[name][place]):>26}" for name in NAMES))
    picture = output / "estimators.png"
    _draw(exact, draws, nats, picture)
    print(f"Wrote {picture}")
    return Estimates(exact, draws, nats, picture)


def _quantiles(nats: Tensor) -> str:
    low, median, high = nats.quantile(QUANTILES).tolist()
    return "" if median != median else f"{median:.1f} ({low:.1f}..{high:.1f})"


def _draw(exact: float, draws: list[int], nats: dict[str, list[Tensor]], path: Path) -> None:
    figure = new_figure(12, 5, f"Estimates of one $\\log\\,p(x)$: median and middle 90% of {REPETITIONS} repetitions")
    whole, near = figure.subplots(1, 2)
    for color, (name, estimates) in zip(COLORS, nats.items(), strict=False):
        low, median, high = torch.stack([of_k.quantile(QUANTILES) for of_k in estimates], 1).tolist()
        for axis in (whole, near):
            axis.plot(draws, median, ".-", color=color, label=name)
            axis.fill_between(draws, low, high, color=color, alpha=0.2, linewidth=0)
    for axis in (whole, near):
        axis.axhline(exact, color="black", linestyle="--", linewidth=1, label=f"exact, {exact:.2f} nats")
        axis.set_xscale("log")
    label(whole, "the whole range", "K, draws of z", "nats")
    label(near, "the same, near the exact value", "K, draws of z", "nats")
    near.set_ylim(exact - 8, exact + 2)
    whole.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("estimators", "Four estimates of one log p(x).").parse_args(arguments)
    run(output=options.output, seed=options.seed, quick=options.quick)


if __name__ == "__main__":
    main()
