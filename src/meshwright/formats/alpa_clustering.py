"""Graphs of ops for Alpa's clustering into layers: {name: {"ops": [{name, heavy, flops, out_bytes, inputs}]}}.

Ops in program order; inputs are the numbers of ops (−1 = an input of the graph, which does not count); heavy = a product or a
convolution, the only ones whose flops count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

from ..cluster.model import Cluster, DeviceType, Level
from ..cost.untimed import Untimed
from ..errors import InputError
from ..graph.ir import Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._fields import Fields, load

PLANNER = "alpa"


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format: graphs by name, or one?"""
    if not isinstance(document, Mapping):
        return False
    for some in (document, *list(document.values())[:1]):
        ops = some.get("ops") if isinstance(some, Mapping) else None
        if isinstance(ops, list) and any(isinstance(op, Mapping) and "out_bytes" in op for op in ops):
            return True
    return False


def read(path: Path | str, *, graph: str | None = None, layers: int = 2) -> Problem:
    """The problem of cutting one graph into layers.

    Args:
        graph: its name, where the file has several.
        layers: how many, each on a device of its own.

    Raises:
        InputError: names file, graph and field.
    """
    file = str(path)
    document = load(Path(path))
    if not recognises(document):
        raise InputError(f"{file}: no graph of ops with out_bytes", where=file)
    if isinstance(document.get("ops"), list):
        top = Fields(document, file)
    else:
        if graph is None and len(document) == 1:
            graph = next(iter(document))
        if graph not in document:
            said = f'no graph "{graph}"' if graph is not None else "it holds several graphs, name one as graph"
            raise InputError(f"{file}: {said}: there are {', '.join(document)}", where="graph")
        top = Fields(document[graph], file, str(graph))
    rows = top.rows("ops")
    if not 1 <= layers <= len(rows):
        raise InputError(f"{file}: layers is {layers}, wanted 1 to {len(rows)}, the number of ops", where="layers")
    ops, tensors = [], []
    for i, row in enumerate(rows):
        reads = row.value.get("inputs", [])
        if not isinstance(reads, list) or any(isinstance(x, bool) or not isinstance(x, int) or x >= i for x in reads):
            raise row.wrong("inputs", reads, f"numbers of ops before it, below {i}, or -1")
        inputs = tuple(f"{j}:out" for j in dict.fromkeys(reads) if j >= 0)
        kind = "heavy" if row.flag("heavy") else "light"
        ops.append(
            Op(
                str(i), kind, inputs, (f"{i}:out",), Rule((), ((),) * len(inputs), ((),)), flops=row.number("flops", 0.0),
                kwargs=(("name", row.text("name", "")),),
            )
        )  # fmt: skip
        tensors.append(Tensor(f"{i}:out", row.number("out_bytes"), dtype="uint8"))
    read_by = {t for op in ops for t in op.inputs}
    ends = tuple(t.name for t in tensors if t.name not in read_by)
    whole = Graph(tuple(ops), tuple(tensors), 1, outputs=ends, loss=ends[-1])
    cluster = Cluster(
        "recorded", (DeviceType("device", "gpu", inf, {}, 0.0),), layers, levels=(Level("all", layers, 1.0),)
    )
    return Problem(
        replace(whole, digest=digest_of(whole)),
        cluster,
        Untimed(),
        Recipe(1, "none", 0.0, "float32", "float32"),
        limits=Limits(keep_free=0.0),
    )
