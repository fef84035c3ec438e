"""Graphs of PaSE's public prototype (baidu-research/PaSE), and the cost graphs that it makes of them.

    NAME.json.gz   {"batch": 128, "cutoff": 4, "nodes": [{"id", "type", "dom": [128, 3, 55, …], "inputs": [shape, …],
                   "outputs": [shape, …], "pw_op_cnt", "axis", "window", "eq", "dom_names"}, …], "edges": [{"src", "src_out",
                   "dst", "dst_in", "shape"}, …]}: priced by `cost.pase_flops`
    NAME.npz       edges int[E, 2], configs_i int[K, dims], node_cost_i float[K], edge_cost_j float[K of source, K of target]:
                   priced by its own tables

`dom` is the iteration space; an op becomes the rule whose factors are its dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..cluster.model import Cluster, DeviceType, Level
from ..cost.pase_flops import BANDWIDTH, CUTOFF, FLOPS, PaSEFlops
from ..cost.tables import Options
from ..errors import InputError
from ..graph.ir import Arg, Dims, Factor, Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._arrays import Arrays
from ._fields import LARGEST, MOST, Fields, in_order, load, nodes_by_id, overrides_checked
from ._tables import table_problem

DEVICES = 8
"""The prototype's default."""
_CONV = ("b", "c", "h", "w", "r", "s", "n")
_LSTM = ("l", "s", "b", "n", "k")
_SAME = ("Softmax", "SoftmaxCrossEntropy", "Elementwise", "Norm", "Concat", "Transpose")
"""Operands and results are cut alike."""


def recognises(document: object) -> bool:
    """Is this parsed JSON, or this list of arrays, of this format?"""
    if not isinstance(document, Mapping):
        return False
    arrays = document.get("arrays")
    if isinstance(arrays, list):
        return {"edges", "configs_0", "node_cost_0"} <= set(arrays)
    nodes = document.get("nodes")
    return isinstance(nodes, list) and any(isinstance(n, Mapping) and {"type", "dom"} <= set(n) for n in nodes)


