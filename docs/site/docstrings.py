"""How docstrings are read for the reference."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import textwrap
from typing import Any

import griffe


class Keywords(griffe.Extension):
    """``**options: Unpack[...]`` is replaced by the keywords, their types and their defaults."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        packed = [parameter for parameter in func.parameters if "Unpack[" in str(parameter.annotation)]
        if not packed:
            return
        module = importlib.import_module(func.module.path)
        shown = inspect.signature(
            functools.reduce(getattr, func.path.split(".")[len(module.__name__.split(".")) :], module)
        )
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in shown.parameters.values()):
            return
        del func.parameters[packed[0].name]
        for name, parameter in shown.parameters.items():
            if name not in func.parameters:
                func.parameters.add(
                    griffe.Parameter(
                        name,
                        annotation=_words(parameter.annotation),
                        kind=griffe.ParameterKind.keyword_only,
                        default=repr(parameter.default),
                    )
                )


def _words(annotation: Any) -> str:
    return re.sub(r"\b(typing|collections\.abc|torch)\.", "", inspect.formatannotation(annotation))


DOCTEST = re.compile(r"(?:^>>> .*(?:\n(?=\S).*)*\n?)+", re.MULTILINE)
ERRORS = re.compile(r"^( +\w+Error), (\w+Error): ", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n((?:    .*\n?|\n)+)", re.MULTILINE)


TABLE = re.compile(r"(?:^    .*\n?)+", re.MULTILINE)
NAMED = re.compile(r"    (\S.*?)  +(?=\S)")


def _as_list(block: re.Match) -> str:
    """An indented table of names and what they are, in two columns, as a list; other blocks as they are."""
    lines = block[0].rstrip("\n").split("\n")
    first = NAMED.match(lines[0])
    if first is None or len(lines) < 3:
        return block[0]
    column, items = first.end(), []
    for line in lines:
        name, about = line[4:column].strip(), line[column:].strip()
        if line[column - 2 : column].strip() or not about:
            return block[0]
        if name:
            items.append(f"- `{name}`: {about}")
        else:
            items.append(f"  {about}")
    return "\n".join(items) + "\n"


def _as_paragraph(block: re.Match) -> str:
    """What is returned, in words: the type is in the signature, and text up to a colon would be taken for one."""
    return f"**Returns:** {textwrap.dedent(block[1])}"


class Text(griffe.Extension):
    """Doctests are code, wherever in a docstring they are; tables are lists; one of two errors is a type."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ERRORS.sub(r"\1 | \2: ", inspect.cleandoc(obj.docstring.value))
            text = RETURNS.sub(_as_paragraph, text)
            text = DOCTEST.sub(r"```pycon\n\g<0>\n```\n", text)
            obj.docstring.value = TABLE.sub(_as_list, text)
