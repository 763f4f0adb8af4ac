"""One list of environment variables: the code reads no other, the page shows it, `fastvae info` prints it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import fastvae.info
from fastvae.switches import SWITCHES, table

ROOT = Path(__file__).parents[2]
READERS = re.compile(r"os\.environ|getenv")


def names_that_the_code_reads() -> set[str]:
    """Names in capitals on the lines that look into the environment."""
    found = set()
    for folder in ("fastvae", "kernels"):
        for path in (ROOT / folder).rglob("*.[pch]*"):
            if path.suffix in (".py", ".c", ".h") and path.name != "switches.py":
                for line in path.read_text().splitlines():
                    if READERS.search(line):
                        found |= set(re.findall(r"\"([A-Z][A-Z0-9_]+)\"", line))
    return found


def test_every_variable_that_the_code_reads_is_declared_and_no_other():
    names = {switch.name for switch in SWITCHES if switch.reader == "fastvae"}
    assert names_that_the_code_reads() == names


def test_no_variable_is_read_in_another_way():
    """Such as through a constant, which the test above would not see."""
    for folder in ("fastvae", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "switches.py":
                for line in path.read_text().splitlines():
                    assert not READERS.search(line) or re.search(r"\"[A-Z][A-Z0-9_]+\"", line), f"{path}: {line}"


def test_the_page_shows_the_list():
    assert table() in (ROOT / "docs" / "switches.md").read_text(), "python -m fastvae.switches prints the table anew"


def test_info_prints_each_variable_with_its_value_and_meaning(monkeypatch):
    monkeypatch.setenv("FASTVAE_CPU_ISA", "x86-64-v3")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    shown = fastvae.info.lines((4, 2), torch.float32, torch.device("cpu"))
    assert "  FASTVAE_CPU_ISA = x86-64-v3" in shown
    assert "  TRITON_CACHE_DIR is not set" in shown
    text = " ".join(" ".join(shown).split())
    for switch in SWITCHES:
        about = rf"{switch.name} (is not set|= \S+) {re.escape(switch.values)}: {re.escape(switch.meaning)}"
        assert re.search(about.replace("`", ""), text), switch.name
