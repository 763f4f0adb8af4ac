"""The report of a run: one HTML file with everything in it, which opens offline and on a phone."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..files import whole_file

ROWS = 20

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
figure { margin: 1rem 0; }
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
    """Write the file, whole or not at all.

    Args:
        summary: a few numbers by name, shown large.
        pictures: PNG files with a caption each.
        history: a row an epoch; of many, about twenty are shown, the first, the best and the last among them.
        commands: what each is for, and the command.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="cards">{"".join(_card(name, value) for name, value in summary.items())}</div>',
        *(_figure(picture, caption) for picture, caption in pictures),
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


def _card(name: str, value: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"


def _figure(picture: Path, caption: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    words = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _history(history: Sequence[Mapping[str, float]]) -> str:
    if not history:
        return "<p>None is complete yet.</p>"
    names = list(dict.fromkeys(name for row in history for name in row))
    # Two places are kept for the first and the best.
    every = 1 if len(history) <= ROWS else -(-len(history) // (ROWS - 2))
    best = best_epoch(history)
    shown = [place for place in range(len(history)) if (len(history) - 1 - place) % every == 0 or place in (0, best)]
    rows = [tuple(_number(history[place].get(name)) for name in names) for place in shown]
    said = "" if best is None else "<p>Bold: the best on held-out data.</p>"
    return said + _table(names, rows, best=None if best is None else shown.index(best))


def best_epoch(history: Sequence[Mapping[str, float]]) -> int | None:
    """The row whose held-out ELBO is highest, of those that have one."""
    measured = [place for place, row in enumerate(history) if math.isfinite(row.get("val_elbo", math.nan))]
    return max(measured, key=lambda place: history[place]["val_elbo"], default=None)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    # A run that diverged has numbers that are none; they are said, not rounded.
    return f"{value:,.0f}" if math.isfinite(value) and value == round(value) else f"{value:,.2f}"


def _value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    top = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in head)
    body = "".join(_row(row, '<tr class="best">' if place == best else "<tr>") for place, row in enumerate(rows))
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], opened: str) -> str:
    return f"{opened}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
