"""The public programs of sharding propagation, and programs made at random."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

FILE = "spmd-propagation/programs.json"


@cache
def programs(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / FILE).read_text())
    return found


def dims(*axes: list[list[Any]]) -> list[dict[str, Any]]:
    """A closed sharding."""
    return [{"axes": own, "open": False} for own in axes]


def program(
    mesh: list[list[Any]],
    shapes: dict[str, list[int]],
    ops: list[dict[str, Any]],
    returns: list[str],
    given: dict[str, Any],
    given_out: list[Any] | None = None,
) -> dict[str, Any]:
    return {
        "mesh": mesh,
        "shapes": shapes,
        "ops": ops,
        "returns": returns,
        "given": given,
        "given_out": given_out or [],
    }


def dot(a: str, b: str, c: str, i: int, k: int, j: int) -> dict[str, Any]:
    rule = {"operands": [[["i"], ["k"]], [["k"], ["j"]]], "results": [[["i"], ["j"]]]}
    rule |= {"sizes": {"i": i, "j": j, "k": k}, "special": {"reduction": ["k"]}}
    return {"op": "dot", "operands": [a, b], "result": c, "rule": rule}


def add(a: str, b: str, c: str, i: int, j: int) -> dict[str, Any]:
    same = [["i"], ["j"]]
    rule = {"operands": [same, same], "results": [same], "sizes": {"i": i, "j": j}, "special": {}}
    return {"op": "add", "operands": [a, b], "result": c, "rule": rule}


def transpose(a: str, b: str, i: int, j: int) -> dict[str, Any]:
    rule = {"operands": [[["j"], ["i"]]], "results": [[["i"], ["j"]]], "sizes": {"i": j, "j": i}, "special": {}}
    return {"op": "transpose", "operands": [a], "result": b, "rule": rule}


SIZE = 16


@st.composite
def random_programs(draw: st.DrawFn) -> dict[str, Any]:
    """Square matrices through products, sums and transposes, some of the arguments annotated."""
    names = ["arg0", "arg1", "arg2"]
    ops: list[dict[str, Any]] = []
    for k in range(draw(st.integers(1, 7))):
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        kind = draw(st.sampled_from(("dot", "add", "transpose")))
        made = str(k)
        if kind == "dot":
            ops.append(dot(a, b, made, SIZE, SIZE, SIZE))
        elif kind == "add":
            ops.append(add(a, b, made, SIZE, SIZE))
        else:
            ops.append(transpose(a, made, SIZE, SIZE))
        names.append(made)
    shapes = {name: [SIZE, SIZE] for name in names}
    given = {name: draw(shardings()) for name in names if name.startswith("arg") and draw(st.booleans())}
    out = [draw(shardings())] if draw(st.booleans()) else []
    return program([["x", 2], ["y", 4]], shapes, ops, [names[-1]], given, out)


@st.composite
def shardings(draw: st.DrawFn) -> list[dict[str, Any]]:
    axes: list[list[Any]] = [["x"], ["y"], ["y", 1, 2], ["y", 2, 2]]
    found: list[dict[str, Any]] = []
    used: set[tuple[str, int]] = set()
    for _ in range(2):
        own = []
        for axis in draw(st.permutations(axes)):
            parts = {("y", 0), ("y", 1)} if axis == ["y"] else {(axis[0], 1 if axis[1:] == [2, 2] else 0)}
            if draw(st.integers(0, 3)) == 0 and not parts & used:
                used |= parts
                own.append(axis)
        merged = [["y"] if own[k : k + 2] == [["y", 1, 2], ["y", 2, 2]] else a for k, a in enumerate(own)]
        skip = [own[k - 1 : k + 1] == [["y", 1, 2], ["y", 2, 2]] for k in range(len(own))]
        found.append({"axes": [a for a, s in zip(merged, skip) if not s], "open": draw(st.booleans())})
    return found
