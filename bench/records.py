"""results.json: what the commands measured, for `bench report` and `bench compare`; and what the commands share.

A section for each command, with the machine that it ran on and its rows: {"cpu": {"machine": {...}, "columns": [...],
"rows": [[...], ...]}, ...}. The rows of "cpu" and "likelihoods" are `Timing`s, one for each direction and contender.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastvae.files import whole_file

from .cases import Case, parse_shape
from .machine import describe_machine

FILE = "results.json"

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Any], str]]
"""A table: the heading of each column, and its text for a row."""


class Timing(NamedTuple):
    """A contender in one direction of a case."""

    case: Case
    direction: str
    contender: str
    seconds: float  # of one call, the median over rounds
    rounds: int
    speed_against_eager: float
    """How many times as fast as plain PyTorch: the median over rounds of the ratio within the round."""
    other_load: float | None  # share of the processors' time that other processes took meanwhile
    saved_bytes: int | None = None  # kept for backward beyond the inputs; of forward and backward together
    peak_bytes: int | None = None  # peak memory of forward and backward, where it was measured

    def row(self) -> Row:
        case = self.case._asdict() | {"shape": self.case.shape_name}
        return case | {name: value for name, value in self._asdict().items() if name != "case"}


def timings(section: Row) -> list[Timing]:
    """The rows of "cpu" or "likelihoods"."""
    names = Timing._fields[1:]
    return [
        Timing(
            Case(row["op"], parse_shape(row["shape"]), row["dtype"], row.get("zeros")),
            *(row.get(name) for name in names),
        )
        for row in section["rows"]
    ]


def command_line(command: str, doc: str | None, *, results: bool = True) -> argparse.ArgumentParser:
    """The parser of a command, with --results if its rows can be saved."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {command}", description=(doc or "").splitlines()[0])
    if results:
        parser.add_argument(
            "--results", type=Path, help=f"folder of the {FILE} to write to; nothing is written without"
        )
    return parser


def positive_numbers(text: str) -> tuple[int, ...]:
    """(1, 20) of a command line's "1,20"."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected positive numbers, separated by commas")
    return tuple(numbers)


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A reader of a command line's names, separated by commas, which must be known."""

    def names(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(map(repr, unknown))}, expected some of {', '.join(known)}")
        return text.split(",")

    return names


def named(
    command: str, doc: str | None, what: str, known: Iterable[str], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options of a command for ``names``, all that are known if none is given; only these can be saved."""
    parser = command_line(command, doc)
    parser.add_argument("names", nargs="*", metavar=what, type=some_of(known), help=f"of {', '.join(known)}; or all")
    options = parser.parse_args(arguments)
    if options.names and options.results is not None:
        parser.error(f"--results is for all of {command}, expected no {what} with it")
    options.names = [name for names in options.names for name in names] or list(known)
    return options


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def show(rows: Iterable[Any], columns: Columns) -> list[Any]:
    """The rows, each printed as a line of a table when it comes."""
    print(markdown(columns, []))
    kept = []
    for row in rows:
        kept.append(row)
        print("| " + " | ".join(text(row) for text in columns.values()) + " |", flush=True)
    return kept


def load(path: Path) -> dict[str, dict[str, Any]]:
    """The sections, with each row as a dict; raises ValueError where ``path`` is no such file."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return {
            name: section | {"rows": [dict(zip(section["columns"], row, strict=True)) for row in section["rows"]]}
            for name, section in json.loads(path.read_text()).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: expected JSON that `python -m bench cpu --results` wrote") from None


def save(folder: Path | None, section: str, rows: Iterable[Row], machine: Row | None = None) -> None:
    """Replace a section of the folder's file, and say so; nothing if ``folder`` is None.

    ``machine``: what the rows were measured on, the CPU if None.
    """
    if folder is None:
        return
    path = folder / FILE
    sections = load(path) if path.exists() else {}
    sections[section] = {"machine": machine or describe_machine(torch.device("cpu")), "rows": list(rows)}
    write(path, dump(sections), f"{section} to {path}")


def write(path: Path, text: str, what: str | None = None) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text)
    print(f"wrote {what or path}")


def dump(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each row, numbers in five digits."""
    texts = []
    for name, section in sections.items():
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        rows = ",\n".join(json.dumps([_short(row.get(column)) for column in columns]) for row in section["rows"])
        head = f'"{name}": {{"machine": {json.dumps(section["machine"])},\n"columns": {json.dumps(columns)}'
        texts.append(f'{head},\n"rows": [\n{rows}\n]}}')
    return "{\n" + ",\n".join(texts) + "\n}\n"


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(entry) for key, entry in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
