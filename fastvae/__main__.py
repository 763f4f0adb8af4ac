"""The command line: ``fastvae train | evaluate | sample | info``, or ``python -m fastvae`` with the same."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence

USAGE = """usage: fastvae COMMAND [options]

  train      train a VAE on digits, a folder of images, or arrays: fastvae train --help
  evaluate   ELBO and log-likelihood of a checkpoint on held-out data
  sample     new images from a checkpoint, as a picture or an array
  info       versions, devices and backends of this machine, and what runs where
"""

COMMANDS = {
    "train": "fastvae.training.train",
    "evaluate": "fastvae.training.evaluate",
    "sample": "fastvae.training.sample",
    "info": "fastvae.info",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if all went well, 1 after a message on stderr, 2 for options that there are not."""
    name, *given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name == "--version":
        from . import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"fastvae: error: there is no command {name!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        command = getattr(importlib.import_module(COMMANDS[name]), name)
    except ImportError as error:
        if name == "info" or (error.name or "").partition(".")[0] == "fastvae":
            raise
        return _fail(name, f'{error}\nThis command needs more packages: pip install "fastvae-kernels[train]"')
    return _run(name, command, [_hyphenated(argument) for argument in given])


def _hyphenated(argument: str) -> str:
    """--latent_dim as --latent-dim, for hands that are used to Lightning's; what has a dot is Lightning's own."""
    option = re.match(r"--[A-Za-z_]+(?==|$)", argument)
    if option is None or option[0] == "--print_config":
        return argument
    return option[0].replace("_", "-") + argument[option.end() :]


def _run(name: str, command: object, arguments: list[str]) -> int:
    from .training.errors import TrainingError

    try:
        command(arguments)  # type: ignore[operator]
    except TrainingError as error:
        return _fail(name, str(error))
    except OSError as error:
        return _fail(name, _of_system(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return _fail(
            name, f"out of memory ({str(error).splitlines()[0][:120]})\nTake less at once, or a smaller model."
        )
    except KeyboardInterrupt:
        return _fail(name, "stopped")
    return 0


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message += "\nFree some space and go on with --resume; the checkpoints that are there are whole."
    return message


def _fail(name: str, message: str) -> int:
    rank = os.environ.get("LOCAL_RANK", "0")
    process = "" if rank == "0" else f" (process {rank})"
    print(f"fastvae {name}{process}: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
