"""A run that is killed again and again, and taken up each time.

    python -m tests.training.killed_runs FOLDER SEED KILLS [OPTION ...]

Every attempt is a fork of this process, which has imported everything already: killing comes cheap. Children tell when
they take a step and when they begin and end to write a checkpoint. Every other one is killed within milliseconds after
it begins to write; the others after some steps, or before the first. Prints how many were killed, and how many of them
while they wrote.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

from fastvae.__main__ import main  # noqa: E402
from fastvae.training.checkpoints import WholeFiles  # noqa: E402
from fastvae.training.module import VAEModule  # noqa: E402

STEP, WRITING, WRITTEN = b"s", b"w", b"d"


def telling(method: Callable[..., Any], told: int, before: bytes, after: bytes) -> Callable[..., Any]:
    """The method, with word of it before and after."""

    def told_of(*given: Any, **options: Any) -> Any:
        os.write(told, before)
        came = method(*given, **options)
        os.write(told, after)
        return came

    return told_of


def child(arguments: list[str], told: int) -> None:
    WholeFiles.save_checkpoint = telling(WholeFiles.save_checkpoint, told, WRITING, WRITTEN)  # type: ignore[method-assign]
    VAEModule.training_step = telling(VAEModule.training_step, told, STEP, b"")  # type: ignore[method-assign]
    os._exit(main(arguments))


def attempt(arguments: list[str], event: bytes, count: int, then: float) -> tuple[bool, bool]:
    """Kill a child so many seconds after it has told of an event for the ``count``-th time, 0 being its start.

    Returns:
        Whether it came to its end before, and whether it was writing when it was killed.
    """
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        child(arguments, told)
    os.close(told)
    said = b""
    while said.count(event) < count and (more := os.read(heard, 1)):
        said += more
    ended = said.count(event) < count
    if not ended:
        time.sleep(then)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    while select.select([heard], [], [], 0)[0] and (more := os.read(heard, 4096)):
        said += more
    os.close(heard)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the child failed with status {os.WEXITSTATUS(status)}")
    return os.WIFEXITED(status), not ended and said.rfind(WRITING) > said.rfind(WRITTEN)


def run(folder: Path, seed: int, kills: int, options: list[str]) -> None:
    chance = random.Random(seed)
    arguments = ["train", "--output", str(folder), *options]
    while_writing = 0
    for number in range(kills):
        if number % 2:
            ended, wrote = attempt(arguments, WRITING, chance.randint(1, 3), chance.uniform(0, 0.004))
        elif number % 4:
            ended, wrote = attempt(arguments, STEP, chance.randint(1, 10), chance.uniform(0, 0.01))
        else:
            ended, wrote = attempt(arguments, STEP, 0, chance.uniform(0, 0.5))
        if ended:
            raise SystemExit(f"the run came to its end after {number} kills: make it longer")
        while_writing += wrote
        if (folder / "config.yaml").exists():
            arguments = ["train", "--resume", str(folder)]
    attempt(arguments, STEP, sys.maxsize, 0.0)
    print(f"{kills} killed, {while_writing} of them while writing")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
