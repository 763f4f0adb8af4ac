"""What an install puts on a machine: built as a wheel, from a copy of the sources."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import symtable
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastvae

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "fastvae", "kernels")


COMPILER = """#!/bin/sh
case " $* " in
*" -c "*)
    {compiler} "$@" -M -MF /dev/null || exit 1
    while [ "$1" != -o ]; do shift; done
    exec {compiler} -x c -c -o "$2" /dev/null ;;
esac
exec {compiler} "$@"
"""


def build_wheel(folder: Path, **environment: str) -> Path:
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("fastvae_kernels-")
    return wheel


def files_of(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def extensions(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("fastvae/kernels/cpu/_kernels.") and not name.endswith(".pyi")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """With a compiler that makes an empty object of each source, once it has found all headers.

    Only names and metadata are looked at, and every install of the package compiles the sources.
    """
    folder = tmp_path_factory.mktemp("wheel")
    compiler = folder / "cc"
    compiler.write_text(COMPILER.format(compiler=os.environ.get("CC") or sysconfig.get_config_var("CC")))
    compiler.chmod(0o755)
    return build_wheel(folder, CC=str(compiler))


@pytest.fixture(scope="module")
def wheel_files(wheel) -> list[str]:
    return files_of(wheel)


def test_the_wheel_installs_one_top_level_name(wheel_files):
    top = {name.partition("/")[0] for name in wheel_files}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fastvae"}


def test_the_wheel_has_the_backends_the_types_marker_and_the_extension(wheel_files):
    for name in (
        "fastvae/py.typed",
        "fastvae/kernels/backend.py",
        "fastvae/kernels/reference/philox.py",
        "fastvae/kernels/triton/philox.py",
    ):
        assert name in wheel_files
    assert extensions(wheel_files)


def test_without_a_c_compiler_the_install_still_succeeds_and_the_wheel_is_for_any_platform(tmp_path, wheel):
    without = build_wheel(tmp_path, CC="/nowhere/cc")
    assert without.name.endswith("-py3-none-any.whl")
    assert "any" not in wheel.name
    assert b"Root-Is-Purelib: true" in _wheel_metadata(without)
    assert b"Root-Is-Purelib: false" in _wheel_metadata(wheel)
    names = files_of(without)
    assert not [name for name in names if ".data/" in name]
    assert "fastvae/kernels/cpu/__init__.py" in names
    assert not extensions(names)


def _wheel_metadata(wheel: Path) -> bytes:
    (name,) = [name for name in files_of(wheel) if name.endswith(".dist-info/WHEEL")]
    return zipfile.ZipFile(wheel).read(name)


def test_every_module_says_which_of_its_names_are_for_others():
    files = sorted((ROOT / "fastvae").rglob("*.py"))
    assert len(files) > 80
    for file in files:
        table = symtable.symtable(file.read_text(), str(file), "exec")
        defined = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
        assert "__all__" in defined, file
        (listed,) = [one.value for one in ast.parse(file.read_text()).body if _is_list_of_names(one)]
        assert set(ast.literal_eval(listed)) <= defined, file


def _is_list_of_names(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"


@pytest.mark.parametrize("name", ["", ".integrations", ".likelihoods", ".nn", ".training"])
def test_dir_shows_public_names_only(name):
    package = importlib.import_module(f"fastvae{name}")
    assert [one for one in dir(package) if not one.startswith("__")] == sorted(package.__all__)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone of the repository")
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return [name for name in result.stdout.splitlines() if (ROOT / name).exists()]


def test_the_sdist_has_everything_that_its_own_tests_need(tmp_path, tracked):
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    command = [sys.executable, "-c", build]
    result = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {one.name.partition("/")[2] for one in archive if one.isfile()}
    assert set(tracked) - packed == {".ci/run", ".gitignore"}
    made = {name for name in packed - set(tracked) if ".egg-info/" not in name}
    assert made == {"PKG-INFO", "setup.cfg"}


def test_what_stands_in_two_files_is_the_same(tracked):
    def found(pattern: str, name: str) -> list[str]:
        return re.findall(pattern, (ROOT / name).read_text())

    assert found(r"(?m)^version: (.+)$", "CITATION.cff") == [fastvae.__version__]
    assert set(found(r"ruff==([\d.]+)", ".pre-commit-config.yaml")) == set(found(r"ruff==([\d.]+)", "constraints.txt"))
    addresses = found(r'(?m)^[A-Z]\w+ = "(https://[^"]+)"$', "pyproject.toml")
    assert len(addresses) == 5
    for name in tracked:
        if Path(name).suffix in (".md", ".yml", ".cff", ".py") and not name.startswith("tests/"):
            for address in found(r"https://fastvae\.example[^\s)\"'>]*", name):
                assert any(address.startswith(one) for one in addresses), f"{name}: {address}"
