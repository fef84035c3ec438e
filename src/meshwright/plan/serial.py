"""Plans as JSON, schema "meshwright.plan/1".

    meshes, layouts, shardings, storages   each distinct value once
    tables                                 each distinct {name: index} of a stage once: equal stages share it
    stages                                 one a line: ops, indices of mesh and tables, what is not the default
    schedule                               name, micro_batches, args; rows only for custom ones

A layout dim is a list of sub-dimensions [size, cut, …], a cut is an axis or {"axis", "weights"}; a range of devices is
"0:64:8". A field that holds its default is left out.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from .._parsed import ENCODING, parsed_json
from ..errors import InputError
from ..graph.ir import Graph
from . import _damage, _read
from ._fields import Fields, listed, text
from .model import (
    Action,
    Cut,
    Layout,
    OpSharding,
    Plan,
    Row,
    Schedule,
    Stage,
    Storage,
    SumProgram,
    Weights,
)
from .schedules.text import action_text

SCHEMA = "meshwright.plan/1"


class _Pool:
    """Distinct values in the order of first use, each encoded once."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._index: dict[str, int] = {}

    def add(self, value: object) -> int:
        key = json.dumps(value, sort_keys=True)
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(value)
        return self._index[key]


def to_json(plan: Plan) -> dict[str, object]:
    """The plan as an object that `json.dumps` can write; `from_json` gives back an equal plan."""
    pools = {name: _Pool() for name in ("meshes", "layouts", "shardings", "storages", "tables", "sets")}
    stages = [_stage(stage, pools) for stage in plan.stages]
    found: dict[str, object] = {"schema": SCHEMA, "graph": plan.graph, "samples": plan.samples}
    found.update((name, pool.values) for name, pool in pools.items() if pool.values)
    found["stages"] = stages
    found["schedule"] = _schedule(plan.schedule)
    if plan.frozen:
        found["frozen"] = sorted(plan.frozen)
    if plan.cached:
        found["cached"] = sorted(plan.cached)
    if plan.inputs:
        found["inputs"] = {name: [list(shape), dtype] for name, (shape, dtype) in plan.inputs.items()}
    if plan.precision:
        found["precision"] = plan.precision
    if plan.rewritten is not None:
        found["rewritten"] = _graph_to_json(plan.rewritten)
    return found


def from_json(data: object) -> Plan:
    """The plan of a decoded JSON object.

    Raises:
        InputError: another schema, an unknown field (with the nearest known name), a value of the wrong kind.
    """
    fields = Fields(data, "")
    schema = text(fields.get("schema", ""), "schema")
    if schema != SCHEMA:
        raise InputError(f'schema is "{schema}": this version reads "{SCHEMA}"')
    meshes = fields.listed("meshes", _read.mesh)
    layouts = fields.listed("layouts", _read.layout)
    shardings = fields.listed("shardings", _read.sharding)
    storages = fields.listed("storages", _read.storage(layouts))
    tables = fields.listed("tables", _read.table)
    sets = fields.listed("sets", lambda item, where: frozenset(listed(item, where, text)))
    pools = _read.Pools(meshes, layouts, shardings, storages, tables, sets)
    stages = fields.listed("stages", pools.stage)
    schedule = _read.schedule(fields.get("schedule", {"name": "dataflow"}), "schedule")
    frozen = frozenset(fields.listed("frozen", text))
    cached = frozenset(fields.listed("cached", text))
    inputs = fields.mapped("inputs", _read.input_like)
    precision = fields.text("precision", "")
    rewritten = fields.get("rewritten")
    plan = Plan(
        graph=fields.text("graph"),
        samples=fields.integer("samples"),
        stages=tuple(stages),
        schedule=schedule,
        frozen=frozen,
        cached=cached,
        rewritten=None if rewritten is None else _graph_from_json(rewritten),
        inputs=inputs,
        precision=precision,
    )
    fields.close()
    return plan


