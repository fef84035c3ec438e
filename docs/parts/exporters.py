"""Part of `make docs`: docs/exporters/*.md, a page for each target of `meshwright export`, and the table of all levels.

Levels are computed: every row of `export.rows` is a small plan, and the target itself says what it makes of it. The options are those
that the target writes for these plans.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from meshwright.export import registry
from meshwright.export.base import Exporter
from meshwright.export.outcome import Exported, answer
from meshwright.export.rows import ROWS, setup_of_row
from meshwright.export.said import WORDS

from .pages import DOCS, ROOT, prose, table, with_table, write

FOLDER = DOCS / "exporters"
EXAMPLE = "tensor + sequence + ZeRO 1"
"""The row whose files a page shows, where the target writes it; else the first that it does."""
VALUES = 4
"""Values of an option that a page shows."""
LONGEST = 60
"""Lines of a file that a page shows whole."""


@cache
def answers(name: str) -> Mapping[str, Exported]:
    """Row -> what the target makes of it."""
    exporter = registry.load(name)
    return {row.words: answer(exporter, setup_of_row(row, exporter.least_again)) for row in ROWS}


def page(name: str) -> str:
    """The page of one target."""
    exporter = registry.load(name)
    found = answers(name)
    file = Path(inspect.getfile(type(exporter))).resolve().relative_to(ROOT).as_posix()
    lines = [
        f"# {exporter.title}", "",
        f"`meshwright export PLAN --to {name}` writes its settings, `meshwright simulate MODEL --from FILE` reads {exporter.takes}. "
        f"Known versions: {', '.join(exporter.versions)} (the first unless `--to {name}@VERSION`). Facts from {exporter.source.rstrip('.')}. Source: [`{file}`](../../{file}).", "",
        *prose(inspect.cleandoc(inspect.getmodule(type(exporter)).__doc__ or "")), "",
        f"Not in a plan, for you to say: {exporter.left_out}. Ranks are counted along {', '.join(exporter.order)}, outer first; "
        "a plan with another order of devices is refused, or gets a rank file where the target reads one.", "",
        "## What it says of a plan", "",
        "*exact*: same placement, order and communication; *close*: same maths and memory, other communication, priced again as the "
        "target runs it; *refused*: it cannot say that (`--allow-lossy` writes the nearest)." + _least(exporter), "",
        *table(("a plan with", "level", "why"), [(row, e.level, _sentences(e)) for row, e in found.items()]), "",
        "## Options", "",
        *table(("word of the plan", "options that it becomes"), list(_options(found))), "",
        "## Conditions", "",
        f"{exporter.called} needs, and the sentence names the figures where one does not hold:", "",
        *(f"- {c.name}" for c in exporter.conditions()), "",
        "## An example", "",
        *_example(exporter, found),
        "[All exporters](README.md)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _least(exporter: Exporter) -> str:
    if exporter.least_again == "none":
        return ""
    return f" {exporter.title} cannot recompute nothing: these plans recompute {exporter.least_again}, where they do not say otherwise."


def _sentences(found: Exported) -> str:
    return "; ".join(found.sentences).replace("<", "\\<").replace("*", "\\*") if found.level != "exact" else ""


def _options(found: Mapping[str, Exported]) -> Iterator[tuple[str, str]]:
    """Per word every option that any row made of it, with a value, and whose default says it where there is none."""
    for word in WORDS:
        seen: dict[str, dict[str, None]] = {}
        why: dict[str, None] = {}
        for e in found.values():
            for said in e.said:
                if said.word == word:
                    for option, value in said.options.items():
                        seen.setdefault(option, {})[f"`{_short(value)}`"] = None
                    if not said.options and said.level == "exact" and said.why:
                        why[said.why] = None
        cells = [f"`{option}`: {', '.join(list(values)[:VALUES])}" for option, values in seen.items()]
        words = "; ".join(list(why)[:2]).replace("<", "\\<").replace("*", "\\*")
        yield f"`{word}`", "; ".join(cells) + (("; else " if cells else "") + words if words else "") or "–"


def _short(value: object) -> str:
    text = str(value).replace("\n", " ").replace("`", "'")
    return text if len(text) <= 40 else text[:39] + "…"


def _example(exporter: Exporter, found: Mapping[str, Exported]) -> Iterator[str]:
    written = [row for row, e in found.items() if e.files]
    if not written:
        return
    row = EXAMPLE if EXAMPLE in written else written[0]
    yield f"A plan with {row} of a small model on 16 devices ({found[row].level}):"
    for name, text in found[row].files.items():
        body = text.rstrip().splitlines()
        kind = {"py": "python", "sh": "sh", "yaml": "yaml", "yml": "yaml", "json": "json", "csv": "text"}.get(
            name.rpartition(".")[2], "text"
        )
        yield from ("", f"`{name}`", "", f"```{kind}", *body[:LONGEST], *(["…"] if len(body) > LONGEST else []), "```")
    yield ""


def overview() -> list[str]:
    """All levels: a row a thing that plans say, a column a target."""
    names = registry.names()
    heads = ("a plan with", *(f"[{registry.kind(n).title}]({n}.md)" for n in names))
    return table(heads, [(row.words, *(answers(n)[row.words].level for n in names)) for row in ROWS])


def brief() -> list[str]:
    """Rows of the README."""
    rows = []
    for name in registry.names():
        kind = registry.kind(name)
        counts = [sum(e.level == level for e in answers(name).values()) for level in ("exact", "close", "refused")]
        rows.append(
            (
                f"[{kind.title}](docs/exporters/{name}.md)",
                f"`--to {name}`",
                kind.takes,
                ", ".join(kind.versions),
                *counts,
            )
        )
    return table(("trainer", "", "reads", "versions", "exact", "close", "refused"), rows, (4, 5, 6))


def rebuilt() -> dict[Path, str]:
    """Every file of this part with its text."""
    index, readme = FOLDER / "README.md", ROOT / "README.md"
    return {
        index: with_table(index.read_text(encoding="utf-8"), "exporters", overview()),
        readme: with_table(readme.read_text(encoding="utf-8"), "exporters", brief()),
        **{FOLDER / f"{name}.md": re.sub(r"\n{3,}", "\n\n", page(name)) for name in registry.names()},
    }


def main() -> None:
    texts = rebuilt()
    for path, text in texts.items():
        write(path, text)
    for old in set(FOLDER.glob("*.md")) - set(texts):
        old.unlink()
        print(f"removed {old.relative_to(ROOT)}")
