"""Profiled layer graphs of PipeDream (SOSP 2019): text files of msr-fiddle/pipedream, branch pipedream (MIT).

    node4 -- Embedding(32320, 1024) -- forward_compute_time=0.073, backward_compute_time=6.949, activation_size=6291456.0, parameter_size=132382720.000
        node4 -- node5

Milliseconds and bytes of one mini-batch. An `activation_size` may be a list [a; b] (parts of a tuple): the sum counts. A node
may carry ` -- stage_id=N`. One mini-batch is one sample of the graph that is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, prod
from pathlib import Path

from .._parsed import ENCODING
from ..cluster.model import Cluster, DeviceType, Level
from ..cost.recorded import OpRecord, Recorded
from ..errors import InputError, Unsupported
from ..graph.ir import Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._fields import MOST, in_order, one_piece, overrides_checked

MILLI = 1e-3
_FIELDS = ("forward_compute_time", "backward_compute_time", "activation_size", "parameter_size")
_NODE = re.compile(rf"\S+ -- .*({'|'.join(_FIELDS)})=")


def recognises(text: str) -> bool:
    """Is this text of this format?"""
    return any(_NODE.match(line) for line in text.splitlines())


def read(
    path: Path | str,
    *,
    workers: Sequence[int] | int | str = (1,),
    bandwidth: Sequence[float] | float | str = (),
    devices: int | None = None,
    memory: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """The problem of one file.

    Args:
        devices: workers on one level, instead of `workers`.
        workers: members of each level, innermost first: (8, 2) or "8x2" is 2 servers of 8.
        bandwidth: bytes/s of each level, innermost first: numbers or "2.5e10,3.125e9".
        memory: bytes of one worker.
        micro_batches: mini-batches a step; None = one a worker.

    Raises:
        InputError: names file, line and field.
    """
    overrides_checked(str(path), devices=devices, memory=memory, micro_batches=micro_batches)
    if devices is not None:
        if workers != (1,):
            raise InputError(f"{path}: devices and workers say the same twice: give one of them", where="devices")
        workers = (devices,)
    if isinstance(workers, int):
        workers = (workers,)
    if isinstance(bandwidth, int | float):
        bandwidth = (bandwidth,)
    try:
        text = Path(path).read_text(ENCODING)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error.reason} at byte {error.start}", where=str(path)) from error
    return parse(text, str(path), workers=workers, bandwidth=bandwidth, memory=memory, micro_batches=micro_batches)


def parse(
    text: str,
    file: str,
    *,
    workers: Sequence[int] | str = (1,),
    bandwidth: Sequence[float] | str = (),
    memory: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """`read`, of a text."""
    nodes: dict[str, tuple[str, dict[str, float], str, str]] = {}
    edges: list[tuple[str, str]] = []
    lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if line.startswith("\t"):
            ends = line.strip().split(" -- ")
            if len(ends) != 2:
                raise InputError(f"{file}:{number}: an edge is two node names with -- between: {line.strip()[:60]!r}")
            if (ends[0], ends[1]) in lines:
                raise InputError(f"{file}:{number}: edge {ends[0]} to {ends[1]} stands twice")
            lines[ends[0], ends[1]] = number
            edges.append((ends[0], ends[1]))
            continue
        name, found = _node(line, f"{file}:{number}")
        if name in nodes:
            raise InputError(f"{file}:{number}: node {name} stands twice")
        nodes[name] = found
    if not nodes:
        raise InputError(f"{file}: it has no nodes: a graph has at least one")
    for ends_, number in lines.items():
        for end in ends_:
            if end not in nodes:
                raise InputError(f"{file}:{number}: the edge names {end}, which is no node of the file")
    count = _numbers(workers, "x", "workers", file)
    if prod(count) > MOST:
        raise InputError(f"{file}: workers are {prod(count):,.0f} in all, wanted at most {MOST:,}", where="workers")
    rates = _numbers(bandwidth, ",", "bandwidth", file) if bandwidth else (inf,) * len(count)
    return _problem(nodes, edges, file, tuple(map(int, count)), rates, memory, micro_batches)


def write(problem: Problem) -> str:
    """The text that `read` makes this problem's graph from.

    Raises:
        Unsupported: prices that are not recorded.
    """
    graph, cost = problem.graph, problem.cost
    if not isinstance(cost, Recorded):
        raise Unsupported(f"prices of {cost.name} are no profile: export the graph first, which prices every op")
    nodes, edges = [], []
    unit = MILLI / cost.scale
    for op in graph.ops:
        kept = dict(op.kwargs)
        record = cost.ops[op.name]
        forward, backward = (record.seconds.get(phase, 0.0) / unit for phase in ("forward", "backward"))
        parts = kept.get("activation")
        sizes = parts if isinstance(parts, tuple) else tuple(graph.tensor[name].nbytes for name in op.outputs)
        params = float(sum(graph.tensor[name].nbytes for name in op.inputs if graph.tensor[name].role == "param"))
        described = str(kept.get("description", op.kind))
        nodes.append(Node(op.name, described, forward, backward, sizes, params, str(kept.get("stage_id", ""))))  # type: ignore[arg-type]
        edges += [(graph.ops[graph.producer[name]].name, op.name) for name in op.inputs if name in graph.producer]
    return text_of(nodes, edges)


@dataclass(frozen=True, slots=True)
class Node:
    """One line of a file: milliseconds and bytes of one mini-batch."""

    name: str
    description: str
    forward: float
    backward: float
    activation: tuple[float, ...]
    """Of each part of its output."""
    params: float
    stage: str = ""


def text_of(nodes: Sequence[Node], edges: Sequence[tuple[str, str]]) -> str:
    """The text of a file."""
    lines = []
    for n in nodes:
        sizes = n.activation
        activation = f"[{'; '.join(map(repr, sizes))}]" if len(sizes) > 1 else repr(sizes[0] if sizes else 0.0)
        values = (repr(n.forward), repr(n.backward), activation, repr(n.params))
        fields = ", ".join(f"{field}={value}" for field, value in zip(_FIELDS, values))
        lines.append(f"{n.name} -- {n.description} -- {fields}" + (f" -- stage_id={n.stage}" if n.stage else ""))
    return "\n".join([*lines, *(f"\t{a} -- {b}" for a, b in edges)]) + "\n"


def _node(line: str, where: str) -> tuple[str, tuple[str, dict[str, float], str, str]]:
    """(name, (description, fields, text of the activation list or "", stage))."""
    parts = line.strip().split(" -- ")
    stage = parts.pop().removeprefix("stage_id=") if parts[-1].startswith("stage_id=") else ""
    if len(parts) < 3 or not parts[-1].startswith(_FIELDS[0]):
        raise InputError(f"{where}: a node is NAME -- DESCRIPTION -- {', '.join(f'{f}=…' for f in _FIELDS)}")
    values = dict(re.findall(r"(\w+)=(\[[^\]]*\]|[^,\s]+)", parts[-1]))
    found: dict[str, float] = {}
    listed = ""
    for name in _FIELDS:
        if name not in values:
            raise InputError(f"{where}: {name} is missing", where=where)
        text = values[name]
        try:
            numbers = [float(x) for x in text.strip("[]").split(";")]
        except ValueError:
            numbers = [inf]
        if not all(isfinite(x) and x >= 0 for x in numbers):
            raise InputError(f"{where}: {name} is {text}, wanted a finite number of 0 or more", where=where)
        found[name] = sum(numbers)
        if text.startswith("[") and name == "activation_size":
            listed = text
    return parts[0], (" -- ".join(parts[1:-1]), found, listed, stage)


def _numbers(given: Sequence[float] | str, sign: str, name: str, file: str) -> tuple[float, ...]:
    try:
        found = tuple(float(x) for x in (given.split(sign) if isinstance(given, str) else given))
    except ValueError:
        found = ()
    whole = name == "workers"
    if not found or any(not 0 < x < inf or (whole and x != int(x)) for x in found):
        wanted = 'whole numbers such as "8x2"' if whole else 'finite bytes/s such as "2.5e10,3.125e9"'
        raise InputError(f"{file}: {name} is {given!r}, wanted {wanted}, innermost level first")
    return found


def _problem(
    nodes: dict[str, tuple[str, dict[str, float], str, str]],
    edges: list[tuple[str, str]],
    file: str,
    workers: tuple[int, ...],
    bandwidth: tuple[float, ...],
    memory: float | None,
    micro_batches: int | None,
) -> Problem:
    if len(workers) != len(bandwidth):
        raise InputError(f"{file}: {len(workers)} levels of workers but {len(bandwidth)} bandwidths: give one a level")
    reads: dict[str, list[str]] = {name: [] for name in nodes}
    for a, b in edges:
        reads[b].append(a)
    ops, tensors, records = [], [], {}
    order = in_order(nodes, edges, file)
    one_piece(nodes, edges, file)
    for name in order:
        description, fields, listed, stage = nodes[name]
        out = f"{name}:out"
        tensors.append(Tensor(out, fields["activation_size"]))
        inputs = [f"{a}:out" for a in reads[name]]
        if fields["parameter_size"]:
            inputs.append(f"{name}:weight")
            tensors.append(Tensor(inputs[-1], fields["parameter_size"], role="param"))
        extra: list[tuple[str, str | tuple[float, ...]]] = [("description", description)]
        if listed:
            extra.append(("activation", tuple(float(x) for x in listed.strip("[]").split(";"))))
        if stage:
            extra.append(("stage_id", stage))
        kind = "input" if description.startswith("Input") else "profiled"
        rule = Rule((), ((),) * len(inputs), ((),))
        ops.append(Op(name, kind, tuple(inputs), (out,), rule, saved=(out,), kwargs=tuple(extra)))
        records[name] = OpRecord(
            {"forward": fields["forward_compute_time"], "backward": fields["backward_compute_time"]}
        )
    sources = {a for a, _ in edges}
    ends = tuple(f"{op.name}:out" for op in ops if op.name not in sources)
    graph = Graph(tuple(ops), tuple(tensors), 1, outputs=ends, loss=ends[-1] if ends else "")
    count = prod(workers)
    levels = tuple(Level(f"level{k + 1}", prod(workers[: k + 1]), rate) for k, rate in enumerate(bandwidth))
    worker = DeviceType("worker", "gpu", inf if memory is None else memory, {}, 0.0)
    return Problem(
        replace(graph, digest=digest_of(graph)),
        Cluster("profiled", (worker,), count, (), levels),
        Recorded(records, scale=MILLI),
        Recipe(micro_batches or count, "sgd", 0.0, "float32", "float32"),
        limits=Limits(memory=inf if memory is None else memory, keep_free=0.0),
    )
