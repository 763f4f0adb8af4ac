"""The command line: ``fastvae COMMAND``, or ``python -m fastvae COMMAND``; `USAGE` lists the commands."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence

__all__ = ["main"]

USAGE = """usage: fastvae COMMAND [options]

  train        train a VAE on digits, a folder of images, or arrays: fastvae train --help
  evaluate     ELBO and log-likelihood of a checkpoint on held-out data
  sample       new images from a checkpoint, as an image file or an array
  encode       the latents of data, as an array or in an .h5ad file with the cells
  reconstruct  encode and decode data
  info         versions, devices and backends of this machine, and the backend of an op
"""

COMMANDS = {
    "train": "fastvae.training.train",
    "evaluate": "fastvae.training.evaluate",
    "sample": "fastvae.training.sample",
    "encode": "fastvae.training.encode",
    "reconstruct": "fastvae.training.reconstruct",
    "info": "fastvae.info",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 for success, 1 for an error (message on stderr), 2 for wrong usage."""
    name, *given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name == "--version":
        from . import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"fastvae: error: unknown command {name!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        command = getattr(importlib.import_module(COMMANDS[name]), name)
    except ImportError as error:
        if name == "info" or (error.name or "").partition(".")[0] == "fastvae":
            raise
        return _fail(name, f'{error}\nThis command needs more packages: pip install "fastvae-kernels[train]"')
    return _run(name, command, [_hyphenated(argument) for argument in given])


def _hyphenated(argument: str) -> str:
    """Accept --latent_dim for --latent-dim, as Lightning's CLI; options with a dot belong to Lightning as they are."""
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
        return _fail(name, _os_error_message(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        reason = str(error).splitlines()[0][:120]
        return _fail(name, f"out of memory ({reason})\nUse a smaller batch or a smaller model.")
    except KeyboardInterrupt:
        return _fail(name, "stopped")
    return 0


def _os_error_message(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message += "\nFree some space and continue with --resume; the existing checkpoints are complete."
    return message


def _fail(name: str, message: str) -> int:
    rank = os.environ.get("LOCAL_RANK", "0")
    process = "" if rank == "0" else f" (process {rank})"
    print(f"fastvae {name}{process}: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
