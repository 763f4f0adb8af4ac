"""Every link of a Markdown file leads to a file that there is, and to a heading in it; every name in it exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench" / "results").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^ *(```+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`(fastvae(?:\.\w+)+)`|^::: (fastvae(?:\.\w+)+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def headings(page: Path) -> set[str]:
    """As GitHub and the site name them."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


def find(name: str) -> None:
    """Raise unless there is ``fastvae.a.b.c``: the longest part that is a module, and the rest as attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError as error:
            if (error.name or "").startswith("fastvae."):
                continue
            return  # a module that needs a library which is not here
        for part in parts[end:]:
            found = getattr(found, part)
        return
    raise AssertionError(name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for path, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        target = page.parent / path if path else page
        assert target.exists(), f"{path}: there is no such file"
        if anchor:
            assert anchor in headings(target), f"{path}#{anchor}: there is no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_names_are_those_of_things_that_exist(page):
    for names in NAME.findall(page.read_text()):
        find("".join(names))