def dumps(plan: Plan) -> str:
    """JSON text with one mesh, layout, table and stage a line, so that two plans differ line by line."""
    lines = []
    for name, value in to_json(plan).items():
        if isinstance(value, list) and value:
            items = ",\n  ".join(_compact(item) for item in value)
            lines.append(f'"{name}": [\n  {items}\n]')
        else:
            lines.append(f'"{name}": {_compact(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes the plan; the file is complete or not there."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dumps(plan))
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def load(path: str | os.PathLike[str]) -> Plan:
    """The plan in a file.

    Raises:
        InputError: no such file, not a text, damaged (with line and stage), or what `from_json` refuses.
    """
    file = Path(path)
    again = f'so nothing was read: write it again with "meshwright plan {file.parent / "problem.toml"}"'
    try:
        content = file.read_text(encoding=ENCODING)
    except OSError as error:
        raise InputError(
            f"{file}: {(error.strerror or 'cannot be read').lower()}: give a plan.json or its folder"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file.name}: byte {error.start} is no text, {again}") from error
    try:
        data = parsed_json(content, parse_constant=_NotFinite.refuse)
    except _NotFinite as error:
        found = re.search(rf"[:,\[]\s*{re.escape(str(error))}", content)
        line = content[: found.end()].count("\n") + 1 if found else 1
        raise InputError(f"{file.name}:{line}: {error} is no number a plan may hold: numbers must be finite") from error
    except json.JSONDecodeError as error:
        # A file that was cut off fails at its end, or in the string that the cut left open.
        cut = error.pos >= len(content.rstrip()) or error.msg.startswith("Unterminated string")
        if cut:
            line = content.rstrip().count("\n") + 1
            where = f"cut off {_damage.place(content, 'stages', 'stage')}"
        else:
            line = error.lineno
            where = f"damaged {_damage.place(content[: error.pos], 'stages', 'stage')}"
        raise InputError(f"{file.name}:{line}: {where}, {again}") from error
    try:
        return from_json(data)
    except InputError as error:
        raise InputError(f"{file.name}: {error.message}") from error


class _NotFinite(Exception):
    """NaN or Infinity, which JSON of Python's own kind would take for numbers."""

    @classmethod
    def refuse(cls, value: str) -> float:
        raise cls(value)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)


def _stage(stage: Stage, pools: Mapping[str, _Pool]) -> dict[str, object]:
    layouts, shardings, storages, tables = (pools[n] for n in ("layouts", "shardings", "storages", "tables"))
    found: dict[str, object] = {"ops": list(stage.ops), "mesh": pools["meshes"].add(_mesh(stage))}
    if stage.shardings:
        found["shardings"] = tables.add({k: shardings.add(_sharding(s)) for k, s in stage.shardings.items()})
    if stage.layouts:
        found["layouts"] = tables.add({k: layouts.add(_layout(v)) for k, v in stage.layouts.items()})
    if stage.gradients:
        found["gradients"] = tables.add({k: layouts.add(_layout(v)) for k, v in stage.gradients.items()})
    if stage.storage:
        found["storage"] = tables.add({k: storages.add(_storage(s, layouts)) for k, s in stage.storage.items()})
    if stage.recompute:
        found["recompute"] = pools["sets"].add(sorted(stage.recompute))
    rest: dict[str, object] = {
        "recompute_at": stage.recompute_at if stage.recompute_at != "block" else "",
        "recompute_blocks": stage.recompute_blocks,
        "keep_last": stage.keep_last,
        "offload": sorted(stage.offload),
        "deal": stage.deal,
        "pipe": stage.pipe,
        "sums": [_sum(program) for program in stage.sums],
    }
    found.update((name, value) for name, value in rest.items() if value)
    return found


def _mesh(stage: Stage) -> dict[str, object]:
    mesh = stage.mesh
    found: dict[str, object] = {"devices": _devices(mesh.devices)}
    if mesh.axes:
        found.update(axes=list(mesh.axes), shape=list(mesh.shape))
    return found


