"""What the commands share that work on a trained model: their first options, the model, and data that fit it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ActionConfigFile, ArgumentParser

from ..nn.model import LatentVariableModel
from .datasets import DataOptions, Samples, Source, download_source, load_source, whole
from .errors import TrainingError
from .model_config import COUNTS
from .saved_run import SavedRun, find_checkpoint, read_checkpoint

__all__ = ["PARTS", "class_number", "data_of", "fitting", "load_model", "output_path", "rows_of", "saved_model_parser"]


def saved_model_parser(command: str, description: str) -> ArgumentParser:
    """For ``fastvae COMMAND CHECKPOINT``, with the device."""
    usage = f"fastvae {command} CHECKPOINT [options]"
    parser = ArgumentParser(prog=f"fastvae {command}", usage=usage, description=description)
    parser.add_argument("checkpoint", type=str, help="a .ckpt file, or the folder of a run, whose best one is taken")
    parser.add_argument("--config", action=ActionConfigFile, help="options in a YAML file")
    parser.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def load_model(checkpoint: str, device: str) -> tuple[SavedRun, LatentVariableModel]:
    """The run and its model, in eval mode on a device."""
    run = read_checkpoint(find_checkpoint(checkpoint))
    return run, run.model().to(_device(device))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def output_path(given: str, *endings: str) -> Path:
    output = Path(given)
    if output.suffix not in endings:
        raise TrainingError(f"--output is {output}, expected a name that ends in {' or '.join(endings)}")
    return output


def class_number(run: SavedRun, label: str) -> int:
    """The number of a class that a conditional model is given, of its name or its number.

    Raises:
        TrainingError: the model knows no such class.
    """
    names = run.condition_names or ()
    if label in names:
        return names.index(label)
    classes = run.recipe.num_classes or 0
    if label.isdecimal() and int(label) < classes:
        return int(label)
    numbers = f"0 to {classes - 1}"
    known = numbers if all(name.isdecimal() for name in names) else f"{', '.join(names)}, or {numbers}"
    raise TrainingError(f"--label is {label}, expected {known}")


def data_of(run: SavedRun, data: str | None) -> Source:
    """The data of the run, or other data that are read in the same way.

    Raises:
        TrainingError: they cannot be read.
    """
    options = DataOptions.of(run.settings, counts=run.recipe.likelihood in COUNTS)
    download_source(data or run.settings["data"], Path(options.root))
    return load_source(data or run.settings["data"], options)


def fitting(run: SavedRun, samples: Samples, source: Source, data: str) -> Samples:
    """Rows as the model takes them, their classes numbered as the model knows them by their names.

    Raises:
        TrainingError: the rows have another shape than the model's data, or a class that it does not know.
    """
    if samples.event_shape != run.recipe.event_shape:
        raise TrainingError(
            f"{data} has samples of shape {samples.event_shape}, the model was trained on {run.recipe.event_shape}"
        )
    if run.recipe.num_classes is None:
        return samples
    names, known = source.names_of_given, run.condition_names
    if samples.given is None or names is None or known is None:
        raise TrainingError(f"{data} has no labels, which this conditional model needs")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TrainingError(f"{data} has the label {unknown[0]!r}, the model knows {', '.join(known)}")
    numbers = np.array([known.index(name) for name in names])
    return dataclasses.replace(samples, conditions=numbers[samples.given])


PARTS = ("all", "train", "held-out")


def rows_of(run: SavedRun, data: str | None, part: str) -> tuple[Samples, Source]:
    """All rows in the order of the data, or those to train on, or those held out, as the model takes them."""
    source = data_of(run, data)
    rows = whole(source) if part == "all" else source.train if part == "train" else source.held_out
    return fitting(run, rows, source, data or run.settings["data"]), source
