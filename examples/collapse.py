"""Posterior collapse: how it depends on the weight of the KL, and two remedies. From the root of the repository:

    python -m examples.collapse [--quick] [--output demo] [--seed 0]

    loss = distortion + beta rate,    distortion = -E_q[log p(x|z)],   rate = KL(q(z|x) || p(z))

A latent has collapsed if its KL is zero: its posterior is the prior for every x, and the decoder ignores it. The larger
beta, the more latents collapse (beta-VAE; Burgess et al., arXiv 1804.03599; rate and distortion: Alemi et al., arXiv
1711.00464). Two remedies, at beta = 4: raise the weight from zero during the first half of training (KL warm-up; Bowman
et al., arXiv 1511.06349), or exempt the first nats of each latent from the loss (free bits; Kingma et al., arXiv
1606.04934, section C.8).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from fastvae.monitors import ActiveUnits, PosteriorCollapseWarning, kl_per_latent, posterior_collapse
from fastvae.nn import VAE
from fastvae.objectives import ELBO
from fastvae.schedules import linear_warmup

from .common import BATCH, binarize, load_digits, make_vae, parser, split, train
from .figures import COLORS, label, new_figure, save_figure

LATENT = 30
EPOCHS = 40
BETAS = (0.25, 1.0, 4.0, 16.0)
REMEDY_BETA = 4.0
FREE_BITS = 0.5


class Trained(NamedTuple):
    """Measurements of one trained model on the held-out digits."""

    rate: float
    """KL in nats an image."""
    distortion: float
    """-log p(x|z) in nats an image."""
    kl: Tensor
    """KL of each latent in nats, (LATENT,)."""
    active: int
    """The number of latents whose posterior mean varies with x."""
    warning: str | None
    """The warning of `posterior_collapse`."""


class Collapse(NamedTuple):
    trained: dict[str, Trained]
    """By name of the objective: the betas in ascending order, then the remedies."""
    picture: Path


def objectives(steps: int) -> dict[str, ELBO]:
    """Objectives by name; the warm-up takes half of the steps."""
    remedies = {
        f"beta {REMEDY_BETA:g}, warm-up": ELBO(beta=linear_warmup(steps // 2, end=REMEDY_BETA)),
        f"beta {REMEDY_BETA:g}, free bits": ELBO(beta=REMEDY_BETA, free_bits=FREE_BITS, free_bits_over="batch"),
    }
    return {f"beta {beta:g}": ELBO(beta=beta) for beta in BETAS} | remedies


@torch.no_grad()
def measure(vae: VAE, x: Tensor) -> Trained:
    elbo = vae.elbo(x, seed=0)
    (kl,) = kl_per_latent(vae, [x], seed=0)
    units = ActiveUnits()
    units.update(vae.encode(x).mu)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PosteriorCollapseWarning)
        posterior_collapse(kl)
    warning = str(caught[0].message) if caught else None
    return Trained(
        elbo.kl.mean().item(), -elbo.reconstruction.mean().item(), kl, int(units.compute().active.sum()), warning
    )


def run(*, output: Path, seed: int = 0, quick: bool = False) -> Collapse:
    """Train the same model with each objective, print and plot its latents."""
    images, labels = load_digits(quick)
    generator = torch.Generator().manual_seed(seed)
    train_rows, held_out_rows = split(labels, generator)
    held_out, images = binarize(images[held_out_rows], generator), images[train_rows]
    trained = {}
    for name, objective in objectives(EPOCHS * -(-len(images) // BATCH)).items():
        vae = make_vae(seed, LATENT)
        print(name)
        for _ in train(vae, images, objective=objective, epochs=EPOCHS, generator=generator):
            pass
        trained[name] = result = measure(vae, held_out)
        elbo = -result.rate - result.distortion
        print(f"  rate {result.rate:.1f} nats, distortion {result.distortion:.1f}, ELBO {elbo:.1f}")
        print(f"  {result.active} of {LATENT} latents are active")
        if result.warning is not None:
            print(f"  {PosteriorCollapseWarning.__name__}: {result.warning}")
    picture = output / "collapse.png"
    _draw(trained, picture)
    print(f"Wrote {picture}")
    return Collapse(trained, picture)


def _draw(trained: dict[str, Trained], path: Path) -> None:
    figure = new_figure(15, 5, f"A VAE of {LATENT} latents trained with different weights of the KL: held-out digits")
    latents, units, plane = figure.subplots(1, 3, width_ratios=(4, 2.6, 4))
    for color, (name, result) in zip(COLORS, trained.items(), strict=False):
        style = "--" if "," in name else "-"
        latents.plot(range(1, LATENT + 1), result.kl.sort(descending=True).values, style, color=color, label=name)
        plane.plot(result.rate, result.distortion, "o", color=color, markersize=8)
        plane.annotate(name, (result.rate, result.distortion), xytext=(7, 5), textcoords="offset points", fontsize=9)
    latents.set_yscale("log")
    latents.set_ylim(1e-4, 5)
    latents.axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    latents.legend(frameon=False, loc="lower left")
    label(latents, "KL of each latent", "latents, largest first", "nats")
    bars = units.barh(list(trained), [result.active for result in trained.values()], color=COLORS)
    units.bar_label(bars, padding=3)
    units.invert_yaxis()
    label(units, "active latents", "latents whose posterior mean varies with x", "")
    units.grid(False)
    units.set_xlim(0, LATENT * 1.1)
    label(
        plane,
        "rate against distortion (grey: equal ELBO)",
        "rate, KL: nats an image",
        "distortion, $-\\log\\,p(x|z)$: nats an image",
    )
    _draw_equal_elbos(plane, trained)
    save_figure(figure, path)


def _draw_equal_elbos(plane: Axes, trained: dict[str, Trained]) -> None:
    """Lines of equal ELBO = -(rate + distortion): through the best model, and every 20 nats below it."""
    plane.margins(x=0.2, y=0.1)
    plane.set_xlim(left=0)
    (left, right), (bottom, top) = plane.get_xlim(), plane.get_ylim()
    best = min(result.rate + result.distortion for result in trained.values())
    for worse in range(0, int(right + top - best), 20):
        plane.plot([left, right], [best + worse - left, best + worse - right], color="#b0b0b0", linewidth=0.8, zorder=0)
    plane.set(xlim=(left, right), ylim=(bottom, top))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("collapse", "Posterior collapse by the weight of the KL, and two remedies.").parse_args(arguments)
    run(output=options.output, seed=options.seed, quick=options.quick)


if __name__ == "__main__":
    main()
