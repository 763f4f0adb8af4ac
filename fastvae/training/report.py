"""The report of a run: one HTML file with its pictures inside, which opens offline and on a phone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..files import whole_file

__all__ = ["ROWS", "best_epoch", "bound_of", "write_report"]

ROWS = 20
_LARGEST_PNG = 100_000
"""In bytes: with six pictures a report stays well under 2 MB."""
_PAGE_WIDTH = 960
"""In pixels, as max-width of the style below."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --card: #8881; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 62rem; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.cards div { background: var(--card); border-radius: 0.5rem; padding: 0.5rem 0.8rem; }
.cards b { display: block; font-size: 1.1rem; }
.cards span, figcaption { opacity: 0.75; font-size: 0.9rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin-top: 1rem; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; background: white; border-radius: 0.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
.best td { font-weight: bold; }
th, td { padding: 0.2rem 0.7rem 0.2rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
code { display: block; background: var(--card); border-radius: 0.4rem; padding: 0.4rem 0.6rem; overflow-x: auto; }
"""


def write_report(
    path: Path,
    *,
    title: str,
    summary: Mapping[str, str],
    settings: Mapping[str, object],
    pictures: Sequence[tuple[Path, str]],
    history: Sequence[Mapping[str, float]],
    commands: Sequence[tuple[str, str]],
) -> None:
    """Write the file atomically.

    Args:
        summary: a few numbers by name, shown large.
        pictures: PNG files with a caption each; large ones are stored as JPEG.
        history: one row an epoch; about twenty are shown, including the first, the best and the last.
        commands: purpose and command line of each.
    """
    cards = [f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in summary.items()]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="cards">{"".join(cards)}</div>',
        f'<div class="figures">{"".join(_figure(picture, caption) for picture, caption in pictures)}</div>',
        "<h2>Epochs</h2>",
        _history(history),
        "<h2>Go on</h2>",
        *(f"<p>{escape(purpose)}</p><code>{escape(command)}</code>" for purpose, command in commands),
        "<h2>Settings</h2>",
        _table(("option", "value"), [(name, _value(value)) for name, value in settings.items()]),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    with whole_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _figure(picture: Path, caption: str) -> str:
    kind, data = _encoded(picture)
    words = escape(caption)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _encoded(picture: Path) -> tuple[str, bytes]:
    """The file itself if it is small, as of curves; else, as of photos, a JPEG of it at the width of the page."""
    data = picture.read_bytes()
    if len(data) <= _LARGEST_PNG:
        return "png", data
    from PIL import Image  # matplotlib, which wrote the file, requires it

    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
        if image.width > _PAGE_WIDTH:
            image = image.resize(
                (_PAGE_WIDTH, round(image.height * _PAGE_WIDTH / image.width)), Image.Resampling.LANCZOS
            )
        written = io.BytesIO()
        image.save(written, "JPEG", quality=85)
    smaller = written.getvalue()
    return ("jpeg", smaller) if len(smaller) < len(data) else ("png", data)


def _history(history: Sequence[Mapping[str, float]]) -> str:
    if not history:
        return "<p>None is complete yet.</p>"
    names = list(dict.fromkeys(name for row in history for name in row))
    # Two of the rows are for the first and the best epoch.
    every = 1 if len(history) <= ROWS else -(-len(history) // (ROWS - 2))
    best = best_epoch(history)
    shown = [place for place in range(len(history)) if (len(history) - 1 - place) % every == 0 or place in (0, best)]
    columns = [_numbers([history[place].get(name) for place in shown]) for name in names]
    rows = list(zip(*columns, strict=True))
    said = "" if best is None else "<p>Bold: the best on held-out data.</p>"
    return said + _table(names, rows, best=None if best is None else shown.index(best))


def best_epoch(history: Sequence[Mapping[str, float]]) -> int | None:
    """The row with the highest held-out bound, by which best.ckpt is chosen too; None if none was measured."""
    name = bound_of(history)
    measured = [place for place, row in enumerate(history) if math.isfinite(row.get(name, math.nan))]
    return max(measured, key=lambda place: history[place][name], default=None)


def bound_of(history: Sequence[Mapping[str, float]]) -> str:
    """The name of the held-out bound that was trained on: "val_iwae" where there is one, else "val_elbo"."""
    return "val_iwae" if any("val_iwae" in row for row in history) else "val_elbo"


def _numbers(values: Sequence[float | None]) -> list[str]:
    """Of one column: whole numbers without decimals if all are whole."""
    # NaN and infinity, of a run that diverged, are printed as such.
    whole = all(value == round(value) for value in values if value is not None and math.isfinite(value))
    return ["" if value is None else f"{value:,.0f}" if whole else f"{value:,.2f}" for value in values]


def _value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    top = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in head)
    body = "".join(_row(row, '<tr class="best">' if place == best else "<tr>") for place, row in enumerate(rows))
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], opened: str) -> str:
    return f"{opened}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
