"""What `make docs` does beyond mkdocs: files of the repository as pages, formulas as MathML, names as links.

Pages link to files as they lie in the repository, so that the links work on GitHub, too. A file outside docs/ that a
page links to becomes part of the site: README.md is its first page, other Markdown is a page, pictures are copied, and
source files are shown.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from html import unescape
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

import fastvae

ROOT = Path(__file__).parents[2]
PAGES = {  # in the repository -> in the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "bench/results/results.md": "benchmarks.md",
}
PICTURES = (".png", ".svg")
# Short names that are no words -> names in the reference.
PUBLIC = {
    name: f"{module.__name__}.{name}"
    for module in (fastvae.integrations, fastvae.training, fastvae.nn, fastvae.likelihoods, fastvae)
    for name in module.__all__
    if "_" in name or name != name.lower()
}
LINK = re.compile(r"(?P<before>\]\()(?P<to>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^( *)(```+).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
CODE = re.compile(r"<a\b.*?</a>|<h\d.*?</h\d>|<pre.*?</pre>|<code>(?P<name>[A-Za-z_][\w.]*)</code>", re.DOTALL)


def on_startup(**_: Any) -> None:
    """The package as it gets installed, with kernels/ inside fastvae/, where mkdocstrings looks for it."""
    shutil.rmtree(ROOT / "build/api", ignore_errors=True)
    for folder, inside in (("fastvae", "fastvae"), ("kernels", "fastvae/kernels")):
        shutil.copytree(
            ROOT / folder, ROOT / "build/api" / inside, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )


def page_of(path: str) -> str:
    """Where the site has a file of the repository; both paths are relative to their roots."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(PICTURES) else f"source/{path}.md"


def targets(path: str, text: str) -> list[str]:
    """The files outside docs/ that a file of the repository links to."""
    found = [posixpath.normpath(PurePosixPath(path).parent / link["to"]) for link in LINK.finditer(FENCE.sub("", text))]
    return [to for to in found if not to.startswith("docs/") and (ROOT / to).is_file()]


def on_files(files: Any, config: Any) -> Any:
    waiting = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    done = set()
    while waiting:
        path = waiting.pop()
        if path in done or not (ROOT / path).is_file():
            continue
        done.add(path)
        if path.endswith(PICTURES):
            content: str | bytes = (ROOT / path).read_bytes()
        else:
            content = (ROOT / path).read_text()
            if path.endswith(".md"):
                waiting += targets(path, content)
                if path == "bench/results/results.md":  # its tables would be most of what a search for an op finds
                    content = f"---\nsearch: {{exclude: true}}\n---\n\n{content}"
            else:
                kind = PurePosixPath(path).suffix[1:] or "text"
                content = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n``````{kind}\n{content}\n``````\n"
        if not path.startswith("docs/"):
            file = File.generated(config, page_of(path), content=content)
            file.repository_path = path
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository lead to their pages."""
    path = getattr(page.file, "repository_path", f"docs/{page.file.src_uri}")
    here = PurePosixPath(page_of(path)).parent

    def moved(link: re.Match) -> str:
        to = posixpath.normpath(PurePosixPath(path).parent / link["to"])
        known = (ROOT / to).is_file() or to in PAGES
        place = posixpath.relpath(page_of(to), here) if known else link["to"]
        return f"{link['before']}{place}{link['anchor'] or ''}"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(moved, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(moved, markdown[end:])])


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves; names of functions and classes as links."""
    html = FORMULA.sub(lambda found: _mathml(found[3], "inline" if found[2] == "(" else "block"), html)
    return CODE.sub(_reference, html)


def _mathml(latex: str, display: str) -> str:
    # latex2mathml knows align* alone, GitHub aligned alone.
    formula = convert(unescape(latex.strip()).replace("{aligned}", "{align*}"), display=display)
    formula = formula.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # a relation, with space around it
    formula = re.sub(r"(<mi>(?:log|max)</mi>)(?!<mo)", r'\1<mspace width="0.17em"/>', formula)
    return formula if display == "inline" else f'<div class="formula">{formula}</div>'


def _reference(code: re.Match) -> str:
    name = code["name"]
    full = name if name is None or name.startswith("fastvae.") else PUBLIC.get(name)
    return code[0] if full is None else f'<autoref identifier="{full}" optional><code>{name}</code></autoref>'
