"""What makes a plan legal. Structure only: whether it fits in memory needs the schedule's timing, hence a simulation.

The cost follows the size of the compact plan (entries of stages), not the number of layers: coverage is a matter of
ranges, a sharding is checked for the representative of all its copies, and equal tables of equal meshes once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from .._spelling import nearest
from ..cluster.model import Mesh
from ..errors import InputError
from ..graph.ir import Factor, Graph
from ._validate_schedule import check_schedule
from .layout import check_layout, check_weights
from .lookup import entry_range
from .model import Cut, Layout, OpSharding, Plan, Stage, Storage
from .problem import Problem


def validate(problem: Problem, plan: Plan) -> None:
    """Checks that `plan` is a legal answer to `problem`.

    Raises:
        InputError: says stage, op or field, what was found and what would be right.
    """
    graph = plan.rewritten if plan.rewritten is not None else problem.graph
    if problem.graph.digest and plan.graph != problem.graph.digest:
        raise InputError(
            f"the plan is for graph {plan.graph[:12] or 'unknown'}, the problem has graph {problem.graph.digest[:12]}: "
            "plan this problem again"
        )
    if plan.samples < 1:
        raise InputError(f"the plan has {plan.samples} samples a step: it must have at least 1")
    if not plan.stages:
        raise InputError("the plan has no stages: every op must be in one")
    seen: set[tuple[int, int, tuple[str, ...], tuple[int, ...]]] = set()
    for s, stage in enumerate(plan.stages):
        _check_mesh(stage.mesh, problem.cluster.count, f"stage {s}")
        _check_stage(graph, stage, s, seen, problem.cluster.count)
    ranges = [_ranges(graph, stage, s) for s, stage in enumerate(plan.stages)]
    _check_coverage(graph, plan, ranges)
    _check_places(problem, graph, plan, ranges)
    for name in plan.frozen:
        if name not in graph.tensor or graph.tensor[name].role != "param":
            raise InputError(f'frozen names "{name}", which is no parameter of this graph' + _near(name, graph.tensor))
    for name in plan.cached:
        if name not in graph.tensor:
            raise InputError(f'cached names "{name}", which is no tensor of this graph' + _near(name, graph.tensor))
    check_schedule(plan)
    if plan.schedule.name != "dataflow":
        _check_order(graph, plan, ranges)


def _check_mesh(mesh: Mesh, count: int, where: str) -> None:
    if len(set(mesh.axes)) != len(mesh.axes):
        raise InputError(f"{where}: mesh axes {', '.join(mesh.axes)} name one twice")
    if not mesh.devices:
        raise InputError(f"{where}: its mesh has no devices")
    for device in (min(mesh.devices), max(mesh.devices)):
        if not 0 <= device < count:
            raise InputError(f"{where}: device {device} is not in this cluster, which has 0 to {count - 1}")


def _check_stage(
    graph: Graph, stage: Stage, s: int, seen: set[tuple[int, int, tuple[str, ...], tuple[int, ...]]], count: int
) -> None:
    mesh = stage.mesh
    tables: tuple[tuple[Mapping[str, object], Callable[[], None]], ...] = (
        (stage.shardings, lambda: _check_shardings(graph, stage.shardings, mesh, s)),
        (stage.layouts, lambda: _check_layouts(graph, "layouts", stage.layouts, mesh, s)),
        (stage.gradients, lambda: _check_layouts(graph, "gradients", stage.gradients, mesh, s)),
        (stage.storage, lambda: _check_storage(graph, stage.storage, mesh, s, count)),
    )
    for table, check in tables:
        # Planners hand the same dict to all equal stages; its identity holds as long as the plan lives.
        key = (id(table), len(table), mesh.axes, mesh.shape)
        if table and key not in seen:
            check()
            seen.add(key)
    for name in sorted(stage.recompute):
        if name not in graph.position:
            raise InputError(f'stage {s}: recompute names "{name}", which is no op' + _near(name, graph.position))
    for name in sorted(stage.offload):
        if name not in graph.tensor:
            raise InputError(f'stage {s}: offload names "{name}", which is no tensor' + _near(name, graph.tensor))
    if stage.recompute_blocks < 0:
        raise InputError(f"stage {s}: recompute_blocks = {stage.recompute_blocks} must be 0 (all) or more blocks")
    if stage.keep_last < 0:
        raise InputError(f"stage {s}: keep_last = {stage.keep_last} must be 0 or more micro-batches")
    if stage.deal and stage.deal not in mesh.axes:
        raise InputError(f'stage {s}: deal names axis "{stage.deal}", its mesh has {_listed(mesh.axes)}')
    for program in stage.sums:
        for axis in (*program.axes, *(a for step in program.steps for a in (*step.axes, *step.at_zero))):
            if axis not in mesh.axes:
                raise InputError(f'stage {s}: a sum programme names axis "{axis}", its mesh has {_listed(mesh.axes)}')


def _check_shardings(graph: Graph, shardings: Mapping[str, OpSharding], mesh: Mesh, s: int) -> None:
    for name, sharding in shardings.items():
        where = f"stage {s}, op {name}"
        index = graph.position.get(name)
        if index is None:
            raise InputError(f'stage {s}: shardings name "{name}", which is no op' + _near(name, graph.position))
        op = graph.ops[index]
        factors = {factor.name: factor for factor in op.rule.factors}
        _check_factors(sharding.cuts, factors, mesh, where)
        for k, own in sharding.backward.items():
            if not 0 <= k < len(op.inputs):
                raise InputError(
                    f"{where}: backward speaks of operand {k}, but there are {len(op.inputs)}, counted from 0"
                )
            _check_factors(own, factors, mesh, f"{where}, gradient of operand {k}")
        for tensor in sharding.kept:
            if tensor not in op.inputs:
                raise InputError(f'{where}: kept names "{tensor}", its operands are {_listed(op.inputs)}')


def _check_factors(cuts: Mapping[str, tuple[Cut, ...]], factors: Mapping[str, Factor], mesh: Mesh, where: str) -> None:
    used: set[str] = set()
    for factor, own in cuts.items():
        if factor not in factors:
            raise InputError(f'{where}: no factor "{factor}": it has {_listed(factors)}')
        if own and factors[factor].kind == "fixed":
            raise InputError(f'{where}: factor "{factor}" is fixed and cannot be cut')
        _check_cuts(own, mesh, used, where)


def _check_cuts(cuts: Iterable[Cut], mesh: Mesh, used: set[str], where: str) -> None:
    for cut in cuts:
        if cut.axis not in mesh.axes:
            raise InputError(f'{where}: no axis "{cut.axis}" in its mesh, which has {_listed(mesh.axes)}')
        if cut.axis in used:
            raise InputError(f'{where}: axis "{cut.axis}" cuts twice: each axis cuts one factor of an op')
        used.add(cut.axis)
        if cut.weights:
            _named(where, lambda cut=cut: check_weights(cut, mesh))  # type: ignore[misc]


def _check_layouts(graph: Graph, field: str, layouts: Mapping[str, Layout], mesh: Mesh, s: int) -> None:
    for name, layout in layouts.items():
        if name not in graph.tensor:
            raise InputError(f'stage {s}: {field} name "{name}", which is no tensor' + _near(name, graph.tensor))
        if graph.tensor[name].role == "param":
            raise InputError(f'stage {s}: {field} name parameter "{name}": its rest placement belongs in storage')
        if layout.partial:
            raise InputError(
                f"stage {s}, tensor {name}: its layout is partial over {_listed(layout.partial)}: it must be whole"
            )
        _check_one(graph, name, layout, mesh, f"stage {s}, tensor {name}")


def _check_storage(graph: Graph, storage: Mapping[str, Storage], mesh: Mesh, s: int, count: int) -> None:
    for name, kept in storage.items():
        where = f"stage {s}, parameter {name}"
        if name not in graph.tensor or graph.tensor[name].role != "param":
            near = _near(name, (t.name for t in graph.params()))
            raise InputError(f'stage {s}: storage names "{name}", which is no parameter' + near)
        for part, layout in (("param", kept.param), ("grad", kept.grad), ("state", kept.state)):
            if layout is not None:
                if layout.partial:
                    raise InputError(
                        f"{where}: its {part} layout is partial over {_listed(layout.partial)}: it must be whole"
                    )
                _check_one(graph, name, layout, mesh, f"{where}, {part}")
        if not 0.0 <= kept.resident <= 1.0:
            raise InputError(f"{where}: resident = {kept.resident} must be a share from 0 to 1")
        for device in kept.home:
            if not 0 <= device < count:
                raise InputError(f"{where}: home {device} is not in this cluster, which has 0 to {count - 1}")


def _check_one(graph: Graph, name: str, layout: Layout, mesh: Mesh, where: str) -> None:
    shape = graph.tensor[name].shape
    if shape or not layout.dims:
        _named(where, lambda: check_layout(layout, shape, mesh))
    else:
        raise InputError(f"{where}: its shape is unknown or (), so its layout has no dims")


def _named(where: str, check: Callable[[], object]) -> None:
    try:
        check()
    except InputError as error:
        raise InputError(f"{where}: {error.message}") from error


def _ranges(graph: Graph, stage: Stage, s: int) -> list[range]:
    found: list[range] = []
    for entry in stage.ops:
        try:
            found.append(entry_range(graph, entry))
        except InputError as error:
            raise InputError(f"stage {s}: {error.message}") from error
        if len(found) > 1 and found[-1].start < found[-2].stop:
            raise InputError(
                f'stage {s}: "{entry}" is not after "{stage.ops[len(found) - 2]}": ops stand once, in program order'
            )
    return found


def _check_coverage(graph: Graph, plan: Plan, ranges: Sequence[list[range]]) -> None:
    constants: frozenset[int] | None = None
    for pipe in sorted({stage.pipe for stage in plan.stages}):
        own = [(r.start, r.stop, s) for s, stage in enumerate(plan.stages) if stage.pipe == pipe for r in ranges[s]]
        covered, holder = 0, -1
        suffix = f" of pipe {pipe}" if pipe else ""
        for start, stop, s in sorted(own):
            if start > covered:
                raise InputError(f'op "{graph.ops[covered].name}" is in no stage{suffix}: each op must be in one')
            if start < covered:
                constants = _constants(graph) if constants is None else constants
                for i in range(start, min(stop, covered)):
                    if i not in constants:
                        raise InputError(
                            f'op "{graph.ops[i].name}" is in stages {holder} and {s}{suffix}: only constants, which depend '
                            "on no input and no parameter, may be in several"
                        )
            if stop > covered:
                covered, holder = stop, s
        if covered < len(graph.ops):
            raise InputError(f'op "{graph.ops[covered].name}" is in no stage{suffix}: each op must be in one')


def _constants(graph: Graph) -> frozenset[int]:
    """Ops that depend on no input and no parameter: each device can compute them itself."""
    found: set[int] = set()
    for i, op in enumerate(graph.ops):
        makers = [graph.producer.get(name, -1) for name in op.inputs]
        if all(
            maker in found or (maker < 0 and graph.tensor[name].role == "buffer")
            for maker, name in zip(makers, op.inputs)
        ):
            found.add(i)
    return frozenset(found)


def _check_places(problem: Problem, graph: Graph, plan: Plan, ranges: Sequence[list[range]]) -> None:
    """Device kinds and colocation keys of ops that have any."""
    if not any(op.colocate or op.runs_on for op in graph.ops):
        return
    homes: dict[tuple[int, str], tuple[str, frozenset[int], int]] = {}
    for s, stage in enumerate(plan.stages):
        devices = frozenset(stage.mesh.devices)
        kinds = {problem.cluster.type_of(device).kind for device in devices}
        for op in (graph.ops[i] for r in ranges[s] for i in r):
            if op.runs_on and not kinds <= set(op.runs_on):
                raise InputError(
                    f"stage {s}, op {op.name}: runs on {_listed(op.runs_on)} only, not on {_listed(sorted(kinds))}"
                )
            if op.colocate:
                first, place, at = homes.setdefault((stage.pipe, op.colocate), (op.name, devices, s))
                if place != devices:
                    raise InputError(
                        f'ops "{first}" (stage {at}) and "{op.name}" (stage {s}) share the key "{op.colocate}": they must be '
                        "on the same devices"
                    )


def _check_order(graph: Graph, plan: Plan, ranges: Sequence[list[range]]) -> None:
    """Values go from a stage to later ones only: rows run stages whole, in the order of their numbers."""
    for pipe in sorted({stage.pipe for stage in plan.stages}):
        stages = [s for s, stage in enumerate(plan.stages) if stage.pipe == pipe and ranges[s]]
        if all(ranges[a][-1].stop <= ranges[b][0].start for a, b in pairwise(stages)):
            continue  # consecutive parts of a topological order
        holders: dict[int, list[int]] = {}
        for s in stages:
            for i in (i for r in ranges[s] for i in r):
                holders.setdefault(i, []).append(s)
        for i, own in holders.items():
            for name in graph.ops[i].inputs:
                makers = holders.get(graph.producer.get(name, -1), [])
                for s in own:
                    if makers and min(makers) > s:
                        raise InputError(
                            f'stage {s} reads "{name}", which stage {min(makers)} makes: schedule {plan.schedule.name} runs '
                            "stages in order, so values go to later ones only"
                        )


def _near(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f': did you mean "{near}"?' if near else " of this graph"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
