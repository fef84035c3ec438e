"""Layer states of DAPPLE's profiles (PPoPP 2021): sums over everything up to a state, as its planner uses them.

    {"vgg-19": {"profile_batch": 32, "states": 25, "is_chain": true, "cumulative_ms": […], "cumulative_activation_bytes": […],
                "cumulative_parameter_bytes": […], "cut_bytes": […], "predecessors": [[…], …] unless a chain}}

State j is everything that its last layers depend on; the planner cuts after states. The layers are found from the states:
each state with one state right before it adds one layer. Times and activations are scaled to the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cluster.model import Cluster, DeviceType, Level
from ..cost.recorded import OpRecord, Recorded
from ..errors import InputError, Unsupported
from ..graph.ir import Factor, Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._fields import MOST, Fields, load, overrides_checked

MILLI = 1e-3
BANDWIDTH = (25e9, 1e9)
"""Bytes/s inside a server (NVLink) and between servers (point to point), the constants of the public planner."""
SERVER = 8
"""GPUs of a server of the study."""
_SUMS = ("cumulative_ms", "cumulative_activation_bytes", "cumulative_parameter_bytes", "cut_bytes")


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format?"""
    if not isinstance(document, Mapping) or not document:
        return False
    own = {"profile_batch", "is_chain", *_SUMS}
    return all(isinstance(v, Mapping) and own & set(v) for v in document.values())


