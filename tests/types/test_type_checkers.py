"""mypy and pyright accept the README's example; of other user code they infer what it says, and find marked errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER_CODE = Path(__file__).with_name("user_code.py")

# As of an installed package, nothing is reported of fastvae itself. What is skipped takes most of the time, and no type
# of the user's code is from there: of the libraries that `fastvae train` needs, and of PyTorch's compiler.
MYPY = """
[mypy]
strict = True
untyped_calls_exclude = torch
python_version = 3.10
[mypy-fastvae.*]
follow_imports = silent
[mypy-lightning.*,torchmetrics.*,matplotlib.*,jsonargparse.*,PIL.*,sympy.*]
follow_imports = skip
[mypy-torch._dynamo.*,torch._functorch.*,torch._inductor.*,torch.ao.*,torch.distributed.*,torch.export.*]
follow_imports = skip
[mypy-torch.fx.experimental.*,torch.onnx.*,torch.testing.*,torch._higher_order_ops.*,torch._refs.*,torch._decomp.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as an install lays it out, with kernels/ inside fastvae/."""
    folder = tmp_path_factory.mktemp("installed")
    unwanted = shutil.ignore_patterns("*.so", "*.c", "*.h", "__pycache__")
    shutil.copytree(ROOT / "fastvae", folder / "fastvae", ignore=unwanted)
    shutil.copytree(ROOT / "kernels", folder / "fastvae" / "kernels", ignore=unwanted)
    return folder


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """The first block of Python in the README."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    file = tmp_path_factory.mktemp("readme") / "example.py"
    file.write_text(found[1])
    return file


def output_of(command: Sequence[str | Path], **environment: str) -> str:
    """What a checker that found errors prints."""
    found = subprocess.run(
        [sys.executable, "-m", *command], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 1, found.stdout + found.stderr
    return found.stdout


def check(errors: Sequence[tuple[str, int, str]]) -> None:
    """The errors, (file, line, message), are on the lines of the user's code that are marked with one."""
    lines = USER_CODE.read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("  # error")}
    assert len(expected) > 40
    found = {number for file, number, _ in errors if file == str(USER_CODE)}
    assert [one for one in errors if one[0] != str(USER_CODE) or one[1] not in expected] == []
    assert [(number, lines[number - 1]) for number in sorted(expected - found)] == []


def test_mypy(installed, example, tmp_path):
    pytest.importorskip("mypy")
    config = tmp_path / "mypy.ini"
    config.write_text(MYPY)
    cache = ROOT / ".mypy_cache" / "user_code"  # of PyTorch's types, whose analysis takes many times as long as ours
    command = ["mypy", "--config-file", config, "--cache-dir", cache, "--output", "json", USER_CODE, example]
    errors = [json.loads(line) for line in output_of(command, MYPYPATH=str(installed)).splitlines()]
    check([(os.path.abspath(one["file"]), one["line"], one["message"]) for one in errors if one["severity"] == "error"])


def test_pyright(installed, example, tmp_path):
    pytest.importorskip("basedpyright")  # a pyright that pip installs whole; "standard" is pyright's own mode
    config = tmp_path / "pyrightconfig.json"
    settings = {"typeCheckingMode": "standard", "pythonVersion": "3.10", "extraPaths": [str(installed)]}
    config.write_text(json.dumps(settings | {"include": [str(USER_CODE), str(example)]}))
    command = ["basedpyright", "--outputjson", "--pythonpath", sys.executable, "--project", config]
    errors = json.loads(output_of(command))["generalDiagnostics"]
    check([(one["file"], one["range"]["start"]["line"] + 1, one["message"]) for one in errors])
