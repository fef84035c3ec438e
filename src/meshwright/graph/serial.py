"""A graph as JSON and back, and the digest that plans refer to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import InputError
from .ir import Arg, Dims, Factor, Graph, Op, Rule, Run, Running, Slot, Tensor

SCHEMA = 1


def to_json(graph: Graph) -> dict[str, Any]:
    """Plain data for `json.dumps`. Rules stand once, ops name them by number."""
    rules: dict[int, int] = {}
    table: list[Rule] = []
    equal: dict[Rule, int] = {}
    for op in graph.ops:
        if id(op.rule) not in rules:
            if op.rule not in equal:
                equal[op.rule] = len(table)
                table.append(op.rule)
            rules[id(op.rule)] = equal[op.rule]
    return {
        "schema": SCHEMA,
        "samples": graph.samples,
        "training": graph.training,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "loss": graph.loss,
        "digest": graph.digest,
        "notes": list(graph.notes),
        "aliases": dict(graph.aliases),
        "runs": [asdict(run) for run in graph.runs],
        **({"running": {op: asdict(r) for op, r in graph.running.items()}} if graph.running else {}),
        "values": {name: [str(v.dtype), v.tolist()] for name, v in graph.values.items()},
        "tensors": [[t.name, t.nbytes, list(t.shape), t.dtype, t.role, *_frozen(t)] for t in graph.tensors],
        "rules": [_rule_out(rule) for rule in table],
        "ops": [_op_out(op, rules[id(op.rule)]) for op in graph.ops],
    }


def from_json(data: Mapping[str, Any]) -> Graph:
    """The inverse of `to_json`. Raises InputError for another schema or a missing field."""
    if data.get("schema") != SCHEMA:
        raise InputError(f"the graph has schema {data.get('schema')}, this version reads {SCHEMA}: capture it again")
    try:
        rules = [_rule_in(rule) for rule in data["rules"]]
        return Graph(
            tuple(_op_in(op, rules) for op in data["ops"]),
            tuple(Tensor(n, float(b), tuple(s), d, r, *f) for n, b, s, d, r, *f in data["tensors"]),
            data["samples"],
            data["training"],
            tuple(data["inputs"]),
            tuple(data["outputs"]),
            data["loss"],
            tuple(Run(**run) for run in data["runs"]),
            dict(data["aliases"]),
            {name: np.asarray(value, dtype=dtype) for name, (dtype, value) in data["values"].items()},
            tuple(data["notes"]),
            data["digest"],
            {op: Running(**r) for op, r in data.get("running", {}).items()},
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"the graph is damaged: {error!r}; capture it again") from error


def _frozen(tensor: Tensor) -> tuple[bool, ...]:
    """Said only where it is so: digests and files of models that learn whole stay as they were."""
    return (True,) if tensor.frozen else ()


def equal_graphs(a: Graph, b: Graph) -> bool:
    """Field by field; arrays of values by their elements."""
    return to_json(a) == to_json(b)


def digest_of(graph: Graph) -> str:
    """Of the structure: shapes, rules, arguments and edges; not of source lines, runs and notes."""
    content = hashlib.sha256()
    seen: dict[int, str] = {}
    for tensor in graph.tensors:
        content.update(
            repr((tensor.name, tensor.nbytes, tensor.shape, tensor.dtype, tensor.role, *_frozen(tensor))).encode()
        )
    for op in graph.ops:
        rule = seen.get(id(op.rule))
        if rule is None:
            rule = seen[id(op.rule)] = repr(op.rule)
        fields = (op.name, op.kind, op.inputs, op.outputs, op.flops, op.saved, op.saved_extra, op.phase, op.of)
        content.update(repr((*fields, op.call, op.args, op.kwargs, op.colocate, op.runs_on, op.after)).encode())
        content.update(rule.encode())
    rest = (graph.samples, graph.training, graph.inputs, graph.outputs, graph.loss, sorted(graph.aliases.items()))
    content.update(repr(rest).encode())
    for name in sorted(graph.values):
        content.update(name.encode() + np.ascontiguousarray(graph.values[name]).tobytes())
    return content.hexdigest()[:16]


def dumps(graph: Graph) -> str:
    return json.dumps(to_json(graph), separators=(",", ":"), allow_nan=False)


def loads(text: str) -> Graph:
    return from_json(json.loads(text))


def _arg_out(value: Arg) -> Any:
    if isinstance(value, Slot):
        return {"slot": value.index}
    if isinstance(value, tuple):
        return [_arg_out(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _arg_in(value: Any) -> Arg:
    if isinstance(value, dict):
        return Slot(value["slot"]) if "slot" in value else float(value["float"])
    if isinstance(value, list):
        return tuple(_arg_in(v) for v in value)
    plain: Arg = value
    return plain


def _dims_out(dims: Dims) -> list[list[str]]:
    return [list(dim) for dim in dims]


def _dims_in(dims: list[list[str]]) -> Dims:
    return tuple(tuple(dim) for dim in dims)


def _rule_out(rule: Rule) -> dict[str, Any]:
    return {
        "factors": [[f.name, f.size, f.kind, f.samples, list(f.halo), list(f.sums)] for f in rule.factors],
        "operands": [_dims_out(d) for d in rule.operands],
        "results": [_dims_out(d) for d in rule.results],
    }


def _rule_in(data: Mapping[str, Any]) -> Rule:
    return Rule(
        tuple(
            Factor(n, size, kind, samples, tuple(halo), tuple(sums))
            for n, size, kind, samples, halo, sums in data["factors"]
        ),
        tuple(_dims_in(d) for d in data["operands"]),
        tuple(_dims_in(d) for d in data["results"]),
    )


_DEFAULTS: Mapping[str, Any] = {
    "flops": 0.0,
    "saved": (),
    "saved_extra": 0.0,
    "phase": "forward",
    "of": "",
    "module": "",
    "colocate": "",
    "runs_on": (),
    "after": (),
    "call": "",
    "source": "",
}


def _op_out(op: Op, rule: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": op.name,
        "kind": op.kind,
        "inputs": list(op.inputs),
        "outputs": list(op.outputs),
        "rule": rule,
    }
    for key, default in _DEFAULTS.items():
        value = getattr(op, key)
        if value != default:
            data[key] = list(value) if isinstance(value, tuple) else value
    if op.args:
        data["args"] = [_arg_out(a) for a in op.args]
    if op.kwargs:
        data["kwargs"] = [[k, _arg_out(v)] for k, v in op.kwargs]
    return data


def _op_in(data: Mapping[str, Any], rules: list[Rule]) -> Op:
    fields: dict[str, Any] = {
        key: tuple(data[key]) if isinstance(default, tuple) else data[key]
        for key, default in _DEFAULTS.items()
        if key in data
    }
    return Op(
        data["name"],
        data["kind"],
        tuple(data["inputs"]),
        tuple(data["outputs"]),
        rules[data["rule"]],
        args=tuple(_arg_in(a) for a in data.get("args", ())),
        kwargs=tuple((k, _arg_in(v)) for k, v in data.get("kwargs", ())),
        **fields,
    )
