"""Problems of recorded cost graphs: nodes with numbered options, edges with a price for each pair of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from ..cluster.model import Cluster, DeviceType, Level
from ..cost.tables import Options, Tables
from ..errors import InputError
from ..graph.ir import Floats, Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe


def table_problem(
    file: str,
    options: Mapping[str, Options],
    pairs: Sequence[tuple[str, str, Floats]],
    *,
    devices: int = 1,
    memory: float | None = None,
    unit: str = "s",
) -> Problem:
    """A problem whose ops are the nodes of a recorded cost graph; an edge is a tensor of one end that the other reads.

    Args:
        options: per node.
        pairs: (node, node, price[options of the first, of the second]).
        memory: bytes that may be held.

    Raises:
        InputError: no nodes, an edge whose table does not fit its ends, or a price that is no number.
    """
    if not options:
        raise InputError(f"{file}: no nodes: a graph has at least one", where=file)
    for name, own in options.items():
        for what, table in (("price", own.price), ("memory", own.memory)):
            if table.shape != (len(own.names),) or not len(own.names) or np.isnan(table).any() or (table == -inf).any():
                raise InputError(f"{file}: node {name} needs one {what} for each of its {len(own.names)} options", where=f"{file}: node {name}")  # fmt: skip
    for k, (u, v, table) in enumerate(pairs):
        if u not in options or v not in options:
            raise InputError(f"{file}: edge {k} joins {u} and {v}, which are not both nodes", where=f"{file}: edges")
        shape = (len(options[u].names), len(options[v].names))
        if table.shape != shape or np.isnan(table).any() or (table == -inf).any():
            raise InputError(f"{file}: edge {k} from {u} to {v} has a table of {table.shape}, wanted {shape} numbers", where=f"{file}: edges")  # fmt: skip
    # A pair has no direction: of its two ends the later in the file reads what the earlier makes.
    order = list(options)
    place = {name: i for i, name in enumerate(order)}
    reads: dict[str, list[str]] = {name: [] for name in order}
    for u, v, _ in pairs:
        first, second = sorted((u, v), key=place.__getitem__)
        if first != second and f"{first}:out" not in reads[second]:
            reads[second].append(f"{first}:out")
    ops = tuple(Op(v, "recorded", tuple(reads[v]), (f"{v}:out",), _rule(len(reads[v]))) for v in order)
    tensors = tuple(Tensor(f"{v}:out", 0.0) for v in order)
    ends = tuple(t.name for t in tensors if not any(t.name in own for own in reads.values()))
    graph = Graph(ops, tensors, 1, outputs=ends, loss=ends[-1])
    limit = inf if memory is None else memory
    cluster = Cluster("recorded", (DeviceType("device", "gpu", limit, {}, 0.0),), devices, levels=(Level("all", devices, 1.0),))  # fmt: skip
    return Problem(
        replace(graph, digest=digest_of(graph)),
        cluster,
        Tables(options, pairs, unit=unit),
        Recipe(1, "sgd", 0.0, "float32", "float32"),
        limits=Limits(memory=limit, keep_free=0.0),
    )


def _rule(operands: int) -> Rule:
    return Rule((), ((),) * operands, ((),))
