"""What the commands share that work on a trained model: their first options, and the model itself."""

from __future__ import annotations

import torch
from jsonargparse import ActionConfigFile, ArgumentParser

from ..nn.model import LatentVariableModel
from .checkpoints import SavedRun, find_checkpoint, read_checkpoint
from .errors import TrainingError


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
