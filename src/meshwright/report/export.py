"""What a person sees of an export: the level, each difference, both prices, the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .._words import gib, number, plural
from ..simulate.result import Simulation
from .lines import Line, labelled

INDENT = 2
LONG = 60
"""Letters of a list from which it is counted instead of shown."""


def export_lines(
    called: str, level: str, sentences: tuple[str, ...], prices: tuple[Simulation, Simulation], title: str, width: int
) -> list[Line]:
    """ "torchtitan 0.3.0: close.  It gathers …: priced the way torchtitan runs it 15.9 s (+ 0.3)."."""
    own, theirs = prices
    words = [*sentences]
    if theirs is not own:
        gap = theirs.step_seconds - own.step_seconds
        sign = "+" if gap >= 0 else "−"
        more = float(theirs.peak.max() - own.peak.max())
        priced = f"priced the way {title} runs it {number(theirs.step_seconds)} s ({sign} {number(abs(gap), 2)})"
        if abs(more) >= 2**30 / 20:
            priced += f", {gib(float(theirs.peak.max()))} GiB a device ({'+' if more > 0 else '−'} {gib(abs(more))})"
        words.append(priced)
    text = f"{called}: {level}." + ("  " + ";  ".join(w[0].upper() + w[1:] for w in words) + "." if words else "")
    return [Line(t, "title" if level == "exact" else "") for t in labelled("", [text], width, 0)]


def file_lines(options: Mapping[str, Any], files: Mapping[str, str], width: int) -> list[Line]:
    """A line or more for each file: the options of the plan for the first, the last command for scripts."""
    wide = max((len(name) for name in files), default=0) + 2 + INDENT
    lines: list[Line] = []
    for k, (name, text) in enumerate(files.items()):
        commands = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if k == 0:
            last = Counter(key.rpartition(".")[2] for key in options)
            about = (
                ", ".join(_option(k, v, last[k.rpartition(".")[2]] > 1) for k, v in options.items()) or "all defaults"
            )
        elif name.endswith(".sh"):
            about = _command(commands)
        else:
            about = f"{len(text.splitlines()):,} lines"
        lines += [Line(t) for t in labelled(f"{' ' * INDENT}{name}", [about], width, wide)]
    return lines


def _command(lines: list[str]) -> str:
    """The last command of a script, its continued lines joined."""
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1].endswith("\\"):
            joined[-1] = joined[-1].rstrip("\\").rstrip() + " " + line
        else:
            joined.append(line)
    return joined[-1].rstrip("\\").rstrip() if joined else ""


def _option(key: str, value: object, several: bool = False) -> str:
    """By its own name, without the sections that it is in: "data_parallel_shard_degree 64", "--sequence-parallel"; with them where
    several are called so: "bf16.enabled"."""
    name = key if several or key.startswith("-") else key.rpartition(".")[2]
    if value is True:
        return name
    if isinstance(value, (list, tuple)) and len(str(value)) > LONG:
        return f"{name} of {plural(len(value), 'part')}"
    return f"{name} {_shown(value)}"


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) and not value.replace("_", "").isalnum() else str(value)
