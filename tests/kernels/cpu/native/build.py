"""Builds the driver `check.c` together with the kernels, for any C compiler, and runs it.

What a machine does not have is a `Missing` with the reason: tests skip with it, `make sanitize` says what it left out.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[4]
KERNELS = ROOT / "kernels" / "cpu"
DRIVER = Path(__file__).parent

TIMEOUT = 600  # seconds; everything here takes far less


class Missing(Exception):
    """This machine cannot do what was asked for, and why."""


def command(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, successful or not."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )


def find(*names: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        if shutil.which(name):
            return name
    raise Missing(f"{' or '.join(names)} is not installed")


def c_compiler() -> tuple[str, ...]:
    """The compiler that CC names, else the system's."""
    if os.environ.get("CC"):
        words = shlex.split(os.environ["CC"])
        return (find(words[0]), *words[1:])
    return (find("cc", "gcc", "clang"),)


@functools.cache
def supports(compiler: tuple[str, ...], *flags: str) -> bool:
    """Whether the compiler can make a program under these flags."""
    program = subprocess.run(
        [*compiler, *flags, "-x", "c", "-", "-o", os.devnull],
        input="int main(void) { return 0; }",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return program.returncode == 0


@functools.cache
def shipped_flags() -> tuple[str, ...]:
    """What setup.py compiles the extension with."""
    import setuptools  # noqa: F401  (brings distutils where Python has none)

    # isort: split
    from distutils.core import run_setup

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        (extension,) = run_setup("setup.py", stop_after="init").ext_modules
    finally:
        os.chdir(before)
    return tuple(extension.extra_compile_args)


def build(
    program: Path, compiler: tuple[str, ...], *flags: str, kernels: Path = KERNELS, openmp: bool = True
) -> tuple[Path, str]:
    """Compile and link the driver; returns it and what the compiler said.

    The shipped flags come first, as far as the compiler knows them, so that ``flags`` can overrule them.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    shipped = [flag for flag in shipped_flags() if supports(compiler, flag)]
    threads = ["-fopenmp"] if openmp and supports(compiler, "-fopenmp") else []
    result = command(
        *(*compiler, *shipped, *threads, "-Wall", "-Wextra", *flags, f"-I{kernels}", f"-I{DRIVER}"),
        *(DRIVER / "check.c", *sorted(kernels.glob("isa_*.c")), "-ldl", "-lm", "-o", program),
    )
    if result.returncode != 0:
        raise RuntimeError(f"the driver does not build: {shlex.join(result.args)}\n{result.stdout}")
    return program, result.stdout


def instruction_sets(*program: str | Path) -> list[str]:
    """Those of the kernels' instruction sets that this program can run here."""
    return command(*program, "list").stdout.split()


# What the driver is asked for, see check.c: a second or two, ten seconds, and ten where an emulator needs ten times as
# long.
BRIEF, THOROUGH, EMULATED = ("4000",), ("20000",), ("500", "near")


def check(
    program: Sequence[str | Path], extent: Sequence[str], instruction_set: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the driver; a fault that it or a sanitizer finds makes the exit status other than 0."""
    return command(*program, *extent, FASTVAE_CPU_ISA=instruction_set, **environment)


def for_aarch64() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A compiler for 64-bit ARM and the emulator that runs what it makes."""
    compiler = (find("aarch64-linux-gnu-gcc"),)
    if not supports(compiler):
        raise Missing(f"{compiler[0]} has no C library for 64-bit ARM")
    if platform.machine() == "aarch64":
        return compiler, ()
    library = Path(command(*compiler, "-print-file-name=libc.so.6").stdout.strip())
    return compiler, (find("qemu-aarch64", "qemu-aarch64-static"), "-L", str(library.resolve().parent.parent))
