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


def compiled(program: Path, compiler: tuple[str, ...], *words: str | Path, openmp: bool = True) -> str:
    """Run the compiler, whose output is ``program``; returns what it said.

    The shipped flags come first, as far as the compiler knows them, so that ``words`` can overrule them.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    shipped = [flag for flag in shipped_flags() if supports(compiler, flag)]
    threads = ["-fopenmp"] if openmp and supports(compiler, "-fopenmp") else []
    result = command(*compiler, *shipped, *threads, "-Wall", "-Wextra", *words, "-o", program)
    if result.returncode != 0:
        raise RuntimeError(f"the driver does not build: {shlex.join(result.args)}\n{result.stdout}")
    return result.stdout


def build(program: Path, compiler: tuple[str, ...], *flags: str, openmp: bool = True) -> tuple[Path, str]:
    """Compile and link the driver; returns it and what the compiler said."""
    sources = (DRIVER / "check.c", *sorted(KERNELS.glob("isa_*.c")))
    words = (*flags, f"-I{KERNELS}", f"-I{DRIVER}", *sources, "-ldl", "-lm")
    return program, compiled(program, compiler, *words, openmp=openmp)


class FaultyBuilds:
    """The driver with faults in the kernels, one after the other: only what includes a changed file is compiled anew.

    Of the kernels, those of the instruction set that this processor runs best have the fault.
    """

    def __init__(self, folder: Path, compiler: tuple[str, ...], *flags: str) -> None:
        self.compiler, self.flags, self.program = compiler, flags, folder / "check"
        sources = (DRIVER / "check.c", *KERNELS.glob("isa_*.c"))
        self.objects = {source.name: folder / f"{source.stem}.o" for source in sources}
        for name, to in self.objects.items():
            self.compile(KERNELS, name, to)
        self.link(self.objects)
        self.best = f"isa_{instruction_sets(self.program)[0].replace('-', '_')}.c"

    def compile(self, kernels: Path, name: str, to: Path) -> Path:
        is_driver = name == "check.c"
        source = (DRIVER if is_driver else kernels) / name
        faster = ["-O1"] if is_driver else []  # it is compiled once, and runs for longer than the kernels
        compiled(to, self.compiler, *self.flags, *faster, f"-I{kernels}", f"-I{DRIVER}", "-c", source)
        return to

    def link(self, objects: dict[str, Path]) -> Path:
        compiled(self.program, self.compiler, *self.flags, *objects.values(), "-ldl", "-lm")
        return self.program

    def includes(self, name: str, file: str) -> bool:
        source = (DRIVER if name == "check.c" else KERNELS) / name
        listed = command(*self.compiler, "-MM", f"-I{KERNELS}", f"-I{DRIVER}", source).stdout
        return file in [Path(word).name for word in listed.split()]

    def with_fault(self, kernels: Path, file: str) -> Path:
        """The driver, until the next call, with a copy of the kernels of which ``file`` differs."""
        changed = [name for name in ("check.c", self.best) if self.includes(name, file)]
        folder = self.program.parent / "changed"
        return self.link(self.objects | {name: self.compile(kernels, name, folder / f"{name}.o") for name in changed})


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