def _devices(devices: Sequence[int]) -> object:
    """A range as "start:stop:step"; anything else as a list, rising runs of 4 or more in it as "start:stop"."""
    if isinstance(devices, range):
        return f"{devices.start}:{devices.stop}" + (f":{devices.step}" if devices.step != 1 else "")
    found: list[object] = []
    for _, group in groupby(enumerate(devices), key=lambda pair: pair[1] - pair[0]):
        run = [device for _, device in group]
        found += [f"{run[0]}:{run[-1] + 1}"] if len(run) >= 4 else run
    return found


def _cut(cut: Cut) -> object:
    return {"axis": cut.axis, "weights": list(cut.weights)} if cut.weights else cut.axis


def _layout(layout: Layout) -> dict[str, object]:
    found: dict[str, object] = {"dims": [[[size, *map(_cut, cuts)] for size, cuts in dim] for dim in layout.dims]}
    if layout.partial:
        found["partial"] = list(layout.partial)
    return found


def _sharding(sharding: OpSharding) -> dict[str, object]:
    found: dict[str, object] = {"cuts": _cuts(sharding.cuts)}
    if sharding.variant:
        found["variant"] = sharding.variant
    if sharding.kept:
        found["kept"] = list(sharding.kept)
    if sharding.backward:
        found["backward"] = {str(k): _cuts(cuts) for k, cuts in sharding.backward.items()}
    return found


def _cuts(cuts: Mapping[str, Sequence[Cut]]) -> dict[str, object]:
    return {factor: [_cut(c) for c in own] for factor, own in cuts.items()}


def _storage(storage: Storage, layouts: _Pool) -> dict[str, object]:
    parts = {"param": storage.param, "grad": storage.grad, "state": storage.state}
    found: dict[str, object] = {k: layouts.add(_layout(v)) for k, v in parts.items() if v is not None}
    if storage.home:
        found["home"] = list(storage.home)
    if storage.resident != 1.0:
        found["resident"] = storage.resident
    return found


def _sum(program: SumProgram) -> dict[str, object]:
    steps = []
    for step in program.steps:
        found: dict[str, object] = {"kind": step.kind, "axes": list(step.axes)}
        if step.at_zero:
            found["at_zero"] = list(step.at_zero)
        steps.append(found)
    return {"axes": list(program.axes), "steps": steps}


def _schedule(schedule: Schedule) -> dict[str, object]:
    found: dict[str, object] = {"name": schedule.name, "micro_batches": schedule.micro_batches}
    if schedule.args:
        found["args"] = dict(schedule.args)
    if schedule.rows:
        found["rows"] = [_row(row) for row in schedule.rows]
    default = Weights()
    changed = {
        name: getattr(schedule.weights, name)
        for name in _read.WEIGHTS
        if getattr(schedule.weights, name) != getattr(default, name)
    }
    if changed:
        found["weights"] = changed
    return found


def _row(row: Row) -> dict[str, object]:
    return {"devices": _devices(row.devices), "actions": [_action(action) for action in row.actions]}


def _action(action: Action | tuple[Action, Action]) -> object:
    """Text where there is one ("2F3"), else [kind, on, micro_batch, span, peer]; a pair of others is a list of two lists."""
    members = action if isinstance(action, tuple) else (action,)
    if all(_has_text(a) for a in members):
        return action_text(action)
    found = [[a.kind, a.on, a.micro_batch, a.span, a.peer] for a in members]
    return found if isinstance(action, tuple) else found[0]


def _has_text(a: Action) -> bool:
    whole = a.kind in ("UPDATE", "REDUCE", "GATHER", "FREE") and (a.micro_batch, a.span) == (0, 1)
    return isinstance(a.on, int) and a.peer == -1 and (whole or a.kind in ("F", "B", "I", "W"))


def _graph_to_json(graph: Graph) -> object:
    from ..graph import serial

    return serial.to_json(graph)


def _graph_from_json(data: object) -> Graph:
    from ..graph import serial

    if not isinstance(data, dict):
        raise InputError("rewritten must be an object: a graph")
    try:
        return serial.from_json(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"rewritten is no graph ({type(error).__name__}: {error})") from None
