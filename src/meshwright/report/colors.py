"""Colours that colour-blind people can tell apart, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping

# Okabe and Ito, "Color Universal Design" (2008).
SKY, BLUE, ORANGE, VERMILLION = "#56b4e9", "#0072b2", "#e69f00", "#d55e00"
GREEN, YELLOW, PURPLE, BLACK, GREY = "#009e73", "#f0e442", "#cc79a7", "#1a1a1a", "#bbbbbb"
CYCLE = (SKY, ORANGE, GREEN, YELLOW, BLUE, VERMILLION, PURPLE, GREY)

COLORS: Mapping[str, str] = {
    "F": SKY, "B": BLUE, "I": BLUE, "W": PURPLE, "compute": SKY, "optimizer": GREEN, "update": GREEN, "UPDATE": GREEN, "collectives": PURPLE,
    "all_gather": ORANGE, "reduce_scatter": VERMILLION, "all_reduce": PURPLE, "all_to_all": YELLOW,
    "send": YELLOW, "recv": YELLOW, "bubble": GREY, "idle": "#e5e5e5",
    "weights": BLUE, "gradients": VERMILLION, "activations": SKY, "loss": YELLOW, "buffers": PURPLE,
}  # fmt: skip
HATCHED = frozenset(
    {"all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send", "recv", "collectives", "broadcast", "permute"}
)
"""Communication is hatched as well as coloured."""


def color(kind: str, index: int = 0) -> str:
    """Of a kind of work; what has none takes the next of the cycle."""
    return COLORS.get(kind, CYCLE[index % len(CYCLE)])
