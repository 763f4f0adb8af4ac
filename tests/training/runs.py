"""What the tests of training share: small data, short runs, and what of two runs must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvae.__main__ import main

OPTIONS = (
    "--hidden=8",
    "--latent-dim=3",
    "--batch-size=20",
    "--max-epochs=2",
    "--pictures-every=0",
    "--accelerator=cpu",
)


def save_images(path: Path, rows: int = 50, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> Path:
    """Levels of a few shapes with noise, which a model can learn something of; in an archive with labels."""
    random = np.random.default_rng(seed)
    kinds = random.random((3, *shape)) < 0.3
    labels = random.integers(0, 3, rows)
    images = (255 * np.where(random.random((rows, *shape)) < 0.05, ~kinds[labels], kinds[labels])).astype(np.uint8)
    if path.suffix == ".npz":
        np.savez(path, images=images, labels=labels)
    else:
        np.save(path, images)
    return path


def train(data: object, output: Path, *options: str) -> int:
    """The exit status of ``fastvae train`` with small settings, and these after them."""
    return main(["train", f"--data={data}", f"--output={output}", *OPTIONS, *options])


def saved(output: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(output / "checkpoints" / f"{name}.ckpt", weights_only=True)


def history(output: Path) -> list[dict[str, float]]:
    return saved(output)["fastvae_run"]["history"]


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of the weights of two checkpoints."""
    weights, others = one["state_dict"], other["state_dict"]
    assert weights.keys() == others.keys()
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def fails(capsys, arguments, *words, status=1):
    """The command ends with the status, after a message of one or two lines with these words in it."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    message = capsys.readouterr().err
    assert message.startswith(f"fastvae {arguments[0]}: error: ")
    assert len(message.splitlines()) <= 2
    for word in words:
        assert word in message