def read(
    path: Path | str,
    *,
    devices: int | None = None,
    flops: float = FLOPS,
    bw: float = BANDWIDTH,
    cutoff: int | None = None,
    batch: int | None = None,
    memory: float | None = None,
) -> Problem:
    """The problem of a file.

    Args:
        devices: at most so many parts of an op; None = 8, or what the tables were made for.
        flops: TFLOP/s of a device; bw: GB/s between devices. Only their quotient counts.
        cutoff: least elements that a cut leaves of a dim; None = the file's.
        batch: the file's own, which cannot be changed.
        memory: elements that a device may hold (`PaSEFlops.memory`).

    Raises:
        InputError: names file and field.
    """
    file = str(path)
    overrides_checked(file, devices=devices, memory=memory)
    if cutoff is not None and cutoff < 1:
        raise InputError(f"{file}: cutoff is {cutoff}, wanted 1 element or more", where="cutoff")
    if Path(path).suffix == ".npz":
        given = {"devices": devices, "cutoff": cutoff, "batch": batch, "memory": memory}
        for name, value in given.items():
            if value is not None:
                raise InputError(
                    f"{file}: {name} cannot be set: its tables were made for one number of devices", where=name
                )
        return _tables(Path(path))
    document = load(Path(path))
    top = Fields(document, file)
    own = top.whole("batch", 1)
    if batch is not None and batch != own:
        raise InputError(f"{file}: batch is {batch}, but its graph is written out for {own} samples", where="batch")
    graph = _graph(top, file, own, cutoff or top.whole("cutoff", 1))
    limit = inf if memory is None else memory
    return Problem(
        graph,
        _cluster(devices or DEVICES, limit, flops, bw),
        PaSEFlops(flops, bw),
        Recipe(own, "sgd", 0.0, "float32", "float32"),
        limits=Limits(memory=limit, keep_free=0.0),
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """One node of the file as an op without names of tensors."""

    kind: str
    rule: Rule
    settings: tuple[tuple[str, Arg], ...]
    weight: tuple[int, ...] = ()
    """Shape of a weight that the file does not list."""


def _graph(top: Fields, file: str, batch: int, cutoff: int) -> Graph:
    nodes = nodes_by_id(top, file)
    feeds: dict[tuple[int, int], str] = {}
    links: list[tuple[int, int]] = []
    for edge in top.rows("edges"):
        u, v = edge.ident("src"), edge.ident("dst")
        for name, i in (("src", u), ("dst", v)):
            if i not in nodes:
                raise edge.wrong(name, i, "the id of a node")
        links.append((u, v))
        slot = (v, edge.whole("dst_in"))
        if slot in feeds:
            raise edge.wrong("dst_in", slot[1], f"an input of node {v} that no other edge feeds")
        feeds[slot] = f"{u}:{edge.whole('src_out')}"
    parsed = {v: _node(nodes[v], cutoff) for v in nodes}
    tensors: dict[str, Tensor] = {}
    ops: list[Op] = []
    for v in in_order(nodes, links, file):
        node, fields = parsed[v], nodes[v]
        shapes = _shapes(fields, "inputs")
        names = [feeds.get((v, k), f"{v}:in{k}") for k in range(len(shapes))]
        if node.kind == "Einsum" and (v, 1) not in feeds:
            names[1] = f"{v}:weight"
        if node.weight:
            names.append(f"{v}:weight")
            shapes = [*shapes, node.weight]
        made = _shapes(fields, "outputs")
        for name, shape in zip(names, shapes, strict=True):
            role = "param" if name.endswith(":weight") else "activation" if name in tensors else "input"
            if (name.split(":")[1].isdigit()) and name not in tensors:
                raise fields.wrong("inputs", name, "outputs of the nodes that edges come from")
            tensors.setdefault(name, Tensor(name, 4.0 * prod(shape), shape, "float32", role))  # type: ignore[arg-type]
        outputs = [f"{v}:{k}" for k in range(len(made))]
        tensors |= {o: Tensor(o, 4.0 * prod(shape), shape) for o, shape in zip(outputs, made, strict=True)}
        if len(names) != len(node.rule.operands) or len(outputs) != len(node.rule.results):
            raise fields.wrong("inputs", shapes, f"{len(node.rule.operands)} inputs of a {node.kind}")
        ops.append(Op(str(v), node.kind, tuple(names), tuple(outputs), node.rule, kwargs=node.settings))
    used = {t for op in ops for t in op.inputs}
    ends = tuple(t for op in ops for t in op.outputs if t not in used)
    inputs = tuple(t.name for t in tensors.values() if t.role == "input")
    graph = Graph(tuple(ops), tuple(tensors.values()), batch, inputs=inputs, outputs=ends, loss=ends[-1])
    return replace(graph, digest=digest_of(graph))


def _shapes(fields: Fields, name: str) -> list[tuple[int, ...]]:
    found = fields.value.get(name)
    if not isinstance(found, list) or not all(isinstance(s, list) and _whole(s) for s in found):
        raise fields.wrong(name, found, "a list of shapes, each of whole numbers of 1 or more")
    return [tuple(s) for s in found]


def _whole(values: Sequence[object]) -> bool:
    sized = all(isinstance(x, int) and not isinstance(x, bool) and 1 <= x < 1 << 53 for x in values)
    return sized and prod(cast(Sequence[int], values)) <= LARGEST


def _node(fields: Fields, cutoff: int) -> _Node:
    """The rule of a node: which of its dims make up each dim of its tensors."""
    kind = fields.text("type")
    dom = fields.value.get("dom")
    if not isinstance(dom, list) or not dom or not _whole(dom):
        raise fields.wrong("dom", dom, "sizes of the iteration space, whole numbers of 1 or more")
    ins, outs = _shapes(fields, "inputs"), _shapes(fields, "outputs")
    names: tuple[str, ...] = tuple(f"d{i}" for i in range(len(dom)))
    fixed: set[str] = set()
    settings: dict[str, Arg] = {CUTOFF: cutoff}
    weight: tuple[int, ...] = ()
    if kind == "Conv" and len(dom) == 7:
        names, fixed = _CONV, {"h", "w"}
        operands, results = [_one("bchw"), _one("ncrs")], [_one("bnhw")]
        settings["pw"] = fields.whole("pw_op_cnt")
        weight = (dom[6], dom[1], dom[4], dom[5])
    elif kind == "FC" and len(dom) >= 2:
        names = (*names[:-2], "n", "k")
        operands, results = [_one((*names[:-2], "k")), _one("nk")], [_one((*names[:-2], "n"))]
        settings["pw"] = fields.whole("pw_op_cnt")
        weight = (dom[-2], dom[-1])
    elif kind == "LSTM" and len(dom) == 5:
        names, fixed = _LSTM, {"s"}
        operands, results = [_one("bsk"), _one("lnk")], [_one("bsn")]
        weight = (dom[0], 4 * dom[3], 2 * dom[4])
    elif kind == "Einsum":
        names = tuple(fields.text("dom_names"))
        left, arrow, right = fields.text("eq").partition("->")
        operands, results = [_one(word) for word in left.split(",")], [_one(right)]
        if len(operands) != 2 or not arrow or set(left + right) - {","} != set(names) or len(names) != len(dom):
            raise fields.wrong("eq", fields.value["eq"], "two operands -> result, over the letters of dom_names")
        settings["pw"] = fields.whole("pw_op_cnt")
    elif kind == "Pooling" and len(dom) == 4:
        names = _CONV[:4]
        operands, results = [_one(names)], [_one(names)]
        window = fields.value.get("window")
        if not isinstance(window, list) or len(window) != 2 or not _whole(window):
            raise fields.wrong("window", window, "two whole numbers, height and width")
        settings |= {"window": tuple(window), "input": ins[0][2:]}
    elif kind in _SAME:
        operands, results = [_one(names)] * len(ins), [_one(names)] * len(outs)
        if kind in ("Norm", "Softmax"):
            settings["axis"] = _axis(fields, len(dom))
        if kind == "Elementwise":
            settings["pw"] = fields.whole("pw_op_cnt")
        if kind == "Concat":
            fixed = {n for i, n in enumerate(names) if outs[0][i] != dom[i]}
    elif kind in ("Ravel", "Unravel"):
        flat: Dims = (names,)
        operands, results = ([_one(names)], [flat]) if kind == "Ravel" else ([flat], [_one(names)])
    elif kind in ("Stack", "Unstack"):
        axis = names[_axis(fields, len(dom))]
        fixed = {axis}
        rest, whole = _one(n for n in names if n != axis), _one(names)
        operands, results = ([rest] * len(ins), [whole]) if kind == "Stack" else ([whole], [rest] * len(outs))
    elif kind == "ReduceMean":
        axes = fields.value.get("axis")
        if not isinstance(axes, list) or not all(isinstance(a, int) and 0 <= a < len(dom) for a in axes):
            raise fields.wrong("axis", axes, "a list of dims")
        settings["axis"] = tuple(axes)
        operands = [_one(names)]
        results = [_one(n for i, n in enumerate(names) if i not in axes)]
    else:
        raise fields.wrong("type", kind, "a kind of op that the prototype has, with its number of dims in dom")
    factors = tuple(Factor(n, size, "fixed" if n in fixed else "free") for n, size in zip(names, dom, strict=True))
    return _Node(kind, Rule(factors, tuple(operands), tuple(results)), tuple(settings.items()), weight)


def _one(names: Any) -> Dims:
    """One factor a dim."""
    return tuple((name,) for name in names)


def _axis(fields: Fields, dims: int) -> int:
    axis = fields.whole("axis")
    if axis >= dims:
        raise fields.wrong("axis", axis, f"a dim below {dims}")
    return axis


def _cluster(devices: int, memory: float, flops: float, bw: float) -> Cluster:
    kind = DeviceType("device", "gpu", memory, {"float32": flops * 1e12}, 0.0)
    return Cluster("pase", (kind,), devices, levels=(Level("network", devices, bw * 1e9),))


def _tables(path: Path) -> Problem:
    """The problem of the prototype's own tables."""
    arrays = Arrays(path)
    count = sum(name.startswith("node_cost_") for name in arrays.value)
    edges = arrays.indices("edges", count, None, 2) if "edges" in arrays.value else np.zeros((0, 2), np.int64)
    options: dict[str, Options] = {}
    devices = 1
    for i in range(count):
        configs, price = arrays.ints(f"configs_{i}", None, None), arrays.floats(f"node_cost_{i}", None)
        cuts = [prod(map(int, c)) for c in configs]
        if not cuts or not 1 <= min(cuts) <= max(cuts) <= MOST or (configs < 1).any():
            raise arrays.wrong(f"configs_{i}", f"{len(cuts)} rows of cuts", f"some, whose products are 1 to {MOST:,}")
        devices = max(devices, *cuts)
        options[str(i)] = Options(tuple(",".join(map(str, c)) for c in configs), price, np.zeros(len(price)))
    pairs = [(str(u), str(v), arrays.floats(f"edge_cost_{j}", None, None)) for j, (u, v) in enumerate(edges)]
    return table_problem(arrays.file, options, pairs, devices=devices, unit="flop")
