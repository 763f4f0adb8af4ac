"""The environments that the suite is run in, and how one of them is made."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "versions"

CLIENTS = ("diffusers", "scvi-tools", "pyro-ppl", "pythae")
SUITE = ("-m", "not slow and not clients")
OF_CLIENTS = ("-m", "clients", "tests/clients")


class Environment(NamedTuple):
    name: str
    python: str  # a version, looked for as pythonX.Y
    requirements: tuple[str, ...]
    extras: str = "test"
    constraints: tuple[str, ...] = ()
    tests: tuple[str, ...] = SUITE  # arguments of pytest


ENVIRONMENTS = (
    # What pyproject.toml asks for, at least; of tools that only the tests need, what installs.
    Environment("oldest", "3.10", ("torch==2.11.*", "numpy==1.24.*")),
    Environment("tested", "3.11", (), "train,cells,test", ("constraints.txt",)),
    Environment("newest", "3.13", ("torch", "numpy"), "train,cells,test"),
    Environment(
        "clients-tested", "3.11", (), "clients,test", ("constraints.txt", "constraints-clients.txt"), OF_CLIENTS
    ),
    Environment("clients-newest", "3.12", CLIENTS, "clients,test", (), OF_CLIENTS),
)
NEWEST_CLIENTS = "clients-newest"

# Run in an environment: its versions, and the machine.
PROBE = """
import importlib.metadata, json, platform, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
sys.path.insert(0, ".")
from bench.machine import cpu_model
print(json.dumps({
    "python": platform.python_version(), "versions": found,
    "machine": f"{cpu_model()}, {platform.system()} {platform.machine()}",
}))
"""


class Missing(Exception):
    """An environment that this machine cannot make, and why."""


def find_python(version: str) -> str:
    program = shutil.which(f"python{version}")
    # A version manager's stand-in is found where the version is not installed.
    if program is None or subprocess.run([program, "--version"], capture_output=True).returncode != 0:
        raise Missing(f"python{version} is not installed")
    return program


def make(environment: Environment, index_urls: tuple[str, ...] = (), *, upgrade: bool = False) -> Path:
    """Make an environment, or bring it up to date; returns its Python. ``index_urls``: more places to install from."""
    folder = FOLDER / environment.name
    python = folder / "bin" / "python"
    if not python.exists():
        run(find_python(environment.python), "-m", "venv", folder)
    constraints = [word for path in environment.constraints for word in ("-c", path)]
    indexes = [word for url in index_urls for word in ("--extra-index-url", url)]
    newest = ("--upgrade", "--upgrade-strategy", "eager") if upgrade else ()
    install = (python, "-m", "pip", "install", "--quiet", *newest, *indexes, *constraints)
    run(*install, *environment.requirements, "-e", f".[{environment.extras}]")
    return python


def run(*words: str | Path) -> None:
    came = subprocess.run([str(word) for word in words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if came.returncode != 0:
        raise Missing(f"{' '.join(map(str, words))}\n{came.stdout.decode()[-2000:]}")


def probe(python: Path) -> dict[str, object]:
    """Python's version, those of the packages that the table names, and the machine."""
    names = ("torch", "triton", "numpy", *CLIENTS)
    came = subprocess.run(
        [python, "-c", PROBE, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    return json.loads(came.stdout)
