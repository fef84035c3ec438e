"""What the options of a trainer would gain: from a user's settings to a better plan, one change at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._words import gib, number, percent
from .answers import GainsAnswer
from .lines import Line, columns, labelled

Change = tuple[Mapping[str, tuple[Any, Any]], float, float, bool]
"""(option -> (before, after), seconds of a step after it, bytes of the fullest device after it, whether that fits)."""


def gain_lines(first: float, changes: Sequence[Change], width: int) -> list[Line]:
    """A row a change: what it is worth in this order, the step and the memory after it, the options."""
    if not changes:
        return [Line("These settings are the best that the search found.", "good")]
    rows, before = [["", "gain s", "step s", "GiB", "option"]], first
    for k, (_, seconds, memory, fits) in enumerate(changes, 1):
        gain = before - seconds
        sign = "−" if gain < 0 else ""
        rows.append(
            [str(k), sign + number(abs(gain)), number(seconds), gib(memory) + ("" if fits else " too much"), ""]
        )
        before = seconds
    heads = columns([r[:4] for r in rows], {0, 1, 2})
    lines = [Line(f"{heads[0]}  option", "title")]
    indent = max(map(len, heads)) + 2
    for head, (options, *_) in zip(heads[1:], changes, strict=True):
        words = "; ".join(_change(key, a, b) for key, (a, b) in options.items()) or "no option of its own"
        lines += [Line(t) for t in labelled(head, [words], width, indent)]
    last = changes[-1][1]
    lines.append(Line(f"In all  {number(first)} → {number(last)} s a step ({percent(last / first - 1)})", "chosen"))
    return lines


def gain_object(first: float, changes: Sequence[Change]) -> GainsAnswer:
    """The same for scripts."""
    return {
        "step_s": first,
        "changes": [
            {
                "options": {k: {"from": a, "to": b} for k, (a, b) in options.items()},
                "step_s": seconds,
                "memory_bytes": memory,
                "fits": fits,
            }
            for options, seconds, memory, fits in changes
        ],
    }


def _change(option: str, before: Any, after: Any) -> str:
    """ "--x 8 → 1", "add --x 8", "drop --x"."""
    if _absent(before):
        return f"add {option}" + ("" if after is True else f" {after}")
    if _absent(after):
        return f"drop {option}"
    return f"{option} {before} → {after}"


def _absent(value: Any) -> bool:
    """Whether an option with this value is not written: 0 is."""
    return value is None or value is False or value == ""
