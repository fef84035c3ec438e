"""Rows of a table that read alike, told apart by what their plans do otherwise: which op is cut how, what rests cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..graph.ir import Graph
from ..plan.model import Plan
from .candidates import Candidate
from .layout_words import chosen_by_op, cut_ways, over, rest_level
from .shardings import layout_text

MOST = 3
"""Differences that are said of one row, unless more are needed to tell it from another."""


def told_apart(rows: Sequence[Candidate], graph: Graph) -> list[Candidate]:
    """The rows, each with what its plan does otherwise than those that read like it: "… : mlp.c_fc z3"."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault((row.layout, row.micro_batch, row.micro_batches, row.recompute, row.schedule), []).append(i)
    found = list(rows)
    for group in alike.values():
        if len(group) > 1:
            plans = [build() if (build := rows[i].plan) is not None else None for i in group]
            if all(plan is not None and chosen_by_op(plan) for plan in plans):
                facts = [op_facts(plan, graph) for plan in plans if plan is not None]
                for i, words in zip(group, differences(facts), strict=True):
                    found[i] = replace(rows[i], layout=f"{rows[i].layout}: {words}" if words else rows[i].layout)
    return found


def differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Per mapping the entries that tell it from the others, as few as can be; "" where it is another one's equal.

    >>> differences([{"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "3", "b": "1"}])
    ['a 1, b 1', 'b 2', 'a 3']
    """
    names = list(dict.fromkeys(name for own in facts for name in own))
    tables = [{name: own.get(name, "") for name in names} for own in facts]
    words = []
    for k, own in enumerate(tables):
        left = [other for j, other in enumerate(tables) if j != k and other != own]
        said: list[str] = []
        while left:
            name = max(names, key=lambda name: sum(other[name] != own[name] for other in left))
            said.append(f"{name} {own[name] or 'whole'}")
            left = [other for other in left if other[name] == own[name]]
        words.append(", ".join(said))
    return words


def op_facts(plan: Plan, graph: Graph) -> dict[str, str]:
    """Of a plan with one stage, by name of op, parameter and value: "s c/x1", "z3", "rests as […]". What is whole is left out."""
    stage = plan.stages[0]
    found: dict[str, str] = {}

    def say(name: str, words: str) -> None:
        if words:
            short = _short(name, graph)
            found[short] = f"{found[short]} {words}" if short in found else words

    for name, storage in stage.storage.items():
        level = rest_level(storage)
        say(name.removesuffix(".weight"), f"z{level}" if level else "")
    for name, sharding in stage.shardings.items():
        ways = cut_ways(graph.ops[graph.position[name]], sharding)
        say(name, " ".join(way + over(axes, stage) for way, axes in ways))
    for name, layout in stage.layouts.items():
        if any(cuts for dim in layout.dims for _, cuts in dim):
            say(name, f"rests as {layout_text(layout, graph.samples)}")
    return found


def _short(name: str, graph: Graph) -> str:
    """Without the path of its block; outside of blocks the last two parts."""
    for run in graph.runs:
        head, _, tail = name.removeprefix(run.name + ".").partition(".")
        if name.startswith(run.name + ".") and head.isdigit() and tail:
            return tail
    return ".".join(name.split(".")[-2:])
