"""Words of a command in a shell script, as far as launch scripts go: quotes, continued lines, comments, variables, arrays.

Nothing is run. NAME=value, NAME=(…), export, $NAME, ${NAME}, ${NAME:-default}, "${NAME[@]}" and $((…)) are followed; a variable that
the script does not set stays as it is written.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from .._parsed import parsed_python

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SET = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)\+?=")
_VARIABLE = re.compile(
    r"\$\(\((?P<sum>[^()]*(?:\([^()]*\)[^()]*)*)\)\)"
    r"|\$\{(?P<braced>[A-Za-z_0-9]+)(?P<all>\[[@*]\])?(?::?[-=](?P<default>[^}]*))?\}"
    r"|\$(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
)
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_BEFORE = ("export", "local", "declare", "readonly", "then", "else", "do")
"""Words before a command or an assignment."""
_HIDDEN = "\0"
"""In place of a dollar that quotes keep from being a variable."""


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    line: int
    quoted: bool = False
    """Blanks that a variable brings do not divide it."""
    ends: bool = False
    """The end of a command, or a bracket: no word."""


def script(text: str, line: int = 1) -> tuple[list[list[Word]], dict[str, list[Word]]]:
    """The words of each command, variables replaced; and what each variable holds at the end.

    Args:
        line: number of the first line.
    """
    values: dict[str, list[Word]] = {}
    found: list[list[Word]] = []
    here: list[Word] = []
    words = list(_words(text, line))
    k = 0
    while k < len(words):
        word = words[k]
        if word.ends:
            if here:
                found.append(here)
            here = []
        elif not here and _SET.match(word.text):
            name, _, value = word.text.partition("=")
            more = name.endswith("+")
            name = name.rstrip("+")
            if not value and k + 1 < len(words) and words[k + 1].text == "(" and words[k + 1].ends:
                stop = next((j for j in range(k + 2, len(words)) if words[j].ends and words[j].text == ")"), len(words))
                brought = [w for j in range(k + 2, stop) if not words[j].ends for w in _expanded(words[j], values)]
                k = stop
            else:
                whole = _text(replace(word, text=value), values)
                brought = [Word(whole, word.line)]
            values[name] = [*values.get(name, []), *brought] if more else brought
        elif not here and word.text in _BEFORE and not word.quoted:
            pass
        else:
            here += _expanded(word, values)
        k += 1
    return [*found, here] if here else found, values


def launched(said: list[list[Word]], variables: Mapping[str, list[Word]]) -> list[Word]:
    """Words behind the Python file that a script runs; if it runs none, all its words, else all that its variables hold."""
    commands = [c[at:] for c in said if (at := _script(c)) is not None]
    if commands:
        return max(commands, key=len)
    inner = [w for c in said for w in c if ".py " in w.text and " --" in w.text]
    if inner:  # a command in quotes: bash -c "…"
        whole = inner[0].text
        found = launched(script(whole, inner[0].line)[0], {})
        if any(w.text.startswith("--") for w in found):
            return found
        return launched(script(whole.replace("\n", "\\\n"), inner[0].line)[0], {})  # its lines were continued
    words = [w for c in said for w in c]
    return words if any(w.text.startswith("--") for w in words) else [w for held in variables.values() for w in held]


def _script(command: list[Word]) -> int | None:
    """Behind the Python file that a command runs."""
    at = next((k for k, w in enumerate(command) if w.text.endswith(".py")), None)
    return None if at is None else at + 1


def taken_apart(words: Iterable[Word]) -> Iterator[Word]:
    """Words; an option that stands in one word with its values is taken apart."""
    for word in words:
        if word.text.startswith("--") and " " in word.text.strip():
            yield from (Word(part.strip("'\""), word.line) for part in word.text.split())
        elif word.text.startswith("--") and "=" in word.text:
            option, _, value = word.text.partition("=")
            yield from (Word(option, word.line), Word(value, word.line, True))
        else:
            yield word


def _words(text: str, line: int) -> Iterator[Word]:
    """Words, and ends of commands, in order; quotes are gone, dollars that they hide are `_HIDDEN`."""
    at, n = 0, len(text)
    current, begun, quoted, depth = "", 0, False, 0
    while at < n:
        c = text[at]
        if c == "\\" and at + 1 < n:
            if text[at + 1] == "\n":
                line += 1
            else:
                begun = begun or line
                current += text[at + 1].replace("$", _HIDDEN)
            at += 2
            continue
        if c in "'\"":
            stop = at + 1
            while stop < n and text[stop] != c:
                stop += 2 if c == '"' and text[stop] == "\\" else 1
            inside = text[at + 1 : stop]
            begun = begun or line
            current += inside.replace("$", _HIDDEN) if c == "'" else inside.replace("\\\n", "\n").replace("\\", "")
            quoted = True
            line += inside.count("\n")
            at = stop + 1
            continue
        if text.startswith(("$((", "${", "$("), at):
            stop = _closing(text, at)
            begun = begun or line
            current += text[at:stop]
            line += text.count("\n", at, stop)
            at = stop
            continue
        special = c in ";|&()" or c == "\n"
        if special or c in " \t" or (c == "#" and not begun):
            if begun:
                yield Word(current, begun, quoted)
                current, begun, quoted = "", 0, False
            if c == "#":
                at = text.find("\n", at) if "\n" in text[at:] else n
                continue
            if c == "(":
                depth += 1
            if c == ")":
                depth -= 1
            if special and (c != "\n" or depth <= 0):
                yield Word(c, line, ends=True)
            line += c == "\n"
            at += 1
            continue
        begun = begun or line
        current += c
        at += 1
    if begun:
        yield Word(current, begun, quoted)


def _closing(text: str, at: int) -> int:
    """Behind the bracket that closes the one after the dollar at `at`."""
    pairs, depth = {"(": ")", "{": "}"}, 0
    opened = text[at + 1]
    for k in range(at + 1, len(text)):
        depth += (text[k] == opened) - (text[k] == pairs[opened])
        if depth == 0:
            return k + 1
    return len(text)


def _expanded(word: Word, values: dict[str, list[Word]]) -> list[Word]:
    """What a word becomes: several where a variable brings several."""
    whole = _VARIABLE.fullmatch(word.text)
    if whole and (whole["braced"] or whole["plain"]):
        brought = values.get(whole["braced"] or whole["plain"])
        if brought is not None and (whole["all"] or not word.quoted):
            return [part for w in brought for part in ([w] if whole["all"] and word.quoted else _split(w))]
        if brought is None and whole["all"]:
            return []
    text = _text(word, values)
    if not word.quoted and text != word.text.replace(_HIDDEN, "$"):
        return _split(Word(text, word.line))
    return [Word(text, word.line, word.quoted)]


def _split(word: Word) -> list[Word]:
    return [
        Word(found[0], word.line + word.text.count("\n", 0, found.start())) for found in re.finditer(r"\S+", word.text)
    ]


def _text(word: Word, values: dict[str, list[Word]]) -> str:
    def value(found: re.Match[str]) -> str:
        if found["sum"] is not None:
            inner = _VARIABLE.sub(value, found["sum"])
            inner = _NAME.sub(lambda m: " ".join(w.text for w in values.get(m[0], [])) or m[0], inner)
            result = _calculated(inner)
            return found[0] if result is None else str(result)
        brought = values.get(found["braced"] or found["plain"])
        if brought is not None:
            return " ".join(w.text for w in brought)
        if found["default"] is not None:
            return _VARIABLE.sub(value, found["default"])
        return found[0]

    return _VARIABLE.sub(value, word.text).replace(_HIDDEN, "$")


def _calculated(text: str) -> int | None:
    """A sum of whole numbers; None if it is not one."""

    def of(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            found = int(_OPERATORS[type(node.op)](of(node.left), of(node.right)))
            if abs(found) < 1 << 63:  # what a shell reckons with
                return found
        raise ValueError

    try:
        (statement,) = parsed_python(text.strip()).body
        return of(statement.value) if isinstance(statement, ast.Expr) else None
    except (ValueError, SyntaxError, ZeroDivisionError):
        return None
