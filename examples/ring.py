"""Why a simple prior is enough: a function maps N(0, I) to a ring. From the root of the repository:

    python -m examples.ring [--quick] [--output demo] [--seed 0]

    z ~ N(0, I) in the plane,    g(z) = z / 10 + z / |z|

(Doersch, arXiv 1606.05908, figure 2.) The prior of a VAE need not resemble the data: a decoder that can represent g
maps the prior to them, and maximising log p(x) trains it to do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae.priors import StandardNormal

from .common import parser
from .figures import label, new_figure, save_figure


class Ring(NamedTuple):
    z: Tensor
    """Draws from the prior, (N, 2)."""
    x: Tensor
    """g(z), (N, 2)."""
    picture: Path


def bend(z: Tensor) -> Tensor:
    """g(z) = z / 10 + z / |z|."""
    return z / 10 + z / z.norm(dim=1, keepdim=True)


def run(*, output: Path, seed: int = 0, quick: bool = False) -> Ring:
    """Draw z, compute g(z), write the picture."""
    z = StandardNormal(2).sample(300 if quick else 1500, seed=seed)
    x = bend(z)
    radius = x.norm(dim=1)
    print(
        f"|z|: {z.norm(dim=1).min():.2f} to {z.norm(dim=1).max():.2f}; |g(z)|: {radius.min():.2f} to {radius.max():.2f}"
    )

    figure = new_figure(9, 4.6)
    angle = torch.atan2(z[:, 1], z[:, 0])  # g keeps the angle, so equal colours are corresponding points
    before, after = figure.subplots(1, 2)
    for axis, points in ((before, z), (after, x)):
        axis.scatter(*points.T.numpy(), s=6, c=angle.numpy(), cmap="hsv")
        axis.set_aspect("equal", adjustable="datalim")
    label(before, "the prior: $z \\sim N(0, I)$", "$z_1$", "$z_2$")
    label(after, "through $g(z) = z / 10 + z / |z|$", "$x_1$", "$x_2$")
    picture = output / "ring.png"
    save_figure(figure, picture)
    print(f"Wrote {picture}")
    return Ring(z, x, picture)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("ring", "A Gaussian cloud becomes a ring.").parse_args(arguments)
    run(output=options.output, seed=options.seed, quick=options.quick)


if __name__ == "__main__":
    main()