def read(
    path: Path | str,
    *,
    profile: str | None = None,
    batch: int | None = None,
    devices: int | None = None,
    workers: Sequence[int] | str = (8, 2),
    bandwidth: Sequence[float] | str = BANDWIDTH,
    memory: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """The problem of one profile of a file.

    Args:
        profile: its name; None = the only one.
        batch: samples of a step; None = those of `micro_batches`, else the profiled batch.
        devices: GPUs, instead of `workers`: whole servers of 8, or fewer than 8 in one.
        workers: GPUs of a server and servers: (8, 2) or "8x2".
        bandwidth: bytes/s inside a server and between servers, or one figure for both.
        memory: bytes of one GPU.
        micro_batches: of a step, each of the profiled batch.

    Raises:
        InputError: names file and field.
    """
    document = load(Path(path))
    if profile is None and isinstance(document, Mapping) and len(document) == 1:
        profile = next(iter(document))
    return parse(
        document, str(path), profile, batch=batch, devices=devices, workers=workers, bandwidth=bandwidth, memory=memory,
        micro_batches=micro_batches,
    )  # fmt: skip


def parse(
    document: Any,
    file: str,
    profile: str | None,
    *,
    batch: int | None = None,
    devices: int | None = None,
    workers: Sequence[int] | str = (8, 2),
    bandwidth: Sequence[float] | str = BANDWIDTH,
    memory: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """`read`, of a parsed document."""
    overrides_checked(file, devices=devices, memory=memory, micro_batches=micro_batches)
    if batch is not None and batch < 1:
        raise InputError(f"{file}: batch is {batch}, wanted 1 sample or more", where="batch")
    if devices is not None:
        if workers != (SERVER, 2):
            raise InputError(f"{file}: devices and workers say the same twice: give one of them", where="devices")
        if devices > SERVER and devices % SERVER:
            raise InputError(
                f"{file}: devices is {devices}, wanted up to {SERVER} or whole servers of {SERVER}; say others as workers=8x2"
            )
        workers = (min(devices, SERVER), max(1, devices // SERVER))
    names = ", ".join(document) if isinstance(document, Mapping) else "none"
    if profile is None:
        raise InputError(f"{file}: it holds several profiles, name one as profile: {names}")
    if not isinstance(document, Mapping) or profile not in document:
        raise InputError(f'{file}: no profile "{profile}": there are {names}')
    fields = Fields(document[profile], file, profile)
    count, own = fields.whole("states", 1), fields.whole("profile_batch", 1)
    sums = [_column(fields, name, count) for name in _SUMS]
    before = _before(fields, count)
    covers = [[k for k in ks if not any(k in before[q] for q in ks)] for ks in before]
    adding = [j for j in range(count) if len(covers[j]) <= 1]
    below = np.zeros((count, len(adding)), bool)
    for v, j in enumerate(adding):
        below[j, v] = True
    for j in range(count):
        for k in sorted(before[j]):
            below[j] |= below[k]
    samples = batch or (micro_batches or 1) * own
    scale = samples / own
    ops, tensors, records = [], [], {}
    for v, j in enumerate(adding):
        added = [column[j] - (column[covers[j][0]] if covers[j] else 0.0) for column in sums[:3]]
        if added[0] < 0 or added[2] < 0:
            raise fields.wrong(_SUMS[0 if added[0] < 0 else 2], min(added[0], added[2]), f"sums that grow at state {j}")
        tensors.append(Tensor(f"{v}:out", sums[3][j] * scale, (samples,), "float"))
        inputs = [f"{adding.index(k)}:out" for k in _nearest(covers[j], covers, adding)]
        if added[2]:
            inputs.append(f"{v}:weight")
            tensors.append(Tensor(inputs[-1], added[2], role="param"))
        by_sample = tuple((("b",),) if name.endswith(":out") else () for name in inputs)
        rule = Rule((Factor("b", samples, samples=True),), by_sample, ((("b",),),))
        kept = (("state", j), ("activation", added[1] * scale))
        ops.append(Op(str(v), "profiled", tuple(inputs), (f"{v}:out",), rule, saved=(f"{v}:out",), kwargs=kept))
        half = added[0] * scale / 2
        records[str(v)] = OpRecord({"forward": half, "backward": half}, kept=max(0.0, added[1]) * scale)
    last = f"{len(adding) - 1}:out"
    graph = Graph(
        tuple(ops), tuple(tensors), samples, outputs=(last,), loss=last,
        values={"below": below.astype(np.int64), "cut_bytes": np.array(sums[3]) * scale},
    )  # fmt: skip
    return Problem(
        replace(graph, digest=digest_of(graph)),
        _cluster(file, workers, bandwidth, memory),
        Recorded(records, scale=MILLI),
        Recipe(samples, "sgd", 0.0, "float32", "float32"),
        limits=Limits(memory=inf if memory is None else memory, keep_free=0.0),
    )


def write(problem: Problem, name: str) -> dict[str, Any]:
    """The document that `read` makes this problem's graph from, its batch being the profiled one.

    Raises:
        Unsupported: a problem that was not read from such a document.
    """
    graph, cost = problem.graph, problem.cost
    if not isinstance(cost, Recorded) or "below" not in graph.values:
        raise Unsupported("only problems with recorded states can be written as DAPPLE's states")
    below = np.asarray(graph.values["below"], bool)
    unit = MILLI / cost.scale
    columns = []
    for what in (
        lambda op: sum(cost.ops[op.name].seconds.values()) / unit,
        lambda op: float(dict(op.kwargs)["activation"]),
        lambda op: sum(graph.tensor[x].nbytes for x in op.inputs if graph.tensor[x].role == "param"),
    ):
        each = np.array([what(op) for op in graph.ops])  # type: ignore[no-untyped-call]
        columns.append([float(each[row].sum()) for row in below])
    columns.append([float(x) for x in graph.values["cut_bytes"]])
    return document_of(name, graph.samples, below, columns)


def document_of(
    name: str, samples: int, below: NDArray[np.bool_], columns: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """The document of one profile.

    Args:
        below: [state, layer]: is the layer part of the state?
        columns: per state the cumulative milliseconds, bytes of activations and of parameters, and the bytes of its cut.
    """
    inside = [[k for k in range(len(below)) if k != j and not (below[k] & ~below[j]).any()] for j in range(len(below))]
    chain = all(len(ks) == j for j, ks in enumerate(inside))
    found: dict[str, Any] = {"profile_batch": samples, "states": len(below), "is_chain": chain}
    found |= {field: list(map(float, column)) for field, column in zip(_SUMS, columns)}
    return {name: found if chain else found | {"predecessors": inside}}


def _column(fields: Fields, name: str, count: int) -> list[float]:
    found = fields.value.get(name)
    if not isinstance(found, list) or len(found) != count:
        raise fields.wrong(name, found, f"a list of {count} numbers, one a state")
    for i, x in enumerate(found):
        if isinstance(x, bool) or not isinstance(x, int | float) or not isfinite(x) or x < 0:
            raise fields.wrong(f"{name}[{i}]", x, "a finite number of 0 or more")
    return [float(x) for x in found]


def _before(fields: Fields, count: int) -> list[set[int]]:
    if fields.flag("is_chain"):
        return [set(range(j)) for j in range(count)]
    found = fields.value.get("predecessors")
    if not isinstance(found, list) or len(found) != count:
        raise fields.wrong("predecessors", found, f"a list of {count} lists, one a state")
    for j, ks in enumerate(found):
        if not isinstance(ks, list) or not all(isinstance(k, int) and 0 <= k < j for k in ks):
            raise fields.wrong(f"predecessors[{j}]", ks, f"states below {j}")
    return [set(ks) for ks in found]


def _nearest(ks: Sequence[int], covers: Sequence[Sequence[int]], adding: Sequence[int]) -> list[int]:
    """The states that add a layer, at or right below the given ones."""
    found: dict[int, None] = {}
    stack = list(ks)
    while stack:
        k = stack.pop()
        if len(covers[k]) <= 1:
            found[k] = None
        else:
            stack += covers[k]
    return sorted(found)


def _cluster(
    file: str, workers: Sequence[int] | str, bandwidth: Sequence[float] | str, memory: float | None
) -> Cluster:
    try:
        counts = [int(x) for x in (workers.split("x") if isinstance(workers, str) else workers)]
    except ValueError:
        counts = []
    try:
        rates = [float(x) for x in (bandwidth.split(",") if isinstance(bandwidth, str) else bandwidth)]
    except ValueError:
        rates = []
    rates = rates * 2 if len(rates) == 1 else rates  # the same everywhere
    if len(counts) != 2 or min(counts) < 1:
        raise InputError(f"{file}: workers is {workers!r}, wanted GPUs of a server and servers, such as 8x2")
    if prod(counts) > MOST:
        raise InputError(f"{file}: workers are {prod(counts):,} in all, wanted at most {MOST:,}", where="workers")
    if len(rates) != 2 or not all(0 < rate < inf for rate in rates):
        raise InputError(
            f"{file}: bandwidth is {bandwidth!r}, wanted finite bytes/s inside a server and between, such as 25e9,1e9"
        )
    levels = (Level("server", counts[0], rates[0]), Level("network", prod(counts), rates[1]))
    gpu = DeviceType("gpu", "gpu", inf if memory is None else memory, {}, 0.0)
    return Cluster("profiled", (gpu,), prod(counts), (), levels)
