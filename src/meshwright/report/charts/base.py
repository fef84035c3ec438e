"""What all charts share: colours that colour-blind people can tell apart, fonts, a light ground, a plain table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bokeh.plotting import figure

from ..colors import BLACK


@dataclass(frozen=True)
class Chart:
    """A figure (None where there is nothing to draw) and its table in HTML."""

    plot: Any
    table: str
    caption: str = ""
    """Under the figure, plain text."""


def plot(height: int, tools: str = "", **options: Any) -> Any:
    """An empty figure as wide as its place, on canvas (webgl is slower without a GPU)."""
    made = figure(
        height=height, sizing_mode="stretch_width", tools=tools, toolbar_location="right" if tools else None,
        output_backend="canvas", background_fill_color="#ffffff", border_fill_color="#ffffff", min_border_right=12,
        **options,
    )  # fmt: skip
    made.toolbar.logo = None
    made.grid.grid_line_color = "#e8e8e8"
    made.outline_line_color = None
    for axis in made.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.axis_label_text_color = axis.major_label_text_color = BLACK
        axis.minor_tick_line_color = None
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A plain HTML table; the first `left` columns are words, the others figures."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}>{escape(c)}</{tag}>" if i < left else f'<{tag} class="n">{escape(c)}</{tag}>'
            for i, c in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def legend_outside(made: Any) -> None:
    """A legend above the chart, in a row that wraps on a phone."""
    for legend in made.legend:
        legend.orientation = "horizontal"
        legend.ncols = 4
        legend.location = "top_left"
        legend.label_text_font_size = "12px"
        legend.label_text_color = BLACK
        legend.border_line_color = None
        legend.padding = 2
        legend.spacing = 8
        legend.glyph_width = legend.glyph_height = 14
    if made.legend:
        made.add_layout(made.legend[0], "above")
