"""PTX text to instructions: one entry function, its parameters, registers, labels, and operands as small tuples.

Not for the rest of the language: no functions, no calls, no initialised variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class PtxError(Exception):
    """What the interpreter refuses: an instruction it does not know, or one that does what no program should."""


class Register(NamedTuple):
    name: str
    negated: bool = False  # predicates only


class Immediate(NamedTuple):
    value: int  # of any width; the bits of a 0f or 0d constant


class Float(NamedTuple):
    value: float  # a decimal constant


class Special(NamedTuple):
    name: str


class Symbol(NamedTuple):
    name: str


class Address(NamedTuple):
    base: Register | Symbol | Immediate
    offset: int


class Vector(NamedTuple):
    items: tuple[Operand, ...]


class Pair(NamedTuple):  # two destinations, d|p
    first: Operand
    second: Operand


# None stands for _, a destination that drops what is written to it.
Operand = Register | Immediate | Float | Special | Symbol | Address | Vector | Pair | None


class Instruction(NamedTuple):
    guard: Register | None
    opcode: str
    operands: tuple[Operand, ...]
    line: int
    text: str


class Kernel(NamedTuple):
    name: str
    parameters: dict[str, str]  # name to type, in order
    registers: dict[str, str]  # name to type
    shared: dict[str, int]  # statically allocated or extern (0) shared arrays: name to bytes
    instructions: list[Instruction]
    labels: dict[str, int]  # to the index of the next instruction


_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.[xyz]$|%(laneid|warpid)$")
_STATEMENT = re.compile(r"\s*(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*((?:[+-]\s*)*\w+)?\s*\]$")


def parse(text: str) -> Kernel:
    """The only entry function of a PTX module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^[ \t]*\.(?:loc|file)\b[^\n]*", _blank, text, flags=re.DOTALL | re.MULTILINE)
    entries = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text))
    if len(entries) != 1:
        raise PtxError(f"expected one .entry, found {len(entries)}")
    entry = entries[0]
    parameters = {}
    for declaration in filter(str.strip, entry[2].split(",")):
        words = declaration.split()
        parameters[words[-1]] = words[1].lstrip(".")
    shared = {
        name: int(size or 0)
        for name, size in re.findall(r"\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d*)\]", text)
    }
    kernel = Kernel(entry[1], parameters, {}, shared, [], {})
    for position, statement, scopes in _statements(text, entry.end()):
        _add(kernel, statement, scopes, text.count("\n", 0, position) + 1)
    return kernel


def _blank(match: re.Match[str]) -> str:
    """As many lines as before, so that errors can name them."""
    return "\n" * match[0].count("\n")


def _statements(text: str, position: int) -> Iterator[tuple[int, str, list[dict[str, str]]]]:
    """Position, text and open scopes of every statement and label of the body that starts at ``position``.

    A scope maps the registers declared in it to names that no other scope has.
    """
    scopes: list[dict[str, str]] = [{}]
    while scopes:
        while text[position].isspace() or text[position] == ";":
            position += 1
        label = re.compile(r"([\w$]+):(?!:)").match(text, position)
        if text[position] == "{":
            scopes.append({})
            position += 1
        elif text[position] == "}":
            scopes.pop()
            position += 1
        elif label:
            yield position, label[0], scopes
            position = label.end()
        else:
            end = text.index(";", position)
            yield position, " ".join(text[position:end].split()), scopes
            position = end


def _add(kernel: Kernel, statement: str, scopes: list[dict[str, str]], line: int) -> None:
    if statement.endswith(":"):
        kernel.labels[statement[:-1]] = len(kernel.instructions)
    elif statement.startswith(".reg"):
        _declare(kernel, statement, scopes, line)
    elif statement.startswith(".shared"):
        pass  # found by `parse`
    elif statement.startswith("."):
        if not statement.startswith(".pragma"):
            raise PtxError(f"line {line}: unknown directive: {statement}")
    else:
        match = _STATEMENT.match(statement)
        if match is None:
            raise PtxError(f"line {line}: not an instruction: {statement}")
        bang, predicate, opcode, rest = match.groups()
        guard = _operand(predicate, kernel, scopes, line)._replace(negated=bang == "!") if predicate else None
        operands = tuple(_operand(part, kernel, scopes, line) for part in _split(rest))
        kernel.instructions.append(Instruction(guard, opcode, operands, line, statement))


def _declare(kernel: Kernel, statement: str, scopes: list[dict[str, str]], line: int) -> None:
    match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement)
    if match is None:
        raise PtxError(f"line {line}: {statement}")
    for part in match[2].split(","):
        name, _, count = part.strip().partition("<")
        names = [f"{name}{i}" for i in range(int(count.rstrip("> ")))] if count else [name]
        for one in names:
            unique = one if len(scopes) == 1 else f"{one} #{len(kernel.registers)}"
            scopes[-1][one] = unique
            kernel.registers[unique] = match[1]


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str, kernel: Kernel, scopes: list[dict[str, str]], line: int) -> Operand:
    def inner(part: str) -> Operand:
        return _operand(part.strip(), kernel, scopes, line)

    if text == "_":
        return None
    if text.startswith("{"):
        return Vector(tuple(inner(part) for part in _split(text[1:-1])))
    if match := _ADDRESS.match(text):
        return Address(inner(match[1]), _integer((match[2] or "0").replace(" ", "").replace("+-", "-")))
    if "|" in text:
        return Pair(*(inner(part) for part in text.split("|")))
    if text.startswith("!"):
        return inner(text[1:])._replace(negated=True)
    for scope in reversed(scopes):
        if text in scope:
            return Register(scope[text])
    if _SPECIAL.match(text):
        return Special(text)
    if text == "WARP_SZ":
        return Immediate(32)
    if re.match(r"0[fFdD][0-9a-fA-F]{8,16}$", text):
        return Immediate(int(text[2:], 16))
    if re.match(r"[+-]?\d+\.\d*(e[+-]?\d+)?$", text):
        return Float(float(text))
    if re.match(r"[+-]?\d", text):
        return Immediate(_integer(text))
    if text.startswith("%"):
        raise PtxError(f"line {line}: {text} is not declared")
    return Symbol(text)


def _integer(text: str) -> int:
    """A PTX integer constant; as in C, a leading 0 makes it octal."""
    text = text.rstrip("U")
    digits = text.lstrip("+-")
    value = int(digits, 8) if re.match(r"0\d", digits) else int(digits, 0)
    return -value if text.startswith("-") else value
