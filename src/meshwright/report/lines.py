"""Lines of terminal text: what a style means, columns, wrapping, and what to write where there is no UTF-8."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["", "title", "chosen", "refused", "good", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    style: Style = ""


_PLAIN = str.maketrans(
    {
        "▶": ">", "✗": "x", "✓": "+", "×": "x", "–": "-", "·": "-", "µ": "u", "…": "...", "━": "-", "╸": "-", "∂": "d",
        "█": "#", "▉": "#", "▊": "#", "▋": "#", "▌": "#", "▍": ".", "▎": ".", "▏": ".", "░": ".", "│": "|", "Δ": "D",
        "≥": ">=", "≤": "<=", "→": "->", "’": "'", "“": '"', "”": '"',
    }
)  # fmt: skip


def plain(text: str) -> str:
    """The same text for an output that is not UTF-8."""
    return text.translate(_PLAIN)


def encodable(text: str, encoding: str) -> str:
    """`text` as `encoding` can show it: signs are replaced where it cannot."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return plain(text).encode("ascii", "replace").decode("ascii")
    return text


def bar(share: float, cells: int = 10) -> str:
    """A bar of `cells` cells in eighths; above 1 it ends in an arrow.

    >>> bar(0.5, 4), bar(0.3, 4), bar(1.2, 4)
    ('██░░', '█▏░░', '███▶')
    """
    if share > 1:
        return "█" * (cells - 1) + "▶"
    eighths = round(max(0.0, share) * cells * 8)
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return text + "░" * (cells - len(text))


def columns(rows: Sequence[Sequence[str]], right: Iterable[int], gap: int = 2) -> list[str]:
    """Rows of equal length set in columns; those in `right` are set to the right."""
    right = set(right)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def labelled(label: str, paragraphs: Sequence[str], width: int, indent: int = 9) -> list[str]:
    """ "Why      first words …" with the following lines set under the text."""
    lines: list[str] = []
    for k, paragraph in enumerate(paragraphs):
        head = label.ljust(indent) if k == 0 else " " * indent
        lines += textwrap.wrap(
            paragraph, max(40, width), initial_indent=head, subsequent_indent=" " * indent, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip
    return lines


def listed(head: str, items: Sequence[str], width: int) -> list[str]:
    """ "Wrote    folder/   a · b", broken between items, the following ones set under the first."""
    lines = [head + (items[0] if items else "")]
    for item in items[1:]:
        if len(lines[-1]) + 3 + len(item) <= width:
            lines[-1] += f" · {item}"
        else:
            lines.append(" " * min(len(head), width // 2) + item)
    return lines


def sums(label: str, total: str, parts: Sequence[str], tail: str, width: int, indent: int = 9) -> list[str]:
    """ "Step     15.6 s = compute 14.1 + …": broken before a plus sign, `tail` after three blanks if it still fits."""
    head = label.ljust(indent) + f"{total} = "
    under = " " * (indent + len(total) + 1)
    lines = [head + (parts[0] if parts else "")]
    for part in parts[1:]:
        if len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" + {part}"
        else:
            lines.append(f"{under}+ {part}")
    if tail:
        if len(lines[-1]) + 8 + len(tail) <= width:
            lines[-1] += " " * 8 + tail
        else:
            lines += labelled("", [tail], width, indent)
    return lines
