"""What `make sanitize` runs: the C kernels under every sanitizer that this machine has, for every instruction set.

AddressSanitizer sees accesses outside of a tensor's memory or of a local array, UndefinedBehaviorSanitizer sees
integers that overflow and pointers that are not aligned; both come with GCC, and without them this fails. They watch
the driver, which knows the exact answers, and the Python tests of the CPU backend. Reads of memory that nobody has
written are noticed by Clang's MemorySanitizer and Valgrind's memcheck, and ARM needs a compiler and an emulator: each
is used where it is installed, and what is left out is said at the end.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .build import (
    EMULATED,
    ROOT,
    THOROUGH,
    Missing,
    build,
    c_compiler,
    check,
    command,
    find,
    for_aarch64,
    instruction_sets,
    supports,
)

FOLDER = ROOT / "build" / "sanitize"

STRICT = ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")
ADDRESS_AND_UNDEFINED = ("-fsanitize=address,undefined,float-cast-overflow", *STRICT)
MEMORY = ("-fsanitize=memory", *STRICT)
OPTIONS = {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"}

PYTHON_TESTS = (
    "tests/latents/test_ops.py",
    "tests/kernels/test_noise.py",
    "tests/latents/test_autograd.py",
    "tests/kernels/cpu/test_latents.py",
    "tests/kernels/cpu/test_likelihoods.py",
    "tests/likelihoods/test_kernels.py",
    "tests/likelihoods/test_head_kernels.py",
)

Finished = subprocess.CompletedProcess[str]


def sanitized_by_gcc() -> tuple[str, ...]:
    compiler = c_compiler()
    if not supports(compiler, *ADDRESS_AND_UNDEFINED):
        raise SystemExit(f"{' '.join(compiler)} does not come with AddressSanitizer and UndefinedBehaviorSanitizer")
    return compiler


def addresses_and_undefined_behaviour() -> Iterator[Finished]:
    """The driver under AddressSanitizer and UndefinedBehaviorSanitizer"""
    program, _ = build(FOLDER / "check_address", sanitized_by_gcc(), *ADDRESS_AND_UNDEFINED)
    for instruction_set in instruction_sets(program):
        yield check([program], THOROUGH, instruction_set, **OPTIONS)


def python_tests() -> Iterator[Finished]:
    """The Python tests of the CPU backend under AddressSanitizer and UndefinedBehaviorSanitizer"""
    compiler = sanitized_by_gcc()
    copy = FOLDER / "python"  # of the package and its tests: Python must not find the installed ones
    shutil.rmtree(copy, ignore_errors=True)
    flags = " ".join(ADDRESS_AND_UNDEFINED)
    built = command(
        *(sys.executable, "setup.py", "-q", "build", "--force"),
        *("--build-base", FOLDER / "temporary", "--build-lib", copy),
        CC=" ".join(compiler),
        CFLAGS=flags,
        LDFLAGS=flags,
    )
    for folder in ("tests", "bench"):  # the tests compare with the formulas of the benchmarks
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    if not list((copy / "fastvae" / "kernels" / "cpu").glob("_kernels.*.so")):
        raise RuntimeError(f"the extension does not build:\n{built.stdout}")
    # Python itself knows of no sanitizer, so the libraries are there before it; the second lets C++ throw exceptions.
    names = ("libasan.so", "libstdc++.so.6")
    libraries = [command(*compiler, f"-print-file-name={name}").stdout.strip() for name in names]
    if not all(Path(library).is_absolute() for library in libraries):
        raise Missing(f"{compiler[0]} has no {' or '.join(names)} that could be loaded before Python")
    environment = OPTIONS | {
        "ASAN_OPTIONS": f"{OPTIONS['ASAN_OPTIONS']}:detect_leaks=0",  # Python and PyTorch free little at their end
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
    }
    for instruction_set in instruction_sets(FOLDER / "check_address"):
        yield command(
            *(sys.executable, "-m", "pytest", "-k", "cpu", "-p", "no:cacheprovider", "--capture=sys", *PYTHON_TESTS),
            cwd=copy,
            FASTVAE_CPU_ISA=instruction_set,
            **environment,
        )


def aarch64() -> Iterator[Finished]:
    """The driver for 64-bit ARM under AddressSanitizer and UndefinedBehaviorSanitizer, emulated"""
    compiler, emulator = for_aarch64()
    if not supports(compiler, *ADDRESS_AND_UNDEFINED):
        raise Missing(f"{compiler[0]} does not come with AddressSanitizer and UndefinedBehaviorSanitizer")
    program, _ = build(FOLDER / "check_aarch64", compiler, *ADDRESS_AND_UNDEFINED)
    yield check([*emulator, program], EMULATED, ASAN_OPTIONS="detect_leaks=0")


def uninitialised_memory_by_clang() -> Iterator[Finished]:
    """The driver under MemorySanitizer"""
    compiler = (find("clang"),)
    if not supports(compiler, *MEMORY):
        raise Missing("clang does not come with MemorySanitizer")
    program, _ = build(FOLDER / "check_memory", compiler, *MEMORY, openmp=False)
    for instruction_set in instruction_sets(program):
        yield check([program], THOROUGH, instruction_set)


def uninitialised_memory_by_valgrind() -> Iterator[Finished]:
    """The driver under memcheck (which knows no AVX-512)"""
    valgrind = find("valgrind")
    program, _ = build(FOLDER / "check_plain", c_compiler(), "-g")
    yield check([valgrind, "-q", "--error-exitcode=1", program], EMULATED)


PARTS: tuple[Callable[[], Iterator[Finished]], ...] = (
    addresses_and_undefined_behaviour,
    python_tests,
    aarch64,
    uninitialised_memory_by_clang,
    uninitialised_memory_by_valgrind,
)


def main() -> int:
    left_out, failed = [], []
    for part in PARTS:
        print(f"\n{part.__doc__}", flush=True)
        try:
            for finished in part():
                print(finished.stdout.rstrip(), flush=True)
                if finished.returncode != 0:
                    failed.append(part.__doc__)
        except Missing as missing:
            left_out.append(f"{part.__doc__}: {missing}")
    print()
    for line in left_out:
        print(f"left out: {line}")
    for line in failed:
        print(f"FAILED: {line}")
    print("failed" if failed else "clean")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
