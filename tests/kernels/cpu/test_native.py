"""The C kernels without Python: the driver in `native/`, built by a C compiler, for this processor and for ARM."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .native.build import (
    BRIEF,
    EMULATED,
    KERNELS,
    FaultyBuilds,
    Missing,
    build,
    c_compiler,
    check,
    find,
    for_aarch64,
    instruction_sets,
    supports,
)
from .native.fault import Fault
from .native.faults import FAULTS
from .native.sanitize import ADDRESS_AND_UNDEFINED, OPTIONS


def or_skip(find_it):
    """What a machine may lack is a reason to skip."""
    try:
        return find_it()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The driver, and what the compiler said."""
    return build(tmp_path_factory.mktemp("native") / "check", or_skip(c_compiler))


@pytest.mark.slow  # a compiler that is newer than these kernels may have found something new to warn of
def test_the_kernels_compile_without_warnings(built):
    assert built[1] == ""


@pytest.mark.slow
def test_every_instruction_set_of_this_machine_is_right_without_python(built):
    program = built[0]
    available = instruction_sets(program)
    if not available:
        pytest.skip("this processor has none of the instruction sets that there are kernels for")
    for name in available:
        result = check([program], BRIEF, name)
        assert result.returncode == 0, result.stdout
        assert result.stdout.startswith(f"{name}: ")


@pytest.mark.slow
def test_the_kernels_for_64_bit_arm_are_right_and_compile_without_warnings(tmp_path):
    compiler, emulator = or_skip(for_aarch64)
    program, said = build(tmp_path / "check", compiler)
    assert said == ""
    result = check([*emulator, program], EMULATED)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("aarch64: ")


@pytest.mark.slow
def test_an_instruction_set_that_the_processor_lacks_is_an_error(built):
    result = check([built[0]], BRIEF, "x86-64-v1")
    assert result.returncode == 2
    assert "x86-64-v1" in result.stdout


def test_what_is_not_installed_is_named(monkeypatch):
    with pytest.raises(Missing, match="no-such-compiler or no-such-emulator is not installed"):
        find("no-such-compiler", "no-such-emulator")
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(Missing, match="no-such-compiler is not installed"):
        c_compiler()


# Most faults make results wrong; the others need sanitizers, which take longer.
WAYS_TO_NOTICE = ((), ADDRESS_AND_UNDEFINED)


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> Callable[..., FaultyBuilds]:
    """Those of some flags, made when they are first asked for."""
    compiler = or_skip(c_compiler)
    if not supports(compiler, *ADDRESS_AND_UNDEFINED):
        pytest.skip(f"{compiler[0]} does not come with AddressSanitizer and UndefinedBehaviorSanitizer")
    return functools.cache(
        lambda *flags: FaultyBuilds(tmp_path_factory.mktemp("builds"), compiler, *flags, "-O0", "-w")
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", WAYS_TO_NOTICE, ids=["plain", "sanitized"])
def test_the_driver_finds_no_fault_where_there_is_none(builds, flags):
    way = builds(*flags)
    result = check([way.link(way.objects)], ("1500",), **OPTIONS)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_driver_notices(tmp_path, builds, fault: Fault):
    kernels = shutil.copytree(KERNELS, tmp_path / "cpu", ignore=shutil.ignore_patterns("*.so"))
    fault.plant(kernels)
    programs = (builds(*flags).with_fault(kernels, fault.file) for flags in WAYS_TO_NOTICE)
    assert any(check([program], ("1500",), **OPTIONS).returncode != 0 for program in programs)
