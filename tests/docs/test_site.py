"""The site that `make docs` builds: without warnings, with every public name, and with nothing from a network."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import fastvae

ROOT = Path(__file__).parents[2]
MODULES = ("integrations", "likelihoods", "monitors", "nn", "objectives", "priors", "schedules", "training")


class Page(HTMLParser):
    """Identifiers, tags, and what the browser loads by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.ids.add(given.get("id", ""))
        if tag in ("script", "img", "iframe", "source"):
            self.loads.append(given.get("src", ""))
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocstrings_handlers", reason="the docs extra is not installed")
    pytest.importorskip("latex2mathml", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {str(path.relative_to(site)): Page(path) for path in site.rglob("*.html")}


def public(module: ModuleType) -> list[str]:
    """The functions and classes of ``__all__``, or those that the module defines."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    # Of fastvae.training some are imported when they are asked for.
    found = [(name, vars(module).get(name)) for name in names]
    return [name for name, value in found if value is None or inspect.isclass(value) or inspect.isroutine(value)]


def test_every_public_name_is_in_the_reference(pages):
    ids = set().union(*(page.ids for name, page in pages.items() if name.startswith("reference/")))
    top = public(fastvae)
    names = [f"fastvae.{name}" for name in top]
    for module in MODULES:
        found = public(importlib.import_module(f"fastvae.{module}"))
        names += [f"fastvae.{module}.{name}" for name in found if name not in top]
    assert len(names) > 80
    assert not [name for name in names if name not in ids]


def test_nothing_is_loaded_from_a_network(site, pages):
    for name, page in pages.items():
        assert not [source for source in page.loads if re.match(r"(https?:)?//", source)], name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style


def test_formulas_are_drawn(pages):
    for name in ("mathematics", "how_it_works", "heads"):
        assert "math" in pages[f"{name}.html"].tags
    assert not [name for name, page in pages.items() if "merror" in page.tags]


def test_files_of_the_repository_are_pages(pages):
    assert {"index.html", "changelog.html", "contributing.html", "benchmarks.html"} <= set(pages)
    assert "source/examples/ring.py.html" in pages


def test_the_diagram_is_what_its_command_draws():
    diagram = runpy.run_path(str(ROOT / "docs" / "site" / "call_diagram.py"))
    assert diagram["PICTURE"].read_text() == diagram["drawn"]()
    for row in diagram["ROWS"]:
        for box in row:
            assert not box.file or (ROOT / box.file).exists(), box.file
