"""Small drawings that read on light and dark pages, on paper and on a phone (`WIDTH` is that of one)."""

from __future__ import annotations

from html import escape

from meshwright.report.colors import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

WIDTH = 390
DEVICES = (SKY, ORANGE, GREEN, PURPLE)
"""Colour of device 0, 1, …; its number stands beside it, so that nothing is said by colour alone."""
ACCENT, SECOND = BLUE, VERMILLION
STYLE = (
    "text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#57606a}"
    ".b{font-weight:600}.q{font-size:11px}.c{text-anchor:middle}.e{text-anchor:end}.d{fill:#1a1a1a}"
    ".o{fill:none;stroke:#8c959f}.l{stroke:#8c959f;stroke-width:1.5}.t{fill:#8c959f;fill-opacity:.18}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.d{fill:#1a1a1a}}"
)


class Drawing:
    """Collects shapes; coordinates are pixels from the upper left."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.body: list[str] = []
        self.defs: list[str] = []

    def text(self, x: float, y: float, words: str, kinds: str = "") -> None:
        """`kinds`: b bold, q small, c centred, e ends at x, d dark (on a coloured ground)."""
        of = f' class="{kinds}"' if kinds else ""
        self.body.append(f'<text x="{x:g}" y="{y:g}"{of}>{escape(words)}</text>')

    def rect(self, x: float, y: float, w: float, h: float, fill: str = "", kind: str = "", round_: float = 0) -> None:
        tone = f' fill="{fill}"' if fill else f' class="{kind}"'
        self.body.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"{tone}'
            + (f' rx="{round_:g}"' if round_ else "")
            + "/>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Straight, with its head at the second point."""
        dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
        head = f"M{x2 - 5 * dx - 4 * dy:g} {y2 - 5 * dy - 4 * dx:g}L{x2:g} {y2:g}L{x2 - 5 * dx + 4 * dy:g} {y2 - 5 * dy + 4 * dx:g}"
        self.body.append(f'<path class="l" fill="none" d="M{x1:g} {y1:g}L{x2:g} {y2:g}{head}"/>')

    def hatched(self, fill: str) -> str:
        """A fill of stripes in a colour: a summand, not yet a sum."""
        name = f"h{fill.lstrip('#')}"
        if not any(name in d for d in self.defs):
            self.defs.append(
                f'<pattern id="{name}" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
                f'<rect width="2.5" height="5" fill="{fill}"/></pattern>'
            )
        return f"url(#{name})"

    def svg(self, height: float) -> str:
        defs = f"<defs>{''.join(self.defs)}</defs>" if self.defs else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" role="img">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style>{defs}\n" + "\n".join(self.body) + "\n</svg>\n"
        )
