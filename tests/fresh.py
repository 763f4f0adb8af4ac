"""Python processes that have imported torch and nothing of fastvae: what is decided on import can be tried again.

A server that has imported torch forks for each, as importing it takes seconds. It has started no threads by then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

# The variables that the tests themselves run under.
OURS = ("FASTVAE_BACKEND", "TRITON_INTERPRET")


def run(code: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a CompletedProcess, from a fork that runs the code as a program."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        child = os.fork()
        if child == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            os.environ.update(environment)
            os._exit(status_of(code))
        _, status = os.waitpid(child, 0)
        stdout.seek(0)
        stderr.seek(0)
        return {
            "returncode": os.waitstatus_to_exitcode(status),
            "stdout": stdout.read(),
            "stderr": stderr.read(),
        }


def status_of(code: str) -> int:
    """The exit status of a program, which has printed its error."""
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve(first: str) -> None:
    exec(first)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


class Server:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        print(json.dumps([code, environment]), file=self.process.stdin, flush=True)
        return subprocess.CompletedProcess(args=[code], **json.loads(self.process.stdout.readline()))


def server(first: str) -> Iterator[Server]:
    """A server that runs this code first, which must start no threads."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-c", f"from tests import fresh; fresh.serve({first!r})"]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Server(process)
        process.stdin.close()


@pytest.fixture(scope="session")
def run_python() -> Iterator[Server]:
    """``run_python(code, **environment)``: what `python -c code` comes to, without the variables of these tests."""
    yield from server("import torch")
