"""Instances of Alpa's intra-operator programme: {name: {s_len, follow, edges, c, d, m, r, live, alias, v, M}}.

Node i has s_len[i] strategies of compute cost c, communication cost d and bytes m; edges [i, j] have matrices r (1e13 and more
= forbidden). follow[i] = j copies the choice of j; alias pairs have 0/1 matrices v of conflicts; what is alive at one time
(live, a list of nodes for each) holds at most M bytes, M < 0 = no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from ..cost.tables import Options, Tables
from ..errors import InputError
from ..graph.ir import Floats
from ..plan.problem import Problem
from ._fields import LARGEST, MOST, Fields, load, overrides_checked
from ._tables import table_problem

PLANNER = "alpa"
FORBIDDEN = 1e13
_HAS = frozenset({"s_len", "follow", "edges", "c", "d", "m", "r"})


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format: one instance, or several by name?"""
    if not isinstance(document, Mapping):
        return False
    some = [document, *list(document.values())[:1]]
    return any(isinstance(x, Mapping) and {"s_len", "follow"} <= set(x) for x in some)


def read(path: Path | str, *, instance: str | None = None, memory: float | None = None) -> Problem:
    """The problem of one instance.

    Args:
        instance: its name, where the file has several.
        memory: bytes alive at a time, in place of its M.

    Raises:
        InputError: names file, instance and field.
    """
    file = str(path)
    overrides_checked(file, memory=memory)
    document = load(Path(path))
    if not recognises(document):
        raise InputError(f"{file}: no instance of s_len, follow, edges, c, d, m and r", where=file)
    if _HAS & set(document):
        top = Fields(document, file)
    else:
        if instance is None and len(document) == 1:
            instance = next(iter(document))
        if instance not in document:
            said = (
                f'no instance "{instance}"'
                if instance is not None
                else "it holds several instances, name one as instance"
            )
            raise InputError(f"{file}: {said}: there are {', '.join(document)}", where="instance")
        top = Fields(document[instance], file, str(instance))
    stated = _table(top, "s_len", top.value.get("s_len"), None)
    if stated.ndim != 1 or (stated < 1).any() or (stated > MOST).any() or (stated % 1).any():
        raise top.wrong("s_len", top.value["s_len"], f"a whole number of strategies, 1 to {MOST:,}, for each node")
    sizes = [int(x) for x in stated]
    n = len(sizes)
    per_option = {key: _per_node(top, key, sizes) for key in "cdm"}
    options = {
        str(i): Options(
            tuple(map(str, range(k))), _bounded(per_option["c"][i] + per_option["d"][i]), per_option["m"][i]
        )
        for i, k in enumerate(sizes)
    }
    pairs: list[tuple[str, str, Floats]] = []
    edges, matrices = _ends(top, "edges", n), _list(top, "r")
    if len(matrices) != len(edges):
        raise top.wrong("r", f"{len(matrices)} matrices", f"one for each of the {len(edges)} edges")
    for (i, j), table in zip(edges, matrices, strict=True):
        pairs.append(_turned(i, j, _bounded(_table(top, "r", table, (sizes[i], sizes[j])))))
    conflicts = _list(top, "v")
    for k, (i, j) in enumerate(_ends(top, "alias", n)):
        table = _table(top, "v", conflicts[k] if k < len(conflicts) else None, (sizes[i], sizes[j]))
        pairs.append(_turned(i, j, np.where(table > 0, inf, 0.0)))
    follow = _table(top, "follow", top.value.get("follow"), (n,))
    for i, j in enumerate(follow.astype(int)):
        if j >= 0:
            if j >= n or sizes[j] != sizes[i]:
                raise top.wrong("follow", int(j), f"a node with as many strategies as node {i}, {sizes[i]}")
            pairs.append(_turned(i, int(j), np.where(np.eye(sizes[i], dtype=bool), 0.0, inf)))
    most = top.value.get("M", -1) if memory is None else memory
    if isinstance(most, bool) or not isinstance(most, int | float) or not abs(most) <= LARGEST:
        raise top.wrong("M", most, "bytes, or -1 for no limit")
    problem = table_problem(file, options, pairs, memory=None if most < 0 else float(most), unit="cost")
    assert isinstance(problem.cost, Tables)
    live = tuple(tuple(str(v) for v in _nodes(top, "live", at, n)) for at in _list(top, "live"))
    return replace(problem, cost=Tables(problem.cost.options, problem.cost.pairs, unit="cost", live=live))


def _turned(i: int, j: int, table: Floats) -> tuple[str, str, Floats]:
    """From the lower node to the higher one: as data flow nowhere in an instance, any order does."""
    return (str(i), str(j), table) if i <= j else (str(j), str(i), np.ascontiguousarray(table.T))


def _bounded(prices: Floats) -> Floats:
    return np.where(prices >= FORBIDDEN, inf, prices)


def _list(top: Fields, name: str) -> list[Any]:
    found = top.value.get(name, [])
    if not isinstance(found, list):
        raise top.wrong(name, found, "a list")
    return found


def _nodes(top: Fields, name: str, value: Any, n: int) -> list[int]:
    if not isinstance(value, list) or any(
        isinstance(x, bool) or not isinstance(x, int) or not 0 <= x < n for x in value
    ):
        raise top.wrong(name, value, f"lists of nodes, 0 to {n - 1}")
    return value


def _ends(top: Fields, name: str, n: int) -> list[tuple[int, int]]:
    found = []
    for ends in _list(top, name):
        if len(_nodes(top, name, ends, n)) != 2:
            raise top.wrong(name, ends, "pairs of nodes")
        found.append((ends[0], ends[1]))
    return found


def _per_node(top: Fields, name: str, sizes: list[int]) -> list[Floats]:
    rows = _list(top, name)
    if len(rows) != len(sizes):
        raise top.wrong(name, f"{len(rows)} rows", f"one for each of the {len(sizes)} nodes")
    return [_table(top, name, row, (k,)) for row, k in zip(rows, sizes, strict=True)]


def _table(top: Fields, name: str, value: Any, shape: tuple[int, ...] | None) -> Floats:
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.full(0, np.nan)
    if np.isnan(found).any() or (shape is not None and found.shape != shape) or found.ndim == 0 or not found.size:
        raise top.wrong(name, value, f"numbers of shape {shape or '(nodes,)'}")
    return found
