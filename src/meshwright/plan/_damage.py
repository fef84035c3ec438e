"""Where in a JSON text a parser stopped: the top-level key and the position in its list."""

from __future__ import annotations


def place(text: str, key: str, item: str) -> str:
    """In words, where the end of `text` lies: "inside stage 3" in the list `key` = "stages" of an object.

    Args:
        text: the part of the file before the damage.
        key: a top-level list whose items have a name.
        item: that name, singular.
    """
    depth, index, found, word, start = 0, 0, "", "", -1
    for at, char in enumerate(text):
        if start >= 0:
            if char == '"' and not _escaped(text, at):
                word, start = text[start:at], -1
        elif char == '"':
            start = at + 1
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == ":" and depth == 1:
            found, index = word, 0
        elif char == "," and depth == 1:
            found = ""
        elif char == "," and depth == 2:
            index += 1
    if not found or depth < 1:
        return "at its end" if text.strip() else "at its start"
    return f"inside {item} {index}" if found == key and depth >= 2 else f'inside "{found}"'


def _escaped(text: str, at: int) -> bool:
    slashes = 0
    while text[at - 1 - slashes] == "\\":
        slashes += 1
    return slashes % 2 == 1
