"""A conditional VAE separates style from label: one z decoded with ten labels. From the root of the repository:

    python -m examples.conditional [--quick] [--output demo] [--seed 0]

    log p(x|c) >= E_q[log p(x|z, c)] - KL(q(z|x, c) || p(z))

(Sohn, Lee & Yan, NIPS 2015, equation 4, with a prior that does not depend on the label c.) The decoder knows the label,
so encoding it in z costs KL for nothing: z encodes the style, which is slant, width and stroke, and one z with ten
labels gives ten digits in one handwriting. With as few training images as here, z still encodes some of the label; a
weight of 3 on the KL prevents it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae.likelihoods import Bernoulli
from fastvae.nn import ConditionalVAE, MLPDecoder, MLPEncoder
from fastvae.objectives import ELBO
from fastvae.priors import StandardNormal

from .common import HIDDEN, PIXELS, binarize, global_seed, load_digits, negative_elbo, parser, split, train
from .figures import new_figure, save_figure, show

LABELS, LATENT = 10, 10
BETA = 3.0
EPOCHS = 100
STYLES = 8


class Conditional(NamedTuple):
    samples: Tensor
    """z from the prior, decoded with each label, (STYLES, 10, 784)."""
    rewritten: Tensor
    """z of held-out digits, decoded with each label, (STYLES, 10, 784)."""
    agreement: float
    """The fraction of ``samples`` that are nearest to the mean image of their label."""
    picture: Path


def make_model(seed: int) -> ConditionalVAE:
    """Untrained."""
    with global_seed(seed):
        encoder = MLPEncoder(PIXELS, HIDDEN, LATENT, condition_dim=LABELS)
        decoder = MLPDecoder(LATENT, HIDDEN, PIXELS, condition_dim=LABELS)
        return ConditionalVAE(encoder, decoder, Bernoulli(), num_classes=LABELS)


@torch.no_grad()
def under_every_label(model: ConditionalVAE, z: Tensor) -> Tensor:
    """Each row of z decoded with each label, (N, 10, 784)."""
    labels = torch.arange(LABELS).repeat(len(z))
    return model.decode(z.repeat_interleave(LABELS, 0), condition=labels).unflatten(0, (len(z), LABELS))


def label_agreement(samples: Tensor, images: Tensor, labels: Tensor) -> float:
    """The fraction of samples (N, 10, 784) that are nearest to the mean image of their label."""
    means = torch.stack([images[labels == label].mean(0) for label in range(LABELS)])
    nearest = torch.cdist(samples.flatten(0, 1), means).argmin(1).unflatten(0, samples.shape[:2])
    return (nearest == torch.arange(LABELS)).float().mean().item()


def run(*, output: Path, seed: int = 0, quick: bool = False) -> Conditional:
    """Train, print the held-out bound and the label agreement, write the picture."""
    images, labels = load_digits(quick)
    generator = torch.Generator().manual_seed(seed)
    train_rows, held_out_rows = split(labels, generator)
    held_out, held_out_labels = binarize(images[held_out_rows], generator), labels[held_out_rows]
    images, labels = images[train_rows], labels[train_rows]
    model = make_model(seed)
    for _ in train(model, images, labels=labels, objective=ELBO(beta=BETA), epochs=EPOCHS, generator=generator):
        pass
    bound = negative_elbo(model, held_out, draws=5, labels=held_out_labels)
    print(f"Held-out negative ELBO: {bound:.1f} nats an image, with its label given")

    with torch.no_grad():
        shown, shown_labels = held_out[:STYLES], held_out_labels[:STYLES]
        samples = under_every_label(model, StandardNormal(LATENT).sample(STYLES, seed=seed))
        rewritten = under_every_label(model, model.encode(shown, condition=shown_labels).mu)
    agreement = label_agreement(samples, images, labels)
    print(f"{agreement:.0%} of the samples are nearest to the mean digit of their label")

    figure = new_figure(13.5, 6, "One style in each row, one label in each column")
    drawn, given = figure.subplots(1, 2, width_ratios=(LABELS, LABELS + 1))
    names = [str(label) for label in range(LABELS)]
    show(drawn, samples.flatten(0, 1), LABELS, below=names)
    drawn.set_title("styles drawn from the prior")
    drawn.set_xlabel("label")
    show(given, torch.cat([shown.unsqueeze(1), rewritten], 1).flatten(0, 1), LABELS + 1, below=["given", *names])
    given.set_title("styles of held-out digits (left column)")
    given.set_xlabel("label")
    picture = output / "conditional.png"
    save_figure(figure, picture)
    print(f"Wrote {picture}")
    return Conditional(samples, rewritten, agreement, picture)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("conditional", "A conditional VAE separates style from label.").parse_args(arguments)
    run(output=options.output, seed=options.seed, quick=options.quick)


if __name__ == "__main__":
    main()
