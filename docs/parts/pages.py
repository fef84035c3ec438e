"""Where the pages are, and how a part of `make docs` writes one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "meshwright"


def pages() -> list[Path]:
    """Every page of Markdown that a reader may open."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def with_table(text: str, name: str, lines: Iterable[str]) -> str:
    """The page with what stands between `<!-- table: NAME -->` and `<!-- end -->` replaced."""
    block = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    body = "".join(f"{line}\n" for line in lines)
    return block.sub(lambda found: f"{found[1]}{body}{found[2]}", text)


def write(path: Path, text: str) -> None:
    """Writes what has changed and says so."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


def table(heads: Iterable[str], rows: Iterable[Iterable[object]], right: Iterable[int] = ()) -> list[str]:
    """Lines of a Markdown table; columns `right` hold figures."""
    names, ends = list(heads), set(right)
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join(" ---: " if k in ends else " --- " for k in range(len(names))) + "|",
    ]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


_SET = re.compile(r"^    \s*\S|\S {2,}\S")
"""An indented line, or one with columns."""


def prose(text: str) -> Iterator[str]:
    """A docstring as Markdown: lines that are indented or set in columns stay as they are set."""
    drawn: list[str] = []
    last = ""
    for line in [*text.splitlines(), "."]:
        if _SET.search(line) or (drawn and not line.strip()):
            drawn.append(line)
            continue
        if drawn:
            while not drawn[-1].strip():
                drawn.pop()
            yield from (
                *([""] if last.strip() else []),
                "```text",
                *textwrap.dedent("\n".join(drawn)).splitlines(),
                "```",
                "",
            )
            drawn = []
        last = line
        if line != ".":
            yield line.replace("<", "\\<").replace("*", "\\*")
