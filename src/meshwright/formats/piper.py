"""Profiled layer graphs of "Piper: Multidimensional Planner for DNN Parallelization" (NeurIPS 2021).

One JSON object: nodes with, per tensor-parallel degree, a list of configurations (TMPCs); edges with bytes. `syncTimeFw`
and `syncTimeBw` hold bytes despite their names. Times are taken as seconds; two public files hold milliseconds, which
makes their communication a thousand times too cheap: kept, as the study did.
Public inputs: github.com/msr-fiddle/piper (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .._words import whole_number
from ..cluster.model import Cluster, DeviceType, Level
from ..cost.choices import Choice, Profile
from ..cost.recorded import TransferRecord
from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Factor, Graph, Op, Phase, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._fields import MOST, Fields, in_order, load, nodes_by_id, one_piece, overrides_checked, says

UNKNOWN = 1.0
"""FLOP/s of a device of which a profile gives times only; its ops state no FLOPs, so that they use none of it."""
SAMPLES, PARTS = "sample", "tmp"
"""Factors of every op: a micro-batch, and the parts of tensor parallelism, which the profile prices as a whole."""


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format?"""
    return isinstance(document, Mapping) and says(
        document, ("maxDevices", "maxMemoryPerDevice", "mbsInBatch"), ("TMPCs",)
    )


