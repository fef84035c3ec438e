"""Cost graphs written out: a list of {"name", "node_time": [[…], …], "node_mem": [[…], …], "edges": [{"src", "dst", "time"}]}.

Node i has an option for each number in node_time[i], with the memory of the same place in node_mem; `time` of an edge is a
price for each option of src and of dst. Parallel edges add up. null stands for a forbidden price.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from ..cost.tables import Options
from ..errors import InputError
from ..graph.ir import Floats
from ..plan.problem import Problem
from ._fields import Fields, load, overrides_checked
from ._tables import table_problem

PLANNER = "tensoropt"


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format?"""
    graphs = document if isinstance(document, list) else [document]
    return bool(graphs) and all(
        isinstance(g, Mapping) and {"node_time", "edges"} & set(g) and "node_time" in g for g in graphs
    )


def read(path: Path | str, *, graph: str | None = None, memory: float | None = None, unit: str = "s") -> Problem:
    """The problem of one graph of a file.

    Args:
        graph: its name; None = the only one.
        memory: sum of node memories that may be held.
        unit: of the times.

    Raises:
        InputError: names file, graph and field.
    """
    file = str(path)
    overrides_checked(file, memory=memory)
    document = load(Path(path))
    graphs = document if isinstance(document, list) else [document]
    named: dict[str, Fields] = {}
    for k, value in enumerate(graphs):
        fields = Fields(value, file, f"[{k}]" if isinstance(document, list) else "")
        named[fields.text("name", f"graph {k}")] = fields
    if graph is None and len(named) == 1:
        graph = next(iter(named))
    if graph not in named:
        said = f'no graph "{graph}"' if graph is not None else "it holds several graphs, name one as graph"
        raise InputError(f"{file}: {said}: there are {', '.join(named)}", where="graph")
    top = named[graph]
    times = [_numbers(top, "node_time", row, i) for i, row in enumerate(_list(top, "node_time"))]
    if "node_mem" in top.value:
        memories = [_numbers(top, "node_mem", row, i) for i, row in enumerate(_list(top, "node_mem"))]
    else:
        memories = [np.zeros(len(row)) for row in times]
    if [len(m) for m in memories] != [len(t) for t in times]:
        raise top.wrong("node_mem", [len(m) for m in memories], f"as many numbers a node as node_time: {[len(t) for t in times]}")  # fmt: skip
    options = {
        str(i): Options(tuple(map(str, range(len(price)))), price, held)
        for i, (price, held) in enumerate(zip(times, memories, strict=True))
    }
    pairs = []
    for k, edge in enumerate(top.rows("edges")):
        u, v = edge.whole("src"), edge.whole("dst")
        rows = [_numbers(edge, "time", row, k) for row in _list(edge, "time")]
        if len({len(row) for row in rows}) != 1:
            raise edge.wrong("time", rows, "rows of equal length")
        pairs.append((str(u), str(v), np.stack(rows)))
    return table_problem(file, options, pairs, memory=memory, unit=unit)


def _list(fields: Fields, name: str) -> list[Any]:
    found = fields.value.get(name)
    if not isinstance(found, list):
        raise fields.wrong(name, found, "a list of lists of numbers")
    return found


def _numbers(fields: Fields, name: str, row: Any, index: int) -> Floats:
    if not isinstance(row, list) or not all(
        x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in row
    ):
        raise fields.wrong(f"{name}[{index}]", row, "a list of numbers, or null for a forbidden price")
    return np.array([inf if x is None else float(x) for x in row])
