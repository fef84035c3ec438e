"""A pipeline schedule as a picture: one row a rank, time to the right, one cell an action with its micro-batch in it.

    rank 0  │0│1│2│3│   │0  │4│1  │ …      the colour says what, its shade which of the rank's stages
            F sky, B and I blue, W purple, an update green; a pair that runs jointly lies in two halves

The picture has no ground of its own and its words are grey, so it reads on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ..plan.model import Action, Row
from ..plan.schedules import Timed, held, timed
from ..plan.schedules.check import UNIT, members
from .colors import COLORS

SCALE = 26.0
"""Pixels of one forward of a rank."""
HEIGHT, GAP = 24, 6
LEFT, TOP, RIGHT = 56, 34, 58
WORDS = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
    "UPDATE": "update",
    "REDUCE": "gradient sum",
}
TINTS = (0.0, 0.5, 0.3, 0.68)
SHADES = (0.0, 0.36, 0.2, 0.5)
"""Shares of white in the colours of a rank's first, second, … stage; of black in those of its backwards, since a pale
backward would be taken for a forward."""
DARKER = frozenset({"B", "I"})
STYLE = (
    "text{font:11px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#6e7781}"
    ".n{text-anchor:middle;dominant-baseline:central;font-size:11px}.s{font-size:9px}"
    ".d{fill:#1a1a1a}.l{fill:#fff}.e{text-anchor:end}"
    ".t{fill:#6e7781;opacity:.16}.m{stroke:#6e7781;stroke-dasharray:3 3}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.d{fill:#1a1a1a}.l{fill:#fff}}"
)


def schedule_svg(
    rows: Sequence[Row],
    *,
    links: Sequence[tuple[int, int]] | None = None,
    chunks: int = 1,
    copies: int = 1,
    lengths: Mapping[str, float] = UNIT,
    stretch: Mapping[int, float] | None = None,
    title: str = "",
    scale: float = SCALE,
) -> str:
    """The picture of a table.

    Args:
        links: pairs of stages between which forward values go; None = each stage to the next.
        chunks: stages a rank holds, of all copies of the model.
        copies: copies of the model; with two or more a rank's time is that of one copy's stage.
        lengths: time of a rank's layers by kind of action; stretch: stage -> how many times as long its actions are.

    Raises:
        InputError: a table that cannot run.
    """
    parts = chunks // copies
    bars = timed(rows, links, lengths=lengths, chunks=parts, stretch=stretch)
    stages = sorted({int(a.on) for row in rows for entry in row.actions for a in members(entry)})
    own = [[s for s in stages if any(s == a.on for e in row.actions for a in members(e))] for row in rows]
    end = max((bar.end for row in bars for bar in row), default=0.0)
    width = LEFT + end * scale + RIGHT
    height = TOP + len(rows) * (HEIGHT + GAP) + 20
    body = [f"<title>{escape(title)}</title>"] if title else []
    body += _legend({a.kind for row in rows for e in row.actions for a in members(e)}, max(map(len, own)), copies)
    body.append(f'<text class="e" x="{width - 4:.0f}" y="{TOP - 8}">held</text>')
    for r, row in enumerate(bars):
        y = TOP + r * (HEIGHT + GAP)
        body.append(f'<text x="4" y="{y + HEIGHT / 2 + 4:.0f}">rank {r}</text>')
        body.append(f'<rect class="t" x="{LEFT}" y="{y}" width="{end * scale:.1f}" height="{HEIGHT}" rx="2"/>')
        for bar in row:
            body += _bar(bar, y, scale, own[r])
        body.append(f'<text class="e" x="{width - 4:.0f}" y="{y + HEIGHT / 2 + 4:.0f}">{held(rows[r], parts):g}</text>')
    x, bottom = LEFT + end * scale, TOP + len(rows) * (HEIGHT + GAP)
    body.append(f'<line class="m" x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{bottom}"/>')
    body.append(f'<text class="n" x="{x:.1f}" y="{bottom + 9}">{end:g}</text>')
    body.append(f'<text x="{LEFT}" y="{bottom + 13}">time in forwards of a rank →</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img"><style>{STYLE}</style>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _legend(kinds: set[str], stages: int, copies: int) -> list[str]:
    found, x = [], float(LEFT)
    shown = [(k, WORDS[k], fill(k, 0)) for k in WORDS if k in kinds and not (k == "I" and "B" in kinds)]
    if {"B", "I"} <= kinds:
        shown = [(k, "backward, short: input gradient" if k == "B" else word, tone) for k, word, tone in shown]
    if stages > 1:
        shown.append(("", "of the rank's other stages" if copies == 1 else "of the second copy of the model", ""))
    for kind, word, tone in shown:
        swatches = [tone] if kind else list(dict.fromkeys(fill(k, 1) for k in WORDS if k in kinds and k in UNIT))
        for swatch in swatches:
            found.append(f'<rect x="{x:.0f}" y="7" width="12" height="12" rx="2" fill="{swatch}"/>')
            x += 14
        x -= 14
        found.append(f'<text x="{x + 17:.0f}" y="17">{word}</text>')
        x += 17 + 6.1 * len(word) + 16
    return found


def _bar(bar: Timed, y: float, scale: float, stages: Sequence[int]) -> Iterator[str]:
    entry = members(bar.entry)
    x, wide = LEFT + bar.start * scale, (bar.end - bar.start) * scale
    if wide == 0:  # takes no time: a mark between cells
        tone = fill(entry[0].kind, 0)
        yield f'<rect x="{x - 1.5:.1f}" y="{y - 3}" width="3" height="{HEIGHT + 6}" rx="1.5" fill="{tone}"/>'
        return
    high = HEIGHT / len(entry)
    for k, action in enumerate(entry):
        yield from _cell(action, x, y + k * high, wide, high, stages.index(int(action.on)))


def _cell(action: Action, x: float, y: float, wide: float, high: float, place: int) -> Iterator[str]:
    tone = fill(action.kind, place)
    yield (
        f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{wide - 1:.1f}" height="{high - 1:.1f}" rx="2" fill="{tone}"/>'
    )
    last = action.micro_batch + action.span - 1
    words = str(action.micro_batch) if action.span == 1 else f"{action.micro_batch}-{last}"
    small = " s" if high < HEIGHT or 7 * len(words) > wide - 2 else ""
    if 5 * len(words) <= wide:
        ink = "l" if _luminance(tone) < 0.2 else "d"
        yield f'<text class="n {ink}{small}" x="{x + wide / 2:.1f}" y="{y + high / 2 + 0.5:.1f}">{words}</text>'


def fill(kind: str, place: int) -> str:
    """Colour of an action in a rank's stage number `place`."""
    tone = COLORS.get(kind, COLORS["all_reduce"])
    dark = kind in DARKER
    share, end = (SHADES if dark else TINTS)[place % len(TINTS)], 0 if dark else 255
    parts = [round(v + (end - v) * share) for v in _rgb(tone)]
    return "#" + "".join(f"{v:02x}" for v in parts)


def _rgb(tone: str) -> list[int]:
    return [int(tone[k : k + 2], 16) for k in (1, 3, 5)]


def _luminance(tone: str) -> float:
    """Relative luminance of WCAG 2, section 1.4.3."""
    lines = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in _rgb(tone)]
    return 0.2126 * lines[0] + 0.7152 * lines[1] + 0.0722 * lines[2]