def read(
    path: Path | str,
    *,
    devices: int | None = None,
    memory: float | None = None,
    bandwidth: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """The problem of one file; arguments override what it says (bytes, bytes/s).

    Raises:
        InputError: names file and field.
    """
    path = Path(path)
    return parse(
        load(path), str(path), devices=devices, memory=memory, bandwidth=bandwidth, micro_batches=micro_batches
    )


def parse(
    document: Any,
    file: str,
    *,
    devices: int | None = None,
    memory: float | None = None,
    bandwidth: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """`read`, of a parsed document."""
    overrides_checked(file, devices=devices, memory=memory, bandwidth=bandwidth, micro_batches=micro_batches)
    top = Fields(document, file)
    nodes = nodes_by_id(top, file)
    edges: dict[tuple[int, int], float] = {}
    for edge in top.rows("edges"):
        ends = edge.ident("sourceId"), edge.ident("destId")
        for name, v in zip(("sourceId", "destId"), ends):
            if v not in nodes:
                raise edge.wrong(name, v, "the id of a node")
        if ends in edges:
            raise edge.wrong("destId", ends[1], f"one edge from {ends[0]} to it")
        edges[ends] = edge.number("communicationCost")
    order = in_order(nodes, edges, file)
    one_piece(nodes, edges, file)
    reads: dict[int, list[int]] = {v: [] for v in nodes}
    for a, b in edges:
        reads[b].append(a)
    choices = {str(v): _choices(nodes[v], v, edges) for v in order}
    most = max(max(by_degree) for by_degree in choices.values())
    factors = (Factor(SAMPLES, 1, samples=True), Factor(PARTS, most, "opaque"))
    dims = ((SAMPLES,), (PARTS,))
    widest: dict[int, float] = {}
    for (a, _), nbytes in edges.items():
        widest[a] = max(nbytes, widest.get(a, 0.0))
    graph = Graph(
        tuple(
            Op(
                str(v), "profiled", tuple(_tensor(a) for a in reads[v]), (_tensor(v),),
                Rule(factors, (dims,) * len(reads[v]), (dims,)), kwargs=(("name", nodes[v].text("name", "")),),
            )
            for v in order
        ),
        tuple(Tensor(_tensor(v), widest.get(v, 0.0), (1, most), "float") for v in order),
        1,
        "derived",
        outputs=tuple(_tensor(v) for v in order if v not in {a for a, _ in edges}),
    )  # fmt: skip
    count = top.whole("maxDevices", 1) if devices is None else devices
    room = top.number("maxMemoryPerDevice") if memory is None else memory
    rate = top.number("bandwidth") if bandwidth is None else bandwidth
    if rate <= 0:
        raise top.wrong("bandwidth", rate, "bytes/s above 0")
    if count > MOST:
        raise top.wrong("maxDevices", count, f"at most {MOST:,} devices")
    kind = DeviceType("profiled", "gpu", room, {"float32": UNKNOWN}, 0.0)
    cluster = Cluster("profiled", (kind,), count, levels=(Level("outside", count, rate),))
    batch = top.whole("mbsInBatch", 1) if micro_batches is None else micro_batches
    transfers = {(_tensor(a), str(b)): TransferRecord(nbytes) for (a, b), nbytes in edges.items()}
    return Problem(
        replace(graph, digest=digest_of(graph)),
        cluster,
        Profile(choices, transfers),
        Recipe(batch, "none", 0.0, "float32", "float32"),
        limits=Limits(keep_free=0.0),
    )


def write(problem: Problem) -> dict[str, Any]:
    """The document that `read` makes this problem from.

    Raises:
        Unsupported: the prices are no profile of this kind.
    """
    graph, cost = problem.graph, problem.cost
    if not isinstance(cost, Profile):
        raise Unsupported(
            f"prices of {cost.name} have no configurations by degree: only such profiles have this format"
        )
    nodes = []
    for op in graph.ops:
        by_degree = {
            str(t): [
                {
                    "id": c.name, "timePerSample": c.seconds, "parameterSize": c.weights, "memoryUsageA": c.stashed,
                    "memoryUsageB": c.fixed, "syncTimeFw": dict(c.arriving), "syncTimeBw": dict(c.leaving),
                }
                for c in found
            ]
            for t, found in cost.choices[op.name].items()
        }  # fmt: skip
        nodes.append({"id": int(op.name), "name": dict(op.kwargs)["name"], "TMPCs": by_degree})
    edges = []
    for op in graph.ops:
        for name in op.inputs:
            source = int(graph.ops[graph.producer[name]].name)
            nbytes = cost.transfers[name, op.name].nbytes
            edges.append({"sourceId": source, "destId": int(op.name), "communicationCost": nbytes})
    return {
        "maxDevices": problem.cluster.count,
        "maxMemoryPerDevice": problem.cluster.types[0].memory,
        "bandwidth": problem.cluster.levels[0].bandwidth,
        "mbsInBatch": problem.recipe.samples,
        "nodes": nodes,
        "edges": edges,
    }


def export(problem: Problem) -> dict[str, Any]:
    """The document of a captured model: one node per op in one part, kept ("vanilla") or computed again.

    Seconds and bytes of one micro-batch of `Graph.samples` samples; a parameter counts at each op that reads it.

    Raises:
        Unsupported: a graph without a derived backward.
    """
    graph, cost, cluster, recipe = problem.graph, problem.cost, problem.cluster, problem.recipe
    if graph.training != "derived":
        raise Unsupported(
            "only a model whose backward is derived can be computed again: this graph writes it out or has none"
        )
    device = cluster.types[0]
    use, grads, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
    copy = master if recipe.param_dtype != recipe.compute_dtype else 0
    nodes = []
    edges: dict[tuple[int, int], float] = {}
    phases: tuple[Phase, Phase] = ("forward", "backward")
    for i, op in enumerate(graph.ops):
        sizes = np.array([[f.size for f in op.rule.factors]], np.int64)
        forward, backward = (float(cost.compute(op, sizes, device, x)[0]) for x in phases)
        kept = float(cost.memory(op, sizes).kept[0])
        own = {graph.aliases.get(t, t) for t in op.inputs if graph.tensor[t].role == "param"}
        elements = sum(graph.tensor[t].nbytes / ITEM_BYTES.get(graph.tensor[t].dtype, 4) for t in own)
        arriving = sum(graph.tensor[t].nbytes for t in {*op.inputs} if graph.tensor[t].role in ("activation", "input"))
        state = elements * (use + grads + copy + recipe.state_bytes)
        shared: dict[str, Any] = {"parameterSize": elements * grads, "syncTimeFw": {}, "syncTimeBw": {}}
        ways = [
            {"id": "vanilla", "timePerSample": forward + backward, "memoryUsageA": kept, "memoryUsageB": state},
            {
                "id": "activation recomp", "timePerSample": 2 * forward + backward,
                "memoryUsageA": min(arriving, kept), "memoryUsageB": state + kept,
            },
        ]  # fmt: skip
        nodes.append({"id": i, "name": op.name, "TMPCs": {"1": [{**way, **shared} for way in ways]}})
        for t in op.inputs:
            if t in graph.producer:
                ends = graph.producer[t], i
                edges[ends] = edges.get(ends, 0.0) + graph.tensor[t].nbytes
    probe, last = 2.0**28, cluster.count - 1
    rate = probe / float(cost.transfer(np.array([probe]), 0, last, cluster)[0]) if last else device.bandwidth
    return {
        "maxDevices": cluster.count,
        "maxMemoryPerDevice": problem.limits.usable(device.memory),
        "bandwidth": rate,
        "mbsInBatch": max(1, recipe.samples // graph.samples),
        "nodes": nodes,
        "edges": [{"sourceId": a, "destId": b, "communicationCost": nbytes} for (a, b), nbytes in edges.items()],
    }


def deeper(document: Mapping[str, Any], layers: int, kind: str = "ParallelTransformerLayer") -> dict[str, Any]:
    """The document with copies of a transformer layer inserted, until it has `layers` of them.

    The copy follows a layer that stands between two transformers: edge v → s becomes v → copy → s with the same bytes,
    extra bytes move along, and the copy has no other edges (so no attention mask, as in the study's own models).

    Raises:
        InputError: no such layer, or more layers already.
    """
    nodes = [dict(node) for node in document["nodes"]]
    edges = [dict(edge) for edge in document["edges"]]
    marked = {node["id"] for node in nodes if node.get("name") == kind}
    if len(marked) > layers:
        raise InputError(f"the profile has {len(marked)} layers of kind {kind}: it can only become deeper")
    for new in range(
        max(node["id"] for node in nodes) + 1, max(node["id"] for node in nodes) + 1 + layers - len(marked)
    ):
        v, s = _between(edges, marked, kind)
        by_id = {node["id"]: node for node in nodes}
        cut = next(edge for edge in edges if (edge["sourceId"], edge["destId"]) == (v, s))
        before = next(edge["sourceId"] for edge in edges if edge["destId"] == v and edge["sourceId"] in marked)
        cut["destId"] = new
        edges.append({**cut, "sourceId": new, "destId": s})
        copy = {t: [_moved(c, {before: v}, {s: s}, alone=True) for c in cs] for t, cs in by_id[v]["TMPCs"].items()}
        by_id[v]["TMPCs"] = {t: [_moved(c, None, {s: new}) for c in cs] for t, cs in by_id[v]["TMPCs"].items()}
        by_id[s]["TMPCs"] = {t: [_moved(c, {v: new}, None) for c in cs] for t, cs in by_id[s]["TMPCs"].items()}
        nodes.append({**by_id[v], "id": new, "TMPCs": copy})
        marked.add(new)
    return {**document, "nodes": nodes, "edges": edges}


def _between(edges: list[dict[str, Any]], marked: set[int], kind: str) -> tuple[int, int]:
    """The first layer that follows and feeds a layer of its kind, and the one it feeds."""
    follows = {edge["destId"] for edge in edges if edge["sourceId"] in marked and edge["destId"] in marked}
    for edge in edges:
        if edge["sourceId"] in follows and edge["destId"] in marked:
            return edge["sourceId"], edge["destId"]
    raise InputError(f"no layer of kind {kind} stands between two others: nothing to copy")


def _moved(
    choice: dict[str, Any], arriving: dict[int, int] | None, leaving: dict[int, int] | None, alone: bool = False
) -> dict[str, Any]:
    """A configuration whose extra bytes belong to renamed neighbours ({old: new}), and with `alone` to no others."""
    found = dict(choice)
    for field_name, renamed in (("syncTimeFw", arriving), ("syncTimeBw", leaving)):
        volumes = choice.get(field_name, {})
        if renamed is not None:
            moved = {str(new): volumes[str(old)] for old, new in renamed.items() if str(old) in volumes}
            others = {k: x for k, x in volumes.items() if not alone and k not in {str(old) for old in renamed}}
            found[field_name] = moved | others
    return found


def _choices(node: Fields, v: int, edges: Mapping[tuple[int, int], float]) -> dict[int, tuple[Choice, ...]]:
    found: dict[int, tuple[Choice, ...]] = {}
    degrees = node.nested("TMPCs")
    for text in degrees.value:
        if not whole_number(text):
            raise node.wrong("TMPCs", text, "degrees of 1 or more as keys")
        listed = degrees.rows(text)
        if not listed:
            raise degrees.wrong(text, [], "at least one configuration")
        made = tuple(
            Choice(
                c.text("id"), c.number("timePerSample"), c.number("parameterSize"), c.number("memoryUsageA"),
                c.number("memoryUsageB"), _volumes(c.nested("syncTimeFw", {}), v, edges, True),
                _volumes(c.nested("syncTimeBw", {}), v, edges, False),
            )
            for c in listed
        )  # fmt: skip
        if len({c.name for c in made}) < len(made):
            raise degrees.wrong(text, [c.name for c in made], "an id of its own for each configuration")
        found[int(text)] = made
    if not found:
        raise node.wrong("TMPCs", {}, "at least one degree")
    return found


def _volumes(sync: Fields, v: int, edges: Mapping[tuple[int, int], float], arriving: bool) -> dict[str, float]:
    found = {}
    for text in sync.value:
        other = whole_number(text.removeprefix("-"))
        other = -other if other is not None and text.startswith("-") else other
        if other is None or ((other, v) if arriving else (v, other)) not in edges:
            way = "producer" if arriving else "reader"
            raise sync.wrong(text, sync.value[text], f"the id of a {way} of node {v} as key")
        found[text] = sync.number(text)
    return found


def _tensor(node: int) -> str:
    return f"{node}:out"
