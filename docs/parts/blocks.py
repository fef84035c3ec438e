"""Fenced blocks and commands of the pages, for the tests that run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^(?P<ticks>```+)(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^(?P=ticks)\s*$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# ([\w./-]+\.(?:py|toml|json))\s*$")
SPAN = re.compile(r"`(meshwright [^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    """What stands behind the ticks: "python", "sh", "toml", "" …"""
    body: str
    line: int

    @property
    def file(self) -> str:
        """The name in a first line `# model.py`; "" if it has none."""
        found = FILE.match(self.body.partition("\n")[0])
        return found[1] if found else ""


def blocks(text: str) -> list[Block]:
    return [Block(m["kind"], m["body"], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def commands(block: Block) -> list[str]:
    """Lines of a block that a person types, continued ones joined, without the prompt and the comment behind."""
    found = []
    for line in re.sub(r"\s*\\\n\s*", " ", block.body).splitlines():
        words = re.sub(r"^\s*\$ ", "", line)
        words = re.split(r"\s#\s|\s{3,}", words.strip())[0]
        if words.startswith("meshwright "):
            found.append(words)
    return found


def all_commands(text: str) -> Iterator[tuple[str, int]]:
    """Every `meshwright …` of a page with its line, in blocks and in running text; captures stand for their first line."""
    for block in blocks(text):
        for command in commands(block):
            yield command, block.line
    prose = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    for found in SPAN.finditer(prose):
        yield found[1], prose.count("\n", 0, found.start()) + 1


def words(command: str) -> list[str]:
    """Without the program's name."""
    return shlex.split(command)[1:]
